//! Single numbers: bf16 to fp32 and back, and `exp`. Written so that compilers turn loops over them into vectors.

use half::bf16;

/// The fp32 of the same value.
#[inline(always)]
pub(crate) fn wide(value: bf16) -> f32 {
    f32::from_bits(u32::from(value.to_bits()) << 16)
}

/// The nearest bf16, ties to even.
#[inline(always)]
pub(crate) fn narrow(value: f32) -> bf16 {
    let bits = value.to_bits();
    let rounded = bits.wrapping_add(0x7fff + ((bits >> 16) & 1)) >> 16;
    let quiet = (bits >> 16) | 0x40;
    bf16::from_bits(if value.is_nan() { quiet } else { rounded } as u16)
}

/// `value`, rounded to bf16.
#[inline(always)]
pub(crate) fn rounded(value: f32) -> f32 {
    wide(narrow(value))
}

/// `eˣ` to about one unit in the last place (Cephes' polynomial); below -87.3 the smallest normal number, NaN stays NaN.
#[inline(always)]
pub(crate) fn exp(x: f32) -> f32 {
    /// Added to a number, leaves its nearest integer in the low bits.
    const MAGIC: f32 = 12_582_912.0;
    let x = if x > 88.37 { 88.37 } else { x };
    let x = if x < -87.3 { -87.3 } else { x };
    let shifted = x * std::f32::consts::LOG2_E + MAGIC;
    let n = shifted - MAGIC;
    // ln 2 in two parts, the first exact in few bits.
    let r = x - n * 0.693_359_4 - n * -2.121_944_4e-4;
    let mut p = 1.987_569_1e-4_f32;
    p = p * r + 1.398_199_9e-3;
    p = p * r + 8.333_452e-3;
    p = p * r + 4.166_579_6e-2;
    p = p * r + 1.666_666_5e-1;
    p = p * r + 0.5;
    let fraction = p * (r * r) + r + 1.0;
    fraction * f32::from_bits(shifted.to_bits().wrapping_add(127) << 23)
}

/// `1 / (1 + e⁻ˣ)`.
#[inline(always)]
pub(crate) fn sigmoid(x: f32) -> f32 {
    1.0 / (1.0 + exp(-x))
}

/// Lanes that a sum over a row is kept in: the order of additions depends on the row's width only.
pub(crate) const LANES: usize = 16;

/// The sum of the lanes, pair by pair.
#[inline(always)]
pub(crate) fn total(mut lanes: [f32; LANES]) -> f32 {
    let mut width = LANES / 2;
    while width > 0 {
        for lane in 0..width {
            lanes[lane] += lanes[lane + width];
        }
        width /= 2;
    }
    lanes[0]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exp_is_right_to_the_last_places_and_keeps_nan() {
        let mut x = -87.0_f32;
        while x < 88.0 {
            let (found, expected) = (f64::from(exp(x)), f64::from(x).exp());
            assert!((found - expected).abs() <= 3e-7 * expected, "exp({x}) = {found}, not {expected}");
            x += 0.0137;
        }
        assert!((exp(0.0) - 1.0).abs() < f32::EPSILON && exp(f32::NAN).is_nan());
        assert!(exp(f32::NEG_INFINITY) < 1.3e-38 && exp(f32::INFINITY) > 2e38);
    }

    #[test]
    fn rounding_is_that_of_half() {
        for bits in (0..=u32::MAX).step_by(65_521) {
            let value = f32::from_bits(bits);
            assert_eq!(narrow(value).to_bits(), bf16::from_f32(value).to_bits(), "{value}");
        }
    }
}
