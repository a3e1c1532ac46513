//! What is refused when a model is loaded, and how it says so.

mod common;

use std::fs;
use std::path::{Path, PathBuf};

use serde_json::{Value, json};
use tch::Device;
use twinkle_core::ErrorCode;
use twinkle_nn::{BaseModel, Family, LoadOptions, ModelConfig, Precision};

/// A copy of a fixture's model that a test may damage.
fn copy_of(variant: &str) -> (tempfile::TempDir, PathBuf) {
    let folder = tempfile::tempdir().unwrap();
    for entry in fs::read_dir(common::fixture(variant)).unwrap() {
        let entry = entry.unwrap();
        if entry.file_type().unwrap().is_file() {
            fs::copy(entry.path(), folder.path().join(entry.file_name())).unwrap();
        }
    }
    let path = folder.path().to_owned();
    (folder, path)
}

fn refusal(folder: &Path) -> twinkle_core::Error {
    let options = LoadOptions { precision: Precision::Float32, device: Device::Cpu, row_tile: 64 };
    BaseModel::load(folder, &options).expect_err("the damaged model was loaded")
}

/// Changes `config.json` by one key.
fn with_key(folder: &Path, key: &str, value: Value) {
    let path = folder.join("config.json");
    let mut config: Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
    config[key] = value;
    fs::write(path, config.to_string()).unwrap();
}

#[test]
fn weights_of_the_models_dtype_are_not_copied() {
    let base = common::load("qwen2", Precision::Float32);
    let size = fs::metadata(common::fixture("qwen2").join("model.safetensors")).unwrap().len();
    assert!(base.weight_bytes() < size && base.weight_bytes() > size * 9 / 10);
    assert_eq!(common::load("qwen2", Precision::BFloat16).weight_bytes() * 2, base.weight_bytes());
}

#[test]
fn a_missing_folder_is_named() {
    let error = refusal(Path::new("/nowhere/a-model"));
    assert_eq!(error.code, ErrorCode::NotFound);
    assert!(error.message.contains("/nowhere/a-model"), "{error}");
}

#[test]
fn a_folder_without_safetensors_says_what_it_looks_for() {
    let (_guard, folder) = copy_of("qwen2");
    fs::remove_file(folder.join("model.safetensors")).unwrap();
    let error = refusal(&folder);
    assert!(error.message.contains("model.safetensors.index.json"), "{error}");
}

#[test]
fn a_file_cut_off_anywhere_is_refused_by_name() {
    for variant in ["qwen2", "qwen2_untied"] {
        let (_guard, folder) = copy_of(variant);
        let name = if variant == "qwen2" { "model.safetensors" } else { "model-00002-of-00002.safetensors" };
        let path = folder.join(name);
        let whole = fs::read(&path).unwrap();
        for length in [0, 7, 8, 100, whole.len() / 2, whole.len() - 1] {
            fs::write(&path, &whole[..length]).unwrap();
            let error = refusal(&folder);
            assert!(error.message.contains(name), "{length} bytes: {error}");
        }
    }
}

#[test]
fn a_missing_shard_is_named() {
    let (_guard, folder) = copy_of("qwen2_untied");
    fs::remove_file(folder.join("model-00001-of-00002.safetensors")).unwrap();
    assert!(refusal(&folder).message.contains("model-00001-of-00002.safetensors"));
}

#[test]
fn a_shard_must_lie_beside_its_index() {
    let (_guard, folder) = copy_of("qwen2_untied");
    let index = json!({"weight_map": {"model.norm.weight": "../../secret.safetensors"}});
    fs::write(folder.join("model.safetensors.index.json"), index.to_string()).unwrap();
    assert!(refusal(&folder).message.contains("../../secret.safetensors"));
}

#[test]
fn a_missing_tensor_is_named() {
    let (_guard, folder) = copy_of("qwen2");
    with_key(&folder, "num_hidden_layers", json!(4));
    with_key(&folder, "layer_types", Value::Null);
    let error = refusal(&folder);
    assert!(error.message.contains("`model.layers.3."), "{error}");
}

#[test]
fn a_tensor_that_the_architecture_does_not_use_is_named() {
    let (_guard, folder) = copy_of("qwen2");
    with_key(&folder, "num_hidden_layers", json!(2));
    let error = refusal(&folder);
    assert!(error.message.contains("`model.layers.2."), "{error}");
    // A Qwen2 checkpoint read as Llama would silently lose its biases.
    let (_guard, folder) = copy_of("qwen2");
    with_key(&folder, "model_type", json!("llama"));
    assert!(refusal(&folder).message.contains("bias"));
}

