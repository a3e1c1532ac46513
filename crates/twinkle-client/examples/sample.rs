//! Samples from a base model or from an adapter that was saved before, several prompts at once.
//!
//! ```text
//! cargo run -p twinkle-server -- --config configs/quickstart.yaml
//! cargo run -p twinkle-client --example sample -- "Who are you?" "Tell me a joke." --samples 2
//! cargo run -p twinkle-client --example sample -- "Who are you?" --weights tinker://…/sampler_weights/self-cognition
//! ```
#![forbid(unsafe_code)]
#![expect(clippy::print_stdout, reason = "an example talks to the person who runs it")]

#[path = "shared/connection.rs"]
mod connection;

use anyhow::{Context, Result};
use clap::Parser;
use futures::stream::{FuturesUnordered, StreamExt};
use twinkle_client::{ChatMessage, SampledSequence, SamplingParams};

use connection::Connection;

/// Ask a model questions.
#[derive(Parser)]
struct Arguments {
    #[command(flatten)]
    connection: Connection,
    /// What to ask.
    #[arg(default_value = "Who are you?")]
    questions: Vec<String>,
    /// A checkpoint (`tinker://…` or `twinkle://…`) instead of the base model.
    #[arg(long)]
    weights: Option<String>,
    /// What to tell the model first.
    #[arg(long)]
    system: Option<String>,
    /// Answers to each question.
    #[arg(long, default_value_t = 1)]
    samples: u32,
    /// Tokens of an answer at most.
    #[arg(long, default_value_t = 64)]
    max_tokens: u32,
    /// How freely to draw; 0 takes the likeliest token each time.
    #[arg(long, default_value_t = 0.7)]
    temperature: f32,
    /// The same seed gives the same answers.
    #[arg(long)]
    seed: Option<u64>,
}

#[tokio::main]
async fn main() -> Result<()> {
    let arguments = Arguments::parse();
    let service = arguments.connection.open().await?;
    let processor = arguments.connection.processor(&service);
    let weights = arguments.weights.as_ref().unwrap_or(&arguments.connection.model);
    let sampler = service.create_sampling_client(weights).await?;
    println!("sampling from {weights}, base model {}", sampler.get_base_model().await?);

    let system = arguments.system.iter().map(ChatMessage::system);
    let conversations = arguments
        .questions
        .iter()
        .map(|question| system.clone().chain([ChatMessage::user(question)]).collect())
        .collect();
    let prompts = processor.encode_chat(conversations, true).await?;
    let params = SamplingParams {
        temperature: arguments.temperature,
        seed: arguments.seed,
        ..SamplingParams::greedy(arguments.max_tokens)
    };

    // All questions are on their way before the first answer is awaited, and answers are shown as they come.
    let mut under_way = FuturesUnordered::new();
    for (question, prompt) in arguments.questions.iter().zip(prompts) {
        let answers = sampler.sample(prompt.tokens, arguments.samples, params.clone()).await?;
        under_way.push(async move { (question, answers.await) });
    }
    while let Some((question, answers)) = under_way.next().await {
        let sequences = answers?.sequences;
        println!("\n{question}");
        let texts = processor.decode(sequences.iter().map(|sequence| sequence.tokens.clone()).collect()).await?;
        for (text, sequence) in texts.iter().zip(&sequences) {
            let logprob = mean_logprob(sequence).context("an empty answer")?;
            println!("  {} [{} tokens, mean logprob {logprob:.2}]", text.trim(), sequence.tokens.len());
        }
    }
    service.close().await?;
    Ok(())
}

fn mean_logprob(sequence: &SampledSequence) -> Option<f32> {
    let sum: f32 = sequence.logprobs.iter().sum();
    (!sequence.logprobs.is_empty()).then(|| sum / sequence.logprobs.len() as f32)
}
