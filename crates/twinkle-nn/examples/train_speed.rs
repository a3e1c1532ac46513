//! Trains a LoRA adapter on a random model of a real shape and says how fast, and in how much memory.
//!
//! ```text
//! cargo run -p twinkle-nn --example train_speed -- --shape qwen2.5-0.5b --precision bf16
//! ```
//!
//! `--shape` is a known name or the folder of a model. The last line is JSON.
#![forbid(unsafe_code)]
#![expect(clippy::print_stdout, reason = "a program that prints its result")]

use std::collections::HashMap;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use clap::{Parser, ValueEnum};
use half::bf16;
use safetensors::Dtype;
use safetensors::tensor::TensorView;
use serde_json::{Value, json};
use tch::{Device, Kind, Tensor};
use twinkle_core::call::{ExpertFactors, LoraSpec};
use twinkle_core::{Error, Result};
use twinkle_nn::philox::Philox;
use twinkle_nn::{Adapter, AdapterLayout, BaseModel, Gradients, LoadOptions, ModelConfig, Pack, Precision, Projection};

/// Measures LoRA training.
#[derive(Debug, Parser)]
struct Arguments {
    /// `qwen2.5-0.5b`, `smollm2-135m`, or the folder of a model.
    #[arg(long, default_value = "qwen2.5-0.5b")]
    shape: String,
    /// The dtype of the base model.
    #[arg(long, value_enum, default_value_t = Dtypes::Auto)]
    precision: Dtypes,
    /// Sequences per step.
    #[arg(long, default_value_t = 8)]
    batch: usize,
    /// Tokens per sequence.
    #[arg(long, default_value_t = 256)]
    length: usize,
    /// The adapter's rank.
    #[arg(long, default_value_t = 16)]
    rank: u32,
    /// Rank of experts that have both factors of their own; by default they share one, and a part of `--rank`.
    #[arg(long)]
    expert_rank: Option<u32>,
    /// Also adapt the output head.
    #[arg(long)]
    train_unembed: bool,
    /// Steps to measure, after one to warm up.
    #[arg(long, default_value_t = 3)]
    steps: usize,
    /// Rows per tile of the matrix products.
    #[arg(long, default_value_t = 256)]
    row_tile: usize,
    /// Threads of libtorch; by default one per core.
    #[arg(long)]
    threads: Option<usize>,
    /// `cpu`, `cuda` or `cuda:<number>`.
    #[arg(long, default_value = "cpu")]
    device: String,
    /// Also measure decoding of this many tokens per sequence.
    #[arg(long, default_value_t = 0)]
    decode: usize,
}

/// The choices of `--precision`.
#[derive(Clone, Copy, Debug, ValueEnum)]
enum Dtypes {
    Auto,
    Bf16,
    Fp32,
}

fn main() -> Result<()> {
    let arguments = Arguments::parse();
    let internal = |error: twinkle_torch::Error| Error::internal(error.to_string());
    if let Some(threads) = arguments.threads {
        twinkle_torch::threads::set_intra_op(threads).map_err(internal)?;
    }
    let device = twinkle_torch::cuda::device(&arguments.device).map_err(internal)?;
    let precision = match arguments.precision {
        Dtypes::Auto => Precision::Auto,
        Dtypes::Bf16 => Precision::BFloat16,
        Dtypes::Fp32 => Precision::Float32,
    };
    let folder = model_folder(&arguments.shape, precision.kind(device))?;
    let base = BaseModel::load(&folder, &LoadOptions { precision, device, row_tile: arguments.row_tile })?;

    let spec = LoraSpec {
        rank: arguments.rank,
        seed: 1,
        train_unembed: arguments.train_unembed,
        expert_rank: arguments.expert_rank,
        expert_factors: if arguments.expert_rank.is_some() { ExpertFactors::PerExpert } else { ExpertFactors::Shared },
        ..LoraSpec::default()
    };
    let layout = Arc::new(AdapterLayout::new(base.config(), &spec)?);
    let mut run = Run { parameters: layout.initialise(device), gradients: Gradients::zeros(&layout, device), layout };
    let noise = Philox::new(1, 1);
    let vocabulary = base.config().vocab_size as f32;
    let mut pack = Pack::new();
    for sequence in 0..arguments.batch {
        let token = |i: usize| (noise.uniform((sequence * arguments.length + i) as u64) * vocabulary) as u32;
        pack.push(&(0..arguments.length).map(token).collect::<Vec<u32>>(), Some(0));
    }

    let mut times = Vec::new();
    for step in 0..=arguments.steps {
        let (loss, time) = timed(|| run.step(&base, &pack))?;
        println!("step {step}: loss {loss:.4}, {:.2} s, {:.1} tokens/s", time.as_secs_f64(), rate(pack.len(), time));
        if step > 0 {
            times.push(time);
        }
    }
    times.sort();
    let median = times.get(times.len() / 2).copied().unwrap_or_default();
    let decoding = if arguments.decode > 0 { Some(decode(&base, &arguments, &pack)?) } else { None };
    let report = json!({
        "shape": arguments.shape,
        "kind": format!("{:?}", base.kind()),
        "batch": arguments.batch,
        "length": arguments.length,
        "rank": arguments.rank,
        "row_tile": arguments.row_tile,
        "tokens_per_second": rate(pack.len(), median),
        "seconds_per_step": median.as_secs_f64(),
        "peak_memory_bytes": peak_memory(),
        "weight_bytes": base.weight_bytes(),
        "decoded_tokens_per_second": decoding,
    });
    println!("{report}");
    Ok(())
}

