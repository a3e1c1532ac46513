//! One value in, one value out.

use tch::{Kind, Tensor};

use super::{Cost, Operation};
use crate::losses::custom::arguments::Arguments;
use crate::losses::custom::value::{Fault, Value, is_floating};

/// Functions of one tensor.
macro_rules! unary {
    ($($names:literal => $method:ident,)+) => {
        &[$(Operation::new($names, "input:T inplace:N? out:N?", Cost::Broadcast, |a| Ok(a.tensor(0)?.$method()?.into()))),+]
    };
}

/// Functions of two operands, one of which may be a number.
macro_rules! binary {
    ($($names:literal => $method:ident,)+) => {
        &[$(Operation::new($names, "input:O other:O out:N?", Cost::Broadcast, |a| {
            let (input, other) = a.pair(0, 1)?;
            Ok(input.$method(&other)?.into())
        })),+]
    };
}

pub(super) const UNARY: &[Operation] = unary! {
    "abs absolute" => f_abs,
    "neg negative" => f_neg,
    "positive" => f_positive,
    "exp" => f_exp,
    "exp2" => f_exp2,
    "expm1" => f_expm1,
    "log" => f_log,
    "log2" => f_log2,
    "log10" => f_log10,
    "log1p" => f_log1p,
    "sqrt" => f_sqrt,
    "rsqrt" => f_rsqrt,
    "square" => f_square,
    "reciprocal" => f_reciprocal,
    "sigmoid expit" => f_sigmoid,
    "tanh" => f_tanh,
    "sin" => f_sin,
    "cos" => f_cos,
    "tan" => f_tan,
    "asin arcsin" => f_asin,
    "acos arccos" => f_acos,
    "atan arctan" => f_atan,
    "sinh" => f_sinh,
    "cosh" => f_cosh,
    "asinh arcsinh" => f_asinh,
    "acosh arccosh" => f_acosh,
    "atanh arctanh" => f_atanh,
    "sinc" => f_sinc,
    "erf" => f_erf,
    "erfc" => f_erfc,
    "erfinv" => f_erfinv,
    "erfcx" => f_special_erfcx,
    "lgamma gammaln" => f_lgamma,
    "digamma psi" => f_digamma,
    "ndtr" => f_special_ndtr,
    "ndtri" => f_special_ndtri,
    "log_ndtr" => f_special_log_ndtr,
    "entr" => f_special_entr,
    "i0" => f_i0,
    "i0e" => f_special_i0e,
    "i1" => f_special_i1,
    "i1e" => f_special_i1e,
    "relu" => f_relu,
    "relu6" => f_relu6,
    "selu" => f_selu,
    "silu" => f_silu,
    "mish" => f_mish,
    "hardswish" => f_hardswish,
    "hardsigmoid" => f_hardsigmoid,
    "logsigmoid log_sigmoid" => f_log_sigmoid,
    "sign" => f_sign,
    "sgn" => f_sgn,
    "signbit" => f_signbit,
    "ceil" => f_ceil,
    "floor" => f_floor,
    "trunc fix" => f_trunc,
    "frac" => f_frac,
    "deg2rad" => f_deg2rad,
    "rad2deg" => f_rad2deg,
    "isnan" => f_isnan,
    "isinf" => f_isinf,
    "isfinite" => f_isfinite,
    "isposinf" => f_isposinf,
    "isneginf" => f_isneginf,
    "logical_not" => f_logical_not,
    "bitwise_not" => f_bitwise_not,
};

