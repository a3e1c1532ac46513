//! The keys of `config.json`, typed.

use std::collections::BTreeSet;

use serde_json::{Map, Value};
use twinkle_core::error::suggestion;
use twinkle_core::{Error, Result};

use super::Family;

/// Every `model_type` that is computed. Multimodal checkpoints name the type of their text model in `text_config`,
/// older ones only the outer type.
const FAMILIES: &[(&str, Family)] = &[
    ("llama", Family::Llama),
    ("qwen2", Family::Qwen2),
    ("qwen3", Family::Qwen3),
    ("qwen3_moe", Family::Qwen3Moe),
    ("qwen3_5", Family::Qwen35),
    ("qwen3_5_text", Family::Qwen35),
    ("qwen3_5_moe", Family::Qwen35Moe),
    ("qwen3_5_moe_text", Family::Qwen35Moe),
    ("smollm3", Family::SmolLm3),
];

/// The two levels of `config.json`: multimodal checkpoints keep the text model's keys in `text_config`.
pub(super) struct Keys<'a> {
    pub(super) root: &'a Map<String, Value>,
    pub(super) text: &'a Map<String, Value>,
}

impl Keys<'_> {
    pub(super) fn family(&self) -> Result<Family> {
        let name = [self.text, self.root]
            .iter()
            .find_map(|keys| keys.get("model_type"))
            .and_then(Value::as_str)
            .ok_or_else(|| Error::invalid("`config.json` has no `model_type`"))?;
        if let Some((_, family)) = FAMILIES.iter().find(|(known, _)| *known == name) {
            return Ok(*family);
        }
        let known: Vec<&str> = FAMILIES.iter().map(|(known, _)| *known).collect();
        Err(Error::unsupported(format!("`model_type` is `{name}`, which is not computed here")).hint(suggestion(
            name,
            "model types",
            &known,
        )))
    }

    /// Settings that change the arithmetic in a way that no layer here follows.
    pub(super) fn refuse_what_is_not_computed(&self) -> Result<()> {
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
        if self.root.contains_key("quantization_config") {
            return Err(Error::unsupported("`quantization_config` is set, and quantised weights are not read")
                .hint("use the unquantised checkpoint"));
        }
        if self.optional_number("pretraining_tp")?.unwrap_or(1.0) > 1.0 {
            return Err(Error::unsupported("`pretraining_tp` is above 1, which changes the arithmetic"));
        }
        Ok(())
    }

    pub(super) fn size(&self, key: &str) -> Result<usize> {
        self.optional_size(key)?.ok_or_else(|| Error::invalid(format!("`config.json` has no `{key}`")))
    }

    pub(super) fn optional_size(&self, key: &str) -> Result<Option<usize>> {
        let Some(value) = self.text.get(key).filter(|value| !value.is_null()) else {
            return Ok(None);
        };
        let size = value.as_u64().and_then(|size| usize::try_from(size).ok());
        match size {
            Some(size) if (1..=1 << 31).contains(&size) => Ok(Some(size)),
            _ => Err(Error::invalid(format!("`{key}` in `config.json` is {value}, not a size from 1 up"))),
        }
    }

    pub(super) fn optional_number(&self, key: &str) -> Result<Option<f64>> {
        let Some(value) = self.text.get(key).filter(|value| !value.is_null()) else {
            return Ok(None);
        };
        let number = value.as_f64().filter(|number| number.is_finite() && *number >= 0.0);
        number
            .map(Some)
            .ok_or_else(|| Error::invalid(format!("`{key}` in `config.json` is {value}, not a number from 0 up")))
    }

    pub(super) fn flag(&self, key: &str, default: bool) -> Result<bool> {
        match self.text.get(key) {
            None | Some(Value::Null) => Ok(default),
            Some(Value::Bool(flag)) => Ok(*flag),
            Some(other) => Err(Error::invalid(format!("`{key}` in `config.json` is {other}, not true or false"))),
        }
    }

    pub(super) fn list(&self, key: &str) -> Result<Option<&[Value]>> {
        match self.text.get(key) {
            None | Some(Value::Null) => Ok(None),
            Some(Value::Array(list)) => Ok(Some(list)),
            Some(other) => Err(Error::invalid(format!("`{key}` in `config.json` is {other}, not a list"))),
        }
    }

    pub(super) fn tied_embeddings(&self, family: Family) -> Result<bool> {
        match self.root.get("tie_word_embeddings") {
            Some(Value::Bool(tied)) => Ok(*tied),
            // The defaults of these configurations in transformers.
            _ => self.flag("tie_word_embeddings", family == Family::SmolLm3),
        }
    }

    pub(super) fn dtype(&self) -> Option<String> {
        ["dtype", "torch_dtype"]
            .iter()
            .find_map(|key| self.text.get(*key).or_else(|| self.root.get(*key)))
            .and_then(Value::as_str)
            .map(str::to_owned)
    }

    pub(super) fn eos_token_ids(&self, generation: Option<&Value>) -> Result<Vec<u32>> {
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
