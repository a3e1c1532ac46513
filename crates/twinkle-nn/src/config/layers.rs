//! What each layer is made of: its token mixer and its MLP.

use twinkle_core::{Error, Result};

use super::Family;
use super::keys::Keys;

/// The two parts of a decoder layer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LayerKind {
    /// What moves information between tokens.
    pub mixer: MixerKind,
    /// What works on each token alone.
    pub mlp: MlpKind,
}

/// The token mixers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MixerKind {
    /// Causal attention over all earlier tokens.
    FullAttention,
    /// Gated `DeltaNet`, a linear attention with a state of constant size (Yang et al. 2024).
    GatedDeltaNet,
}

/// The MLPs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MlpKind {
    /// One gated MLP for every token.
    Dense,
    /// A mixture of experts: a router picks a few of many small MLPs for each token (Shazeer et al. 2017).
    Sparse,
}

/// The mixture of experts of the sparse layers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MoeConfig {
    /// Experts per layer, `E`.
    pub expert_count: usize,
    /// Experts that a token is given to, `k`.
    pub experts_per_token: usize,
    /// The width of one expert, `I_m`.
    pub intermediate_size: usize,
    /// The width of the expert that every token is given to besides, `I_s`, if there is one.
    pub shared_intermediate_size: Option<usize>,
    /// Whether the weights of a token's experts are divided by their sum.
    pub norm_topk_prob: bool,
}

/// The Gated `DeltaNet` of the linear layers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DeltaConfig {
    /// Query and key heads, `n_k`.
    pub key_head_count: usize,
    /// Value heads, `n_v`; a multiple of `key_head_count`.
    pub value_head_count: usize,
    /// The width of a query or key head, `d_k`.
    pub key_head_dim: usize,
    /// The width of a value head, `d_v`.
    pub value_head_dim: usize,
    /// Tokens that the causal convolution sees, itself included.
    pub conv_kernel: usize,
}

impl DeltaConfig {
    /// Width of all queries, or of all keys, `K = n_k · d_k`.
    #[must_use]
    pub fn key_width(&self) -> usize {
        self.key_head_count * self.key_head_dim
    }

    /// Width of all values, `W = n_v · d_v`.
    #[must_use]
    pub fn value_width(&self) -> usize {
        self.value_head_count * self.value_head_dim
    }

    /// Channels of the convolution: queries, keys and values side by side, `2K + W`.
    #[must_use]
    pub fn conv_channels(&self) -> usize {
        2 * self.key_width() + self.value_width()
    }
}

