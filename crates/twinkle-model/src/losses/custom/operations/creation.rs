//! Tensors made of numbers.

use tch::{Device, Kind, Tensor};

use super::{Cost, Operation};
use crate::losses::custom::arguments::Arguments;
use crate::losses::custom::value::{Fault, Value, scalar, whole_scalar};

pub(super) const CREATION: &[Operation] = &[
    Operation::new("zeros", "size:D* dtype:K? device:P? requires_grad:N? out:N? layout:P?", Cost::Own, |a| {
        filled(a, &a.ints(0)?, &Value::Int(0), a.kind_or_none(1)?.unwrap_or(Kind::Float))
    }),
    Operation::new("ones", "size:D* dtype:K? device:P? requires_grad:N? out:N? layout:P?", Cost::Own, |a| {
        filled(a, &a.ints(0)?, &Value::Int(1), a.kind_or_none(1)?.unwrap_or(Kind::Float))
    }),
    Operation::new(
        "full",
        "size:D fill_value:F dtype:K? device:P? requires_grad:N? out:N? layout:P?",
        Cost::Own,
        |a| {
            let kind = a.kind_or_none(2)?.unwrap_or_else(|| natural_kind(a.value(1)));
            filled(a, &a.ints(0)?, a.value(1), kind)
        },
    ),
    Operation::new("zeros_like", LIKE, Cost::Inputs, |a| {
        let input = a.tensor(0)?;
        Ok(zeros(&input.size(), a.kind_or_none(1)?.unwrap_or_else(|| input.kind()))?.into())
    }),
    Operation::new("ones_like", LIKE, Cost::Inputs, |a| {
        let input = a.tensor(0)?;
        let kind = a.kind_or_none(1)?.unwrap_or_else(|| input.kind());
        Ok(zeros(&input.size(), kind)?.f_add(&whole_scalar(1, kind)?)?.f_to_dtype(kind, false, false)?.into())
    }),
    Operation::new(
        "full_like",
        "input:T fill_value:F dtype:K? device:P? layout:P? memory_format:P? requires_grad:N?",
        Cost::Inputs,
        |a| {
            let input = a.tensor(0)?;
            let kind = a.kind_or_none(2)?.unwrap_or_else(|| input.kind());
            fill(&input.size(), a.value(1), kind)
        },
    ),
    Operation::new("eye", "n:I m:I? dtype:K? device:P? requires_grad:N? out:N? layout:P?", Cost::Own, |a| {
        let rows = a.int(0)?;
        let columns = a.int_or(1, rows)?;
        a.reserve(&[rows, columns])?;
        Ok(Tensor::f_eye_m(rows, columns, (a.kind_or_none(2)?.unwrap_or(Kind::Float), Device::Cpu))?.into())
    }),
    Operation::new(
        "arange",
        "start:F end:F? step:F? dtype:K? device:P? requires_grad:N? out:N? layout:P?",
        Cost::Own,
        arange,
    ),
    Operation::new(
        "linspace",
        "start:F end:F steps:I dtype:K? device:P? requires_grad:N? out:N? layout:P?",
        Cost::Own,
        |a| {
            let steps = a.int(2)?;
            a.reserve(&[steps])?;
            let options = (a.kind_or_none(3)?.unwrap_or(Kind::Float), Device::Cpu);
            Ok(Tensor::f_linspace(a.number(0)?, a.number(1)?, steps, options)?.into())
        },
    ),
    Operation::new("one_hot", "tensor:T num_classes:I?", Cost::Own, |a| {
        let input = a.tensor(0)?;
        let classes = match a.int_or(1, -1)? {
            -1 if input.numel() > 0 => input.f_max()?.f_int64_value(&[])?.saturating_add(1),
            classes => classes,
        };
        a.budget.reserve(u64::try_from(classes).ok().and_then(|it| it.checked_mul(input.numel() as u64)))?;
        Ok(input.f_one_hot(classes)?.into())
    }),
    Operation::new(
        "tensor scalar_tensor as_tensor asarray",
        "data:O dtype:K? device:P? requires_grad:N?",
        Cost::Inputs,
        |a| {
            let kind = match a.value(0) {
                Value::Tensor(tensor) => tensor.kind(),
                number => natural_kind(number),
            };
            let tensor = a.operand(0, kind)?;
            Ok(tensor.f_to_dtype(a.kind_or_none(1)?.unwrap_or(kind), false, false)?.into())
        },
    ),
];

