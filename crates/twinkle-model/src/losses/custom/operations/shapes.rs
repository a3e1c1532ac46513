//! The same values in another shape or order.

use tch::Tensor;

use super::{Cost, Operation};
use crate::losses::custom::arguments::Arguments;
use crate::losses::custom::value::{Fault, Value, broadcast_volume, copied, volume};

/// Functions, and methods of the same name.
pub(super) const SHAPES: &[Operation] = &[
    Operation::new("reshape", "input:T shape:D*", Cost::Inputs, |a| Ok(a.tensor(0)?.f_reshape(a.ints(1)?)?.into())),
    Operation::new("flatten", "input:T start_dim:I? end_dim:I?", Cost::Inputs, |a| {
        Ok(a.tensor(0)?.f_flatten(a.int_or(1, 0)?, a.int_or(2, -1)?)?.into())
    }),
    Operation::new("ravel", "input:T", Cost::Inputs, |a| Ok(a.tensor(0)?.f_flatten(0, -1)?.into())),
    Operation::new("unflatten", "input:T dim:I sizes:D", Cost::Nothing, |a| {
        Ok(a.tensor(0)?.f_unflatten(a.int(1)?, a.ints(2)?)?.into())
    }),
    Operation::new("squeeze", "input:T dim:D?", Cost::Nothing, |a| {
        Ok(match a.ints_or_none(1)? {
            None => a.tensor(0)?.f_squeeze()?,
            Some(dims) => a.tensor(0)?.f_squeeze_dims(dims)?,
        }
        .into())
    }),
    Operation::new("unsqueeze", "input:T dim:I", Cost::Nothing, |a| Ok(a.tensor(0)?.f_unsqueeze(a.int(1)?)?.into())),
    Operation::new("transpose swapaxes swapdims", "input:T dim0:I dim1:I", Cost::Nothing, |a| {
        Ok(a.tensor(0)?.f_transpose(a.int(1)?, a.int(2)?)?.into())
    }),
    Operation::new("t", "input:T", Cost::Nothing, |a| transposed(a.tensor(0)?)),
    Operation::new("permute", "input:T dims:D*", Cost::Nothing, |a| Ok(a.tensor(0)?.f_permute(a.ints(1)?)?.into())),
    Operation::new("movedim moveaxis", "input:T source:D destination:D", Cost::Nothing, |a| {
        Ok(a.tensor(0)?.f_movedim(a.ints(1)?, a.ints(2)?)?.into())
    }),
    Operation::new("broadcast_to", "input:T size:D", Cost::Own, expanded),
    Operation::new("tile", "input:T dims:D*", Cost::Own, |a| {
        let (input, dims) = (a.tensor(0)?, a.ints(1)?);
        a.budget.reserve(volume(&dims).and_then(|times| times.checked_mul(input.numel() as u64)))?;
        Ok(input.f_tile(dims)?.into())
    }),
    Operation::new("repeat_interleave", "input:T repeats:A dim:I?", Cost::Own, |a| {
        let (input, dim) = (a.tensor(0)?, a.int_or_none(2)?);
        if let Value::Tensor(repeats) = a.value(1) {
            let most = if repeats.numel() == 0 { 0 } else { repeats.f_max()?.f_int64_value(&[])? };
            a.budget.reserve(u64::try_from(most).ok().and_then(|most| most.checked_mul(input.numel() as u64)))?;
            return Ok(input.f_repeat_interleave_self_tensor(repeats, dim, None)?.into());
        }
        let repeats = a.int(1)?;
        a.budget.reserve(u64::try_from(repeats).ok().and_then(|times| times.checked_mul(input.numel() as u64)))?;
        Ok(input.f_repeat_interleave_self_int(repeats, dim, None)?.into())
    }),
    Operation::new("cat concat concatenate", "tensors:L dim:I? out:N?", Cost::Inputs, |a| {
        Ok(Tensor::f_cat(&a.tensors(0)?, a.int_or(1, 0)?)?.into())
    }),
    Operation::new("stack", "tensors:L dim:I? out:N?", Cost::Inputs, |a| {
        Ok(Tensor::f_stack(&a.tensors(0)?, a.int_or(1, 0)?)?.into())
    }),
    Operation::new("hstack", "tensors:L out:N?", Cost::Inputs, |a| Ok(Tensor::f_hstack(&a.tensors(0)?)?.into())),
    Operation::new("vstack row_stack", "tensors:L out:N?", Cost::Inputs, |a| {
        Ok(Tensor::f_vstack(&a.tensors(0)?)?.into())
    }),
    Operation::new("column_stack", "tensors:L out:N?", Cost::Inputs, |a| {
        Ok(Tensor::f_column_stack(&a.tensors(0)?)?.into())
    }),
    Operation::new("chunk", "input:T chunks:I dim:I?", Cost::Own, |a| {
        let (input, dim) = (a.tensor(0)?, a.int_or(2, 0)?);
        reserve_pieces(a, input, dim)?;
        Ok(input.f_chunk(a.int(1)?, dim)?.into())
    }),
    Operation::new("split", "input:T split_size_or_sections:D dim:I?", Cost::Own, |a| {
        let (input, dim) = (a.tensor(0)?, a.int_or(2, 0)?);
        reserve_pieces(a, input, dim)?;
        Ok(match a.value(1).items() {
            Some(_) => input.f_split_with_sizes(a.ints(1)?, dim)?,
            None => input.f_split(a.int(1)?, dim)?,
        }
        .into())
    }),
    Operation::new("unbind", "input:T dim:I?", Cost::Own, |a| {
        let (input, dim) = (a.tensor(0)?, a.int_or(1, 0)?);
        reserve_pieces(a, input, dim)?;
        Ok(input.f_unbind(dim)?.into())
    }),
    Operation::new("narrow", "input:T dim:I start:I length:I", Cost::Nothing, |a| {
        Ok(a.tensor(0)?.f_narrow(a.int(1)?, a.int(2)?, a.int(3)?)?.into())
    }),
    Operation::new("select", "input:T dim:I index:I", Cost::Nothing, |a| {
        Ok(a.tensor(0)?.f_select(a.int(1)?, a.int(2)?)?.into())
    }),
    Operation::new("flip", "input:T dims:D*", Cost::Inputs, |a| Ok(a.tensor(0)?.f_flip(a.ints(1)?)?.into())),
    Operation::new("roll", "input:T shifts:D dims:D?", Cost::Inputs, |a| {
        Ok(a.tensor(0)?.f_roll(a.ints(1)?, a.ints_or_none(2)?.unwrap_or_default())?.into())
    }),
    Operation::new("pad", "input:T pad:D mode:S? value:F?", Cost::Own, |a| {
        let (input, pad) = (a.tensor(0)?, a.ints(1)?);
        let mut shape = input.size();
        for (size, pair) in shape.iter_mut().rev().zip(pad.chunks(2)) {
            let added = pair.iter().try_fold(0_i64, |sum, side| sum.checked_add((*side).max(0)));
            *size = added.and_then(|added| size.checked_add(added)).unwrap_or(i64::MAX);
        }
        a.reserve(&shape)?;
        let value = if a.given(3) { Some(a.number(3)?) } else { None };
        Ok(input.f_pad(pad, a.text_or(2, "constant")?, value)?.into())
    }),
    Operation::new("diag", "input:T diagonal:I?", Cost::Own, |a| {
        let (input, diagonal) = (a.tensor(0)?, a.int_or(1, 0)?);
        let side = diagonal.checked_abs().and_then(|offset| offset.checked_add(*input.size().first()?));
        let values =
            if input.dim() == 1 { side.and_then(|side| volume(&[side, side])) } else { Some(input.numel() as u64) };
        a.budget.reserve(values)?;
        Ok(input.f_diag(diagonal)?.into())
    }),
    Operation::new("diagonal", "input:T offset:I? dim1:I? dim2:I?", Cost::Nothing, |a| {
        Ok(a.tensor(0)?.f_diagonal(a.int_or(1, 0)?, a.int_or(2, 0)?, a.int_or(3, 1)?)?.into())
    }),
    Operation::new("tril", "input:T diagonal:I?", Cost::Inputs, |a| Ok(a.tensor(0)?.f_tril(a.int_or(1, 0)?)?.into())),
    Operation::new("triu", "input:T diagonal:I?", Cost::Inputs, |a| Ok(a.tensor(0)?.f_triu(a.int_or(1, 0)?)?.into())),
    Operation::new("atleast_1d", "input:T", Cost::Nothing, |a| Ok(a.tensor(0)?.f_atleast_1d()?.into())),
    Operation::new("atleast_2d", "input:T", Cost::Nothing, |a| Ok(a.tensor(0)?.f_atleast_2d()?.into())),
    Operation::new("clone", "input:T memory_format:P?", Cost::Inputs, |a| Ok(copied(a.tensor(0)?)?.into())),
    Operation::new("detach", "input:T", Cost::Nothing, |a| Ok(a.tensor(0)?.f_detach()?.into())),
    Operation::new("is_floating_point", "input:T", Cost::Nothing, |a| {
        Ok(Value::Bool(crate::losses::custom::value::is_floating(a.tensor(0)?.kind())))
    }),
    Operation::new("numel", "input:A", Cost::Nothing, |a| {
        // A shape can tell it, too.
        let count = if a.value(0).items().is_some() { volume(&a.ints(0)?) } else { Some(a.tensor(0)?.numel() as u64) };
        count.and_then(|count| i64::try_from(count).ok()).map(Value::Int).ok_or_else(|| Fault::new("too many values"))
    }),
];

