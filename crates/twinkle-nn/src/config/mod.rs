//! What `config.json` says about a model.
//!
//! Both generations of the Hugging Face keys are read (`rope_parameters` of transformers 5, `rope_theta` and
//! `rope_scaling` before). What is not computed here is refused by the name of its key, never ignored.

mod keys;
mod layers;

use std::path::Path;

use serde_json::Value;
use twinkle_core::{Error, Result};

use self::keys::Keys;
pub use self::layers::{DeltaConfig, LayerKind, MixerKind, MlpKind, MoeConfig};
use crate::rope::{self, RopeConfig};

/// The architecture, by `model_type`. It decides the defaults of keys that a `config.json` leaves out and the switches
/// that have no key; the layers know only the switches.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Family {
    /// Llama 3.x and models of its form.
    Llama,
    /// Qwen2 and Qwen2.5: biases on q, k, v.
    Qwen2,
    /// Qwen3: per-head RMS norms on q and k.
    Qwen3,
    /// Qwen3 with a mixture of experts.
    Qwen3Moe,
    /// Qwen3.5: Gated `DeltaNet` and gated full attention in turn, zero-centred norms.
    Qwen35,
    /// Qwen3.5 with a mixture of experts and a shared expert.
    Qwen35Moe,
    /// `SmolLM3`: Llama with some layers whose heads do not rotate.
    SmolLm3,
}

impl Family {
    fn is_qwen3_5(self) -> bool {
        matches!(self, Self::Qwen35 | Self::Qwen35Moe)
    }

    fn has_linear_attention(self) -> bool {
        self.is_qwen3_5()
    }

    fn has_experts(self) -> bool {
        matches!(self, Self::Qwen3Moe | Self::Qwen35Moe)
    }

    /// The base of the rotation when `rope_theta` is absent.
    fn default_theta(self) -> f64 {
        if self == Self::SmolLm3 { 2_000_000.0 } else { 10_000.0 }
    }

    fn has_qk_norm(self) -> bool {
        matches!(self, Self::Qwen3 | Self::Qwen3Moe | Self::Qwen35 | Self::Qwen35Moe)
    }

    /// The width of a head when `head_dim` is absent; `None` for `hidden_size / num_attention_heads`.
    fn default_head_dim(self) -> Option<usize> {
        match self {
            // As in transformers, where Qwen3-MoE differs from dense Qwen3.
            Self::Llama | Self::Qwen2 | Self::Qwen3Moe | Self::SmolLm3 => None,
            Self::Qwen3 => Some(128),
            Self::Qwen35 | Self::Qwen35Moe => Some(256),
        }
    }
}

/// How an RMS norm multiplies by its weight.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum NormFlavour {
    /// By `w`, after the cast to the model's dtype.
    #[default]
    Plain,
    /// By `1 + w` in fp32, before the cast.
    ZeroCentred,
}

/// The dimensions and switches of a decoder-only transformer.
#[derive(Clone, Debug, PartialEq)]
#[expect(clippy::struct_excessive_bools, reason = "the switches of an architecture are independent of each other")]
pub struct ModelConfig {
    /// The architecture.
    pub family: Family,
    /// Rows of the embedding, `V`; at least the tokenizer's size.
    pub vocab_size: usize,
    /// The width of the residual stream, `H`.
    pub hidden_size: usize,
    /// The width of the dense MLPs, `I`; 0 when no layer has one.
    pub intermediate_size: usize,
    /// Decoder layers, `L`.
    pub layer_count: usize,
    /// What each layer is made of, `[L]`.
    pub layers: Vec<LayerKind>,
    /// The experts; `Some` when a layer has them.
    pub moe: Option<MoeConfig>,
    /// The linear attention; `Some` when a layer has it.
    pub delta: Option<DeltaConfig>,
    /// Query heads, `n_h`.
    pub head_count: usize,
    /// Key and value heads, `n_kv`; divides `head_count`.
    pub kv_head_count: usize,
    /// The width of one head, `d`.
    pub head_dim: usize,
    /// How the norms multiply by their weights. The norm on a `DeltaNet`'s output is always plain.
    pub norm: NormFlavour,
    /// `ε` of every RMS norm.
    pub rms_norm_eps: f64,
    /// Whether q, k and v have biases.
    pub qkv_bias: bool,
    /// Whether the attention's output projection has a bias.
    pub output_bias: bool,
    /// Whether gate, up and down have biases.
    pub mlp_bias: bool,
    /// Whether q and k are normalised per head before the rotation.
    pub qk_norm: bool,
    /// Whether the attention's output is multiplied by a sigmoid gate; `q_proj` then makes the gate too.
    pub attention_gate: bool,
    /// Whether the output head is the embedding.
    pub tied_embeddings: bool,
    /// Whether the text model is inside another one, whose `config.json` has it as `text_config`.
    pub nested: bool,
    /// The longest sequence the model was made for, in tokens.
    pub max_position_embeddings: usize,
    /// The first numbers of each head that are rotated, even and at most `head_dim`; the rest passes unchanged.
    pub rotary_dim: usize,
    /// Which layers rotate their queries and keys, `[L]`; the others know positions by the causal mask alone (`NoPE`,
    /// Kazemnejad et al. 2023).
    pub rotary_layers: Vec<bool>,
    /// The rotary position embedding.
    pub rope: RopeConfig,
    /// The dtype the weights were made in (`bfloat16`, …), if stated.
    pub dtype: Option<String>,
    /// End-of-sequence tokens of `config.json` and `generation_config.json`, ascending.
    pub eos_token_ids: Vec<u32>,
}

