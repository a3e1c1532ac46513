//! Products of vectors and matrices, and distances.

use std::collections::BTreeMap;

use tch::Tensor;

use super::{Cost, Operation};
use crate::losses::custom::arguments::Arguments;
use crate::losses::custom::value::{Fault, Value, broadcast_volume, volume};

pub(super) const PRODUCTS: &[Operation] = &[
    Operation::new("matmul mm bmm mv", "input:T other:T out:N?", Cost::Own, |a| {
        let (input, other) = (a.tensor(0)?, a.tensor(1)?);
        reserve_product(a, input, other)?;
        Ok(input.f_matmul(other)?.into())
    }),
    Operation::new("dot vdot", "input:T other:T out:N?", Cost::Inputs, |a| {
        Ok(a.tensor(0)?.f_dot(a.tensor(1)?)?.into())
    }),
    Operation::new("inner", "input:T other:T out:N?", Cost::Own, |a| {
        let (input, other) = (a.tensor(0)?, a.tensor(1)?);
        a.budget.reserve((input.numel() as u64).checked_mul(other.numel() as u64))?;
        Ok(input.f_inner(other)?.into())
    }),
    Operation::new("outer ger", "input:T vec2:T out:N?", Cost::Own, |a| {
        let (input, other) = (a.tensor(0)?, a.tensor(1)?);
        a.budget.reserve((input.numel() as u64).checked_mul(other.numel() as u64))?;
        Ok(input.f_outer(other)?.into())
    }),
    Operation::new("linear", "input:T weight:T bias:T?", Cost::Own, |a| {
        let (input, weight) = (a.tensor(0)?, a.tensor(1)?);
        a.budget.reserve((input.numel() as u64).checked_mul(weight.numel() as u64))?;
        Ok(input.f_linear(weight, a.tensor_or_none(2)?)?.into())
    }),
    Operation::new("einsum", "equation:S operands:A*", Cost::Own, |a| {
        let tensors: Vec<&Tensor> = match a.value(1) {
            Value::Tensor(tensor) => vec![tensor],
            _ => a.tensors(1)?,
        };
        let equation = a.text_or(0, "")?;
        // Whatever the order of the products is, none has more values than all labels span.
        a.budget.reserve(volume(&label_sizes(equation, &tensors)?))?;
        Ok(Tensor::f_einsum(equation, &tensors, None::<Vec<i64>>)?.into())
    }),
    Operation::new("cdist", "x1:T x2:T p:F? compute_mode:A?", Cost::Own, |a| {
        let (first, second) = (a.tensor(0)?, a.tensor(1)?);
        a.budget.reserve((first.numel() as u64).checked_mul(second.numel() as u64))?;
        Ok(Tensor::f_cdist(first, second, a.number_or(2, 2.0)?, None)?.into())
    }),
    Operation::new("pairwise_distance", "x1:T x2:T p:F? eps:F? keepdim:B?", Cost::Broadcast, |a| {
        let (p, eps) = (a.number_or(2, 2.0)?, a.number_or(3, 1e-6)?);
        Ok(Tensor::f_pairwise_distance(a.tensor(0)?, a.tensor(1)?, p, eps, a.bool_or(4, false)?)?.into())
    }),
    Operation::new("cosine_similarity", "x1:T x2:T dim:I? eps:F?", Cost::Broadcast, |a| {
        Ok(Tensor::f_cosine_similarity(a.tensor(0)?, a.tensor(1)?, a.int_or(2, 1)?, a.number_or(3, 1e-8)?)?.into())
    }),
    Operation::new("trace", "input:T", Cost::Inputs, |a| Ok(a.tensor(0)?.f_trace()?.into())),
];

/// A matrix product writes one value for each row and column, and reads a row for each of them.
fn reserve_product(a: &Arguments, input: &Tensor, other: &Tensor) -> Result<(), Fault> {
    let (left, right) = (input.size(), other.size());
    let (Some(inner), Some(_)) = (left.last().copied(), right.last()) else {
        return Err(Fault::new("a matrix product needs at least one dimension on each side"));
    };
    let rows = if left.len() > 1 { left[left.len() - 2] } else { 1 };
    let columns = if right.len() > 1 { right[right.len() - 1] } else { 1 };
    let batch = |shape: &[i64]| shape[..shape.len().saturating_sub(2)].to_vec();
    let matrices = broadcast_volume(&[batch(&left), batch(&right)]);
    let values = volume(&[rows, columns]).zip(matrices).and_then(|(one, matrices)| one.checked_mul(matrices));
    a.budget.reserve(values)?;
    let work = values.and_then(|values| values.checked_mul(u64::try_from(inner).ok()?));
    a.budget.spend(work.unwrap_or(u64::MAX))
}

/// The size of every label of an equation.
fn label_sizes(equation: &str, tensors: &[&Tensor]) -> Result<Vec<i64>, Fault> {
    let inputs = equation.split("->").next().unwrap_or_default();
    let mut sizes: BTreeMap<char, i64> = BTreeMap::new();
    for (labels, tensor) in inputs.split(',').zip(tensors) {
        let labels: Vec<char> = labels.chars().filter(|label| !label.is_whitespace()).collect();
        if labels.iter().any(|label| !label.is_ascii_alphabetic()) {
            return Err(Fault::new("an equation of `einsum` may only have letters for dimensions"));
        }
        for (label, size) in labels.into_iter().zip(tensor.size()) {
            let known = sizes.entry(label).or_insert(1);
            *known = (*known).max(size);
        }
    }
    Ok(sizes.into_values().collect())
}
