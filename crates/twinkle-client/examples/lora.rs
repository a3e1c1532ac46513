//! Fine-tunes a LoRA adapter on a file of conversations, with a held-out loss, checkpoints and resuming.
//!
//! ```text
//! cargo run -p twinkle-server -- --config configs/quickstart.yaml
//! cargo run -p twinkle-client --example lora -- --data conversations.jsonl --epochs 2
//! cargo run -p twinkle-client --example lora -- --data conversations.jsonl --epochs 4 --resume tinker://…/weights/epoch-2
//! ```
//!
//! A line of the file is `{"messages": [{"role": "user", "content": "…"}, {"role": "assistant", "content": "…"}]}`, or
//! `{"question": "…", "answer": "…"}`.
#![forbid(unsafe_code)]
#![expect(clippy::print_stdout, reason = "an example talks to the person who runs it")]

#[path = "shared/connection.rs"]
mod connection;

use std::collections::{BTreeMap, VecDeque};
use std::path::{Path, PathBuf};
use std::slice::Chunks;

use anyhow::{Context, Result, ensure};
use clap::Parser;
use indicatif::{ProgressBar, ProgressStyle};
use serde::Deserialize;
use twinkle_client::{
    AdamParams, ChatMessage, Datum, ForwardBackwardOutcome, LoraOptions, Pending, ProcessorClient, SaveOptions,
    ServiceClient, TrainingClient, supervised_datum,
};

use connection::Connection;

/// Questions with their answers, for whoever has no data set at hand.
const FACTS: &str = include_str!("data/facts.jsonl");
/// How many steps are with the server before the result of the first is read.
const STEPS_AHEAD: usize = 2;
/// Conversations that are kept back and only measured: one in so many.
const HELD_OUT: usize = 8;

/// Fine-tune a model on conversations.
#[derive(Parser)]
struct Arguments {
    #[command(flatten)]
    connection: Connection,
    /// A file of conversations, one JSON object a line; without it, some facts.
    #[arg(long, value_name = "FILE")]
    data: Option<PathBuf>,
    /// How often the data set is gone through.
    #[arg(long, default_value_t = 2)]
    epochs: usize,
    /// Conversations in a step.
    #[arg(long, default_value_t = 8)]
    batch_size: usize,
    /// The highest learning rate; it rises for a tenth of the steps, and falls to zero along a cosine.
    #[arg(long, default_value_t = 5e-4)]
    learning_rate: f64,
    /// The adapter's rank.
    #[arg(long, default_value_t = 16)]
    rank: u32,
    /// Seed of the adapter.
    #[arg(long, default_value_t = 7)]
    seed: u64,
    /// Continue from this checkpoint, which a run of this program saved at the end of an epoch.
    #[arg(long, value_name = "PATH")]
    resume: Option<String>,
}

#[tokio::main]
async fn main() -> Result<()> {
    let arguments = Arguments::parse();
    let service = arguments.connection.open().await?;
    let (learned, held_out) = data(&arguments.connection.processor(&service), arguments.data.as_deref()).await?;
    println!("{} conversations to learn from, {} kept back", learned.len(), held_out.len());

    let (training, done) = run(&service, &arguments).await?;
    let steps_per_epoch = learned.len().div_ceil(arguments.batch_size);
    let schedule = Schedule { highest: arguments.learning_rate, steps: arguments.epochs * steps_per_epoch };
    println!("held-out loss {:.3} at first", evaluate(&training, &held_out).await?);
    for epoch in done..arguments.epochs {
        let batches = learned.chunks(arguments.batch_size);
        let loss = train(&training, batches, epoch * steps_per_epoch, &schedule).await?;
        let name = format!("epoch-{}", epoch + 1);
        let saved = training.save_state(SaveOptions { overwrite: true, ..SaveOptions::from(name) }).await?;
        let kept_back = evaluate(&training, &held_out).await?;
        println!("epoch {}: loss {loss:.3}, held out {kept_back:.3}, saved as {}", epoch + 1, saved.await?);
    }
    let adapter = training.save_weights_for_sampler("lora").await?.await?;
    println!("the adapter is saved as {adapter}");
    service.close().await?;
    Ok(())
}

/// The run, and how many epochs it has behind it.
async fn run(service: &ServiceClient, arguments: &Arguments) -> Result<(TrainingClient, usize)> {
    let Some(path) = &arguments.resume else {
        let lora = LoraOptions {
            rank: arguments.rank,
            seed: Some(arguments.seed),
            train_unembed: false,
            ..LoraOptions::default()
        };
        return Ok((service.create_lora_training_client(&arguments.connection.model, lora).await?, 0));
    };
    let epoch = path.rsplit_once("epoch-").and_then(|(_, number)| number.parse().ok());
    let epoch = epoch.with_context(|| format!("`{path}` does not say after which epoch it was saved"))?;
    Ok((service.create_training_client_from_state_with_optimizer(path).await?, epoch))
}

