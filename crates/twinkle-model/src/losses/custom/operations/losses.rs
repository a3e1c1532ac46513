//! The losses of `torch.nn.functional`, and what normalises.

use tch::{Reduction, Tensor};

use super::{Cost, Operation};
use crate::losses::custom::arguments::{Arguments, check_dims};
use crate::losses::custom::value::{Fault, Value};

pub(super) const LOSSES: &[Operation] = &[
    Operation::new(
        "mse_loss",
        "input:T target:T size_average:N? reduce:N? reduction:S? weight:T?",
        Cost::Broadcast,
        |a| weighted(a, 5, 4, |input, target| input.f_mse_loss(target, Reduction::None)),
    ),
    Operation::new(
        "l1_loss",
        "input:T target:T size_average:N? reduce:N? reduction:S? weight:T?",
        Cost::Broadcast,
        |a| weighted(a, 5, 4, |input, target| input.f_l1_loss(target, Reduction::None)),
    ),
    Operation::new(
        "smooth_l1_loss",
        "input:T target:T size_average:N? reduce:N? reduction:S? beta:F?",
        Cost::Broadcast,
        |a| Ok(a.tensor(0)?.f_smooth_l1_loss(a.tensor(1)?, reduction(a, 4)?, a.number_or(5, 1.0)?)?.into()),
    ),
    Operation::new("huber_loss", "input:T target:T reduction:S? delta:F? weight:T?", Cost::Broadcast, |a| {
        let delta = a.number_or(3, 1.0)?;
        weighted(a, 4, 2, |input, target| input.f_huber_loss(target, Reduction::None, delta))
    }),
    Operation::new(
        "binary_cross_entropy",
        "input:T target:T weight:T? size_average:N? reduce:N? reduction:S?",
        Cost::Broadcast,
        |a| {
            let weight = a.tensor_or_none(2)?;
            Ok(a.tensor(0)?.f_binary_cross_entropy(a.tensor(1)?, weight, reduction(a, 5)?)?.into())
        },
    ),
    Operation::new(
        "binary_cross_entropy_with_logits",
        "input:T target:T weight:T? size_average:N? reduce:N? reduction:S? pos_weight:T?",
        Cost::Broadcast,
        |a| {
            let (weight, positive) = (a.tensor_or_none(2)?, a.tensor_or_none(6)?);
            let loss =
                a.tensor(0)?.f_binary_cross_entropy_with_logits(a.tensor(1)?, weight, positive, reduction(a, 5)?);
            Ok(loss?.into())
        },
    ),
    Operation::new(
        "kl_div",
        "input:T target:T size_average:N? reduce:N? reduction:S? log_target:B?",
        Cost::Broadcast,
        |a| {
            let (input, target, log_target) = (a.tensor(0)?, a.tensor(1)?, a.bool_or(5, false)?);
            if a.text_or(4, "mean")? == "batchmean" {
                let rows = input.size().first().copied().unwrap_or(1);
                return Ok(input.f_kl_div(target, Reduction::Sum, log_target)?.f_div_scalar(rows)?.into());
            }
            Ok(input.f_kl_div(target, reduction(a, 4)?, log_target)?.into())
        },
    ),
    Operation::new(
        "nll_loss",
        "input:T target:T weight:T? size_average:N? ignore_index:I? reduce:N? reduction:S?",
        Cost::Inputs,
        |a| {
            let (weight, ignored) = (a.tensor_or_none(2)?, a.int_or(4, -100)?);
            Ok(a.tensor(0)?.f_nll_loss_nd(a.tensor(1)?, weight, reduction(a, 6)?, ignored)?.into())
        },
    ),
    Operation::new(
        "cross_entropy",
        "input:T target:T weight:T? size_average:N? ignore_index:I? reduce:N? reduction:S? label_smoothing:F?",
        Cost::Inputs,
        |a| {
            let (weight, ignored, smoothing) = (a.tensor_or_none(2)?, a.int_or(4, -100)?, a.number_or(7, 0.0)?);
            let loss = a.tensor(0)?.f_cross_entropy_loss(a.tensor(1)?, weight, reduction(a, 6)?, ignored, smoothing);
            Ok(loss?.into())
        },
    ),
    Operation::new(
        "soft_margin_loss",
        "input:T target:T size_average:N? reduce:N? reduction:S?",
        Cost::Broadcast,
        |a| Ok(a.tensor(0)?.f_soft_margin_loss(a.tensor(1)?, reduction(a, 4)?)?.into()),
    ),
    Operation::new(
        "margin_ranking_loss",
        "input1:T input2:T target:T margin:F? size_average:N? reduce:N? reduction:S?",
        Cost::Broadcast,
        |a| {
            let (margin, reduction) = (a.number_or(3, 0.0)?, reduction(a, 6)?);
            Ok(Tensor::f_margin_ranking_loss(a.tensor(0)?, a.tensor(1)?, a.tensor(2)?, margin, reduction)?.into())
        },
    ),
    Operation::new(
        "hinge_embedding_loss",
        "input:T target:T margin:F? size_average:N? reduce:N? reduction:S?",
        Cost::Broadcast,
        |a| Ok(a.tensor(0)?.f_hinge_embedding_loss(a.tensor(1)?, a.number_or(2, 1.0)?, reduction(a, 5)?)?.into()),
    ),
    Operation::new(
        "poisson_nll_loss",
        "input:T target:T log_input:B? full:B? size_average:N? eps:F? reduce:N? reduction:S?",
        Cost::Broadcast,
        |a| {
            let (log_input, full, eps) = (a.bool_or(2, true)?, a.bool_or(3, false)?, a.number_or(5, 1e-8)?);
            Ok(a.tensor(0)?.f_poisson_nll_loss(a.tensor(1)?, log_input, full, eps, reduction(a, 7)?)?.into())
        },
    ),
    Operation::new("normalize", "input:T p:F? dim:D? eps:F? out:N?", Cost::Inputs, |a| {
        let input = a.tensor(0)?;
        let dims = a.ints_or_none(2)?.unwrap_or_else(|| vec![1]);
        check_dims(input, &dims)?;
        let length = input.f_norm_scalaropt_dim(a.number_or(1, 2.0)?, dims, true)?;
        Ok(input.f_div(&length.f_clamp_min(a.number_or(3, 1e-12)?)?)?.into())
    }),
    Operation::new("layer_norm", "input:T normalized_shape:D weight:T? bias:T? eps:F?", Cost::Inputs, |a| {
        let (weight, bias, eps) = (a.tensor_or_none(2)?, a.tensor_or_none(3)?, a.number_or(4, 1e-5)?);
        Ok(a.tensor(0)?.f_layer_norm(a.ints(1)?, weight, bias, eps, false)?.into())
    }),
];

