//! Group-relative policy optimization on sums: the reward is whether the number is right.
//!
//! ```text
//! cargo run -p twinkle-server -- --config configs/quickstart.yaml
//! cargo run -p twinkle-client --example grpo -- --steps 20
//! ```
#![forbid(unsafe_code)]
#![expect(clippy::print_stdout, reason = "an example talks to the person who runs it")]

#[path = "../shared/connection.rs"]
mod connection;
mod recipe;
mod sums;

use anyhow::Result;
use clap::Parser;
use indicatif::{ProgressBar, ProgressStyle};
use twinkle_client::LoraOptions;

use connection::Connection;
use recipe::{Policy, Settings};
use sums::Sums;

/// Teach a model to add, by reward alone.
#[derive(Parser)]
struct Arguments {
    #[command(flatten)]
    connection: Connection,
    /// Steps; each samples once and learns `updates` times.
    #[arg(long, default_value_t = 15)]
    steps: usize,
    /// Sums in a step.
    #[arg(long, default_value_t = 6)]
    problems: usize,
    /// Answers to each sum: the group.
    #[arg(long, default_value_t = 8)]
    group: u32,
    /// Optimizer steps on what a step has sampled; from the second on the clipped ratio counts.
    #[arg(long, default_value_t = 2)]
    updates: usize,
    /// The largest number that is added.
    #[arg(long, default_value_t = 9)]
    largest: u64,
    /// Tokens of an answer at most.
    #[arg(long, default_value_t = 6)]
    max_tokens: u32,
    /// The optimizer's step size.
    #[arg(long, default_value_t = 2e-4)]
    learning_rate: f64,
    /// The adapter's rank.
    #[arg(long, default_value_t = 16)]
    rank: u32,
    /// Seed of the adapter, of the sums and of every answer.
    #[arg(long, default_value_t = 17)]
    seed: u64,
}

#[tokio::main]
async fn main() -> Result<()> {
    let arguments = Arguments::parse();
    let service = arguments.connection.open().await?;
    let lora = LoraOptions {
        rank: arguments.rank,
        seed: Some(arguments.seed),
        train_unembed: false,
        ..LoraOptions::default()
    };
    let policy = Policy {
        training: service.create_lora_training_client(&arguments.connection.model, lora).await?,
        processor: arguments.connection.processor(&service),
        settings: Settings {
            group: arguments.group,
            updates: arguments.updates,
            max_tokens: arguments.max_tokens,
            learning_rate: arguments.learning_rate,
            seed: arguments.seed,
        },
    };
    let mut sums = Sums::new(arguments.seed, arguments.largest);
    let held_out = sums.draw(16);
    let before = policy.accuracy(&held_out).await?;

    let bar = ProgressBar::new(arguments.steps as u64).with_style(
        ProgressStyle::with_template("grpo {bar:40} {pos}/{len} steps, {msg}, {eta} left")?.progress_chars("━╸─"),
    );
    for number in 1..=arguments.steps {
        let step = policy.step(&sums.draw(arguments.problems), number).await?;
        let said = format!("reward {:.2}, right {:.0} %, kl {:.4}", step.reward, 100.0 * step.right, step.kl);
        if bar.is_hidden() && (number == 1 || number.is_multiple_of(5)) {
            println!("step {number}: {said}");
        }
        bar.set_message(said);
        bar.inc(1);
    }
    bar.finish_and_clear();
    let after = policy.accuracy(&held_out).await?;
    println!(
        "of sums it never learned from, {:.0} % were right at first, {:.0} % at last",
        100.0 * before,
        100.0 * after
    );
    service.close().await?;
    Ok(())
}
