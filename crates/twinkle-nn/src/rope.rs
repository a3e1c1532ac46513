//! Rotary position embedding (Su et al. 2021) and its long-context variants.

use std::sync::Arc;

use parking_lot::Mutex;
use serde_json::{Map, Value};
use tch::{Device, Kind, Tensor};
use twinkle_core::error::suggestion;
use twinkle_core::{Error, Result};
use twinkle_torch::Frozen;

use crate::layers::native;
use crate::torch::TorchResult;

/// How positions become angles.
#[derive(Clone, Debug, PartialEq)]
pub struct RopeConfig {
    /// The base `θ` of the frequencies `θ^(−2j/d)`.
    pub theta: f64,
    /// Which variant.
    pub scaling: RopeScaling,
}

/// The variants of [`RopeConfig`] that change the frequencies.
#[derive(Clone, Debug, PartialEq)]
pub enum RopeScaling {
    /// The frequencies as they are.
    None,
    /// Positions divided by a factor (Chen et al. 2023).
    Linear {
        /// The divisor.
        factor: f64,
    },
    /// Llama 3.1: low frequencies divided, high ones kept, a ramp between.
    Llama3 {
        /// The divisor of low frequencies.
        factor: f64,
        /// Below this many turns in the original context a frequency is low.
        low_freq_factor: f64,
        /// Above this many turns in the original context a frequency is high.
        high_freq_factor: f64,
        /// The context the model was first trained with, in tokens.
        original_context: f64,
    },
    /// `YaRN` (Peng et al. 2023).
    Yarn {
        /// The divisor of interpolated frequencies.
        factor: f64,
        /// Turns above which a frequency is kept.
        beta_fast: f64,
        /// Turns below which a frequency is interpolated.
        beta_slow: f64,
        /// The context the model was first trained with, in tokens.
        original_context: f64,
        /// What cos and sin are multiplied by.
        attention_factor: f64,
        /// Whether the ramp's ends are rounded to whole dimensions.
        truncate: bool,
    },
}

const ROPE_TYPES: &[&str] = &["default", "linear", "llama3", "yarn"];

impl RopeConfig {
    /// Reads `rope_parameters`, or `rope_theta` and `rope_scaling`; `theta` is that of a model that names none.
    pub(crate) fn from_keys(
        root: &Map<String, Value>,
        text: &Map<String, Value>,
        max_position_embeddings: usize,
        theta: f64,
    ) -> Result<Self> {
        let settings = Settings::new(root, text);
        let theta = settings.number("rope_theta")?.unwrap_or(theta);
        let scaling = settings.rope_scaling(max_position_embeddings as f64)?;
        Ok(Self { theta, scaling })
    }

    /// The angular frequencies, fp32 `[rotary_dim / 2]`, and what cos and sin are multiplied by.
    ///
    /// The arithmetic follows transformers' `modeling_rope_utils` step by step in fp32, so that angles agree in bits.
    pub(crate) fn frequencies(&self, rotary_dim: usize) -> TorchResult<(Tensor, f64)> {
        let dim = rotary_dim as i64;
        let exponents = Tensor::f_arange_start_step(0, dim, 2, (Kind::Float, Device::Cpu))?.f_div_scalar(dim)?;
        let position_freqs = Tensor::f_pow_scalar(self.theta, &exponents)?;
        let plain = position_freqs.f_reciprocal()?;
        match &self.scaling {
            RopeScaling::None => Ok((plain, 1.0)),
            RopeScaling::Linear { factor } => Ok((plain.f_div_scalar(*factor)?, 1.0)),
            RopeScaling::Llama3 { factor, low_freq_factor, high_freq_factor, original_context } => {
                let turns = LlamaRamp {
                    factor: *factor,
                    low: *low_freq_factor,
                    high: *high_freq_factor,
                    context: *original_context,
                };
                Ok((turns.apply(&plain)?, 1.0))
            }
            RopeScaling::Yarn { factor, beta_fast, beta_slow, original_context, attention_factor, truncate } => {
                let correction = |rotations: f64| {
                    rotary_dim as f64 * (original_context / (rotations * 2.0 * std::f64::consts::PI)).ln()
                        / (2.0 * self.theta.ln())
                };
                let (mut low, mut high) = (correction(*beta_fast), correction(*beta_slow));
                if *truncate {
                    (low, high) = (low.floor(), high.ceil());
                }
                let (low, mut high) = (low.max(0.0), high.min((rotary_dim - 1) as f64));
                if (high - low).abs() < f64::EPSILON {
                    high += 0.001;
                }
                let ramp = Tensor::f_arange(dim / 2, (Kind::Float, Device::Cpu))?
                    .f_sub_scalar(low)?
                    .f_div_scalar(high - low)?
                    .f_clamp(0.0, 1.0)?;
                let keep = ramp.f_neg()?.f_add_scalar(1.0)?;
                let interpolated = position_freqs.f_mul_scalar(*factor)?.f_reciprocal()?;
                let drop = keep.f_neg()?.f_add_scalar(1.0)?;
                let blended = interpolated.f_mul(&drop)?.f_add(&plain.f_mul(&keep)?)?;
                Ok((blended, *attention_factor))
            }
        }
    }
}