impl Keys<'_> {
    /// The parts of every layer.
    pub(super) fn layers(&self, family: Family, count: usize) -> Result<Vec<LayerKind>> {
        let mixers = self.mixers(family, count)?;
        let mlps = self.mlps(family, count)?;
        Ok(mixers.into_iter().zip(mlps).map(|(mixer, mlp)| LayerKind { mixer, mlp }).collect())
    }

    fn mixers(&self, family: Family, count: usize) -> Result<Vec<MixerKind>> {
        let Some(names) = self.list("layer_types")? else {
            if !family.has_linear_attention() {
                return Ok(vec![MixerKind::FullAttention; count]);
            }
            let interval = self.optional_size("full_attention_interval")?.unwrap_or(4);
            let mixer = |layer: usize| {
                if (layer + 1).is_multiple_of(interval) { MixerKind::FullAttention } else { MixerKind::GatedDeltaNet }
            };
            return Ok((0..count).map(mixer).collect());
        };
        let mixers: Vec<MixerKind> = names
            .iter()
            .map(|name| match name.as_str() {
                Some("full_attention") => Ok(MixerKind::FullAttention),
                Some("linear_attention") if family.has_linear_attention() => Ok(MixerKind::GatedDeltaNet),
                _ => Err(Error::unsupported(format!("`layer_types` has {name}, which is not computed here"))),
            })
            .collect::<Result<_>>()?;
        if mixers.len() != count {
            return Err(Error::invalid(format!(
                "`layer_types` has `{}` entries, `num_hidden_layers` is `{count}`",
                mixers.len()
            )));
        }
        Ok(mixers)
    }

    fn mlps(&self, family: Family, count: usize) -> Result<Vec<MlpKind>> {
        if !family.has_experts() {
            return Ok(vec![MlpKind::Dense; count]);
        }
        let step = self.optional_size("decoder_sparse_step")?.unwrap_or(1);
        let dense: Vec<u64> = self
            .list("mlp_only_layers")?
            .unwrap_or_default()
            .iter()
            .map(|layer| {
                layer.as_u64().ok_or_else(|| {
                    Error::invalid(format!(
                        "`mlp_only_layers` in `config.json` holds {layer}, not the number of a layer"
                    ))
                })
            })
            .collect::<Result<_>>()?;
        let mlp = |layer: usize| {
            let is_sparse = (layer + 1).is_multiple_of(step) && !dense.contains(&(layer as u64));
            if is_sparse { MlpKind::Sparse } else { MlpKind::Dense }
        };
        Ok((0..count).map(mlp).collect())
    }

    /// Which layers rotate their queries and keys.
    pub(super) fn rotary_layers(&self, family: Family, count: usize) -> Result<Vec<bool>> {
        if family != Family::SmolLm3 {
            return Ok(vec![true; count]);
        }
        let Some(flags) = self.list("no_rope_layers")? else {
            let interval = self.optional_size("no_rope_layer_interval")?.unwrap_or(4);
            return Ok((1..=count).map(|layer| !layer.is_multiple_of(interval)).collect());
        };
        // In spite of the key's name, 1 stands for a layer that rotates.
        let flags: Vec<bool> = flags
            .iter()
            .map(|flag| match flag.as_u64() {
                Some(flag @ (0 | 1)) => Ok(flag == 1),
                _ => Err(Error::invalid(format!("`no_rope_layers` in `config.json` holds {flag}, not 0 or 1"))),
            })
            .collect::<Result<_>>()?;
        if flags.len() < count {
            return Err(Error::invalid(format!(
                "`no_rope_layers` has `{}` entries, `num_hidden_layers` is `{count}`",
                flags.len()
            )));
        }
        Ok(flags.into_iter().take(count).collect())
    }

    /// The experts of a model that has sparse layers.
    pub(super) fn moe(&self, family: Family, layers: &[LayerKind]) -> Result<Option<MoeConfig>> {
        if layers.iter().all(|layer| layer.mlp == MlpKind::Dense) {
            return Ok(None);
        }
        let expert_count = match self.optional_size("num_experts")? {
            Some(count) => count,
            None => self.size("num_local_experts")?,
        };
        let experts_per_token = self.size("num_experts_per_tok")?;
        if experts_per_token > expert_count {
            return Err(Error::invalid(format!(
                "`num_experts_per_tok` is `{experts_per_token}`, but there are `{expert_count}` experts"
            )));
        }
        // Qwen3.5 has a shared expert and always renormalises.
        let is_qwen3_5 = family == Family::Qwen35Moe;
        Ok(Some(MoeConfig {
            expert_count,
            experts_per_token,
            intermediate_size: self.size("moe_intermediate_size")?,
            shared_intermediate_size: if is_qwen3_5 {
                Some(self.size("shared_expert_intermediate_size")?)
            } else {
                None
            },
            norm_topk_prob: is_qwen3_5 || self.flag("norm_topk_prob", false)?,
        }))
    }

    /// The linear attention of a model that has such layers.
    pub(super) fn delta(&self, layers: &[LayerKind]) -> Result<Option<DeltaConfig>> {
        if layers.iter().all(|layer| layer.mixer == MixerKind::FullAttention) {
            return Ok(None);
        }
        let delta = DeltaConfig {
            key_head_count: self.size("linear_num_key_heads")?,
            value_head_count: self.size("linear_num_value_heads")?,
            key_head_dim: self.size("linear_key_head_dim")?,
            value_head_dim: self.size("linear_value_head_dim")?,
            conv_kernel: self.optional_size("linear_conv_kernel_dim")?.unwrap_or(4),
        };
        if !delta.value_head_count.is_multiple_of(delta.key_head_count) {
            return Err(Error::invalid(format!(
                "`linear_num_key_heads` is `{}`, which does not divide `linear_num_value_heads`, `{}`",
                delta.key_head_count, delta.value_head_count
            )));
        }
        Ok(Some(delta))
    }
}