/// A run with plain gradient descent for an optimizer.
struct Run {
    layout: Arc<AdapterLayout>,
    parameters: Tensor,
    gradients: Gradients,
}

impl Run {
    fn step(&mut self, base: &BaseModel, pack: &Pack) -> Result<f32> {
        let adapters = [Arc::new(Adapter::from_parameters(&self.layout, &self.parameters, base.kind(), base.device()))];
        let mut targets = pack.tokens.clone();
        targets.rotate_left(1);
        let mut sum = 0.0;
        let mut cross_entropy = |_: Range<usize>, logprobs: &[f32], derivatives: &mut [f32]| {
            sum -= logprobs.iter().sum::<f32>();
            derivatives.fill(-1.0);
        };
        let (hidden, tape) = base.forward_training(pack, &adapters)?;
        let mut gradients = [&mut self.gradients];
        let head = base.head_loss(&hidden, pack, &adapters, &targets, &mut cross_entropy, Some(&mut gradients))?;
        drop(hidden);
        if let Some(d_hidden) = head.d_hidden {
            base.backward(tape, d_hidden, pack, &adapters, &mut gradients)?;
        }
        self.parameters -= self.gradients.flat() * (1e-4 / pack.len() as f64);
        self.gradients.zero();
        Ok(sum / pack.len() as f32)
    }
}

fn decode(base: &BaseModel, arguments: &Arguments, pack: &Pack) -> Result<f64> {
    let mut caches = Vec::new();
    for prompt in pack.tokens.chunks(arguments.length) {
        let mut cache = twinkle_nn::KvCache::new(base);
        let _ = base.prefill(prompt, &mut cache, None)?;
        caches.push(cache);
    }
    let adapters = vec![None; caches.len()];
    let mut tokens = vec![1; caches.len()];
    let mut step = || -> Result<()> {
        let mut borrowed: Vec<_> = caches.iter_mut().collect();
        let hidden = base.decode(&tokens, &mut borrowed, &adapters)?;
        let best = base.logits(&hidden, &adapters)?.argmax(-1, false);
        tokens = (0..tokens.len()).map(|row| best.int64_value(&[row as i64]) as u32).collect();
        Ok(())
    };
    step()?;
    let ((), time) = timed(|| (0..arguments.decode).try_for_each(|_| step()))?;
    Ok(rate(arguments.decode * arguments.batch, time))
}

#[expect(clippy::disallowed_types, reason = "no async runtime here, and real time is what is measured")]
fn timed<T>(work: impl FnOnce() -> Result<T>) -> Result<(T, Duration)> {
    let start = std::time::Instant::now();
    let result = work()?;
    Ok((result, start.elapsed()))
}

fn rate(tokens: usize, time: Duration) -> f64 {
    tokens as f64 / time.as_secs_f64()
}

/// The process's largest resident size so far, as Linux counts it.
fn peak_memory() -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"))?;
    let kilobytes: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    Some(kilobytes * 1024)
}