/// How many numbers of each head are rotated: `partial_rotary_factor · head_dim`.
///
/// `default` is the factor of a model whose files do not name it.
pub(crate) fn rotary_dim(
    root: &Map<String, Value>,
    text: &Map<String, Value>,
    head_dim: usize,
    default: f64,
) -> Result<usize> {
    let factor = Settings::new(root, text).number("partial_rotary_factor")?.unwrap_or(default);
    let rotary_dim = (head_dim as f64 * factor) as usize;
    if factor > 1.0 || rotary_dim == 0 || !rotary_dim.is_multiple_of(2) {
        return Err(Error::unsupported(format!(
            "`partial_rotary_factor` is `{factor}` of a head dimension of `{head_dim}`, and rotation needs an even number"
        )));
    }
    Ok(rotary_dim)
}

/// Llama 3.1's frequency ramp.
struct LlamaRamp {
    factor: f64,
    low: f64,
    high: f64,
    context: f64,
}

impl LlamaRamp {
    fn apply(&self, plain: &Tensor) -> TorchResult<Tensor> {
        let wavelength = plain.f_reciprocal()?.f_mul_scalar(2.0 * std::f64::consts::PI)?;
        let divided = plain.f_div_scalar(self.factor)?;
        let is_low = wavelength.f_gt(self.context / self.low)?;
        let is_high = wavelength.f_lt(self.context / self.high)?;
        let smooth = wavelength
            .f_reciprocal()?
            .f_mul_scalar(self.context)?
            .f_sub_scalar(self.low)?
            .f_div_scalar(self.high - self.low)?;
        let rest = smooth.f_neg()?.f_add_scalar(1.0)?;
        let medium = rest.f_mul(plain)?.f_div_scalar(self.factor)?.f_add(&smooth.f_mul(plain)?)?;
        let scaled = divided.f_where_self(&is_low, &medium)?;
        plain.f_where_self(&is_high, &scaled)
    }
}

/// The rotation keys, wherever this generation of `config.json` keeps them.
struct Settings<'a> {
    scaling: Option<&'a Map<String, Value>>,
    text: &'a Map<String, Value>,
}

impl<'a> Settings<'a> {
    fn new(root: &'a Map<String, Value>, text: &'a Map<String, Value>) -> Self {
        let object = |key: &str| text.get(key).or_else(|| root.get(key)).and_then(Value::as_object);
        Self { scaling: object("rope_parameters").or_else(|| object("rope_scaling")), text }
    }