#[test]
fn a_tensor_of_another_shape_is_named() {
    let (_guard, folder) = copy_of("qwen2");
    with_key(&folder, "vocab_size", json!(337));
    let error = refusal(&folder);
    assert!(error.message.contains("`model.embed_tokens.weight`") && error.message.contains("337"), "{error}");
}

#[test]
fn settings_that_are_not_computed_are_refused_by_their_key() {
    for (key, value, named) in [
        ("model_type", json!("qwen9"), "`model_type`"),
        ("hidden_act", json!("gelu"), "`hidden_act`"),
        ("use_sliding_window", json!(true), "`use_sliding_window`"),
        ("attention_dropout", json!(0.1), "`attention_dropout`"),
        ("rope_scaling", json!({"rope_type": "dynamic", "factor": 2.0}), "`rope_type`"),
        ("rope_scaling", json!({"type": "longrope"}), "`rope_type`"),
        ("partial_rotary_factor", json!(0.25), "`partial_rotary_factor`"),
        ("quantization_config", json!({"bits": 4}), "`quantization_config`"),
        ("layer_types", json!(["sliding_attention"]), "`layer_types`"),
    ] {
        let (_guard, folder) = copy_of("qwen2");
        with_key(&folder, key, value);
        let error = refusal(&folder);
        assert_eq!(error.code, ErrorCode::Unsupported, "{error}");
        assert!(error.message.contains(named), "{key}: {error}");
    }
    for (key, value) in [("hidden_size", json!(0)), ("num_key_value_heads", json!(3)), ("vocab_size", json!("many"))] {
        let (_guard, folder) = copy_of("qwen2");
        with_key(&folder, key, value);
        let error = refusal(&folder);
        assert_eq!(error.code, ErrorCode::InvalidArgument, "{error}");
        assert!(error.message.contains(key), "{error}");
    }
}

#[test]
fn both_generations_of_rotation_keys_mean_the_same() {
    let base = json!({
        "model_type": "llama", "vocab_size": 8, "hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1,
        "num_attention_heads": 2, "max_position_embeddings": 64
    });
    let llama3 = json!({
        "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 32
    });
    let mut old = base.clone();
    old["rope_theta"] = json!(5e5);
    old["rope_scaling"] = llama3.clone();
    old["rope_scaling"]["type"] = json!("llama3");
    let mut new = base;
    new["rope_parameters"] = llama3;
    new["rope_parameters"]["rope_type"] = json!("llama3");
    new["rope_parameters"]["rope_theta"] = json!(5e5);
    let (old, new) = (ModelConfig::from_json(&old, None).unwrap(), ModelConfig::from_json(&new, None).unwrap());
    assert_eq!(old, new);
    assert_eq!(old.family, Family::Llama);
    assert_eq!((old.kv_head_count, old.head_dim), (2, 4));
}

#[test]
fn every_fourth_layer_of_smollm3_does_not_rotate_unless_the_files_say_otherwise() {
    let mut config = json!({
        "model_type": "smollm3", "vocab_size": 8, "hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 5,
        "num_attention_heads": 2, "max_position_embeddings": 64
    });
    let read = |config: &Value| ModelConfig::from_json(config, None);
    let plain = read(&config).unwrap();
    assert_eq!(plain.rotary_layers, [true, true, true, false, true]);
    assert!(plain.tied_embeddings && plain.rope.theta.to_bits() == 2e6_f64.to_bits());
    config["no_rope_layers"] = json!([0, 1, 1, 1, 0]);
    assert_eq!(read(&config).unwrap().rotary_layers, [false, true, true, true, false]);
    for wrong in [json!([1, 1]), json!([1, 1, 2, 1, 1]), json!([true, true, true, true, true])] {
        config["no_rope_layers"] = wrong;
        let error = read(&config).unwrap_err();
        assert_eq!(error.code, ErrorCode::InvalidArgument, "{error}");
        assert!(error.message.contains("`no_rope_layers`"), "{error}");
    }
}

#[test]
fn end_of_sequence_tokens_are_gathered_from_both_files() {
    let config = ModelConfig::read(&common::fixture("qwen2")).unwrap();
    assert!(config.eos_token_ids.contains(&302));
    assert!(config.eos_token_ids.is_sorted());
}

#[test]
fn tokens_outside_the_vocabulary_are_refused() {
    let base = common::load("qwen2", Precision::Float32);
    let outside = base.config().vocab_size as u32;
    let error = base.forward(&twinkle_nn::Pack::single(&[1, outside], None), &[]).unwrap_err();
    assert_eq!(error.code, ErrorCode::InvalidArgument);
    assert!(error.message.contains(&outside.to_string()), "{error}");
    let mut cache = twinkle_nn::KvCache::new(&base);
    assert!(base.prefill(&[outside], &mut cache, None).is_err());
    assert!(base.prefill(&[], &mut cache, None).is_err());
    assert!(cache.is_empty());
}