const LIKE: &str = "input:T dtype:K? device:P? layout:P? memory_format:P? requires_grad:N?";

/// Methods only: of the same dtype as their tensor.
pub(super) const METHODS: &[Operation] = &[
    Operation::new("new_zeros", "input:T size:D* dtype:K? device:P? requires_grad:N? layout:P?", Cost::Own, |a| {
        let kind = a.kind_or_none(2)?.unwrap_or(a.tensor(0)?.kind());
        filled(a, &a.ints(1)?, &Value::Int(0), kind)
    }),
    Operation::new("new_ones", "input:T size:D* dtype:K? device:P? requires_grad:N? layout:P?", Cost::Own, |a| {
        let kind = a.kind_or_none(2)?.unwrap_or(a.tensor(0)?.kind());
        filled(a, &a.ints(1)?, &Value::Int(1), kind)
    }),
    Operation::new(
        "new_full",
        "input:T size:D fill_value:F dtype:K? device:P? requires_grad:N? layout:P?",
        Cost::Own,
        |a| {
            let kind = a.kind_or_none(3)?.unwrap_or(a.tensor(0)?.kind());
            filled(a, &a.ints(1)?, a.value(2), kind)
        },
    ),
    Operation::new("new_tensor", "input:T data:F dtype:K? device:P? requires_grad:N?", Cost::Inputs, |a| {
        let kind = a.kind_or_none(2)?.unwrap_or_else(|| natural_kind(a.value(1)));
        Ok(a.operand(1, kind)?.f_to_dtype(kind, false, false)?.into())
    }),
    Operation::new("fill", "input:T value:F", Cost::Inputs, |a| {
        let input = a.tensor(0)?;
        fill(&input.size(), a.value(1), input.kind())
    }),
    Operation::new("zero", "input:T", Cost::Inputs, |a| {
        let input = a.tensor(0)?;
        Ok(zeros(&input.size(), input.kind())?.into())
    }),
];

/// The dtype torch gives a number of Python.
fn natural_kind(value: &Value) -> Kind {
    match value {
        Value::Bool(_) => Kind::Bool,
        Value::Int(_) => Kind::Int64,
        _ => Kind::Float,
    }
}

fn filled(a: &Arguments, shape: &[i64], value: &Value, kind: Kind) -> Result<Value, Fault> {
    a.reserve(shape)?;
    fill(shape, value, kind)
}

fn fill(shape: &[i64], value: &Value, kind: Kind) -> Result<Value, Fault> {
    let one = match value {
        Value::Int(value) => whole_scalar(*value, kind)?,
        Value::Bool(value) => whole_scalar(i64::from(*value), kind)?,
        other => {
            let number = crate::losses::custom::arguments::number(other);
            scalar(number.ok_or_else(|| Fault::new(format!("cannot fill with {}", other.kind_name())))?, kind)?
        }
    };
    let mut filled = zeros(shape, kind)?;
    filled.f_copy_(&one.f_expand(shape, false)?)?;
    Ok(filled.into())
}

fn zeros(shape: &[i64], kind: Kind) -> Result<Tensor, Fault> {
    Ok(Tensor::f_zeros(shape, (kind, Device::Cpu))?)
}

/// `arange(end)`, `arange(start, end)` or `arange(start, end, step)`.
fn arange(a: &Arguments) -> Result<Value, Fault> {
    let (start, end) = if a.given(1) { (a.number(0)?, a.number(1)?) } else { (0.0, a.number(0)?) };
    let step = a.number_or(2, 1.0)?;
    let steps = ((end - start) / step).ceil();
    if !(0.0..=9e15).contains(&steps) {
        return Err(Fault::new(format!("a range from {start} to {end} in steps of {step} has no length")));
    }
    a.budget.reserve(Some(steps as u64))?;
    let whole = (0..3).all(|place| matches!(a.value(place), Value::Int(_) | Value::None));
    let kind = a.kind_or_none(3)?.unwrap_or(if whole { Kind::Int64 } else { Kind::Float });
    let options = (kind, Device::Cpu);
    Ok(if whole {
        Tensor::f_arange_start_step(start as i64, end as i64, step as i64, options)?
    } else {
        Tensor::f_arange_start_step(start, end, step, options)?
    }
    .into())
}