    /// A key of the rotation settings themselves.
    fn own(&self, key: &str) -> Option<&'a Value> {
        self.scaling?.get(key)
    }

    fn number(&self, key: &str) -> Result<Option<f64>> {
        let value = self.own(key).or_else(|| self.text.get(key)).filter(|value| !value.is_null());
        let Some(value) = value else {
            return Ok(None);
        };
        let number = value.as_f64().filter(|number| number.is_finite() && *number > 0.0);
        number
            .map(Some)
            .ok_or_else(|| Error::invalid(format!("`{key}` in `config.json` is {value}, not a number above 0")))
    }

    fn required(&self, key: &str) -> Result<f64> {
        self.number(key)?
            .ok_or_else(|| Error::invalid(format!("the rotation settings of `config.json` have no `{key}`")))
    }

    fn rope_scaling(&self, max_position_embeddings: f64) -> Result<RopeScaling> {
        let name =
            ["rope_type", "type"].iter().find_map(|key| self.own(key)).and_then(Value::as_str).unwrap_or("default");
        match name {
            "default" => Ok(RopeScaling::None),
            "linear" => Ok(RopeScaling::Linear { factor: self.required("factor")? }),
            "llama3" => Ok(RopeScaling::Llama3 {
                factor: self.required("factor")?,
                low_freq_factor: self.required("low_freq_factor")?,
                high_freq_factor: self.required("high_freq_factor")?,
                original_context: self.required("original_max_position_embeddings")?,
            }),
            "yarn" => self.yarn(max_position_embeddings),
            other => Err(Error::unsupported(format!("`rope_type` is `{other}`, which is not computed here"))
                .hint(suggestion(other, "rope types", ROPE_TYPES))),
        }
    }

    fn yarn(&self, max_position_embeddings: f64) -> Result<RopeScaling> {
        let original_context = self.number("original_max_position_embeddings")?.unwrap_or(max_position_embeddings);
        let factor = match self.number("factor")? {
            Some(factor) => factor,
            None => max_position_embeddings / original_context,
        };
        let magnitude = |scale: f64| if factor <= 1.0 { 1.0 } else { 0.1 * scale * factor.ln() + 1.0 };
        let attention_factor = match self.number("attention_factor")? {
            Some(attention_factor) => attention_factor,
            None => match (self.number("mscale")?, self.number("mscale_all_dim")?) {
                (Some(mscale), Some(all)) => magnitude(mscale) / magnitude(all),
                _ => magnitude(1.0),
            },
        };
        Ok(RopeScaling::Yarn {
            factor,
            beta_fast: self.number("beta_fast")?.unwrap_or(32.0),
            beta_slow: self.number("beta_slow")?.unwrap_or(1.0),
            original_context,
            attention_factor,
            truncate: self.own("truncate").and_then(Value::as_bool).unwrap_or(true),
        })
    }
}

/// Cos and sin of every position a pass needs, `[T, 1, r / 2]` each in the model's dtype, for the `r` rotated numbers of a head.
#[derive(Debug)]
pub(crate) struct Rotation {
    pub(crate) cos: Tensor,
    pub(crate) sin: Tensor,
}

/// Turns positions into rotations, by a table that grows with the longest sequence seen.
#[derive(Debug)]
pub(crate) struct RotaryEmbedding {
    /// Angular frequencies, fp32 `[d / 2]`.
    frequencies: Frozen,
    magnitude: f64,
    kind: Kind,
    table: Mutex<Arc<Table>>,
}

/// Positions computed at once. A vector unit rounds the rest of a row that does not fill it differently, so for a
/// position's bits not to depend on the others asked for, blocks of a constant size are computed and looked up.
const BLOCK: i64 = 1024;

/// Cos and sin of the positions from 0 up, `[positions, d / 2]`.
#[derive(Debug)]
struct Table {
    cos: Frozen,
    sin: Frozen,
}

impl RotaryEmbedding {
    pub(crate) fn new(config: &RopeConfig, head_dim: usize, kind: Kind, device: Device) -> TorchResult<Self> {
        let (frequencies, magnitude) = config.frequencies(head_dim)?;
        let empty = || Tensor::f_empty([0, head_dim as i64 / 2], (kind, device)).map(Frozen::new);
        let table = Table { cos: empty()?, sin: empty()? };
        let frequencies = Frozen::new(frequencies.f_to_device(device)?);
        Ok(Self { frequencies, magnitude, kind, table: Mutex::new(Arc::new(table)) })
    }

