//! What goes along a dimension in order.

use tch::Tensor;

use super::{Cost, Operation};
use crate::losses::custom::value::Fault;

pub(super) const SORTING: &[Operation] = &[
    Operation::new("cumsum", "input:T dim:I dtype:K? out:N?", Cost::Inputs, |a| {
        Ok(a.tensor(0)?.f_cumsum(a.int(1)?, a.kind_or_none(2)?)?.into())
    }),
    Operation::new("cumprod", "input:T dim:I dtype:K? out:N?", Cost::Inputs, |a| {
        Ok(a.tensor(0)?.f_cumprod(a.int(1)?, a.kind_or_none(2)?)?.into())
    }),
    Operation::new("cummax", "input:T dim:I", Cost::Inputs, |a| Ok(a.tensor(0)?.f_cummax(a.int(1)?)?.into())),
    Operation::new("cummin", "input:T dim:I", Cost::Inputs, |a| Ok(a.tensor(0)?.f_cummin(a.int(1)?)?.into())),
    Operation::new("logcumsumexp", "input:T dim:I", Cost::Inputs, |a| {
        Ok(a.tensor(0)?.f_logcumsumexp(a.int(1)?)?.into())
    }),
    Operation::new("diff", "input:T n:I? dim:I? prepend:T? append:T?", Cost::Inputs, |a| {
        let (n, dim) = (a.int_or(1, 1)?, a.int_or(2, -1)?);
        // Every round is a subtraction of the whole, and nothing is left after as many rounds as there are values.
        let values = a.tensor(0)?.numel() as u64;
        let rounds = u64::try_from(n).ok().filter(|rounds| *rounds <= values);
        let rounds = rounds.ok_or_else(|| Fault::new(format!("`n` must be between 0 and {values}")))?;
        a.budget.spend(values.saturating_mul(rounds))?;
        Ok(a.tensor(0)?.f_diff::<&Tensor>(n, dim, a.tensor_or_none(3)?, a.tensor_or_none(4)?)?.into())
    }),
    // Equal values keep their order, so that a replay finds the same.
    Operation::new("sort", "input:T dim:I? descending:B? stable:B?", Cost::Inputs, |a| {
        Ok(a.tensor(0)?.f_sort_stable(true, a.int_or(1, -1)?, a.bool_or(2, false)?)?.into())
    }),
    Operation::new("argsort", "input:T dim:I? descending:B? stable:B?", Cost::Inputs, |a| {
        Ok(a.tensor(0)?.f_argsort_stable(true, a.int_or(1, -1)?, a.bool_or(2, false)?)?.into())
    }),
    Operation::new("msort", "input:T", Cost::Inputs, |a| Ok(a.tensor(0)?.f_sort_stable(true, 0, false)?.0.into())),
    Operation::new("topk", "input:T k:I dim:I? largest:B? sorted:B?", Cost::Inputs, |a| {
        let (largest, sorted) = (a.bool_or(3, true)?, a.bool_or(4, true)?);
        Ok(a.tensor(0)?.f_topk(a.int(1)?, a.int_or(2, -1)?, largest, sorted)?.into())
    }),
    Operation::new("kthvalue", "input:T k:I dim:I? keepdim:B?", Cost::Inputs, |a| {
        Ok(a.tensor(0)?.f_kthvalue(a.int(1)?, a.int_or(2, -1)?, a.bool_or(3, false)?)?.into())
    }),
    Operation::new("searchsorted", "sorted_sequence:T input:T out_int32:B? right:B? side:S?", Cost::Inputs, |a| {
        let side = a.text_or(4, if a.bool_or(3, false)? { "right" } else { "left" })?;
        let right = side == "right";
        Ok(a.tensor(1)?.f_searchsorted::<&Tensor>(a.tensor(0)?, a.bool_or(2, false)?, right, side, None)?.into())
    }),
    Operation::new("bucketize", "input:T boundaries:T out_int32:B? right:B?", Cost::Inputs, |a| {
        Ok(a.tensor(0)?.f_bucketize(a.tensor(1)?, a.bool_or(2, false)?, a.bool_or(3, false)?)?.into())
    }),
];
