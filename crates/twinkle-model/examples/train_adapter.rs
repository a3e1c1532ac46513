//! Trains a LoRA adapter without a server: the network, a loss of one's own, an optimizer, and files that PEFT reads.
//!
//! ```text
//! cargo run -p twinkle-model --example train_adapter -- path/to/a/model --text notes.txt --output my-adapter
//! ```
//!
//! The folder is a Hugging Face model: `config.json`, safetensors and `tokenizer.json`.
#![forbid(unsafe_code)]
#![expect(clippy::print_stdout, reason = "an example talks to the person who runs it")]

use std::ops::Range;
use std::path::PathBuf;
use std::sync::Arc;

use anyhow::{Context, Result, anyhow, ensure};
use clap::Parser;
use tokenizers::Tokenizer;
use twinkle_core::call::{AdamParams, LoraSpec};
use twinkle_model::optimizer::shape::of_adapter;
use twinkle_model::optimizer::{Optimizer, Parameters};
use twinkle_nn::{Adapter, AdapterLayout, BaseModel, Gradients, LoadOptions, Pack, Precision, peft};

/// What is learned where no text is given.
const TEXT: &str = "The sea is deep and the night is long.\nA small boat goes out before the day begins.\n";

/// Teach a model a text by heart.
#[derive(Parser)]
struct Arguments {
    /// The model's folder.
    model: PathBuf,
    /// A file whose lines are learned.
    #[arg(long)]
    text: Option<PathBuf>,
    /// Where the adapter is written; without it, a temporary folder.
    #[arg(long)]
    output: Option<PathBuf>,
    /// Optimizer steps, each over all lines.
    #[arg(long, default_value_t = 20)]
    steps: u32,
    /// The adapter's rank.
    #[arg(long, default_value_t = 8)]
    rank: u32,
    /// The optimizer's step size.
    #[arg(long, default_value_t = 5e-3)]
    learning_rate: f64,
}

fn main() -> Result<()> {
    let arguments = Arguments::parse();
    let base =
        BaseModel::load(&arguments.model, &LoadOptions { precision: Precision::Float32, ..LoadOptions::default() })?;
    let text = match &arguments.text {
        Some(file) => std::fs::read_to_string(file).with_context(|| format!("cannot read `{}`", file.display()))?,
        None => TEXT.to_owned(),
    };
    let lines = Lines::read(&arguments.model, &text)?;

    // The adapter: `A` random by the seed, `B` zero, all in one flat fp32 tensor that the optimizer changes in place.
    let spec = LoraSpec { rank: arguments.rank, seed: 7, train_unembed: false, ..LoraSpec::default() };
    let layout = Arc::new(AdapterLayout::new(base.config(), &spec)?);
    let parameters = layout.initialise(base.device());
    let shapes = of_adapter(&layout);
    let mut optimizer = Optimizer::for_adapter(&layout, base.device())?;
    let mut gradients = Gradients::zeros(&layout, base.device());
    let adam = AdamParams { learning_rate: arguments.learning_rate, ..AdamParams::default() };
    println!("{} parameters in {} modules", layout.parameter_count(), layout.modules().len());

    for step in 1..=arguments.steps {
        // What the device multiplies by is the parameters' rounding to the model's dtype.
        let adapters = [Arc::new(Adapter::from_parameters(&layout, &parameters, base.kind(), base.device()))];
        let loss = forward_backward(&base, &lines, &adapters, &mut gradients)?;
        let merged = gradients.merged();
        optimizer.step_adam(&adam, Parameters { values: &parameters, gradients: &merged, shapes: &shapes });
        gradients.zero();
        println!("step {step}: loss {:.4}", loss / lines.targets.len() as f64);
    }

    let scratch = tempfile::tempdir()?;
    let output = arguments.output.as_deref().unwrap_or(scratch.path());
    peft::write(output, &layout, &parameters, &arguments.model.to_string_lossy())?;
    for file in std::fs::read_dir(output)? {
        println!("written: {}", file?.path().display());
    }
    Ok(())
}

/// One pass forward and back over all lines: adds to `gradients`, returns the loss summed over the tokens.
fn forward_backward(
    base: &BaseModel,
    lines: &Lines,
    adapters: &[Arc<Adapter>],
    gradients: &mut Gradients,
) -> Result<f64> {
    let (hidden, tape) = base.forward_training(&lines.pack, adapters)?;
    let mut sum = 0.0;
    // Any function of the logprobs could stand here; this is cross-entropy, `-Σ log p`, whose derivatives are all -1.
    let mut loss = |_rows: Range<usize>, logprobs: &[f32], derivatives: &mut [f32]| {
        sum -= logprobs.iter().map(|logprob| f64::from(*logprob)).sum::<f64>();
        derivatives.fill(-1.0);
    };
    let outcome =
        base.head_loss(&hidden, &lines.pack, adapters, &lines.targets, &mut loss, Some(&mut [&mut *gradients]))?;
    let d_hidden = outcome.d_hidden.context("the head returned no gradient")?;
    base.backward(tape, d_hidden, &lines.pack, adapters, &mut [gradients])?;
    Ok(sum)
}

/// The lines of a text end to end, and the token that follows each of their tokens.
struct Lines {
    pack: Pack,
    targets: Vec<u32>,
}

impl Lines {
    fn read(model: &std::path::Path, text: &str) -> Result<Self> {
        let tokenizer = Tokenizer::from_file(model.join("tokenizer.json")).map_err(|error| anyhow!("{error}"))?;
        let (mut pack, mut targets) = (Pack::new(), Vec::new());
        for line in text.lines() {
            let encoded = tokenizer.encode(line, false).map_err(|error| anyhow!("{error}"))?;
            if let [first @ .., _last] = encoded.get_ids() {
                // Sequences do not see each other; each uses the first adapter of the pass.
                pack.push(first, Some(0));
                targets.extend(encoded.get_ids().iter().skip(1));
            }
        }
        ensure!(!targets.is_empty(), "there is no line of two tokens to learn from");
        Ok(Self { pack, targets })
    }
}