    /// The rotation at each of these positions.
    pub(crate) fn at(&self, positions: &[i64]) -> TorchResult<Rotation> {
        let table = self.table(positions.iter().copied().max().unwrap_or(0) + 1)?;
        let positions = Tensor::f_from_slice(positions)?.f_to_device(self.frequencies.tensor().device())?;
        let pick = |values: &Frozen| values.tensor().f_index_select(0, &positions)?.f_unsqueeze(1);
        Ok(Rotation { cos: pick(&table.cos)?, sin: pick(&table.sin)? })
    }

    /// The table, grown to at least this many positions.
    fn table(&self, positions: i64) -> TorchResult<Arc<Table>> {
        let mut current = self.table.lock();
        let known = current.cos.tensor().size()[0];
        if known < positions {
            let mut cos = vec![current.cos.tensor().shallow_clone()];
            let mut sin = vec![current.sin.tensor().shallow_clone()];
            for start in (known..positions).step_by(BLOCK as usize) {
                let angles = self.angles(start)?;
                // Angles in fp32; cos and sin are cast to the model's dtype before use.
                let table = |values: Tensor| values.f_mul_scalar(self.magnitude)?.f_to_kind(self.kind);
                cos.push(table(angles.f_cos()?)?);
                sin.push(table(angles.f_sin()?)?);
            }
            let join = |blocks: &[Tensor]| Tensor::f_cat(blocks, 0).map(Frozen::new);
            *current = Arc::new(Table { cos: join(&cos)?, sin: join(&sin)? });
        }
        Ok(Arc::clone(&current))
    }

    /// The angles of one block of positions, fp32 `[BLOCK, d / 2]`.
    fn angles(&self, start: i64) -> TorchResult<Tensor> {
        let frequencies = self.frequencies.tensor();
        let positions = Tensor::f_arange_start(start, start + BLOCK, (Kind::Float, frequencies.device()))?;
        positions.f_unsqueeze(-1)?.f_mul(frequencies)
    }
}

impl Rotation {
    /// Rotates the first `r` numbers of `heads`, `[T, n, d]`, by half-split pairs `(i, i + r/2)`; the others pass unchanged.
    /// Rounds where transformers' `apply_rotary_pos_emb` does.
    pub(crate) fn apply(&self, heads: &Tensor) -> TorchResult<Tensor> {
        self.rotate(heads, 1.0)
    }

    /// The gradient of [`Rotation::apply`]: the rotation by the opposite angle.
    pub(crate) fn undo(&self, gradient: &Tensor) -> TorchResult<Tensor> {
        self.rotate(gradient, -1.0)
    }

