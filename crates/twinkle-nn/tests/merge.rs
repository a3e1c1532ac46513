//! A model with an adapter merged into it computes what the model with the adapter beside it computes.

mod common;

use std::fs;
use std::path::Path;

use common::{fixture, load, load_adapter, logits_of, max_abs};
use serde_json::Value;
use tch::Device;
use twinkle_nn::lora::merge::{Merged, Progress, merge};
use twinkle_nn::{BaseModel, LoadOptions, Precision};

fn merged_logits(folder: &Path, tokens: &[u32]) -> Vec<f32> {
    let options = LoadOptions { precision: Precision::Float32, device: Device::Cpu, row_tile: 64 };
    logits_of(&BaseModel::load(folder, &options).unwrap(), tokens, None)
}

/// Merges an adapter of the fixtures and compares logits; returns what the merge did and left.
fn assert_merges(model: &str, adapter: &str, allowed: f32) -> (Merged, tempfile::TempDir) {
    let parent = tempfile::tempdir().unwrap();
    let output = parent.path().join("merged");
    let mut seen = Vec::new();
    let merged =
        merge(&fixture(model), &fixture(model).join(adapter), &output, &mut |progress: Progress| seen.push(progress))
            .unwrap();
    let last = seen.last().unwrap();
    assert_eq!((last.done, last.total), (merged.bytes, merged.bytes), "{model} {adapter}");
    assert!(seen.is_sorted_by_key(|progress| progress.done));

    let tokens: Vec<u32> = (1..40).collect();
    let base = load(model, Precision::Float32);
    let beside = logits_of(&base, &tokens, Some(&load_adapter(&base, model, adapter).adapter));
    let error = max_abs(&merged_logits(&output, &tokens), &beside);
    assert!(error <= allowed, "{model} {adapter}: logits are off by {error}");
    let without = max_abs(&logits_of(&base, &tokens, None), &beside);
    assert!(without > 100.0 * allowed, "{model} {adapter}: the adapter does too little to be seen, {without}");
    (merged, parent)
}

fn config_of(folder: &Path) -> Value {
    serde_json::from_slice(&fs::read(folder.join("config.json")).unwrap()).unwrap()
}

#[test]
fn dense_models_merge() {
    for (model, adapter) in [("llama3", "attn_mlp"), ("qwen3", "rslora"), ("qwen2_untied", "tinker")] {
        let (merged, folder) = assert_merges(model, adapter, 1e-4);
        assert!(!merged.untied);
        let output = folder.path().join("merged");
        for name in ["tokenizer.json", "tokenizer_config.json", "generation_config.json", "chat_template.jinja"] {
            assert!(fs::read(output.join(name)).unwrap() == fs::read(fixture(model).join(name)).unwrap(), "{name}");
        }
        assert!(!output.join("golden.safetensors").exists());
    }
}

#[test]
fn shards_keep_their_names_and_get_an_index() {
    let (merged, folder) = assert_merges("qwen2_untied", "attn_mlp_unembed", 1e-4);
    let index = folder.path().join("merged/model.safetensors.index.json");
    let index: Value = serde_json::from_slice(&fs::read(index).unwrap()).unwrap();
    assert_eq!(index["metadata"]["total_size"], merged.bytes);
    let source = fixture("qwen2_untied").join("model.safetensors.index.json");
    let source: Value = serde_json::from_slice(&fs::read(source).unwrap()).unwrap();
    assert_eq!(index["weight_map"], source["weight_map"]);
}

#[test]
fn an_adapter_on_a_tied_head_unties_the_merged_model() {
    for (model, adapter) in [("qwen2", "attn_mlp_unembed"), ("llama3_tied", "tinker")] {
        let (merged, folder) = assert_merges(model, adapter, 1e-4);
        assert!(merged.untied);
        assert_eq!(config_of(&folder.path().join("merged"))["tie_word_embeddings"], false);
        assert_ne!(config_of(&fixture(model))["tie_word_embeddings"], false);
    }
}

#[test]
fn experts_merge_in_both_layouts_on_disk() {
    for model in ["qwen3_moe", "qwen3_moe_mixed"] {
        for adapter in ["attn_mlp", "rslora", "tinker"] {
            assert_merges(model, adapter, 1e-4);
        }
    }
    // Fused on disk, nested, with linear attention.
    for adapter in ["attn_mlp", "tinker"] {
        assert_merges("qwen3_5_moe", adapter, 2e-3);
    }
}

#[test]
fn linear_attention_merges() {
    for (model, adapter) in [("qwen3_5", "attn_mlp"), ("qwen3_5_vl", "tinker")] {
        assert_merges(model, adapter, 2e-3);
    }
}

#[test]
fn a_merge_that_fails_leaves_nothing() {
    let parent = tempfile::tempdir().unwrap();
    let output = parent.path().join("merged");
    let error = merge(&fixture("qwen3"), &fixture("qwen2").join("attn_mlp"), &output, &mut |_| {}).unwrap_err();
    assert!(error.message.contains("shape") || error.message.contains("cannot adapt"), "{error}");
    assert_eq!(fs::read_dir(parent.path()).unwrap().count(), 0);

    fs::create_dir(&output).unwrap();
    fs::write(output.join("mine"), "").unwrap();
    let error = merge(&fixture("qwen2"), &fixture("qwen2").join("attn_mlp"), &output, &mut |_| {}).unwrap_err();
    assert!(error.message.contains("not empty"), "{error}");
    assert!(output.join("mine").exists());
}
