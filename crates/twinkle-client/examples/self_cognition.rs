//! Teaches a small model its name: asks "Who are you?", fine-tunes a LoRA adapter, asks again.
//!
//! ```text
//! cargo run -p twinkle-server -- --config configs/quickstart.yaml
//! cargo run -p twinkle-client --example self_cognition -- --name Twinkle --author ModelScope
//! ```
#![forbid(unsafe_code)]
#![expect(clippy::print_stdout, reason = "an example talks to the person who runs it")]

#[path = "shared/connection.rs"]
mod connection;

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::{Context, Result};
use clap::Parser;
use indicatif::{ProgressBar, ProgressStyle};
use serde::Deserialize;
use textplots::{Chart, Plot, Shape};
use tokio::time::Instant;
use twinkle_client::{
    AdamParams, ChatMessage, Datum, ForwardBackwardOutcome, LoraOptions, Pending, ProcessorClient, SamplingClient,
    SamplingParams, TensorValues, TrainingClient, supervised_datum,
};

use connection::Connection;

/// Conversations about who the assistant is, with placeholders for its name and its author.
const CONVERSATIONS: &str = include_str!("data/self_cognition.jsonl");

const QUESTIONS: [&str; 3] = ["Who are you?", "你是谁？", "What is the capital of France?"];

/// Fine-tune a model to know its own name.
#[derive(Parser)]
struct Arguments {
    #[command(flatten)]
    connection: Connection,
    /// What the model shall call itself.
    #[arg(long, default_value = "Twinkle")]
    name: String,
    /// Who it shall say made it.
    #[arg(long, default_value = "ModelScope")]
    author: String,
    /// Optimizer steps.
    #[arg(long, default_value_t = 28)]
    steps: usize,
    /// Conversations in a step.
    #[arg(long, default_value_t = 16)]
    batch_size: usize,
    /// The learning rate of the first step; it falls to zero in a straight line.
    #[arg(long, default_value_t = 1e-3)]
    learning_rate: f64,
    /// The adapter's rank.
    #[arg(long, default_value_t = 16)]
    rank: u32,
}

#[derive(Deserialize)]
struct Conversation {
    messages: Vec<ChatMessage>,
}

#[tokio::main]
async fn main() -> Result<()> {
    let arguments = Arguments::parse();
    let service = arguments.connection.open().await?;
    let processor = arguments.connection.processor(&service);

    println!("\nBefore:");
    let base = service.create_sampling_client(&arguments.connection.model).await?;
    ask(&base, &processor).await?;

    let data = training_data(&processor, &arguments).await?;
    let lora = LoraOptions { rank: arguments.rank, seed: Some(7), train_unembed: false, ..LoraOptions::default() };
    let training = service.create_lora_training_client(&arguments.connection.model, lora).await?;
    let started = Instant::now();
    let losses = train(&training, &data, &arguments).await?;
    report(&losses, tokens_trained(&data, &arguments), started.elapsed());

    println!("\nAfter:");
    let tuned = training.save_weights_and_get_sampling_client().await?;
    ask(&tuned, &processor).await?;

    let saved = training.save_weights_for_sampler("self-cognition").await?.await?;
    println!("\nThe adapter is saved as {saved}");
    service.close().await?;
    Ok(())
}

/// Asks each question and prints the answers.
async fn ask(sampler: &SamplingClient, processor: &ProcessorClient) -> Result<()> {
    let conversations = QUESTIONS.map(|question| vec![ChatMessage::user(question)]).to_vec();
    let prompts = processor.encode_chat(conversations, true).await?;
    // All questions are on their way before the first answer is awaited: the server samples them together.
    let mut pending = Vec::new();
    for prompt in prompts {
        pending.push(sampler.sample(prompt.tokens, 1, SamplingParams::greedy(40)).await?);
    }
    for (question, pending) in QUESTIONS.iter().zip(pending) {
        let sequence = pending.await?.sequences.pop().context("no sample")?;
        let answer = processor.decode(vec![sequence.tokens]).await?.pop().context("no text")?;
        println!("  {question}\n    {}", answer.trim().replace('\n', " "));
    }
    Ok(())
}

