//! Adapters on disk, and their start.

mod common;

use std::fs;
use std::path::Path;
use std::sync::Arc;

use common::{fixture, floats, load, logits_of};
use serde_json::{Value, json};
use twinkle_core::ErrorCode;
use twinkle_core::call::LoraSpec;
use twinkle_nn::{Adapter, AdapterLayout, ModelConfig, Precision, peft};

fn copy_of(variant: &str, adapter: &str) -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    for name in ["adapter_config.json", "adapter_model.safetensors"] {
        fs::copy(fixture(variant).join(adapter).join(name), folder.path().join(name)).unwrap();
    }
    folder
}

fn with_key(folder: &Path, key: &str, value: Value) {
    let path = folder.join("adapter_config.json");
    let mut config: Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
    config[key] = value;
    fs::write(path, config.to_string()).unwrap();
}

#[test]
fn what_peft_wrote_is_read_and_written_back_unchanged() {
    for variant in common::VARIANTS {
        let config = ModelConfig::read(&fixture(variant)).unwrap();
        for name in common::adapters(variant) {
            let (spec, flat) = peft::read(&fixture(variant).join(name), &config).unwrap();
            assert_eq!(spec.train_unembed, *name == "attn_mlp_unembed");
            assert!(spec.train_attn && spec.train_mlp);
            let layout = AdapterLayout::new(&config, &spec).unwrap();
            let folder = tempfile::tempdir().unwrap();
            peft::write_as(peft::Format::Peft, folder.path(), &layout, &flat, "a/base").unwrap();
            let (again, flat_again) = peft::read(folder.path(), &config).unwrap();
            assert_eq!(spec, again);
            assert!(flat.equal(&flat_again));

            let tensors = |path: &Path| {
                let bytes = fs::read(path.join("adapter_model.safetensors")).unwrap();
                let file = safetensors::SafeTensors::deserialize(&bytes).unwrap();
                let mut list: Vec<_> = file
                    .iter()
                    .map(|(name, view)| (name.to_owned(), view.shape().to_vec(), view.data().to_vec()))
                    .collect();
                list.sort();
                list
            };
            assert!(tensors(folder.path()) == tensors(&fixture(variant).join(name)), "{variant} {name}");
        }
    }
}

#[test]
fn the_description_names_every_target() {
    let config = ModelConfig::read(&fixture("qwen2")).unwrap();
    let spec = LoraSpec { rank: 4, train_mlp: false, ..LoraSpec::default() };
    let layout = AdapterLayout::new(&config, &spec).unwrap();
    let folder = tempfile::tempdir().unwrap();
    peft::write(folder.path(), &layout, &layout.initialise(tch::Device::Cpu), "a/base").unwrap();
    let written: Value = serde_json::from_slice(&fs::read(folder.path().join("adapter_config.json")).unwrap()).unwrap();
    assert_eq!(written["target_modules"], json!(["q_proj", "k_proj", "v_proj", "o_proj", "lm_head"]));
    assert_eq!(written["r"], json!(4));
    assert_eq!(written["lora_alpha"], json!(32));
    assert_eq!(written["base_model_name_or_path"], json!("a/base"));
}

#[test]
fn kinds_of_adapters_that_are_not_computed_are_refused_by_their_key() {
    let config = ModelConfig::read(&fixture("qwen2")).unwrap();
    for (key, value) in [
        ("use_dora", json!(true)),
        ("layer_replication", json!([[0, 1]])),
        ("modules_to_save", json!(["lm_head"])),
        ("bias", json!("all")),
        ("peft_type", json!("IA3")),
    ] {
        let folder = copy_of("qwen2", "attn_mlp");
        with_key(folder.path(), key, value);
        let error = peft::read(folder.path(), &config).unwrap_err();
        assert_eq!(error.code, ErrorCode::Unsupported);
        assert!(error.message.contains(key), "{error}");
    }
}

