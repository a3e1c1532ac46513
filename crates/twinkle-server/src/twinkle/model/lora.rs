//! The shape of an adapter, from PEFT's `LoraConfig` as a client sends it: JSON, or a text of JSON.

use serde_json::{Map, Value};
use twinkle_core::call::{LoraSpec, ModuleNames, Targets};
use twinkle_core::config::TrainMode;
use twinkle_core::error::{Error, ErrorCode, Result};
use twinkle_core::ids::RunId;

use super::arguments::Arguments;
use crate::directory::ServedModel;

/// What PEFT adapts in the models of this server when nothing is named.
const USUAL_TARGETS: [&str; 2] = ["q_proj", "v_proj"];

/// The key under which a client says what a text is.
const TYPE: &str = "_TWINKLE_TYPE_";

/// Settings that change what is computed in a way that is not offered. Empty, false or null they change nothing.
const NOT_OFFERED: [&str; 13] = [
    "use_dora",
    "use_qalora",
    "use_bdlora",
    "lora_bias",
    "fan_in_fan_out",
    "modules_to_save",
    "trainable_token_indices",
    "layers_pattern",
    "layer_replication",
    "alora_invocation_tokens",
    "target_parameters",
    "arrow_config",
    "ensure_weight_tying",
];

/// What a client asked for: an adapter's shape, or all weights. Errors: what does not fit how the model is served.
pub(super) fn spec(config: Option<Value>, model: &ServedModel, run: &RunId) -> Result<LoraSpec> {
    let Some(config) = config.filter(|config| !config.is_null()) else {
        return match model.train_mode {
            TrainMode::Full => Ok(LoraSpec { full: true, ..LoraSpec::default() }),
            TrainMode::Lora => Err(Error::invalid("this deployment runs in LoRA mode; a LoraConfig is required")
                .hint("send `config`, for example `LoraConfig(r=8, target_modules=\"all-linear\")`")),
        };
    };
    if model.train_mode == TrainMode::Full {
        return Err(Error::invalid(
            "this deployment runs in full-parameter (exclusive) mode; pass config=None (do not send a LoraConfig)",
        ));
    }
    let spec = adapter(read(config)?, run)?;
    if spec.rank == 0 || spec.rank > model.max_rank {
        return Err(Error::invalid(format!(
            "too big rank for lora: {} (the rank is between 1 and {})",
            spec.rank, model.max_rank
        )));
    }
    Ok(spec)
}

/// The settings of an object, or of a text that holds one.
fn read(config: Value) -> Result<Map<String, Value>> {
    let config = match config {
        Value::String(text) => serde_json::from_str(&text)
            .map_err(|error| Error::invalid(format!("`config` is a text that is no JSON: {error}")))?,
        other => other,
    };
    let Value::Object(mut settings) = config else {
        return Err(Error::invalid("`config` is no object")
            .hint("send a LoraConfig, or an object such as {\"r\": 8, \"target_modules\": \"all-linear\"}"));
    };
    match settings.remove(TYPE) {
        None => Ok(settings),
        Some(kind) if kind == "LoraConfig" => Ok(settings),
        Some(kind) => Err(Error::invalid(format!("`config` is a {kind}, but must be a `LoraConfig`"))),
    }
}

fn adapter(settings: Map<String, Value>, run: &RunId) -> Result<LoraSpec> {
    let mut settings = Arguments::new("LoraConfig", settings);
    match settings.text("peft_type")?.as_deref() {
        None | Some("LORA" | "PeftType.LORA") => {}
        Some(other) => {
            return Err(
                Error::unsupported(format!("adapters of type `{other}` are not offered")).hint("known types: `LORA`")
            );
        }
    }
    if let Some(bias) = settings.any("bias").filter(|bias| bias != "none") {
        return Err(Error::unsupported(format!("`bias` is {bias}, but biases are not trained")).hint("use `none`"));
    }
    for name in NOT_OFFERED {
        if let Some(value) = settings.any(name).filter(says_something) {
            return Err(Error::unsupported(format!("`{name}` of a LoraConfig is not offered (it is {value})"))
                .hint("leave it out"));
        }
    }
    let rank = settings.count("r")?.or(settings.count("rank")?).unwrap_or(8);
    let alpha = settings.number("lora_alpha")?.unwrap_or(8.0);
    let modules = settings.any("target_modules").map(|value| names("target_modules", value)).transpose()?;
    let exclude = settings.any("exclude_modules").filter(says_something);
    let spec = LoraSpec {
        rank: u32::try_from(rank).unwrap_or(u32::MAX),
        alpha,
        seed: seed_of(run),
        use_rslora: settings.flag("use_rslora")?.unwrap_or(false),
        targets: Some(Targets {
            modules: modules.unwrap_or_else(|| ModuleNames::Suffixes(USUAL_TARGETS.map(str::to_owned).into())),
            exclude: exclude.map(|value| names("exclude_modules", value)).transpose()?,
            layers: settings.any("layers_to_transform").filter(says_something).map(layers).transpose()?,
        }),
        rank_pattern: pattern(&mut settings, "rank_pattern", |value| {
            value.as_u64().and_then(|rank| u32::try_from(rank).ok()).filter(|rank| *rank > 0)
        })?,
        alpha_pattern: pattern(&mut settings, "alpha_pattern", Value::as_f64)?,
        ..LoraSpec::default()
    };
    // The rest (dropout, initialisation, notes of PEFT's own) changes nothing here, as it does not in the original.
    Ok(spec)
}

