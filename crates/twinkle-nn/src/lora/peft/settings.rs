//! `adapter_config.json`.

use std::collections::BTreeMap;
use std::path::Path;

use serde_json::{Value, json};
use twinkle_core::call::LoraSpec;
use twinkle_core::{Error, Result};

use super::CONFIG_FILE;
use crate::config::read_json;
use crate::lora::targets::divisor;

/// A module as a file has it.
pub(super) struct Described {
    /// Its name in the base model, `model.layers.0.self_attn.q_proj`.
    pub(super) name: String,
    /// The rank that PEFT is to find, and of which the scale is made.
    pub(super) rank: u32,
    pub(super) scale: f64,
}

/// What `adapter_config.json` says of ranks, scales and targets.
pub(super) struct Shape {
    rank: u32,
    alpha: f64,
    use_rslora: bool,
    /// `target_modules`.
    modules: Vec<String>,
    /// `target_parameters`.
    parameters: Vec<String>,
    /// In the order of their names: of several that match PEFT takes the first.
    rank_pattern: BTreeMap<String, Value>,
    alpha_pattern: BTreeMap<String, Value>,
}

impl Shape {
    /// The settings by which PEFT gives these modules their ranks and scales. `rank` and `alpha` are those of most.
    pub(super) fn new(
        rank: u32,
        alpha: f64,
        use_rslora: bool,
        (target_modules, parameters): (Vec<String>, Vec<String>),
        modules: &[Described],
    ) -> Self {
        let mut shape = Self {
            rank,
            alpha,
            use_rslora,
            modules: target_modules,
            parameters,
            rank_pattern: BTreeMap::new(),
            alpha_pattern: BTreeMap::new(),
        };
        let is_usual_alpha = |module: &Described| alpha / divisor(module.rank, use_rslora) == module.scale;
        for module in modules {
            // One key for all modules of that leaf, if they agree.
            let leaf = module.name.rsplit('.').next().unwrap_or(&module.name);
            let of_leaf =
                || modules.iter().filter(|other| other.name.rsplit('.').next().is_some_and(|found| found == leaf));
            let key = |agree: bool| match module.name.strip_suffix(".weight") {
                // A wrapped parameter has its own name in PEFT, the module's here.
                Some(name) => format!(r"{}(\.weight)?", name.replace('.', r"\.")),
                // A dense layer beside experts may have the same leaf and another rank.
                None if agree && module.name.contains(".mlp.experts.") => format!(r"experts(\.\d+)?\.{leaf}"),
                None if agree => leaf.to_owned(),
                None => module.name.replace('.', r"\."),
            };
            if module.rank != rank {
                let agree = of_leaf().all(|other| other.rank == module.rank);
                shape.rank_pattern.insert(key(agree), json!(module.rank));
            }
            if !is_usual_alpha(module) {
                let agree = of_leaf().all(|other| other.rank == module.rank && other.scale == module.scale);
                let own = module.scale * divisor(module.rank, use_rslora);
                shape.alpha_pattern.insert(key(agree), integral(own));
            }
        }
        shape
    }

    /// The whole `adapter_config.json`.
    pub(super) fn to_json(&self, base_model: &str) -> Value {
        let mut settings = json!({
            "peft_type": "LORA",
            "task_type": "CAUSAL_LM",
            "base_model_name_or_path": base_model,
            "r": self.rank,
            "lora_alpha": integral(self.alpha),
            "target_modules": self.modules,
            "lora_dropout": 0.0,
            "bias": "none",
            "use_rslora": self.use_rslora,
            "use_dora": false,
            "fan_in_fan_out": false,
            "inference_mode": true,
            "init_lora_weights": true,
            "rank_pattern": self.rank_pattern,
            "alpha_pattern": self.alpha_pattern,
            "modules_to_save": null,
        });
        // Versions of PEFT before 0.17 do not know the key.
        if !self.parameters.is_empty() {
            settings["target_parameters"] = json!(self.parameters);
        }
        settings
    }

    /// Whether the file's settings give the same ranks and scales.
    pub(super) fn agrees_with(&self, settings: &Settings) -> bool {
        let own = self.to_json("");
        ["r", "lora_alpha", "use_rslora", "rank_pattern", "alpha_pattern"]
            .iter()
            .all(|key| own.get(*key).zip(settings.json.get(*key)).is_some_and(|(own, found)| agree(own, found)))
    }
}

