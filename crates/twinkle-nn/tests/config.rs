//! What each layer is made of, by `config.json` alone.

use serde_json::{Value, json};
use twinkle_core::{Error, ErrorCode};
use twinkle_nn::config::{MixerKind, MlpKind, NormFlavour};
use twinkle_nn::{Family, ModelConfig};

fn read(config: &Value) -> ModelConfig {
    ModelConfig::from_json(config, None).unwrap()
}

fn refusal(config: &Value) -> Error {
    ModelConfig::from_json(config, None).unwrap_err()
}

fn qwen3_moe() -> Value {
    json!({
        "model_type": "qwen3_moe", "vocab_size": 8, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 6,
        "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 64, "num_experts": 6,
        "num_experts_per_tok": 2, "moe_intermediate_size": 10
    })
}

/// As published: the text model's keys in `text_config`, no width of a dense MLP.
fn qwen3_5_moe() -> Value {
    json!({
        "model_type": "qwen3_5_moe", "tie_word_embeddings": true,
        "text_config": {
            "model_type": "qwen3_5_moe_text", "vocab_size": 8, "hidden_size": 16, "num_hidden_layers": 8,
            "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 64, "num_experts": 6,
            "num_experts_per_tok": 2, "moe_intermediate_size": 10, "shared_expert_intermediate_size": 12,
            "linear_num_key_heads": 2, "linear_num_value_heads": 4, "linear_key_head_dim": 8,
            "linear_value_head_dim": 6, "tie_word_embeddings": false,
            "rope_parameters": {"rope_type": "default", "rope_theta": 1e7, "mrope_section": [11, 11, 10]}
        },
        "vision_config": {"hidden_size": 4}
    })
}

#[test]
fn layers_between_the_sparse_ones_are_dense() {
    let mut config = qwen3_moe();
    let plain = read(&config);
    assert!(plain.layers.iter().all(|kind| kind.mlp == MlpKind::Sparse && kind.mixer == MixerKind::FullAttention));
    config["decoder_sparse_step"] = json!(2);
    config["mlp_only_layers"] = json!([3]);
    let sparse: Vec<usize> = (0..6).filter(|layer| read(&config).layers[*layer].mlp == MlpKind::Sparse).collect();
    assert_eq!(sparse, [1, 5]);
    config["decoder_sparse_step"] = json!(7);
    let dense = read(&config);
    assert!(dense.moe.is_none() && dense.layers.iter().all(|kind| kind.mlp == MlpKind::Dense));
}

#[test]
fn experts_are_read_by_either_name_and_renormalised_when_the_files_say_so() {
    let mut config = qwen3_moe();
    assert!(!read(&config).moe.unwrap().norm_topk_prob, "the default of transformers");
    config["norm_topk_prob"] = json!(true);
    let moe = read(&config).moe.unwrap();
    assert_eq!((moe.expert_count, moe.experts_per_token, moe.intermediate_size), (6, 2, 10));
    assert!(moe.norm_topk_prob && moe.shared_intermediate_size.is_none());
    config.as_object_mut().unwrap().remove("num_experts");
    config["num_local_experts"] = json!(5);
    assert_eq!(read(&config).moe.unwrap().expert_count, 5);
}

#[test]
fn qwen3_5_has_defaults_of_its_own() {
    let config = read(&qwen3_5_moe());
    assert_eq!(config.family, Family::Qwen35Moe);
    let full: Vec<usize> = (0..8).filter(|layer| config.layers[*layer].mixer == MixerKind::FullAttention).collect();
    assert_eq!(full, [3, 7], "every fourth layer");
    assert!(config.nested && config.tied_embeddings && config.qk_norm && config.attention_gate);
    assert_eq!(config.norm, NormFlavour::ZeroCentred);
    assert_eq!((config.head_dim, config.rotary_dim, config.intermediate_size), (256, 64, 0));
    let moe = config.moe.unwrap();
    assert_eq!((moe.shared_intermediate_size, moe.norm_topk_prob), (Some(12), true));
    let delta = config.delta.unwrap();
    assert_eq!((delta.key_width(), delta.value_width(), delta.conv_channels(), delta.conv_kernel), (16, 24, 56, 4));
}

#[test]
fn a_list_of_layers_counts_more_than_the_interval() {
    let mut config = qwen3_5_moe();
    config["text_config"]["full_attention_interval"] = json!(2);
    let full = |config: &Value| {
        let layers = read(config).layers;
        (0..layers.len()).filter(|layer| layers[*layer].mixer == MixerKind::FullAttention).collect::<Vec<_>>()
    };
    assert_eq!(full(&config), [1, 3, 5, 7]);
    let mut names = vec!["linear_attention"; 8];
    names[0] = "full_attention";
    config["text_config"]["layer_types"] = json!(names);
    assert_eq!(full(&config), [0]);
}

#[test]
fn what_does_not_fit_together_is_refused_by_its_key() {
    for (key, value, named) in [
        ("num_experts_per_tok", json!(7), "`num_experts_per_tok`"),
        ("moe_intermediate_size", Value::Null, "`moe_intermediate_size`"),
        ("shared_expert_intermediate_size", json!(0), "`shared_expert_intermediate_size`"),
        ("linear_num_value_heads", json!(3), "`linear_num_value_heads`"),
        ("linear_num_key_heads", Value::Null, "`linear_num_key_heads`"),
        ("layer_types", json!(["full_attention"]), "`layer_types`"),
        ("layer_types", json!("full_attention"), "`layer_types`"),
        ("mlp_only_layers", json!(["first"]), "`mlp_only_layers`"),
    ] {
        let mut config = qwen3_5_moe();
        config["text_config"][key] = value;
        let error = refusal(&config);
        assert_eq!(error.code, ErrorCode::InvalidArgument, "{error}");
        assert!(error.message.contains(named), "{key}: {error}");
    }
    let mut config = qwen3_moe();
    config["layer_types"] = json!(vec!["linear_attention"; 6]);
    let error = refusal(&config);
    assert_eq!(error.code, ErrorCode::Unsupported, "Qwen3 has no linear attention: {error}");
}
