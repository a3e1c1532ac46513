//! Gradients of a model's own weights, where a run trains all of them: sequence by sequence, summed in fp32.

use tch::{Kind, Tensor};

use super::linear::{Linear, Routing, Rows, accumulate_product};
use super::norm::RmsNorm;
use crate::lora::Gradients;
use crate::pack::Span;
use crate::torch::TorchResult;

/// Adds the gradients of a linear map's weight `[out, in]` and bias, given its input `x` and its output's gradient.
pub(crate) fn linear(
    linear: &Linear,
    x: &Tensor,
    dy: &Tensor,
    routing: &Routing,
    gradients: &[&mut Gradients],
) -> TorchResult<()> {
    each(routing, gradients, |rows, sums| {
        let (x, dy) = (rows.of(x)?, rows.of(dy)?);
        if let Some(mut sum) = sums.weight(linear.weight.tensor())? {
            accumulate_product(&mut sum, &dy, &x)?;
        }
        if let Some(bias) = &linear.bias
            && let Some(mut sum) = sums.weight(bias.tensor())?
        {
            let _ = sum.f_add_(&dy.f_sum_dim_intlist(0, false, Kind::Float)?)?;
        }
        Ok(())
    })
}

/// Adds the gradient of a norm's weight, given its input `x` (`[rows, …, width]`) and its output's gradient.
pub(crate) fn norm(
    norm: &RmsNorm,
    x: &Tensor,
    dy: &Tensor,
    routing: &Routing,
    gradients: &[&mut Gradients],
) -> TorchResult<()> {
    each(routing, gradients, |rows, sums| {
        let Some(mut sum) = sums.weight(norm.weight.tensor())? else { return Ok(()) };
        let own = |tensor: &Tensor| rows.of(tensor)?.f_reshape([-1, sum.numel() as i64]);
        let normal = norm.normal(&own(x)?)?;
        let product = own(dy)?.f_to_kind(Kind::Float)?.f_mul(&normal)?;
        let _ = sum.f_add_(&product.f_sum_dim_intlist(0, false, Kind::Float)?)?;
        Ok(())
    })
}

/// Adds the gradient of an embedding's rows for these tokens, given that of what they became, row by row.
pub(crate) fn embedding(
    weight: &Tensor,
    tokens: &[u32],
    dx: &Tensor,
    routing: &Routing,
    gradients: &[&mut Gradients],
) -> TorchResult<()> {
    let ids: Vec<i64> = tokens.iter().map(|token| i64::from(*token)).collect();
    let ids = Tensor::f_from_slice(&ids)?.f_to_device(dx.device())?;
    each(routing, gradients, |rows, sums| {
        let Some(mut sum) = sums.embedding(weight)? else { return Ok(()) };
        let _ = sum.f_index_add_(0, &rows.of(&ids)?, &rows.of(dx)?.f_to_kind(Kind::Float)?)?;
        Ok(())
    })
}

/// The sums of the run that a sequence is of, if it trains all weights.
pub(super) fn trained<'a>(span: &Span, gradients: &'a [&mut Gradients]) -> Option<&'a Gradients> {
    let sums: &Gradients = gradients.get(span.adapter?)?;
    sums.are_of_weights().then_some(sums)
}

/// Every sequence whose run trains all weights, in the order of the pass.
pub(super) fn each(
    routing: &Routing,
    gradients: &[&mut Gradients],
    mut add: impl FnMut(&Rows, &Gradients) -> TorchResult<()>,
) -> TorchResult<()> {
    for group in &routing.groups {
        if let Some(sums) = gradients.get(group.index)
            && sums.are_of_weights()
        {
            add(&group.rows, sums)?;
        }
    }
    Ok(())
}