/// Whether two settings are equal, numbers up to what a decimal notation loses.
fn agree(one: &Value, other: &Value) -> bool {
    match (one, other) {
        (Value::Object(one), Value::Object(other)) => {
            one.len() == other.len()
                && one.iter().all(|(key, value)| other.get(key).is_some_and(|other| agree(value, other)))
        }
        (Value::Number(one), Value::Number(other)) => {
            let (one, other) = (one.as_f64().unwrap_or(f64::NAN), other.as_f64().unwrap_or(f64::NAN));
            (one - other).abs() <= 1e-12 * one.abs()
        }
        _ => one == other,
    }
}

/// PEFT writes alpha as an integer when it is one.
fn integral(alpha: f64) -> Value {
    if alpha.fract() == 0.0 && alpha.abs() < 1e15 { json!(alpha as i64) } else { json!(alpha) }
}

/// A file's settings, as far as they change what it computes.
pub(super) struct Settings {
    pub(super) rank: u32,
    pub(super) alpha: f64,
    pub(super) use_rslora: bool,
    pub(super) rank_pattern: Vec<(String, u32)>,
    pub(super) alpha_pattern: Vec<(String, f64)>,
    json: Value,
}

impl Settings {
    pub(super) fn read(directory: &Path) -> Result<Self> {
        let json = read_json(&directory.join(CONFIG_FILE))?;
        refuse_what_is_not_computed(&json)?;
        let rank = json
            .get("r")
            .and_then(rank_of)
            .ok_or_else(|| Error::invalid(format!("`{CONFIG_FILE}` has no rank `r`")))?;
        let alpha = json
            .get("lora_alpha")
            .and_then(Value::as_f64)
            .ok_or_else(|| Error::invalid(format!("`{CONFIG_FILE}` has no `lora_alpha`")))?;
        let use_rslora = json.get("use_rslora").and_then(Value::as_bool).unwrap_or(false);
        Ok(Self {
            rank,
            alpha,
            use_rslora,
            rank_pattern: pattern(&json, "rank_pattern", rank_of)?,
            alpha_pattern: pattern(&json, "alpha_pattern", Value::as_f64)?,
            json,
        })
    }

    /// An adapter on everything with these ranks and scales.
    pub(super) fn spec(&self) -> LoraSpec {
        LoraSpec {
            rank: self.rank,
            alpha: self.alpha,
            use_rslora: self.use_rslora,
            rank_pattern: self.rank_pattern.clone(),
            alpha_pattern: self.alpha_pattern.clone(),
            ..LoraSpec::default()
        }
    }
}

fn rank_of(value: &Value) -> Option<u32> {
    value.as_u64().and_then(|rank| u32::try_from(rank).ok())
}

fn pattern<T>(settings: &Value, key: &str, number: impl Fn(&Value) -> Option<T>) -> Result<Vec<(String, T)>> {
    let entries = match settings.get(key) {
        None | Some(Value::Null) => return Ok(Vec::new()),
        Some(Value::Object(entries)) => entries,
        Some(other) => return Err(Error::invalid(format!("`{key}` in `{CONFIG_FILE}` is {other}, not an object"))),
    };
    entries
        .iter()
        .map(|(name, value)| {
            let number = number(value)
                .ok_or_else(|| Error::invalid(format!("`{key}` in `{CONFIG_FILE}` has {value} for `{name}`")))?;
            Ok((name.clone(), number))
        })
        .collect()
}

/// Settings of PEFT that change what an adapter computes and that we do not compute.
fn refuse_what_is_not_computed(settings: &Value) -> Result<()> {
    let refuse = |key: &str, value: &Value| {
        Err(Error::unsupported(format!(
            "`{key}` in `{CONFIG_FILE}` is {value}, and such adapters are not computed here"
        )))
    };
    if let Some(kind) = settings.get("peft_type").filter(|kind| kind.as_str() != Some("LORA")) {
        return refuse("peft_type", kind);
    }
    for key in [
        "use_dora",
        "use_qalora",
        "use_bdlora",
        "fan_in_fan_out",
        "lora_bias",
        "alora_invocation_tokens",
        "layer_replication",
    ] {
        if let Some(value) = settings.get(key).filter(|value| !value.is_null() && value.as_bool() != Some(false)) {
            return refuse(key, value);
        }
    }
    if let Some(bias) = settings.get("bias").filter(|bias| bias.as_str() != Some("none")) {
        return refuse("bias", bias);
    }
    for key in ["modules_to_save", "trainable_token_indices"] {
        let Some(value) = settings.get(key) else { continue };
        let is_empty = match value {
            Value::Null => true,
            Value::Array(list) => list.is_empty(),
            Value::Object(map) => map.is_empty(),
            _ => false,
        };
        if !is_empty {
            return refuse(key, value);
        }
    }
    Ok(())
}