/// Methods only.
pub(super) const METHODS: &[Operation] = &[
    Operation::new("view", "input:T shape:A*", Cost::Inputs, |a| {
        if let Value::Kind(_) = a.value(1) {
            return Err(Fault::new("a view as another dtype is not supported; use `to`"));
        }
        Ok(a.tensor(0)?.f_view_(a.ints(1)?)?.into())
    }),
    Operation::new("view_as reshape_as", "input:T other:T", Cost::Inputs, |a| {
        Ok(a.tensor(0)?.f_reshape(a.tensor(1)?.size())?.into())
    }),
    Operation::new("expand", "input:T size:D* implicit:B?", Cost::Own, expanded),
    Operation::new("expand_as", "input:T other:T", Cost::Broadcast, |a| {
        Ok(a.tensor(0)?.f_expand_as(a.tensor(1)?)?.into())
    }),
    Operation::new("repeat", "input:T repeats:D*", Cost::Own, |a| {
        let (input, repeats) = (a.tensor(0)?, a.ints(1)?);
        a.budget.reserve(volume(&repeats).and_then(|times| times.checked_mul(input.numel() as u64)))?;
        Ok(input.f_repeat(repeats)?.into())
    }),
    Operation::new("unfold", "input:T dimension:I size:I step:I", Cost::Own, |a| {
        let (input, size) = (a.tensor(0)?, a.int(2)?);
        a.budget.reserve(u64::try_from(size).ok().and_then(|size| size.checked_mul(input.numel() as u64)))?;
        Ok(input.f_unfold(a.int(1)?, size, a.int(3)?)?.into())
    }),
    Operation::new("contiguous", "input:T memory_format:P?", Cost::Inputs, |a| Ok(a.tensor(0)?.f_contiguous()?.into())),
    Operation::new("cpu", "input:T memory_format:P?", Cost::Nothing, |a| Ok(a.value(0).clone())),
    Operation::new("dim ndimension", "input:T", Cost::Nothing, |a| Ok(Value::Int(a.tensor(0)?.dim() as i64))),
    Operation::new("nelement", "input:T", Cost::Nothing, |a| Ok(Value::Int(a.tensor(0)?.numel() as i64))),
    Operation::new("size", "input:T dim:I?", Cost::Nothing, |a| {
        let size = a.tensor(0)?.size();
        let Some(dim) = a.int_or_none(1)? else {
            return Ok(Value::Tuple(size.into_iter().map(Value::Int).collect()));
        };
        let place = if dim < 0 { dim + size.len() as i64 } else { dim };
        let found = usize::try_from(place).ok().and_then(|place| size.get(place));
        found.map(|size| Value::Int(*size)).ok_or_else(|| Fault::new(format!("there is no dimension {dim}")))
    }),
    Operation::new(
        "to",
        "input:T dtype:A? other:A? copy:A? non_blocking:A? device:P? memory_format:P?",
        Cost::Inputs,
        |a| {
            let input = a.tensor(0)?;
            for place in 1..4 {
                match a.value(place) {
                    Value::Kind(kind) => return Ok(input.f_to_dtype(*kind, false, false)?.into()),
                    Value::Tensor(like) => return Ok(input.f_to_dtype(like.kind(), false, false)?.into()),
                    Value::Text(text) if text != "cpu" => {
                        return Err(Fault::new(format!(
                            "device `{text}` is not supported; a custom loss runs on `cpu`"
                        )));
                    }
                    _ => {}
                }
            }
            Ok(a.value(0).clone())
        },
    ),
    Operation::new("type", "input:T dtype:A", Cost::Inputs, |a| {
        Ok(a.tensor(0)?.f_to_dtype(crate::losses::custom::arguments::kind(a.value(1))?, false, false)?.into())
    }),
    Operation::new("type_as", "input:T other:T", Cost::Inputs, |a| {
        Ok(a.tensor(0)?.f_to_dtype(a.tensor(1)?.kind(), false, false)?.into())
    }),
    converted("float", |a| cast(a, tch::Kind::Float)),
    converted("double", |a| cast(a, tch::Kind::Double)),
    converted("half", |a| cast(a, tch::Kind::Half)),
    converted("bfloat16", |a| cast(a, tch::Kind::BFloat16)),
    converted("long", |a| cast(a, tch::Kind::Int64)),
    converted("int", |a| cast(a, tch::Kind::Int)),
    converted("short", |a| cast(a, tch::Kind::Int16)),
    converted("char", |a| cast(a, tch::Kind::Int8)),
    converted("byte", |a| cast(a, tch::Kind::Uint8)),
    converted("bool", |a| cast(a, tch::Kind::Bool)),
];

