//! What Python itself does: operators, the `math` module and attributes.
//!
//! An operator beside a tensor is the tensor's own operation; between numbers, such as those of a shape, it is Python's.

use tch::Kind;

use super::indexing::get_item;
use super::shapes::transposed;
use super::{Cost, Operation, Space, plain};
use crate::losses::custom::arguments::{Arguments, number, torch_name};
use crate::losses::custom::value::{Fault, Value, scalar};

/// Operators of two operands: the operation of tensors, and Python's for numbers.
macro_rules! operators {
    ($($names:literal => $torch:literal, $numbers:expr;)+) => {
        &[$(Operation::new($names, "a:A b:A", Cost::Broadcast, |a| {
            if has_tensor(a) { of_tensors($torch, a) } else { $numbers(a.value(0), a.value(1)) }
        })),+]
    };
}

/// Functions of numbers that have no meaning for the wrong ones.
macro_rules! math {
    ($($name:literal => $function:expr;)+) => {
        &[$(Operation::new($name, "x:F", Cost::Nothing, |a| {
            let (x, function): (f64, fn(f64) -> f64) = (a.number(0)?, $function);
            in_domain(function(x), &[x])
        })),+]
    };
}

pub(super) const OPERATORS: &[Operation] = operators! {
    "add iadd concat" => "add", add;
    "sub isub" => "sub", |a: &Value, b: &Value| arithmetic(a, b, i64::checked_sub, |a, b| a - b);
    "mul imul" => "mul", |a: &Value, b: &Value| arithmetic(a, b, i64::checked_mul, |a, b| a * b);
    "truediv itruediv" => "div", |a: &Value, b: &Value| divide(a, b, |a, b| a / b);
    "floordiv ifloordiv" => "floor_divide", floor_divide;
    "mod imod" => "remainder", modulo;
    "pow ipow" => "pow", power;
    "eq" => "eq", |a: &Value, b: &Value| Ok(Value::Bool(equal(a, b)));
    "ne" => "ne", |a: &Value, b: &Value| Ok(Value::Bool(!equal(a, b)));
    "lt" => "lt", |a: &Value, b: &Value| compare(a, b, |a, b| a < b);
    "le" => "le", |a: &Value, b: &Value| compare(a, b, |a, b| a <= b);
    "gt" => "gt", |a: &Value, b: &Value| compare(a, b, |a, b| a > b);
    "ge" => "ge", |a: &Value, b: &Value| compare(a, b, |a, b| a >= b);
    "and_ iand" => "bitwise_and", |a: &Value, b: &Value| bits(a, b, |a, b| a & b);
    "or_ ior" => "bitwise_or", |a: &Value, b: &Value| bits(a, b, |a, b| a | b);
    "xor ixor" => "bitwise_xor", |a: &Value, b: &Value| bits(a, b, |a, b| a ^ b);
};

pub(super) const OPERATOR_CALLS: &[Operation] = &[
    Operation::new("matmul", "a:T b:T", Cost::Own, |a| of_tensors("matmul", a)),
    Operation::new("getitem", "a:A b:A", Cost::Own, get_item),
    Operation::new("neg", "a:A", Cost::Broadcast, |a| match a.value(0) {
        Value::Tensor(_) => of_tensors("neg", a),
        value => arithmetic(&Value::Int(0), value, i64::checked_sub, |_, b| -b),
    }),
    Operation::new("pos", "a:A", Cost::Nothing, |a| Ok(a.value(0).clone())),
    Operation::new("abs", "a:A", Cost::Broadcast, |a| match a.value(0) {
        Value::Tensor(_) => of_tensors("abs", a),
        Value::Int(value) => Ok(Value::Int(value.checked_abs().ok_or_else(too_large)?)),
        value => Ok(Value::Float(number(value).ok_or_else(|| no_number(value))?.abs())),
    }),
    Operation::new("invert inv", "a:A", Cost::Broadcast, |a| match a.value(0) {
        Value::Tensor(_) => of_tensors("bitwise_not", a),
        Value::Int(value) => Ok(Value::Int(!value)),
        other => Err(no_number(other)),
    }),
];

pub(super) const MATH: &[Operation] = math! {
    "sqrt" => f64::sqrt;
    "cbrt" => f64::cbrt;
    "exp" => f64::exp;
    "exp2" => f64::exp2;
    "expm1" => f64::exp_m1;
    "log2" => f64::log2;
    "log10" => f64::log10;
    "log1p" => f64::ln_1p;
    "sin" => f64::sin;
    "cos" => f64::cos;
    "tan" => f64::tan;
    "asin" => f64::asin;
    "acos" => f64::acos;
    "atan" => f64::atan;
    "sinh" => f64::sinh;
    "cosh" => f64::cosh;
    "tanh" => f64::tanh;
    "asinh" => f64::asinh;
    "acosh" => f64::acosh;
    "atanh" => f64::atanh;
    "fabs" => f64::abs;
    "degrees" => f64::to_degrees;
    "radians" => f64::to_radians;
};

