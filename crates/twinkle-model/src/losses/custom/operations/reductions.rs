//! Many values in, fewer out.

use tch::{Kind, Scalar, Tensor};

use super::{Cost, Operation};
use crate::losses::custom::arguments::{Arguments, check_dims};
use crate::losses::custom::value::{Fault, Value};

/// The two extremes that differ in nothing but their direction.
macro_rules! extreme {
    ($name:literal, $all:ident, $dim:ident, $pair:ident) => {
        Operation::new($name, "input:T dim:A? keepdim:B? other:T? out:N?", Cost::Broadcast, |a| {
            let input = a.tensor(0)?;
            if let Value::Tensor(other) = a.value(1) {
                return Ok(input.$pair(other)?.into());
            }
            if let Some(other) = a.tensor_or_none(3)? {
                return Ok(input.$pair(other)?.into());
            }
            if a.given(1) {
                return Ok(input.$dim(a.int(1)?, a.bool_or(2, false)?)?.into());
            }
            Ok(input.$all()?.into())
        })
    };
}

/// What is taken over one dimension, or over all values.
macro_rules! over_one {
    ($names:literal, $all:ident, $dim:ident) => {
        Operation::new($names, "input:T dim:I? keepdim:B? out:N?", Cost::Inputs, |a| {
            let input = a.tensor(0)?;
            Ok(match a.int_or_none(1)? {
                None => input.$all()?.into(),
                Some(dim) => input.$dim(dim, a.bool_or(2, false)?)?.into(),
            })
        })
    };
}

/// A spread around the mean, alone or with it.
macro_rules! spread {
    ($name:literal, $method:ident) => {
        Operation::new($name, "input:T dim:A? unbiased:B? keepdim:B? correction:F? out:N?", Cost::Inputs, |a| {
            let (dims, correction) = spread_arguments(a)?;
            check_dims(a.tensor(0)?, dims.as_deref().unwrap_or_default())?;
            Ok(a.tensor(0)?.$method(dims.as_deref(), correction, a.bool_or(3, false)?)?.into())
        })
    };
}

pub(super) const REDUCTIONS: &[Operation] = &[
    Operation::new("sum", "input:T dim:D? keepdim:B? dtype:K? out:N?", Cost::Inputs, |a| {
        let (input, kind) = (a.tensor(0)?, a.kind_or_none(3)?);
        Ok(match a.ints_or_none(1)? {
            None => input.f_sum(kind)?,
            Some(dims) => input.f_sum_dim_intlist(dims.as_slice(), a.bool_or(2, false)?, kind)?,
        }
        .into())
    }),
    Operation::new("mean", "input:T dim:D? keepdim:B? dtype:K? out:N?", Cost::Inputs, |a| {
        let (input, kind) = (a.tensor(0)?, a.kind_or_none(3)?);
        Ok(match a.ints_or_none(1)? {
            None => input.f_mean(kind)?,
            Some(dims) => input.f_mean_dim(dims.as_slice(), a.bool_or(2, false)?, kind)?,
        }
        .into())
    }),
    Operation::new("nansum", "input:T dim:D? keepdim:B? dtype:K? out:N?", Cost::Inputs, |a| {
        let dims = a.ints_or_none(1)?;
        Ok(a.tensor(0)?.f_nansum(dims.as_deref(), a.bool_or(2, false)?, a.kind_or_none(3)?)?.into())
    }),
    Operation::new("nanmean", "input:T dim:D? keepdim:B? dtype:K? out:N?", Cost::Inputs, |a| {
        let dims = a.ints_or_none(1)?;
        Ok(a.tensor(0)?.f_nanmean(dims.as_deref(), a.bool_or(2, false)?, a.kind_or_none(3)?)?.into())
    }),
    Operation::new("prod", "input:T dim:I? keepdim:B? dtype:K? out:N?", Cost::Inputs, |a| {
        let (input, kind) = (a.tensor(0)?, a.kind_or_none(3)?);
        Ok(match a.int_or_none(1)? {
            None => input.f_prod(kind)?,
            Some(dim) => input.f_prod_dim_int(dim, a.bool_or(2, false)?, kind)?,
        }
        .into())
    }),
    spread!("std", f_std_correction),
    spread!("var", f_var_correction),
    spread!("std_mean", f_std_mean_correction),
    spread!("var_mean", f_var_mean_correction),
    extreme!("max", f_max, f_max_dim, f_maximum),
    extreme!("min", f_min, f_min_dim, f_minimum),
    Operation::new("amax", "input:T dim:D? keepdim:B? out:N?", Cost::Inputs, |a| {
        Ok(a.tensor(0)?.f_amax(a.ints_or_none(1)?.unwrap_or_default(), a.bool_or(2, false)?)?.into())
    }),
    Operation::new("amin", "input:T dim:D? keepdim:B? out:N?", Cost::Inputs, |a| {
        Ok(a.tensor(0)?.f_amin(a.ints_or_none(1)?.unwrap_or_default(), a.bool_or(2, false)?)?.into())
    }),
    Operation::new("aminmax", "input:T dim:I? keepdim:B? out:N?", Cost::Inputs, |a| {
        Ok(a.tensor(0)?.f_aminmax(a.int_or_none(1)?, a.bool_or(2, false)?)?.into())
    }),
    Operation::new("argmax", "input:T dim:I? keepdim:B?", Cost::Inputs, |a| {
        Ok(a.tensor(0)?.f_argmax(a.int_or_none(1)?, a.bool_or(2, false)?)?.into())
    }),
    Operation::new("argmin", "input:T dim:I? keepdim:B?", Cost::Inputs, |a| {
        Ok(a.tensor(0)?.f_argmin(a.int_or_none(1)?, a.bool_or(2, false)?)?.into())
    }),
    over_one!("median", f_median, f_median_dim),
    over_one!("nanmedian", f_nanmedian, f_nanmedian_dim),
    over_one!("all", f_all, f_all_dim),
    over_one!("any", f_any, f_any_dim),
    Operation::new("mode", "input:T dim:I? keepdim:B? out:N?", Cost::Inputs, |a| {
        Ok(a.tensor(0)?.f_mode(a.int_or(1, -1)?, a.bool_or(2, false)?)?.into())
    }),
    Operation::new("quantile", "input:T q:O dim:I? keepdim:B? interpolation:S? out:N?", Cost::Own, |a| {
        quantile(a, Tensor::f_quantile)
    }),
    Operation::new("nanquantile", "input:T q:O dim:I? keepdim:B? interpolation:S? out:N?", Cost::Own, |a| {
        quantile(a, Tensor::f_nanquantile)
    }),
    Operation::new("logsumexp", "input:T dim:D keepdim:B? out:N?", Cost::Inputs, |a| {
        Ok(a.tensor(0)?.f_logsumexp(a.ints(1)?, a.bool_or(2, false)?)?.into())
    }),
    Operation::new("norm", "input:T p:A? dim:D? keepdim:B? out:N? dtype:K?", Cost::Inputs, |a| norm(a, a.value(1))),
    Operation::new("linalg_vector_norm", "input:T ord:F? dim:D? keepdim:B? dtype:K? out:N?", Cost::Inputs, |a| {
        norm(a, a.value(1))
    }),
    Operation::new("linalg_norm", "input:T ord:F? dim:D? keepdim:B? out:N? dtype:K?", Cost::Inputs, |a| {
        let dims = a.ints_or_none(2)?.map_or(a.tensor(0)?.dim(), |dims| dims.len());
        if dims > 1 && a.given(1) {
            return Err(Fault::new(
                "norms of matrices are not supported; give `dim` one dimension, or leave out `ord`",
            ));
        }
        norm(a, a.value(1))
    }),
    Operation::new("count_nonzero", "input:T dim:D?", Cost::Inputs, |a| {
        let input = a.tensor(0)?;
        Ok(match a.ints_or_none(1)? {
            None => input.f_count_nonzero(None)?,
            Some(dims) => input.f_count_nonzero_dim_intlist(dims)?,
        }
        .into())
    }),
    Operation::new("softmax", "input:T dim:I _stacklevel:A? dtype:K?", Cost::Inputs, |a| {
        Ok(a.tensor(0)?.f_softmax(a.int(1)?, trailing_kind(a)?)?.into())
    }),
    Operation::new("log_softmax", "input:T dim:I _stacklevel:A? dtype:K?", Cost::Inputs, |a| {
        Ok(a.tensor(0)?.f_log_softmax(a.int(1)?, trailing_kind(a)?)?.into())
    }),
    Operation::new("softmin", "input:T dim:I _stacklevel:A? dtype:K?", Cost::Inputs, |a| {
        Ok(a.tensor(0)?.f_neg()?.f_softmax(a.int(1)?, trailing_kind(a)?)?.into())
    }),
    Operation::new("dist", "input:T other:T p:F?", Cost::Broadcast, |a| {
        let difference = a.tensor(0)?.f_sub(a.tensor(1)?)?.f_flatten(0, -1)?;
        Ok(difference.f_norm_scalaropt_dim(a.number_or(2, 2.0)?, [0_i64], false)?.into())
    }),
];