/// Whether a setting is more than its absence.
fn says_something(value: &Value) -> bool {
    match value {
        Value::Null | Value::Bool(false) => false,
        Value::Array(list) => !list.is_empty(),
        Value::Object(map) => !map.is_empty(),
        Value::String(text) => !text.is_empty(),
        _ => true,
    }
}

fn names(setting: &str, value: Value) -> Result<ModuleNames> {
    let wrong = || Error::invalid(format!("`{setting}` must be a list of names, a regular expression or `all-linear`"));
    match value {
        Value::String(pattern) if !pattern.is_empty() => Ok(ModuleNames::Pattern(pattern)),
        Value::Array(list) if !list.is_empty() => {
            let name = |value: Value| value.as_str().map(str::to_owned).ok_or_else(wrong);
            let mut names = list.into_iter().map(name).collect::<Result<Vec<_>>>()?;
            // Python's sets have no order; an adapter's shape must not depend on it.
            names.sort();
            names.dedup();
            Ok(ModuleNames::Suffixes(names))
        }
        _ => Err(wrong()),
    }
}

fn layers(value: Value) -> Result<Vec<u32>> {
    let list = if let Value::Array(list) = value { list } else { vec![value] };
    let layer = |value: &Value| {
        value
            .as_u64()
            .and_then(|layer| u32::try_from(layer).ok())
            .ok_or_else(|| Error::invalid(format!("`layers_to_transform` has {value}, which is no number of a layer")))
    };
    list.iter().map(layer).collect()
}

fn pattern<T>(
    settings: &mut Arguments,
    name: &'static str,
    read: impl Fn(&Value) -> Option<T>,
) -> Result<Vec<(String, T)>> {
    let Some(value) = settings.any(name) else { return Ok(Vec::new()) };
    let Value::Object(map) = value else {
        return Err(Error::invalid(format!("`{name}` must be an object of patterns and numbers")));
    };
    let number = |(pattern, value): (String, Value)| match read(&value) {
        Some(number) => Ok((pattern, number)),
        None => Err(Error::new(
            ErrorCode::InvalidArgument,
            format!("`{name}` has {value} for `{pattern}`, which is not a number above 0"),
        )),
    };
    map.into_iter().map(number).collect()
}

