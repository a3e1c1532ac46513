//! Each test needs a process of its own, as nextest gives it: what others take would be counted.

use serde_json::{Value, json};
use twinkle_core::call::LoraSpec;
use twinkle_nn::{BaseModel, LoadOptions, ModelConfig, Precision, Recompute};

use super::{Held, Rehearsal};

/// What a process of this size moves by itself: threads' stacks, tables of the allocator.
const NOISE: u64 = 4 << 20;

/// Large enough that a pass stands out, small enough to be quick. `more` is what differs.
fn model(more: &Value, precision: Precision) -> BaseModel {
    let mut config = json!({
        "vocab_size": 8192, "hidden_size": 512, "intermediate_size": 1536, "num_hidden_layers": 4,
        "num_attention_heads": 8, "num_key_value_heads": 2, "hidden_act": "silu", "max_position_embeddings": 4096,
        "rms_norm_eps": 1e-6, "attention_bias": false, "rope_theta": 1e6, "tie_word_embeddings": true
    });
    let all = config.as_object_mut().unwrap();
    all.extend(more.as_object().unwrap().clone());
    let config = ModelConfig::from_json(&config, None).unwrap();
    BaseModel::with_random_weights(config, &LoadOptions { precision, ..LoadOptions::default() }).unwrap()
}

fn dense() -> Value {
    json!({"model_type": "llama"})
}

fn linear_attention() -> Value {
    json!({
        "model_type": "qwen3_5_text", "head_dim": 64, "full_attention_interval": 4, "linear_conv_kernel_dim": 4,
        "linear_key_head_dim": 64, "linear_num_key_heads": 8, "linear_num_value_heads": 16,
        "linear_value_head_dim": 64,
        "rope_parameters": {"rope_type": "default", "partial_rotary_factor": 0.25, "rope_theta": 1e6}
    })
}

fn experts() -> Value {
    json!({
        "model_type": "qwen3_moe", "head_dim": 64, "decoder_sparse_step": 1, "mlp_only_layers": [],
        "moe_intermediate_size": 256, "num_experts": 8, "num_experts_per_tok": 4, "norm_topk_prob": true,
        "use_sliding_window": false
    })
}

fn rehearsal(full: bool, recompute: Recompute, accumulates: bool) -> Rehearsal {
    let lora = LoraSpec { rank: 16, train_unembed: false, full, ..LoraSpec::default() };
    Rehearsal { lengths: vec![400, 100, 260, 7, 257], lora, recompute, accumulates }
}

/// Never more than a tenth above what is planned, and never less than a third of it: the plan has what an allocator cannot
/// use again besides, which for linear attention is more than what is in use.
fn check(what: &str, Held { predicted, measured }: Held) {
    assert!(measured <= predicted + predicted / 10 + NOISE, "{what}: {measured} were taken, {predicted} planned");
    assert!(predicted / 3 <= measured + NOISE, "{what}: {measured} were taken, {predicted} planned");
}

fn check_all(name: &str, more: &Value, precision: Precision) {
    let base = model(more, precision);
    for (layers, accumulates) in [(0, false), (3, false), (0, true)] {
        let found = rehearsal(false, Recompute { layers }, accumulates).perform(&base).unwrap();
        check(&format!("{name}: a pass with {layers} layers computed twice"), found.pass);
        check(&format!("{name}: a run"), found.run);
    }
}

#[test]
fn a_dense_model_takes_what_is_planned() {
    check_all("bf16", &dense(), Precision::BFloat16);
    check_all("fp32", &dense(), Precision::Float32);
}

#[test]
fn linear_attention_takes_what_is_planned() {
    check_all("bf16", &linear_attention(), Precision::BFloat16);
}

#[test]
fn experts_take_what_is_planned() {
    check_all("bf16", &experts(), Precision::BFloat16);
}

#[test]
fn a_run_of_all_weights_takes_what_is_planned() {
    for (name, more) in [("dense", dense()), ("experts", experts()), ("linear attention", linear_attention())] {
        let base = model(&more, Precision::BFloat16);
        let found = rehearsal(true, Recompute::NOTHING, true).perform(&base).unwrap();
        check(&format!("{name}: the run"), found.run);
        check(&format!("{name}: a pass"), found.pass);
        assert_eq!(found.run.predicted, base.cost().full_run_bytes(), "{name}: the plan counts what the run has");
        // Blocks of a step, and nothing as large as the run.
        assert!(found.step < NOISE, "{name}: a step took {} beside its run", found.step);
    }
}