impl ModelConfig {
    /// Reads `config.json` (and `generation_config.json`, if there) of a model's folder.
    pub fn read(directory: &Path) -> Result<Self> {
        if !directory.is_dir() {
            return Err(Error::not_found(format!("there is no model folder `{}`", directory.display())));
        }
        let root = read_json(&directory.join("config.json"))?;
        let generation_path = directory.join("generation_config.json");
        let generation = if generation_path.exists() { Some(read_json(&generation_path)?) } else { None };
        Self::from_json(&root, generation.as_ref())
    }

    /// Interprets the parsed files.
    pub fn from_json(root: &Value, generation: Option<&Value>) -> Result<Self> {
        let root = root.as_object().ok_or_else(|| Error::invalid("`config.json` is not a JSON object"))?;
        let text = root.get("text_config").and_then(Value::as_object).unwrap_or(root);
        let keys = Keys { root, text };

        let family = keys.family()?;
        keys.refuse_what_is_not_computed()?;

        let hidden_size = keys.size("hidden_size")?;
        let head_count = keys.size("num_attention_heads")?;
        let kv_head_count = keys.optional_size("num_key_value_heads")?.unwrap_or(head_count);
        if head_count % kv_head_count != 0 {
            return Err(Error::invalid(format!(
                "`num_key_value_heads` is `{kv_head_count}`, which does not divide `num_attention_heads`, `{head_count}`"
            )));
        }
        let head_dim = match keys.optional_size("head_dim")?.or(family.default_head_dim()) {
            Some(head_dim) => head_dim,
            None if hidden_size % head_count == 0 => hidden_size / head_count,
            None => {
                return Err(Error::invalid(format!(
                    "`num_attention_heads` is `{head_count}`, which does not divide `hidden_size`, `{hidden_size}`"
                )));
            }
        };
        let layer_count = keys.size("num_hidden_layers")?;
        let layers = keys.layers(family, layer_count)?;
        let has_dense = layers.iter().any(|layer| layer.mlp == MlpKind::Dense);
        let attention_bias = keys.flag("attention_bias", false)?;
        let max_position_embeddings = keys.size("max_position_embeddings")?;
        Ok(Self {
            family,
            vocab_size: keys.size("vocab_size")?,
            hidden_size,
            intermediate_size: if has_dense { keys.size("intermediate_size")? } else { 0 },
            layer_count,
            moe: keys.moe(family, &layers)?,
            delta: keys.delta(&layers)?,
            layers,
            head_count,
            kv_head_count,
            head_dim,
            norm: if family.is_qwen3_5() { NormFlavour::ZeroCentred } else { NormFlavour::Plain },
            rms_norm_eps: keys.optional_number("rms_norm_eps")?.unwrap_or(1e-6),
            qkv_bias: family == Family::Qwen2 || attention_bias,
            output_bias: family != Family::Qwen2 && attention_bias,
            mlp_bias: matches!(family, Family::Llama | Family::SmolLm3) && keys.flag("mlp_bias", false)?,
            qk_norm: family.has_qk_norm(),
            attention_gate: family.is_qwen3_5() && keys.flag("attn_output_gate", true)?,
            tied_embeddings: keys.tied_embeddings(family)?,
            nested: root.contains_key("text_config"),
            max_position_embeddings,
            rotary_dim: rope::rotary_dim(root, text, head_dim, if family.is_qwen3_5() { 0.25 } else { 1.0 })?,
            rotary_layers: keys.rotary_layers(family, layer_count)?,
            rope: RopeConfig::from_keys(root, text, max_position_embeddings, family.default_theta())?,
            dtype: keys.dtype(),
            eos_token_ids: keys.eos_token_ids(generation)?,
        })
    }

    /// Query heads per key-value head.
    #[must_use]
    pub fn group(&self) -> usize {
        self.head_count / self.kv_head_count
    }

    /// Width of all query heads together, `n_h · d`.
    #[must_use]
    pub fn query_width(&self) -> usize {
        self.head_count * self.head_dim
    }

    /// Width of all key (or value) heads together, `n_kv · d`.
    #[must_use]
    pub fn kv_width(&self) -> usize {
        self.kv_head_count * self.head_dim
    }
}

/// Reads a JSON file that belongs to a model.
pub(crate) fn read_json(path: &Path) -> Result<Value> {
    let text = std::fs::read_to_string(path)
        .map_err(|error| Error::invalid(format!("cannot read `{}`: {error}", path.display())))?;
    serde_json::from_str(&text)
        .map_err(|error| Error::invalid(format!("`{}` is not valid JSON: {error}", path.display())))
}