pub(super) const BINARY: &[Operation] = binary! {
    "mul multiply" => f_mul,
    "true_divide" => f_div,
    "pow" => f_pow,
    "float_power" => f_float_power,
    "maximum" => f_maximum,
    "minimum" => f_minimum,
    "fmax" => f_fmax,
    "fmin" => f_fmin,
    "atan2 arctan2" => f_atan2,
    "hypot" => f_hypot,
    "copysign" => f_copysign,
    "xlogy" => f_xlogy,
    "xlog1py" => f_special_xlog1py,
    "logaddexp" => f_logaddexp,
    "logaddexp2" => f_logaddexp2,
    "heaviside" => f_heaviside,
    "eq" => f_eq_tensor,
    "ne not_equal" => f_ne_tensor,
    "lt less" => f_lt_tensor,
    "le less_equal" => f_le_tensor,
    "gt greater" => f_gt_tensor,
    "ge greater_equal" => f_ge_tensor,
    "logical_and" => f_logical_and,
    "logical_or" => f_logical_or,
    "logical_xor" => f_logical_xor,
    "bitwise_and __and__" => f_bitwise_and_tensor,
    "bitwise_or __or__" => f_bitwise_or_tensor,
    "bitwise_xor __xor__" => f_bitwise_xor_tensor,
};