const fn converted(name: &'static str, run: fn(&Arguments) -> Result<Value, Fault>) -> Operation {
    Operation::new(name, "input:T memory_format:P?", Cost::Inputs, run)
}

fn cast(a: &Arguments, kind: tch::Kind) -> Result<Value, Fault> {
    Ok(a.tensor(0)?.f_to_dtype(kind, false, false)?.into())
}

/// A dimension may fall into as many tensors as it is long, each of which takes far more memory than a value.
fn reserve_pieces(a: &Arguments, input: &Tensor, dim: i64) -> Result<(), Fault> {
    const VALUES_OF_A_TENSOR: u64 = 256;
    let size = input.size();
    let place = if dim < 0 { dim + size.len() as i64 } else { dim };
    let pieces = usize::try_from(place).ok().and_then(|place| size.get(place)).copied().unwrap_or(1);
    a.budget.reserve(u64::try_from(pieces).ok().and_then(|pieces| pieces.checked_mul(VALUES_OF_A_TENSOR)))
}

/// `-1` keeps a dimension as it is.
fn expanded(a: &Arguments) -> Result<Value, Fault> {
    let (input, size) = (a.tensor(0)?, a.ints(1)?);
    let known: Vec<i64> = size.iter().map(|size| if *size == -1 { 1 } else { *size }).collect();
    a.budget.reserve(broadcast_volume(&[known, input.size()]))?;
    Ok(input.f_expand(size, false)?.into())
}

/// The transpose of a matrix; less than that stays as it is.
pub(super) fn transposed(input: &Tensor) -> Result<Value, Fault> {
    match input.dim() {
        0 | 1 => Ok(Value::Tensor(input.shallow_clone())),
        2 => Ok(input.f_transpose(0, 1)?.into()),
        more => Err(Fault::new(format!("a transpose needs at most 2 dimensions, not {more}"))),
    }
}