/// Its dimensions and its correction, which may stand in each other's place.
fn spread_arguments(a: &Arguments) -> Result<(Option<Vec<i64>>, Scalar), Fault> {
    let (dims, unbiased) = match a.value(1) {
        Value::Bool(unbiased) => (None, *unbiased),
        _ => (a.ints_or_none(1)?, a.bool_or(2, true)?),
    };
    let correction = a.number_or(4, f64::from(u8::from(unbiased)))?;
    Ok((dims, Scalar::from(correction)))
}

/// The dtype of softmax, third in torch and fourth in `torch.nn.functional`.
fn trailing_kind(a: &Arguments) -> Result<Option<Kind>, Fault> {
    match a.value(2) {
        Value::Kind(kind) => Ok(Some(*kind)),
        _ => a.kind_or_none(3),
    }
}

type Quantile = fn(&Tensor, &Tensor, Option<i64>, bool, &str) -> Result<Tensor, tch::TchError>;

fn quantile(a: &Arguments, compute: Quantile) -> Result<Value, Fault> {
    let input = a.tensor(0)?;
    let wanted = a.operand(1, input.kind())?;
    let each = wanted.numel().max(1) as u64;
    a.budget.reserve((input.numel() as u64).checked_mul(each))?;
    let (dim, keep) = (a.int_or_none(2)?, a.bool_or(3, false)?);
    Ok(compute(input, &wanted, dim, keep, a.text_or(4, "linear")?)?.into())
}

/// The norm of a vector, or of all values when no dimension is named.
fn norm(a: &Arguments, order: &Value) -> Result<Value, Fault> {
    let input = a.tensor(0)?;
    let order = match order {
        Value::None => 2.0,
        Value::Text(name) if name == "fro" => 2.0,
        Value::Text(name) => return Err(Fault::new(format!("the norm `{name}` is not supported"))),
        _ => a.number(1)?,
    };
    let dims = match a.ints_or_none(2)? {
        Some(dims) => dims,
        None => (0..input.dim() as i64).collect(),
    };
    check_dims(input, &dims)?;
    Ok(input.f_norm_scalaropt_dim(order, dims, a.bool_or(3, false)?)?.into())
}