pub(super) const OTHERS: &[Operation] = &[
    Operation::new("add", "input:O other:O alpha:F? out:N?", Cost::Broadcast, |a| {
        let (input, other) = scaled_pair(a)?;
        Ok(input.f_add(&other)?.into())
    }),
    Operation::new("sub subtract", "input:O other:O alpha:F? out:N?", Cost::Broadcast, |a| {
        let (input, other) = scaled_pair(a)?;
        Ok(input.f_sub(&other)?.into())
    }),
    Operation::new("rsub", "input:O other:O alpha:F?", Cost::Broadcast, |a| {
        let (input, other) = a.pair(0, 1)?;
        let alpha = a.operand_or_none(2, input.kind())?;
        let input = alpha.map_or_else(|| Ok(input.shallow_clone()), |alpha| input.f_mul(&alpha))?;
        Ok(other.f_sub(&input)?.into())
    }),
    Operation::new("div divide", "input:O other:O rounding_mode:S? out:N?", Cost::Broadcast, |a| {
        let (input, other) = a.pair(0, 1)?;
        if !a.given(2) {
            return Ok(input.f_div(&other)?.into());
        }
        check_whole_division(&input, &other)?;
        Ok(input.f_div_tensor_mode(&other, a.text_or(2, "")?)?.into())
    }),
    Operation::new("floor_divide", "input:O other:O out:N?", Cost::Broadcast, |a| {
        let (input, other) = a.pair(0, 1)?;
        check_whole_division(&input, &other)?;
        Ok(input.f_floor_divide(&other)?.into())
    }),
    Operation::new("remainder", "input:O other:O out:N?", Cost::Broadcast, |a| {
        let (input, other) = a.pair(0, 1)?;
        check_whole_division(&input, &other)?;
        Ok(input.f_remainder_tensor(&other)?.into())
    }),
    Operation::new("fmod", "input:O other:O out:N?", Cost::Broadcast, |a| {
        let (input, other) = a.pair(0, 1)?;
        check_whole_division(&input, &other)?;
        Ok(input.f_fmod_tensor(&other)?.into())
    }),
    Operation::new("isclose", "input:T other:T rtol:F? atol:F? equal_nan:B?", Cost::Broadcast, |a| {
        let (rtol, atol) = (a.number_or(2, 1e-5)?, a.number_or(3, 1e-8)?);
        Ok(a.tensor(0)?.f_isclose(a.tensor(1)?, rtol, atol, a.bool_or(4, false)?)?.into())
    }),
    Operation::new("clamp clip", "input:T min:O? max:O? out:N?", Cost::Broadcast, |a| {
        let input = a.tensor(0)?;
        let (min, max) = (a.operand_or_none(1, input.kind())?, a.operand_or_none(2, input.kind())?);
        Ok(input.f_clamp_tensor(min, max)?.into())
    }),
    Operation::new("clamp_min", "input:T min:O out:N?", Cost::Broadcast, |a| {
        let input = a.tensor(0)?;
        Ok(input.f_clamp_tensor(Some(a.operand(1, input.kind())?), None)?.into())
    }),
    Operation::new("clamp_max", "input:T max:O out:N?", Cost::Broadcast, |a| {
        let input = a.tensor(0)?;
        Ok(input.f_clamp_tensor(None, Some(a.operand(1, input.kind())?))?.into())
    }),
    Operation::new("hardtanh", "input:T min_val:F? max_val:F? inplace:N?", Cost::Broadcast, |a| {
        Ok(a.tensor(0)?.f_clamp(a.number_or(1, -1.0)?, a.number_or(2, 1.0)?)?.into())
    }),
    Operation::new("where", "condition:T input:O other:O out:N?", Cost::Broadcast, |a| {
        let (input, other) = if let Ok(pair) = a.pair(1, 2) {
            pair
        } else {
            // Two numbers: torch makes float32 of them, or int64 if both are whole.
            let whole = matches!((a.value(1), a.value(2)), (Value::Int(_), Value::Int(_)));
            let kind = if whole { Kind::Int64 } else { Kind::Float };
            (a.operand(1, kind)?, a.operand(2, kind)?)
        };
        Ok(input.f_where_self(a.tensor(0)?, &other)?.into())
    }),
    Operation::new("masked_fill", "input:T mask:T value:O", Cost::Broadcast, |a| {
        let input = a.tensor(0)?;
        Ok(input.f_masked_fill_tensor(a.tensor(1)?, &a.operand(2, input.kind())?)?.into())
    }),
    Operation::new("lerp", "input:T end:T weight:O out:N?", Cost::Broadcast, |a| {
        let input = a.tensor(0)?;
        Ok(input.f_lerp_tensor(a.tensor(1)?, &a.operand(2, input.kind())?)?.into())
    }),
    Operation::new("addcmul", "input:T tensor1:T tensor2:T value:F? out:N?", Cost::Broadcast, |a| {
        let input = a.tensor(0)?;
        let product = a.tensor(1)?.f_mul(a.tensor(2)?)?.f_mul_scalar(a.number_or(3, 1.0)?)?;
        Ok(input.f_add(&product)?.into())
    }),
    Operation::new("addcdiv", "input:T tensor1:T tensor2:T value:F? out:N?", Cost::Broadcast, |a| {
        let input = a.tensor(0)?;
        let quotient = a.tensor(1)?.f_div(a.tensor(2)?)?.f_mul_scalar(a.number_or(3, 1.0)?)?;
        Ok(input.f_add(&quotient)?.into())
    }),
    Operation::new("round", "input:T decimals:I? out:N?", Cost::Broadcast, |a| {
        Ok(match a.int_or(1, 0)? {
            0 => a.tensor(0)?.f_round()?,
            decimals => a.tensor(0)?.f_round_decimals(decimals)?,
        }
        .into())
    }),
    Operation::new("nan_to_num", "input:T nan:F? posinf:F? neginf:F? out:N?", Cost::Broadcast, |a| {
        let or_none = |place| if a.given(place) { a.number(place).map(Some) } else { Ok(None) };
        Ok(a.tensor(0)?.f_nan_to_num(or_none(1)?, or_none(2)?, or_none(3)?)?.into())
    }),
    Operation::new("logit", "input:T eps:F? out:N?", Cost::Broadcast, |a| {
        let eps = if a.given(1) { Some(a.number(1)?) } else { None };
        Ok(a.tensor(0)?.f_logit(eps)?.into())
    }),
    Operation::new("polygamma", "n:A input:A", Cost::Broadcast, |a| {
        // The method has them the other way round.
        let (input, n) = if matches!(a.value(0), Value::Tensor(_)) { (0, 1) } else { (1, 0) };
        Ok(a.tensor(input)?.f_polygamma(a.int(n)?)?.into())
    }),
    Operation::new("gelu", "input:T approximate:S?", Cost::Broadcast, |a| {
        Ok(a.tensor(0)?.f_gelu(a.text_or(1, "none")?)?.into())
    }),
    Operation::new("leaky_relu", "input:T negative_slope:F? inplace:N?", Cost::Broadcast, |a| {
        let input = a.tensor(0)?;
        let below = input.f_mul_scalar(a.number_or(1, 0.01)?)?;
        Ok(input.f_where_self(&input.f_gt(0)?, &below)?.into())
    }),
    Operation::new("elu", "input:T alpha:F? inplace:N?", Cost::Broadcast, |a| {
        let alpha = a.number_or(1, 1.0)?;
        exponential_below(a.tensor(0)?, alpha, 1.0)
    }),
    Operation::new("celu", "input:T alpha:F? inplace:N?", Cost::Broadcast, |a| {
        let alpha = a.number_or(1, 1.0)?;
        exponential_below(a.tensor(0)?, alpha, alpha)
    }),
    Operation::new("softplus", "input:T beta:F? threshold:F?", Cost::Broadcast, |a| {
        let input = a.tensor(0)?;
        let (beta, threshold) = (a.number_or(1, 1.0)?, a.number_or(2, 20.0)?);
        let scaled = input.f_mul_scalar(beta)?;
        let large = scaled.f_gt(threshold)?;
        let small = scaled.f_clamp_max(threshold)?.f_exp()?.f_log1p()?.f_div_scalar(beta)?;
        Ok(input.f_where_self(&large, &small)?.into())
    }),
    Operation::new("softshrink", "input:T lambd:F?", Cost::Broadcast, |a| {
        let input = a.tensor(0)?;
        let lambda = a.number_or(1, 0.5)?;
        let outside = input.f_abs()?.f_gt(lambda)?;
        let shrunk = input.f_sub(&input.f_sign()?.f_mul_scalar(lambda)?)?;
        Ok(shrunk.f_where_self(&outside, &input.f_zeros_like()?)?.into())
    }),
    Operation::new("hardshrink", "input:T lambd:F?", Cost::Broadcast, |a| {
        let input = a.tensor(0)?;
        let outside = input.f_abs()?.f_gt(a.number_or(1, 0.5)?)?;
        Ok(input.f_where_self(&outside, &input.f_zeros_like()?)?.into())
    }),
    Operation::new("threshold _threshold", "input:T threshold:F value:F inplace:N?", Cost::Broadcast, |a| {
        Ok(a.tensor(0)?.f_threshold(a.number(1)?, a.number(2)?)?.into())
    }),
    Operation::new("softsign", "input:T", Cost::Broadcast, |a| {
        let input = a.tensor(0)?;
        Ok(input.f_div(&input.f_abs()?.f_add_scalar(1)?)?.into())
    }),
    Operation::new("tanhshrink", "input:T", Cost::Broadcast, |a| {
        let input = a.tensor(0)?;
        Ok(input.f_sub(&input.f_tanh()?)?.into())
    }),
];