/// The conversations as training examples: those to learn from, and those kept back.
async fn data(processor: &ProcessorClient, file: Option<&Path>) -> Result<(Vec<Datum>, Vec<Datum>)> {
    let text = match file {
        Some(file) => std::fs::read_to_string(file).with_context(|| format!("cannot read `{}`", file.display()))?,
        None => FACTS.to_owned(),
    };
    let mut conversations = Vec::new();
    for (number, line) in text.lines().enumerate().filter(|(_, line)| !line.trim().is_empty()) {
        let line: Line = serde_json::from_str(line).with_context(|| format!("line {} of the data", number + 1))?;
        conversations.push(line.into_messages());
    }
    ensure!(conversations.len() >= HELD_OUT, "{} conversations are too few", conversations.len());
    let encoded = processor.encode_chat(conversations, false).await?;
    let (mut learned, mut held_out) = (Vec::new(), Vec::new());
    for (index, one) in encoded.iter().enumerate() {
        let into = if index % HELD_OUT == 0 { &mut held_out } else { &mut learned };
        into.push(supervised_datum(one)?);
    }
    Ok((learned, held_out))
}

/// A line of the data set.
#[derive(Deserialize)]
#[serde(untagged)]
enum Line {
    Conversation { messages: Vec<ChatMessage> },
    Pair { question: String, answer: String },
}

impl Line {
    fn into_messages(self) -> Vec<ChatMessage> {
        match self {
            Self::Conversation { messages } => messages,
            Self::Pair { question, answer } => vec![ChatMessage::user(question), ChatMessage::assistant(answer)],
        }
    }
}

/// One epoch, whose first step is the `first_step`th of all; its mean loss per learned token.
async fn train(
    training: &TrainingClient,
    batches: Chunks<'_, Datum>,
    first_step: usize,
    schedule: &Schedule,
) -> Result<f64> {
    let bar = ProgressBar::new(batches.len() as u64)
        .with_style(ProgressStyle::with_template("{bar:40} {pos}/{len} steps, {msg}")?.progress_chars("━╸─"));
    let mut sum = Sum::default();
    let mut under_way = VecDeque::new();
    for (step, batch) in (first_step..).zip(batches) {
        let loss = training.forward_backward(batch.to_vec(), "cross_entropy").await?;
        let params = AdamParams { learning_rate: schedule.learning_rate(step), ..AdamParams::default() };
        under_way.push_back((loss, training.optim_step(params).await?));
        // Some steps are with the server before the result of the first is read, so the server never waits.
        if under_way.len() > STEPS_AHEAD {
            finish(&mut under_way, &mut sum, &bar).await?;
        }
    }
    while !under_way.is_empty() {
        finish(&mut under_way, &mut sum, &bar).await?;
    }
    bar.finish_and_clear();
    Ok(sum.mean())
}

type UnderWay = (Pending<ForwardBackwardOutcome>, Pending<BTreeMap<String, f64>>);

/// Waits for the step that was submitted first.
async fn finish(under_way: &mut VecDeque<UnderWay>, sum: &mut Sum, bar: &ProgressBar) -> Result<()> {
    let Some((loss, stepped)) = under_way.pop_front() else { return Ok(()) };
    sum.add(&loss.await?)?;
    stepped.await?;
    bar.set_message(format!("loss {:.3}", sum.mean()));
    bar.inc(1);
    Ok(())
}

/// The mean loss per learned token of examples that the run does not learn from.
async fn evaluate(training: &TrainingClient, data: &[Datum]) -> Result<f64> {
    let mut sum = Sum::default();
    sum.add(&training.forward(data.to_vec(), "cross_entropy").await?.await?)?;
    Ok(sum.mean())
}

/// A loss summed over learned tokens, and how many these are.
#[derive(Default)]
struct Sum {
    loss: f64,
    tokens: f64,
}

impl Sum {
    fn add(&mut self, outcome: &ForwardBackwardOutcome) -> Result<()> {
        let metric = |name| outcome.metrics.get(name).copied().with_context(|| format!("the server sent no `{name}`"));
        self.loss += metric("loss:sum")?;
        self.tokens += metric("weights:sum")?;
        Ok(())
    }

    fn mean(&self) -> f64 {
        self.loss / self.tokens.max(1.0)
    }
}

/// A learning rate that rises for a tenth of the steps, and falls to zero along a cosine.
struct Schedule {
    highest: f64,
    steps: usize,
}

impl Schedule {
    fn learning_rate(&self, step: usize) -> f64 {
        let warm_up = self.steps.div_ceil(10);
        if step < warm_up {
            return self.highest * (step + 1) as f64 / warm_up as f64;
        }
        let way = (step - warm_up) as f64 / (self.steps - warm_up).max(1) as f64;
        0.5 * self.highest * (1.0 + (std::f64::consts::PI * way).cos())
    }
}
