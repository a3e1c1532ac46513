//! Direct preference optimization: a model that learns to answer straight.
//!
//! ```text
//! cargo run -p twinkle-server -- --config configs/quickstart.yaml
//! cargo run -p twinkle-client --example dpo
//! ```
//!
//! The data set is made here: every fact is told straight (chosen) and with a lot of hesitation (rejected). Some facts are
//! kept back, so that the margin of pairs it never learned from can be watched too.
#![forbid(unsafe_code)]
#![expect(clippy::print_stdout, reason = "an example talks to the person who runs it")]

#[path = "../shared/connection.rs"]
mod connection;
mod recipe;

use std::path::PathBuf;

use anyhow::{Context, Result};
use clap::Parser;
use indicatif::{ProgressBar, ProgressStyle};
use serde::Serialize;
use serde_json::json;
use twinkle_client::LoraOptions;

use connection::Connection;
use recipe::{Pair, Preference, Step};

/// Questions with their plain answers, one pair a line.
const FACTS: &str = include_str!("../data/facts.jsonl");
/// Facts that are kept back.
const HELD_OUT: usize = 8;

/// Teach a model to prefer one kind of answer over another.
#[derive(Parser)]
struct Arguments {
    #[command(flatten)]
    connection: Connection,
    /// Steps, each over one batch.
    #[arg(long, default_value_t = 20)]
    steps: usize,
    /// Pairs in a batch.
    #[arg(long, default_value_t = 6)]
    batch_size: usize,
    /// How strongly a change of logprob counts.
    #[arg(long, default_value_t = 0.2)]
    beta: f64,
    /// The optimizer's step size.
    #[arg(long, default_value_t = 4e-5)]
    learning_rate: f64,
    /// The adapter's rank.
    #[arg(long, default_value_t = 8)]
    rank: u32,
    /// Seed of the adapter.
    #[arg(long, default_value_t = 17)]
    seed: u64,
    /// Write every step's numbers to this file, as JSON.
    #[arg(long, value_name = "FILE")]
    curve: Option<PathBuf>,
}

/// A step with what the pairs that were kept back say.
#[derive(Serialize)]
struct Row {
    #[serde(flatten)]
    step: Step,
    held_out_margin: f64,
    held_out_accuracy: f64,
    held_out_chosen: f64,
    held_out_rejected: f64,
}

#[tokio::main]
async fn main() -> Result<()> {
    let arguments = Arguments::parse();
    let service = arguments.connection.open().await?;
    let processor = arguments.connection.processor(&service);
    let base = service.create_sampling_client(&arguments.connection.model).await?;
    let preferences = preferences()?;
    let pairs = recipe::pairs(&processor, &base, &preferences).await?;
    let (learned, held_out) = pairs.split_at(pairs.len().saturating_sub(HELD_OUT));
    let held_out: Vec<&Pair> = held_out.iter().collect();

    let lora = LoraOptions {
        rank: arguments.rank,
        seed: Some(arguments.seed),
        train_unembed: false,
        ..LoraOptions::default()
    };
    let training = service.create_lora_training_client(&arguments.connection.model, lora).await?;
    let bar = ProgressBar::new(arguments.steps as u64).with_style(
        ProgressStyle::with_template("dpo {bar:40} {pos}/{len} steps, {msg}, {eta} left")?.progress_chars("━╸─"),
    );
    let mut curve: Vec<Row> = Vec::new();
    for number in 1..=arguments.steps {
        let first = (number - 1) * arguments.batch_size;
        let batch: Vec<&Pair> = learned.iter().cycle().skip(first % learned.len()).take(arguments.batch_size).collect();
        let kept_back = recipe::evaluate(&training, &held_out, arguments.beta).await?;
        let step = recipe::step(&training, &batch, arguments.beta, arguments.learning_rate, number).await?;
        bar.set_message(format!("margin {:.2}", step.margin));
        bar.set_position(number as u64);
        if bar.is_hidden() && number.is_multiple_of(5) {
            println!("step {number}: loss {:.3}, margin {:.2}", step.loss, step.margin);
        }
        curve.push(Row {
            step,
            held_out_margin: kept_back.margin,
            held_out_accuracy: kept_back.accuracy,
            held_out_chosen: kept_back.chosen,
            held_out_rejected: kept_back.rejected,
        });
    }
    bar.finish_and_clear();

    if let Some(last) = curve.last() {
        println!(
            "\nMargin {:.2} on learned pairs, {:.2} on pairs that were kept back ({:.0} % ordered rightly)",
            last.step.margin,
            last.held_out_margin,
            100.0 * last.held_out_accuracy
        );
        println!(
            "Of the pairs that were kept back the logprob of the chosen answer moved by {:+.2}, of the rejected one by {:+.2}",
            last.held_out_chosen, last.held_out_rejected
        );
    }
    if let Some(path) = &arguments.curve {
        let content = json!({ "beta": arguments.beta, "steps": curve });
        std::fs::write(path, format!("{content:#}\n")).with_context(|| format!("cannot write `{}`", path.display()))?;
    }
    service.close().await?;
    Ok(())
}

/// The data set: each fact told straight, and with hesitation.
fn preferences() -> Result<Vec<Preference>> {
    FACTS
        .lines()
        .map(|line| {
            let fact: Fact = serde_json::from_str(line).context("a broken line in the data set")?;
            let mut letters = fact.answer.trim_end_matches('.').chars();
            let lowered: String =
                letters.next().map(|first| first.to_ascii_lowercase()).into_iter().chain(letters).collect();
            let rejected = format!("Well, that is hard to say, but perhaps {lowered}.");
            Ok(Preference { question: fact.question, chosen: fact.answer, rejected })
        })
        .collect()
}

/// A line of the data set.
#[derive(serde::Deserialize)]
struct Fact {
    question: String,
    answer: String,
}
