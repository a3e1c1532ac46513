//! Holds what is planned for training against what it takes, in memory and in time. Prints a table.
//!
//! ```text
//! cargo run -p twinkle-model --example memory_check
//! cargo run -p twinkle-model --example memory_check -- --model path/to/a/model --rows 2048
//! ```
//!
//! Without a model: real shapes with few layers, a smaller vocabulary and random weights. Nothing else should run.
#![forbid(unsafe_code)]
#![expect(clippy::print_stdout, reason = "a program that prints its result")]

use std::path::PathBuf;

use anyhow::Result;
use clap::Parser;
use serde_json::json;
use twinkle_core::call::LoraSpec;
use twinkle_model::rehearsal::Rehearsal;
use twinkle_nn::memory::Rate;
use twinkle_nn::{BaseModel, LoadOptions, ModelConfig, Precision, Recompute};

/// Measures training steps.
#[derive(Debug, Parser)]
struct Arguments {
    /// A model folder in place of the known shapes.
    #[arg(long)]
    model: Option<PathBuf>,
    /// Only the shape of this name.
    #[arg(long)]
    shape: Option<String>,
    /// Packed rows of each pass.
    #[arg(long, value_delimiter = ',', default_values_t = [256, 1024, 2048])]
    rows: Vec<usize>,
    /// Rows of the longest sequence.
    #[arg(long, default_value_t = 512)]
    longest: usize,
    /// The adapters' rank.
    #[arg(long, default_value_t = 16)]
    rank: u32,
    /// Compute in fp32.
    #[arg(long)]
    fp32: bool,
}

fn main() -> Result<()> {
    let arguments = Arguments::parse();
    let precision = if arguments.fp32 { Precision::Float32 } else { Precision::BFloat16 };
    let options = LoadOptions { precision, ..LoadOptions::default() };
    let mut models = Vec::new();
    if let Some(folder) = &arguments.model {
        models.push((folder.display().to_string(), BaseModel::load(folder, &options)?));
    } else {
        for (name, config) in shapes() {
            if arguments.shape.as_deref().is_none_or(|wanted| wanted == name) {
                let config = ModelConfig::from_json(&config, None)?;
                models.push((name.to_owned(), BaseModel::with_random_weights(config, &options)?));
            }
        }
    }
    println!(
        "| shape | trains | rows | twice | copy | run MiB | taken | pass MiB | taken | planned / taken | tok/s | taken |"
    );
    println!("| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |");
    for (name, base) in &models {
        measure(name, base, &arguments)?;
    }
    Ok(())
}

fn measure(name: &str, base: &BaseModel, arguments: &Arguments) -> Result<()> {
    let cost = base.cost();
    let rate = Rate::measure(base.kind(), &cost)?;
    let layers = base.config().layer_count;
    for full in [false, true] {
        let lora = LoraSpec { rank: arguments.rank, train_unembed: false, full, ..LoraSpec::default() };
        for rows in &arguments.rows {
            let cases = [(0, false), (0, true), (layers / 2, false), (layers - 1, false)];
            for (recomputed, accumulates) in cases {
                let lengths = lengths(*rows, arguments.longest);
                let recompute = Recompute { layers: recomputed };
                let found = Rehearsal { lengths, lora: lora.clone(), recompute, accumulates }.perform(base)?;
                let mib = |bytes: u64| bytes as f64 / f64::from(1 << 20);
                println!(
                    "| {name} | {} | {rows} | {recomputed} | {} | {:.0} | {:.0} | {:.0} | {:.0} | {:.2} | {:.0} | {:.0} |",
                    if full { "all weights" } else { "an adapter" },
                    if accumulates { "yes" } else { "no" },
                    mib(found.run.predicted),
                    mib(found.run.measured),
                    mib(found.pass.predicted),
                    mib(found.pass.measured),
                    found.pass.predicted as f64 / found.pass.measured.max(1) as f64,
                    rate.training(&cost, arguments.longest.min(*rows)),
                    found.tokens_per_second
                );
            }
        }
    }
    Ok(())
}

/// Sequences of many lengths, so many rows in all.
fn lengths(rows: usize, longest: usize) -> Vec<usize> {
    let mut lengths = Vec::new();
    let mut left = rows;
    for place in 0.. {
        if left == 0 {
            break;
        }
        let length = (longest / (1 + place % 3)).clamp(1, left);
        lengths.push(length);
        left -= length;
    }
    lengths
}

/// The proportions of published models.
fn shapes() -> [(&'static str, serde_json::Value); 4] {
    let dense = |hidden: usize, wide: usize, layers: usize, heads: usize, keys: usize| {
        json!({
            "model_type": "llama", "vocab_size": 49_152, "hidden_size": hidden, "intermediate_size": wide,
            "num_hidden_layers": layers, "num_attention_heads": heads, "num_key_value_heads": keys,
            "hidden_act": "silu", "max_position_embeddings": 8192, "rms_norm_eps": 1e-5, "rope_theta": 1e5,
            "tie_word_embeddings": true
        })
    };
    let mixed = json!({
        "model_type": "qwen3_5_text", "vocab_size": 32_768, "hidden_size": 1024, "intermediate_size": 3584,
        "num_hidden_layers": 8, "num_attention_heads": 8, "num_key_value_heads": 2, "head_dim": 256,
        "hidden_act": "silu", "max_position_embeddings": 8192, "rms_norm_eps": 1e-6, "attention_bias": false,
        "linear_conv_kernel_dim": 4, "linear_key_head_dim": 128, "linear_num_key_heads": 16,
        "linear_num_value_heads": 16, "linear_value_head_dim": 128, "full_attention_interval": 4,
        "rope_parameters": {"rope_type": "default", "partial_rotary_factor": 0.25, "rope_theta": 1e7},
        "tie_word_embeddings": true
    });
    let experts = json!({
        "model_type": "qwen3_moe", "vocab_size": 32_768, "hidden_size": 1024, "intermediate_size": 3072,
        "num_hidden_layers": 6, "num_attention_heads": 16, "num_key_value_heads": 4, "head_dim": 64,
        "hidden_act": "silu", "max_position_embeddings": 8192, "rms_norm_eps": 1e-6, "attention_bias": false,
        "decoder_sparse_step": 1, "mlp_only_layers": [], "moe_intermediate_size": 384, "num_experts": 32,
        "num_experts_per_tok": 8, "norm_topk_prob": true, "rope_theta": 1e6, "use_sliding_window": false,
        "tie_word_embeddings": true
    });
    [
        ("llama-135m", dense(576, 1536, 12, 9, 3)),
        ("llama-wide", dense(1536, 4096, 4, 12, 4)),
        ("qwen3.5", mixed),
        ("qwen3-moe", experts),
    ]
}