pub(super) const MATH_CALLS: &[Operation] = &[
    Operation::new("log", "x:F base:F?", Cost::Nothing, |a| {
        let (x, base) = (a.number(0)?, a.number_or(1, std::f64::consts::E)?);
        if x == 0.0 || base <= 0.0 {
            return Err(outside());
        }
        let value = if a.given(1) { x.ln() / base.ln() } else { x.ln() };
        in_domain(value, &[x, base])
    }),
    Operation::new("pow", "x:F y:F", Cost::Nothing, |a| two(a, f64::powf)),
    Operation::new("atan2", "y:F x:F", Cost::Nothing, |a| two(a, f64::atan2)),
    Operation::new("fmod", "x:F y:F", Cost::Nothing, |a| two(a, |x, y| x % y)),
    Operation::new("copysign", "x:F y:F", Cost::Nothing, |a| two(a, f64::copysign)),
    Operation::new("hypot", "x:F y:F", Cost::Nothing, |a| two(a, f64::hypot)),
    Operation::new("floor", "x:F", Cost::Nothing, |a| rounded(a.number(0)?.floor())),
    Operation::new("ceil", "x:F", Cost::Nothing, |a| rounded(a.number(0)?.ceil())),
    Operation::new("trunc", "x:F", Cost::Nothing, |a| rounded(a.number(0)?.trunc())),
    Operation::new("isnan", "x:F", Cost::Nothing, |a| Ok(Value::Bool(a.number(0)?.is_nan()))),
    Operation::new("isinf", "x:F", Cost::Nothing, |a| Ok(Value::Bool(a.number(0)?.is_infinite()))),
    Operation::new("isfinite", "x:F", Cost::Nothing, |a| Ok(Value::Bool(a.number(0)?.is_finite()))),
    Operation::new("erf", "x:F", Cost::Nothing, |a| Ok(Value::Float(double(a)?.f_erf()?.f_double_value(&[])?))),
    Operation::new("erfc", "x:F", Cost::Nothing, |a| Ok(Value::Float(double(a)?.f_erfc()?.f_double_value(&[])?))),
    Operation::new("lgamma", "x:F", Cost::Nothing, |a| Ok(Value::Float(double(a)?.f_lgamma()?.f_double_value(&[])?))),
    Operation::new("prod", "iterable:A", Cost::Nothing, |a| {
        let items = a.value(0).items().ok_or_else(|| Fault::new("`math.prod` needs a list or tuple"))?;
        let one = Value::Int(1);
        items.iter().try_fold(one, |product, item| arithmetic(&product, item, i64::checked_mul, |a, b| a * b))
    }),
];

pub(super) const BUILTINS: &[Operation] = &[Operation::new("getattr", "object:A name:S", Cost::Nothing, attribute)];

fn has_tensor(a: &Arguments) -> bool {
    a.values.iter().any(|value| matches!(value, Value::Tensor(_)))
}

/// Runs an operation of torch on the same arguments.
fn of_tensors(name: &str, a: &Arguments) -> Result<Value, Fault> {
    let found = plain(Space::Torch, name).ok_or_else(|| Fault::new(format!("`{name}` is not supported")))?;
    let given = Arguments { values: a.values.clone(), parameters: &found.entry.parameters, budget: a.budget };
    (found.entry.operation.run)(&given)
}

fn add(a: &Value, b: &Value) -> Result<Value, Fault> {
    match (a, b) {
        (Value::Tuple(first), Value::Tuple(second)) => Ok(Value::Tuple(joined(first, second))),
        (Value::List(first), Value::List(second)) => Ok(Value::List(joined(first, second))),
        _ => arithmetic(a, b, i64::checked_add, |a, b| a + b),
    }
}

fn joined(first: &[Value], second: &[Value]) -> Vec<Value> {
    first.iter().chain(second).cloned().collect()
}

fn arithmetic(
    a: &Value,
    b: &Value,
    whole: fn(i64, i64) -> Option<i64>,
    float: fn(f64, f64) -> f64,
) -> Result<Value, Fault> {
    if let (Some(a), Some(b)) = (int(a), int(b)) {
        return whole(a, b).map(Value::Int).ok_or_else(too_large);
    }
    Ok(Value::Float(float(number_of(a)?, number_of(b)?)))
}

fn divide(a: &Value, b: &Value, compute: fn(f64, f64) -> f64) -> Result<Value, Fault> {
    let (a, b) = (number_of(a)?, number_of(b)?);
    if b == 0.0 {
        return Err(Fault::new("division by zero"));
    }
    Ok(Value::Float(compute(a, b)))
}

fn floor_divide(a: &Value, b: &Value) -> Result<Value, Fault> {
    if let (Some(a), Some(b)) = (int(a), int(b)) {
        let quotient = a.checked_div(b).ok_or_else(|| Fault::new("division by zero"))?;
        let down = a % b != 0 && (a < 0) != (b < 0);
        return Ok(Value::Int(quotient - i64::from(down)));
    }
    divide(a, b, |a, b| (a / b).floor())
}