/// The model's folder; for a known shape one with random weights, made when first needed.
fn model_folder(shape: &str, kind: Kind) -> Result<PathBuf> {
    if Path::new(shape).is_dir() {
        return Ok(PathBuf::from(shape));
    }
    let config = match shape {
        "qwen2.5-0.5b" => json!({
            "model_type": "qwen2", "vocab_size": 151_936, "hidden_size": 896, "intermediate_size": 4864,
            "num_hidden_layers": 24, "num_attention_heads": 14, "num_key_value_heads": 2, "hidden_act": "silu",
            "max_position_embeddings": 32_768, "rms_norm_eps": 1e-6, "rope_theta": 1e6, "tie_word_embeddings": true,
            "use_sliding_window": false, "torch_dtype": "bfloat16", "architectures": ["Qwen2ForCausalLM"]
        }),
        "smollm2-135m" => json!({
            "model_type": "llama", "vocab_size": 49_152, "hidden_size": 576, "intermediate_size": 1536,
            "num_hidden_layers": 30, "num_attention_heads": 9, "num_key_value_heads": 3, "hidden_act": "silu",
            "max_position_embeddings": 8192, "rms_norm_eps": 1e-5, "rope_theta": 1e5, "tie_word_embeddings": true,
            "torch_dtype": "bfloat16", "architectures": ["LlamaForCausalLM"]
        }),
        other => {
            return Err(Error::invalid(format!("`{other}` is neither a known shape nor a folder"))
                .hint("known shapes: `qwen2.5-0.5b`, `smollm2-135m`"));
        }
    };
    let name = format!("twinkle-random-{shape}-{}", if kind == Kind::BFloat16 { "bf16" } else { "fp32" });
    let folder = std::env::temp_dir().join(name);
    if !folder.join("model.safetensors").exists() {
        write_random_model(&folder, &config, kind)?;
    }
    Ok(folder)
}

fn write_random_model(folder: &Path, config: &Value, kind: Kind) -> Result<()> {
    let disk = |error: std::io::Error| Error::internal(format!("cannot write `{}`: {error}", folder.display()));
    std::fs::create_dir_all(folder).map_err(disk)?;
    std::fs::write(folder.join("config.json"), config.to_string()).map_err(disk)?;
    let shape = ModelConfig::from_json(config, None)?;
    let mut tensors: HashMap<String, (Vec<usize>, Vec<u8>)> = HashMap::new();
    let mut add = |name: String, size: Vec<usize>, deviation: f64| {
        let values = if deviation > 0.0 {
            let size: Vec<i64> = size.iter().map(|size| *size as i64).collect();
            Tensor::randn(size.as_slice(), (Kind::Float, Device::Cpu)) * deviation
        } else {
            Tensor::ones([size[0] as i64], (Kind::Float, Device::Cpu))
        };
        let values = Vec::<f32>::try_from(values.view([-1])).unwrap_or_default();
        let bytes = if kind == Kind::BFloat16 {
            values.iter().flat_map(|value| bf16::from_f32(*value).to_le_bytes()).collect()
        } else {
            values.iter().flat_map(|value| value.to_le_bytes()).collect()
        };
        tensors.insert(name, (size, bytes));
    };
    add("model.embed_tokens.weight".to_owned(), vec![shape.vocab_size, shape.hidden_size], 0.02);
    add("model.norm.weight".to_owned(), vec![shape.hidden_size], 0.0);
    for layer in 0..shape.layer_count {
        for norm in ["input_layernorm", "post_attention_layernorm"] {
            add(format!("model.layers.{layer}.{norm}.weight"), vec![shape.hidden_size], 0.0);
        }
        for projection in Projection::of_layer(&shape, layer) {
            let (outputs, inputs) = projection.shape(&shape);
            let name = format!("model.layers.{layer}.{}", projection.suffix());
            add(format!("{name}.weight"), vec![outputs, inputs], 0.02);
            let is_qkv = matches!(projection, Projection::Query | Projection::Key | Projection::Value);
            if is_qkv && shape.qkv_bias {
                add(format!("{name}.bias"), vec![outputs], 0.02);
            }
        }
    }
    let dtype = if kind == Kind::BFloat16 { Dtype::BF16 } else { Dtype::F32 };
    let views = tensors
        .iter()
        .map(|(name, (size, bytes))| Ok((name.as_str(), TensorView::new(dtype, size.clone(), bytes)?)))
        .collect::<std::result::Result<Vec<_>, safetensors::SafeTensorError>>()
        .map_err(|error| Error::internal(error.to_string()))?;
    let metadata = HashMap::from([("format".to_owned(), "pt".to_owned())]);
    safetensors::serialize_to_file(views, Some(metadata), &folder.join("model.safetensors"))
        .map_err(|error| Error::internal(error.to_string()))
}