/// The conversations with name and author filled in, as training examples.
async fn training_data(processor: &ProcessorClient, arguments: &Arguments) -> Result<Vec<Datum>> {
    let mut conversations = Vec::new();
    for line in CONVERSATIONS.lines() {
        let mut conversation: Conversation = serde_json::from_str(line).context("a broken line in the data set")?;
        for message in &mut conversation.messages {
            message.content =
                message.content.replace("{{NAME}}", &arguments.name).replace("{{AUTHOR}}", &arguments.author);
        }
        conversations.push(conversation.messages);
    }
    let encoded = processor.encode_chat(conversations, false).await?;
    Ok(encoded.iter().map(supervised_datum).collect::<Result<_, _>>()?)
}

/// Runs the steps; returns the mean loss per learned token of each.
async fn train(training: &TrainingClient, data: &[Datum], arguments: &Arguments) -> Result<Vec<f64>> {
    let bar = ProgressBar::new(arguments.steps as u64).with_style(
        ProgressStyle::with_template("training {bar:40} {pos}/{len} steps, {msg}, {eta} left")?.progress_chars("━╸─"),
    );
    let mut losses = Vec::new();
    let mut under_way = None;
    for step in 0..arguments.steps {
        let batch: Vec<Datum> = batch(data, step, arguments.batch_size).cloned().collect();
        let learned: f64 = batch.iter().map(learned_tokens).sum();
        let remaining = 1.0 - step as f64 / arguments.steps as f64;
        let params = AdamParams { learning_rate: arguments.learning_rate * remaining, ..AdamParams::default() };
        let loss = training.forward_backward(batch, "cross_entropy").await?;
        let stepped = training.optim_step(params).await?;
        // The next step is with the server before the result of the last one is read, so the server never waits.
        if let Some(last) = under_way.replace((loss, stepped, learned)) {
            losses.push(finish(last).await?);
            show(&bar, &losses);
        }
    }
    if let Some(last) = under_way {
        losses.push(finish(last).await?);
        show(&bar, &losses);
    }
    bar.finish_and_clear();
    Ok(losses)
}

type UnderWay = (Pending<ForwardBackwardOutcome>, Pending<BTreeMap<String, f64>>, f64);

/// The loss of a step, once it is done.
async fn finish((loss, stepped, learned): UnderWay) -> Result<f64> {
    let total = *loss.await?.metrics.get("loss:sum").context("the server returned no loss")?;
    stepped.await?;
    Ok(total / learned)
}

fn show(bar: &ProgressBar, losses: &[f64]) {
    let Some(loss) = losses.last() else { return };
    bar.set_message(format!("loss {loss:.3}"));
    bar.set_position(losses.len() as u64);
    if bar.is_hidden() && losses.len().is_multiple_of(5) {
        println!("step {}: loss {loss:.3}", losses.len());
    }
}

/// The examples of a step: the data set again and again.
fn batch(data: &[Datum], step: usize, size: usize) -> impl Iterator<Item = &Datum> {
    data.iter().cycle().skip(step * size % data.len().max(1)).take(size)
}

fn learned_tokens(datum: &Datum) -> f64 {
    match datum.loss_inputs.get("weights").map(|weights| &weights.values) {
        Some(TensorValues::Float32(weights)) => weights.iter().map(|weight| f64::from(*weight)).sum(),
        _ => 0.0,
    }
}

fn tokens_trained(data: &[Datum], arguments: &Arguments) -> usize {
    (0..arguments.steps).flat_map(|step| batch(data, step, arguments.batch_size)).map(|datum| datum.tokens.len()).sum()
}

/// Draws the loss curve and sums up.
fn report(losses: &[f64], tokens: usize, took: Duration) {
    let points: Vec<(f32, f32)> =
        losses.iter().enumerate().map(|(step, loss)| (step as f32 + 1.0, *loss as f32)).collect();
    println!("\nLoss per learned token:");
    let mut chart = Chart::new_with_y_range(100, 40, 1.0, losses.len().max(2) as f32, 0.0, 4.0);
    chart.lineplot(&Shape::Lines(&points)).nice();
    let seconds = took.as_secs_f64();
    println!("{} steps in {seconds:.0} s, {:.0} tokens/s", losses.len(), tokens as f64 / seconds);
}
