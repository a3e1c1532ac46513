//! What `config.json` says about a model.
//!
//! Both generations of the Hugging Face keys are read (`rope_parameters` of transformers 5, `rope_theta` and
//! `rope_scaling` before). What is not computed here is refused by the name of its key, never ignored.

use std::collections::BTreeSet;
use std::path::Path;

use serde_json::{Map, Value};
use twinkle_core::error::suggestion;
use twinkle_core::{Error, Result};

use crate::rope::RopeConfig;

/// The architecture, by `model_type`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Family {
    /// Llama 3.x and models of its form.
    Llama,
    /// Qwen2 and Qwen2.5: biases on q, k, v.
    Qwen2,
    /// Qwen3: per-head RMS norms on q and k.
    Qwen3,
}

const FAMILIES: &[&str] = &["llama", "qwen2", "qwen3"];

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
    /// The width of the MLP, `I`.
    pub intermediate_size: usize,
    /// Decoder layers, `L`.
    pub layer_count: usize,
    /// Query heads, `n_h`.
    pub head_count: usize,
    /// Key and value heads, `n_kv`; divides `head_count`.
    pub kv_head_count: usize,
    /// The width of one head, `d`.
    pub head_dim: usize,
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
    /// Whether the output head is the embedding.
    pub tied_embeddings: bool,
    /// The longest sequence the model was made for, in tokens.
    pub max_position_embeddings: usize,
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
        let head_dim = match keys.optional_size("head_dim")? {
            Some(head_dim) => head_dim,
            None if family == Family::Qwen3 => 128,
            None if hidden_size % head_count == 0 => hidden_size / head_count,
            None => {
                return Err(Error::invalid(format!(
                    "`num_attention_heads` is `{head_count}`, which does not divide `hidden_size`, `{hidden_size}`"
                )));
            }
        };
        let attention_bias = keys.flag("attention_bias", false)?;
        let max_position_embeddings = keys.size("max_position_embeddings")?;
        Ok(Self {
            family,
            vocab_size: keys.size("vocab_size")?,
            hidden_size,
            intermediate_size: keys.size("intermediate_size")?,
            layer_count: keys.size("num_hidden_layers")?,
            head_count,
            kv_head_count,
            head_dim,
            rms_norm_eps: keys.optional_number("rms_norm_eps")?.unwrap_or(1e-6),
            qkv_bias: family == Family::Qwen2 || attention_bias,
            output_bias: family != Family::Qwen2 && attention_bias,
            mlp_bias: family == Family::Llama && keys.flag("mlp_bias", false)?,
            qk_norm: family == Family::Qwen3,
            tied_embeddings: keys.tied_embeddings()?,
            max_position_embeddings,
            rope: RopeConfig::from_keys(root, text, head_dim, max_position_embeddings)?,
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

/// The two levels of `config.json`: multimodal checkpoints keep the text model's keys in `text_config`.
struct Keys<'a> {
    root: &'a Map<String, Value>,
    text: &'a Map<String, Value>,
}

impl Keys<'_> {
    fn family(&self) -> Result<Family> {
        let name = self
            .text
            .get("model_type")
            .and_then(Value::as_str)
            .ok_or_else(|| Error::invalid("`config.json` has no `model_type`"))?;
        match name {
            "llama" => Ok(Family::Llama),
            "qwen2" => Ok(Family::Qwen2),
            "qwen3" => Ok(Family::Qwen3),
            other => Err(Error::unsupported(format!("`model_type` is `{other}`, which is not computed here"))
                .hint(suggestion(other, "model types", FAMILIES))),
        }
    }

    fn refuse_what_is_not_computed(&self) -> Result<()> {
        if let Some(activation) = self.text.get("hidden_act").and_then(Value::as_str)
            && activation != "silu"
        {
            return Err(Error::unsupported(format!("`hidden_act` is `{activation}`, only `silu` is computed")));
        }
        if self.optional_number("attention_dropout")?.unwrap_or(0.0) != 0.0 {
            return Err(Error::unsupported("`attention_dropout` is not 0, and dropout in attention is not computed"));
        }
        if self.flag("use_sliding_window", false)? {
            return Err(Error::unsupported("`use_sliding_window` is on, and sliding windows are not computed"));
        }
        if let Some(kinds) = self.text.get("layer_types").and_then(Value::as_array)
            && let Some(kind) = kinds.iter().find(|kind| kind.as_str() != Some("full_attention"))
        {
            return Err(Error::unsupported(format!("`layer_types` has {kind}, only `full_attention` is computed")));
        }
        if self.root.contains_key("quantization_config") {
            return Err(Error::unsupported("`quantization_config` is set, and quantised weights are not read")
                .hint("use the unquantised checkpoint"));
        }
        if self.optional_number("pretraining_tp")?.unwrap_or(1.0) > 1.0 {
            return Err(Error::unsupported("`pretraining_tp` is above 1, which changes the arithmetic"));
        }
        Ok(())
    }

    fn size(&self, key: &str) -> Result<usize> {
        self.optional_size(key)?.ok_or_else(|| Error::invalid(format!("`config.json` has no `{key}`")))
    }

    fn optional_size(&self, key: &str) -> Result<Option<usize>> {
        let Some(value) = self.text.get(key).filter(|value| !value.is_null()) else {
            return Ok(None);
        };
        let size = value.as_u64().and_then(|size| usize::try_from(size).ok());
        match size {
            Some(size) if (1..=1 << 31).contains(&size) => Ok(Some(size)),
            _ => Err(Error::invalid(format!("`{key}` in `config.json` is {value}, not a size from 1 up"))),
        }
    }

    fn optional_number(&self, key: &str) -> Result<Option<f64>> {
        let Some(value) = self.text.get(key).filter(|value| !value.is_null()) else {
            return Ok(None);
        };
        let number = value.as_f64().filter(|number| number.is_finite() && *number >= 0.0);
        number
            .map(Some)
            .ok_or_else(|| Error::invalid(format!("`{key}` in `config.json` is {value}, not a number from 0 up")))
    }

    fn flag(&self, key: &str, default: bool) -> Result<bool> {
        match self.text.get(key) {
            None | Some(Value::Null) => Ok(default),
            Some(Value::Bool(flag)) => Ok(*flag),
            Some(other) => Err(Error::invalid(format!("`{key}` in `config.json` is {other}, not true or false"))),
        }
    }

    fn tied_embeddings(&self) -> Result<bool> {
        match self.root.get("tie_word_embeddings") {
            Some(Value::Bool(tied)) => Ok(*tied),
            // The default of the Qwen2, Qwen3 and Llama configurations in transformers.
            _ => self.flag("tie_word_embeddings", false),
        }
    }

    fn dtype(&self) -> Option<String> {
        ["dtype", "torch_dtype"]
            .iter()
            .find_map(|key| self.text.get(*key).or_else(|| self.root.get(*key)))
            .and_then(Value::as_str)
            .map(str::to_owned)
    }

    fn eos_token_ids(&self, generation: Option<&Value>) -> Result<Vec<u32>> {
        let sources = [
            self.text.get("eos_token_id"),
            self.root.get("eos_token_id"),
            generation.and_then(|generation| generation.get("eos_token_id")),
        ];
        let mut ids = BTreeSet::new();
        for value in sources.into_iter().flatten() {
            match value {
                Value::Null => {}
                Value::Array(list) => {
                    for item in list {
                        ids.insert(token_id(item)?);
                    }
                }
                single => {
                    ids.insert(token_id(single)?);
                }
            }
        }
        Ok(ids.into_iter().collect())
    }
}

fn token_id(value: &Value) -> Result<u32> {
    value
        .as_u64()
        .and_then(|id| u32::try_from(id).ok())
        .ok_or_else(|| Error::invalid(format!("`eos_token_id` holds {value}, not a token id")))
}

/// Reads a JSON file that belongs to a model.
pub(crate) fn read_json(path: &Path) -> Result<Value> {
    let text = std::fs::read_to_string(path)
        .map_err(|error| Error::invalid(format!("cannot read `{}`: {error}", path.display())))?;
    serde_json::from_str(&text)
        .map_err(|error| Error::invalid(format!("`{}` is not valid JSON: {error}", path.display())))
}