#[test]
fn damaged_and_foreign_adapters_are_refused() {
    let config = ModelConfig::read(&fixture("qwen2")).unwrap();
    let folder = copy_of("qwen2", "attn_mlp");
    let path = folder.path().join("adapter_model.safetensors");
    let whole = fs::read(&path).unwrap();
    fs::write(&path, &whole[..whole.len() / 2]).unwrap();
    assert!(peft::read(folder.path(), &config).unwrap_err().message.contains("cut off"));
    let other = ModelConfig::read(&fixture("qwen3")).unwrap();
    assert!(peft::read(copy_of("qwen2", "attn_mlp").path(), &other).is_err());
    let folder = copy_of("qwen2", "attn_mlp");
    with_key(folder.path(), "r", json!(5));
    assert!(peft::read(folder.path(), &config).unwrap_err().message.contains("shape"));
}

#[test]
fn an_adapter_on_some_modules_is_the_same_function_with_zeros_in_the_others() {
    let base = load("llama3", Precision::Float32);
    let (spec, flat) = peft::read(&fixture("llama3").join("attn_mlp"), base.config()).unwrap();
    let layout = Arc::new(AdapterLayout::new(base.config(), &spec).unwrap());
    let bytes = fs::read(fixture("llama3").join("attn_mlp/adapter_model.safetensors")).unwrap();
    let file = safetensors::SafeTensors::deserialize(&bytes).unwrap();
    let kept = file.iter().filter(|(name, _)| name.contains("q_proj") || name.contains("v_proj"));
    let folder = copy_of("llama3", "attn_mlp");
    let encoded = safetensors::serialize(kept.map(|(name, view)| (name.to_owned(), view)), None).unwrap();
    fs::write(folder.path().join("adapter_model.safetensors"), encoded).unwrap();
    let (some, some_flat) = peft::read(folder.path(), base.config()).unwrap();
    assert!(some.train_attn && !some.train_mlp);

    let zeroed = flat.copy();
    for module in layout.modules() {
        if !(module.name.ends_with("q_proj") || module.name.ends_with("v_proj")) {
            let _ = zeroed.narrow(0, module.offset as i64, (module.b_range().end - module.offset) as i64).zero_();
        }
    }
    let expected = Arc::new(Adapter::from_parameters(&layout, &zeroed, base.kind(), base.device()));
    let some_layout = Arc::new(AdapterLayout::new(base.config(), &some).unwrap());
    let found = Arc::new(Adapter::from_parameters(&some_layout, &some_flat, base.kind(), base.device()));
    let tokens: Vec<u32> = (1..40).collect();
    assert_eq!(logits_of(&base, &tokens, Some(&found)), logits_of(&base, &tokens, Some(&expected)));
}

#[test]
fn a_fresh_adapter_depends_on_its_seed_and_names_only() {
    let config = ModelConfig::read(&fixture("qwen2")).unwrap();
    let spec = |seed, train_mlp| LoraSpec { rank: 4, seed, train_mlp, train_unembed: false, ..LoraSpec::default() };
    let fresh = |seed, train_mlp| {
        let layout = AdapterLayout::new(&config, &spec(seed, train_mlp)).unwrap();
        let flat = floats(&layout.initialise(tch::Device::Cpu));
        (layout, flat)
    };
    let ((layout, first), (_, again), (_, other)) = (fresh(1, true), fresh(1, true), fresh(2, true));
    assert_eq!(first, again);
    assert_ne!(first, other);
    let (smaller, without_mlp) = fresh(1, false);
    for module in smaller.modules() {
        let same = layout.modules().iter().find(|candidate| candidate.name == module.name).unwrap();
        assert_eq!(without_mlp[module.a_range()], first[same.a_range()]);
        assert!(first[same.b_range()].iter().all(|value| *value == 0.0));
        let bound = 1.0 / (module.inputs as f32).sqrt();
        assert!(first[same.a_range()].iter().all(|value| value.abs() <= bound));
    }
}

#[test]
fn impossible_shapes_are_refused() {
    let config = ModelConfig::read(&fixture("qwen2")).unwrap();
    let good = LoraSpec { rank: 4, ..LoraSpec::default() };
    for spec in [
        LoraSpec { rank: 0, ..good.clone() },
        LoraSpec { rank: 1_000_000, ..good.clone() },
        LoraSpec { alpha: f64::NAN, ..good.clone() },
        LoraSpec { train_attn: false, train_mlp: false, train_unembed: false, ..good },
    ] {
        assert!(AdapterLayout::new(&config, &spec).is_err(), "{spec:?}");
    }
}