/// The seed of a run: as random as its session's id, and the same when sent again.
pub(super) fn seed_of(run: &RunId) -> u64 {
    use sha2::{Digest, Sha256};
    let digest = Sha256::digest(run.as_str().as_bytes());
    let (words, _) = digest.as_slice().as_chunks();
    words.first().map_or(0, |word| u64::from_le_bytes(*word))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn model(train_mode: TrainMode) -> ServedModel {
        ServedModel {
            name: "tiny".to_owned(),
            max_context: 128,
            vocabulary: 256,
            train_mode,
            max_rank: 32,
            max_loras: 8,
            default_alpha: 32.0,
            tokenizer: std::path::PathBuf::from("models/tiny"),
            trainer: None,
            journal: None,
            sampler: None,
        }
    }

    fn wanted(config: Value) -> Result<LoraSpec> {
        spec(Some(config), &model(TrainMode::Lora), &RunId::new("s-a"))
    }

    /// What `peft.LoraConfig(r=8, target_modules=..)` is on the wire.
    fn as_peft_sends(more: &Value) -> Value {
        let mut config = json!({
            "task_type": null, "peft_type": "LORA", "auto_mapping": null, "base_model_name_or_path": null,
            "revision": null, "inference_mode": false, "r": 8, "target_modules": ["v_proj", "q_proj"],
            "exclude_modules": null, "lora_alpha": 8, "lora_dropout": 0.0, "fan_in_fan_out": false, "bias": "none",
            "use_rslora": false, "modules_to_save": null, "init_lora_weights": true, "layers_to_transform": null,
            "layers_pattern": null, "rank_pattern": {}, "alpha_pattern": {}, "megatron_config": null,
            "trainable_token_indices": null, "loftq_config": {}, "eva_config": null, "use_dora": false,
            "use_qalora": false, "qalora_group_size": 16, "layer_replication": null, "lora_bias": false,
            "target_parameters": null, "_TWINKLE_TYPE_": "LoraConfig",
        });
        config.as_object_mut().unwrap().extend(more.as_object().cloned().unwrap());
        config
    }

    #[test]
    fn a_lora_config_is_read_as_text_and_as_an_object() {
        let config = as_peft_sends(&json!({}));
        let spec = wanted(config.clone()).unwrap();
        assert_eq!((spec.rank, spec.alpha, spec.use_rslora), (8, 8.0, false));
        let names = ModuleNames::Suffixes(vec!["q_proj".to_owned(), "v_proj".to_owned()]);
        assert_eq!(spec.targets.as_ref().unwrap().modules, names);
        assert_eq!(wanted(Value::String(config.to_string())).unwrap(), spec);
    }

    #[test]
    fn every_setting_that_counts_arrives() {
        let spec = wanted(as_peft_sends(&json!({
            "r": 16, "lora_alpha": 32.0, "use_rslora": true, "target_modules": "all-linear", "exclude_modules": ["o_proj"],
            "layers_to_transform": 1, "rank_pattern": { "q_proj": 4 }, "alpha_pattern": { "q_proj": 0.5 },
        })))
        .unwrap();
        let targets = spec.targets.unwrap();
        assert_eq!(targets.modules, ModuleNames::Pattern("all-linear".to_owned()));
        assert_eq!(targets.exclude, Some(ModuleNames::Suffixes(vec!["o_proj".to_owned()])));
        assert_eq!(targets.layers, Some(vec![1]));
        assert_eq!(spec.rank_pattern, [("q_proj".to_owned(), 4)]);
        assert_eq!(spec.alpha_pattern, [("q_proj".to_owned(), 0.5)]);
        assert!(spec.use_rslora);
    }

    #[test]
    fn what_is_not_computed_is_refused_by_name() {
        for (more, expected) in [
            (json!({ "use_dora": true }), "`use_dora`"),
            (json!({ "bias": "all" }), "`bias`"),
            (json!({ "modules_to_save": ["lm_head"] }), "`modules_to_save`"),
            (json!({ "r": 64 }), "between 1 and 32"),
            (json!({ "r": 0 }), "between 1 and 32"),
            (json!({ "r": "8" }), "`r` of `LoraConfig`"),
            (json!({ "target_modules": 3 }), "`target_modules`"),
            (json!({ "rank_pattern": { "q_proj": 0 } }), "`rank_pattern`"),
            (json!({ "peft_type": "ADALORA" }), "ADALORA"),
            (json!({ "_TWINKLE_TYPE_": "DatasetMeta" }), "DatasetMeta"),
        ] {
            let error = wanted(as_peft_sends(&more)).unwrap_err().to_string();
            assert!(error.contains(expected), "`{error}` lacks `{expected}`");
        }
        assert!(wanted(json!("{")).unwrap_err().message.contains("no JSON"));
        assert!(wanted(json!([1])).unwrap_err().message.contains("no object"));
    }

    #[test]
    fn the_way_a_model_is_served_decides_whether_there_is_a_config() {
        let run = RunId::new("s-a");
        assert!(spec(None, &model(TrainMode::Full), &run).unwrap().full);
        assert!(spec(None, &model(TrainMode::Lora), &run).unwrap_err().message.contains("LoRA mode"));
        let error = spec(Some(json!({ "r": 8 })), &model(TrainMode::Full), &run).unwrap_err();
        assert!(error.message.contains("full-parameter"), "{error}");
    }

    #[test]
    fn two_runs_begin_with_other_weights() {
        let config = json!({ "r": 8 });
        let one = spec(Some(config.clone()), &model(TrainMode::Lora), &RunId::new("s-a")).unwrap();
        let other = spec(Some(config), &model(TrainMode::Lora), &RunId::new("s-b")).unwrap();
        assert_ne!(one.seed, other.seed);
    }
}