/// Methods only.
pub(super) const METHODS: &[Operation] =
    &[Operation::new("where", "input:O condition:T other:O", Cost::Broadcast, |a| {
        let (input, other) = a.pair(0, 2)?;
        Ok(input.f_where_self(a.tensor(1)?, &other)?.into())
    })];

/// Both operands, the second multiplied by `alpha`.
fn scaled_pair(a: &Arguments) -> Result<(Tensor, Tensor), Fault> {
    let (input, other) = a.pair(0, 1)?;
    match a.operand_or_none(2, other.kind())? {
        Some(alpha) => Ok((input, other.f_mul(&alpha)?)),
        None => Ok((input, other)),
    }
}

/// `x` above 0 and `alpha (exp(x / scale) - 1)` below. `exp` sees no positive number, so that its overflow cannot reach
/// the gradient.
fn exponential_below(input: &Tensor, alpha: f64, scale: f64) -> Result<Value, Fault> {
    let below = input.f_clamp_max(0)?.f_div_scalar(scale)?.f_expm1()?.f_mul_scalar(alpha)?;
    Ok(input.f_where_self(&input.f_gt(0)?, &below)?.into())
}

/// The processor stops a program that divides the least whole number by -1.
fn check_whole_division(input: &Tensor, other: &Tensor) -> Result<(), Fault> {
    if is_floating(input.kind()) || is_floating(other.kind()) {
        return Ok(());
    }
    if other.f_eq(-1)?.f_any()?.f_int64_value(&[])? != 0 {
        return Err(Fault::new("whole numbers cannot be divided by -1 here; negate them"));
    }
    Ok(())
}