    fn rotate(&self, heads: &Tensor, direction: f64) -> TorchResult<Tensor> {
        let (width, half) = (heads.size()[2], self.cos.size()[2]);
        if native::is_plain(heads) {
            let mut rotated = heads.f_contiguous()?.copy();
            let shape = (heads.size()[1] as usize, width as usize);
            let (cos, sin) = (native::numbers(&self.cos)?, native::numbers(&self.sin)?);
            let is_inverse = direction < 0.0;
            twinkle_kernels::rotate(native::numbers_mut(&mut rotated)?, shape, cos, sin, half as usize, is_inverse);
            return Ok(rotated);
        }
        let (first, second) = (heads.f_narrow(2, 0, half)?, heads.f_narrow(2, half, half)?);
        let rotated = Tensor::f_empty_like(heads)?;
        if 2 * half < width {
            let rest = |x: &Tensor| x.f_narrow(2, 2 * half, width - 2 * half);
            rest(&rotated)?.f_copy_(&rest(heads)?)?;
        }
        let (mut low, mut high) = (rotated.f_narrow(2, 0, half)?, rotated.f_narrow(2, half, half)?);
        // x·cos and rotate_half(x)·sin are rounded separately, then added: (x1 c − x2 s, x2 c + x1 s).
        let _ = first.f_mul_out(&low, &self.cos)?;
        let _ = second.f_mul_out(&high, &self.cos)?;
        let from_second = second.f_mul(&self.sin)?;
        let from_first = first.f_mul(&self.sin)?;
        if direction > 0.0 {
            let _ = low.f_sub_(&from_second)?;
            let _ = high.f_add_(&from_first)?;
        } else {
            let _ = low.f_add_(&from_second)?;
            let _ = high.f_sub_(&from_first)?;
        }
        Ok(rotated)
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    /// Frequencies and magnitude of these settings for a head of 16.
    fn computed(settings: &Value, max_position_embeddings: usize) -> (Vec<f32>, f64) {
        let text = json!({ "rope_parameters": settings });
        let text = text.as_object().unwrap();
        let config = RopeConfig::from_keys(text, text, max_position_embeddings, 1e4).unwrap();
        let (frequencies, magnitude) = config.frequencies(16).unwrap();
        (Vec::try_from(&frequencies).unwrap(), magnitude)
    }

    /// The expected values are those of transformers 5.23.
    #[test]
    fn long_context_variants_agree_with_transformers() {
        let cases = [
            (
                json!({"rope_type": "linear", "factor": 4.0, "rope_theta": 1e4}),
                128,
                [0.25_f64, 0.079_056_94, 0.025, 0.007_905_694_7, 0.002_5, 7.905_694_7e-4, 2.5e-4, 7.905_694_7e-5],
                1.0,
            ),
            (
                json!({"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32, "rope_theta": 1e4}),
                128,
                [1.0, 0.197_642_36, 0.025, 0.007_905_694_7, 0.002_5, 7.905_694_7e-4, 2.5e-4, 7.905_694_7e-5],
                1.138_629_436_111_989,
            ),
            (
                json!({
                    "rope_type": "yarn", "factor": 8.0, "original_max_position_embeddings": 4096, "rope_theta": 1e6,
                    "beta_fast": 16.0, "beta_slow": 2.0, "mscale": 1.0, "mscale_all_dim": 0.5
                }),
                16_384,
                [
                    1.0,
                    0.177_827_94,
                    0.031_622_78,
                    0.003_163_170_1,
                    1.25e-4,
                    2.222_849_3e-5,
                    3.952_846_8e-6,
                    7.029_266_8e-7,
                ],
                1.094_179_988_101_349,
            ),
        ];
        for (settings, context, expected, expected_magnitude) in cases {
            let (found, magnitude) = computed(&settings, context);
            for (found, expected) in found.iter().zip(expected) {
                assert!((f64::from(*found) - expected).abs() <= 2e-6 * expected, "{settings}: {found}, not {expected}");
            }
            assert!((magnitude - expected_magnitude).abs() < 1e-12, "{settings}: {magnitude}");
        }
    }

    #[test]
    fn what_is_not_rotated_passes_and_what_is_rotated_comes_back() {
        let config = RopeConfig { theta: 1e4, scaling: RopeScaling::None };
        let rotary = RotaryEmbedding::new(&config, 4, Kind::Float, Device::Cpu).unwrap();
        let rotation = rotary.at(&[0, 1, 2]).unwrap();
        let heads = Tensor::randn([3, 2, 16], (Kind::Float, Device::Cpu));
        let rotated = rotation.apply(&heads).unwrap();
        assert!(rotated.narrow(2, 4, 12).equal(&heads.narrow(2, 4, 12)), "the rest passes");
        assert!(rotated.get(0).equal(&heads.get(0)), "position 0 is not rotated");
        let (x, y) = (heads.double_value(&[1, 0, 0]), heads.double_value(&[1, 0, 2]));
        assert!((rotated.double_value(&[1, 0, 0]) - (x * 1_f64.cos() - y * 1_f64.sin())).abs() < 1e-6);
        assert!(rotation.undo(&rotated).unwrap().allclose(&heads, 1e-6, 1e-6, false));
    }

    #[test]
    fn a_position_has_the_same_rotation_whatever_is_asked_with_it() {
        let config = RopeConfig { theta: 1e4, scaling: RopeScaling::None };
        for kind in [Kind::Float, Kind::BFloat16] {
            let rotary = RotaryEmbedding::new(&config, 12, kind, Device::Cpu).unwrap();
            let alone = rotary.at(&[7]).unwrap();
            let among = rotary.at(&[0, 3000, 7, 5]).unwrap();
            assert!(alone.cos.equal(&among.cos.narrow(0, 2, 1)) && alone.sin.equal(&among.sin.narrow(0, 2, 1)));
        }
    }
}