fn reduction(a: &Arguments, place: usize) -> Result<Reduction, Fault> {
    match a.text_or(place, "mean")? {
        "none" => Ok(Reduction::None),
        "mean" => Ok(Reduction::Mean),
        "sum" => Ok(Reduction::Sum),
        other => Err(Fault::new(format!("reduction `{other}` is not `none`, `mean` or `sum`"))),
    }
}

/// A loss of each value, multiplied by its weight; the mean is over the weights.
fn weighted(
    a: &Arguments,
    weight: usize,
    place: usize,
    each: impl Fn(&Tensor, &Tensor) -> Result<Tensor, tch::TchError>,
) -> Result<Value, Fault> {
    let loss = each(a.tensor(0)?, a.tensor(1)?)?;
    let weight = a.tensor_or_none(weight)?;
    let loss = weight.map_or_else(|| Ok(loss.shallow_clone()), |weight| loss.f_mul(weight))?;
    Ok(match reduction(a, place)? {
        Reduction::Sum => loss.f_sum(None)?,
        Reduction::Mean => match weight {
            Some(weight) => loss.f_sum(None)?.f_div(&weight.f_expand_as(&loss)?.f_sum(None)?)?,
            None => loss.f_mean(None)?,
        },
        _ => loss,
    }
    .into())
}