fn modulo(a: &Value, b: &Value) -> Result<Value, Fault> {
    if let (Some(a), Some(b)) = (int(a), int(b)) {
        let rest = a.checked_rem(b).ok_or_else(|| Fault::new("division by zero"))?;
        return Ok(Value::Int(if rest != 0 && (rest < 0) != (b < 0) { rest + b } else { rest }));
    }
    divide(a, b, |a, b| a - b * (a / b).floor())
}

fn power(a: &Value, b: &Value) -> Result<Value, Fault> {
    if let (Some(a), Some(b)) = (int(a), int(b))
        && let Ok(exponent) = u32::try_from(b)
    {
        return a.checked_pow(exponent).map(Value::Int).ok_or_else(too_large);
    }
    let (a, b) = (number_of(a)?, number_of(b)?);
    in_domain(a.powf(b), &[a, b])
}

fn compare(a: &Value, b: &Value, holds: fn(f64, f64) -> bool) -> Result<Value, Fault> {
    Ok(Value::Bool(holds(number_of(a)?, number_of(b)?)))
}

#[expect(clippy::float_cmp, reason = "Python compares numbers as they are")]
fn equal(a: &Value, b: &Value) -> bool {
    match (a, b) {
        (Value::None, Value::None) | (Value::Place, Value::Place) => true,
        (Value::Text(a), Value::Text(b)) => a == b,
        (Value::Kind(a), Value::Kind(b)) => a == b,
        (Value::List(a), Value::List(b)) | (Value::Tuple(a), Value::Tuple(b)) => {
            a.len() == b.len() && a.iter().zip(b).all(|(a, b)| equal(a, b))
        }
        _ => number(a).zip(number(b)).is_some_and(|(a, b)| a == b),
    }
}

fn bits(a: &Value, b: &Value, compute: fn(i64, i64) -> i64) -> Result<Value, Fault> {
    match (a, b) {
        (Value::Bool(a), Value::Bool(b)) => Ok(Value::Bool(compute(i64::from(*a), i64::from(*b)) != 0)),
        _ => int(a).zip(int(b)).map(|(a, b)| Value::Int(compute(a, b))).ok_or_else(|| no_number(a)),
    }
}

/// A whole number of Python; a tensor is none.
const fn int(value: &Value) -> Option<i64> {
    match value {
        Value::Int(value) => Some(*value),
        Value::Bool(value) => Some(*value as i64),
        _ => None,
    }
}

fn number_of(value: &Value) -> Result<f64, Fault> {
    number(value).ok_or_else(|| no_number(value))
}

fn no_number(value: &Value) -> Fault {
    Fault::new(format!("{} is no number", value.kind_name()))
}

fn too_large() -> Fault {
    Fault::new("the whole number does not fit into 64 bits")
}

fn outside() -> Fault {
    Fault::new("math domain error")
}

/// Python raises where a function of finite numbers has no finite value.
fn in_domain(value: f64, arguments: &[f64]) -> Result<Value, Fault> {
    if value.is_finite() || arguments.iter().any(|argument| !argument.is_finite()) {
        return Ok(Value::Float(value));
    }
    Err(outside())
}

fn two(a: &Arguments, compute: fn(f64, f64) -> f64) -> Result<Value, Fault> {
    let (x, y) = (a.number(0)?, a.number(1)?);
    in_domain(compute(x, y), &[x, y])
}

fn rounded(value: f64) -> Result<Value, Fault> {
    if value.abs() < 9e15 { Ok(Value::Int(value as i64)) } else { Err(too_large()) }
}

fn double(a: &Arguments) -> Result<tch::Tensor, Fault> {
    scalar(a.number(0)?, Kind::Double)
}

fn attribute(a: &Arguments) -> Result<Value, Fault> {
    let name = a.text_or(1, "")?;
    let unknown = || Fault::new(format!("{} has no attribute `{}` here", a.value(0).kind_name(), torch_name(name)));
    match a.value(0) {
        Value::Tensor(tensor) => Ok(match name {
            "shape" => Value::Tuple(tensor.size().into_iter().map(Value::Int).collect()),
            "ndim" => Value::Int(tensor.dim() as i64),
            "dtype" => Value::Kind(tensor.kind()),
            "device" | "layout" => Value::Place,
            "T" | "H" => transposed(tensor)?,
            "mT" | "mH" => tensor.f_transpose(-2, -1)?.into(),
            "data" => tensor.f_detach()?.into(),
            "real" => a.value(0).clone(),
            "requires_grad" => Value::Bool(tensor.requires_grad()),
            "is_cuda" => Value::Bool(false),
            _ => return Err(unknown()),
        }),
        // The two results of an operation along a dimension have names.
        Value::Tuple(items) => {
            let place = match name {
                "values" | "min" => 0,
                "indices" | "max" => 1,
                _ => return Err(unknown()),
            };
            items.get(place).cloned().ok_or_else(unknown)
        }
        _ => Err(unknown()),
    }
}
