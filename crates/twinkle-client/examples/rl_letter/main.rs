//! Reinforcement learning on a reward that can be counted: how often a letter occurs in the answer.
//!
//! ```text
//! cargo run -p twinkle-server -- --config configs/quickstart.yaml
//! cargo run -p twinkle-client --example rl_letter -- --letter e
//! ```
//!
//! Nobody tells the model about the letter. It answers, is rewarded, and answers otherwise.
#![forbid(unsafe_code)]
#![expect(clippy::print_stdout, reason = "an example talks to the person who runs it")]

#[path = "../shared/connection.rs"]
mod connection;
mod recipe;

use std::path::PathBuf;

use anyhow::{Context, Result};
use clap::Parser;
use indicatif::{ProgressBar, ProgressStyle};
use serde_json::json;
use twinkle_client::{LoraOptions, ProcessorClient, SamplingClient, SamplingParams, TokenIds};

use connection::Connection;
use recipe::{Settings, Step, count_letter};

/// What is asked while it learns.
const QUESTIONS: [&str; 3] = ["Tell me about the sea.", "How do I bake bread?", "Describe a forest in winter."];
/// What was never asked while it learned.
const HELD_OUT: &str = "What do you see in the night sky?";

/// Teach a model to love a letter, by reward alone.
#[derive(Parser)]
struct Arguments {
    #[command(flatten)]
    connection: Connection,
    /// The letter that is rewarded.
    #[arg(long, default_value_t = 'e')]
    letter: char,
    /// Steps; each samples, scores and learns once.
    #[arg(long, default_value_t = 28)]
    steps: usize,
    /// Answers per question.
    #[arg(long, default_value_t = 8)]
    group: u32,
    /// Tokens per answer.
    #[arg(long, default_value_t = 16)]
    max_tokens: u32,
    /// The optimizer's step size.
    #[arg(long, default_value_t = 5e-4)]
    learning_rate: f64,
    /// The adapter's rank.
    #[arg(long, default_value_t = 8)]
    rank: u32,
    /// Seed of the adapter and of every answer.
    #[arg(long, default_value_t = 17)]
    seed: u64,
    /// Write every step's numbers to this file, as JSON.
    #[arg(long, value_name = "FILE")]
    curve: Option<PathBuf>,
}

#[tokio::main]
async fn main() -> Result<()> {
    let arguments = Arguments::parse();
    let service = arguments.connection.open().await?;
    let processor = arguments.connection.processor(&service);
    let prompts = recipe::prompts(&processor, &QUESTIONS).await?;
    let held_out = recipe::prompts(&processor, &[HELD_OUT]).await?.pop().context("no prompt")?;

    let base = service.create_sampling_client(&arguments.connection.model).await?;
    let before = answer(&base, &processor, &held_out, arguments.max_tokens).await?;

    let lora = LoraOptions {
        rank: arguments.rank,
        seed: Some(arguments.seed),
        train_unembed: false,
        ..LoraOptions::default()
    };
    let training = service.create_lora_training_client(&arguments.connection.model, lora).await?;
    let settings = Settings {
        group: arguments.group,
        max_tokens: arguments.max_tokens,
        learning_rate: arguments.learning_rate,
        seed: arguments.seed,
    };
    let bar = ProgressBar::new(arguments.steps as u64).with_style(
        ProgressStyle::with_template("rl_letter {bar:40} {pos}/{len} steps, {msg}, {eta} left")?.progress_chars("━╸─"),
    );
    let mut curve: Vec<Step> = Vec::new();
    for number in 1..=arguments.steps {
        let reward = |text: &str| count_letter(text, arguments.letter);
        let step = recipe::step(&training, &processor, &prompts, reward, &settings, number).await?;
        bar.set_message(format!("reward {:.2}", step.reward));
        bar.set_position(number as u64);
        if bar.is_hidden() && number.is_multiple_of(5) {
            println!("step {number}: reward {:.2}", step.reward);
        }
        curve.push(step);
    }
    bar.finish_and_clear();

    let tuned = training.save_weights_and_get_sampling_client().await?;
    let after = answer(&tuned, &processor, &held_out, arguments.max_tokens).await?;
    println!("\n  {HELD_OUT}\n    before: {before}\n    after:  {after}");
    if let (Some(first), Some(last)) = (curve.first(), curve.last()) {
        println!(
            "\nThe letter `{}` per answer: {:.2} at first, {:.2} at last",
            arguments.letter, first.reward, last.reward
        );
    }
    if let Some(path) = &arguments.curve {
        let content = json!({
            "letter": arguments.letter, "question": HELD_OUT, "before": before, "after": after, "steps": curve,
        });
        std::fs::write(path, format!("{content:#}\n")).with_context(|| format!("cannot write `{}`", path.display()))?;
    }
    service.close().await?;
    Ok(())
}

/// The most likely answer, on one line.
async fn answer(
    sampler: &SamplingClient,
    processor: &ProcessorClient,
    prompt: &TokenIds,
    max_tokens: u32,
) -> Result<String> {
    let answer = sampler.sample(prompt.clone(), 1, SamplingParams::greedy(max_tokens)).await?.await?;
    let tokens = answer.sequences.into_iter().map(|sequence| sequence.tokens).collect();
    let text = processor.decode(tokens).await?.pop().context("no text")?;
    Ok(text.split_whitespace().collect::<Vec<_>>().join(" "))
}
