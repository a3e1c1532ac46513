//! Reinforcement learning where a group of answers is its own baseline (Shao et al. 2024), in one step.
//!
//! Each prompt is answered several times by the run as it is now. An answer's advantage is its reward minus the mean
//! reward of its group. `importance_sampling` with the sampler's own logprobs then has the policy gradient: at the
//! moment of sampling the ratio of trainer and sampler is one, and the derivative by each token's logprob is
//! `-advantage`.

use anyhow::{Context, Result};
use serde::Serialize;
use twinkle_client::{
    AdamParams, ProcessorClient, SampledSequence, SamplingParams, TokenIds, TrainingClient, policy_datum,
};

/// What one step needs to know.
pub(crate) struct Settings {
    /// Answers per prompt.
    pub(crate) group: u32,
    /// Tokens per answer.
    pub(crate) max_tokens: u32,
    /// The optimizer's step size.
    pub(crate) learning_rate: f64,
    /// The same seed gives the same run.
    pub(crate) seed: u64,
}

/// What one step saw, before its update.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Step {
    /// Counted from 1.
    #[serde(rename = "step")]
    pub(crate) number: usize,
    /// Mean reward of all answers.
    pub(crate) reward: f64,
    /// Mean reward of the best answer of each group.
    pub(crate) best: f64,
    /// Mean logprob of a sampled token: near 0 when the policy has stopped exploring.
    pub(crate) logprob: f64,
    /// Mean absolute difference between a sampled token's logprob at the sampler and at the trainer.
    pub(crate) sampler_gap: f64,
    /// The largest of these differences.
    pub(crate) largest_gap: f64,
}

/// Samples, scores and learns once. `number` counts the steps from 1.
pub(crate) async fn step(
    training: &TrainingClient,
    processor: &ProcessorClient,
    prompts: &[TokenIds],
    reward: impl Fn(&str) -> f64,
    settings: &Settings,
    number: usize,
) -> Result<Step> {
    let groups = sample(training, prompts, settings, number).await?;
    let answers: Vec<TokenIds> = groups.iter().flatten().map(|answer| answer.tokens.clone()).collect();
    let rewards: Vec<f64> = processor.decode(answers).await?.iter().map(|text| reward(text)).collect();

    let mut data = Vec::new();
    let mut best = 0.0;
    for ((prompt, group), rewards) in prompts.iter().zip(&groups).zip(rewards.chunks(settings.group as usize)) {
        let baseline = mean(rewards);
        best += rewards.iter().copied().fold(f64::NEG_INFINITY, f64::max) / prompts.len() as f64;
        for (answer, reward) in group.iter().zip(rewards) {
            data.push(policy_datum(prompt, answer, (reward - baseline) as f32)?);
        }
    }

    // Both are on their way before the first is awaited.
    let outcome = training.forward_backward(data, "importance_sampling").await?;
    let params = AdamParams { learning_rate: settings.learning_rate, ..AdamParams::default() };
    let stepped = training.optim_step(params).await?;
    let outcome = outcome.await?;
    stepped.await?;

    let sampled: Vec<f32> = groups.iter().flatten().flat_map(|answer| answer.logprobs.iter().copied()).collect();
    let trained = groups.iter().flatten().zip(&outcome.logprobs).flat_map(|(answer, logprobs)| {
        // The answer's tokens are the last ones of its datum.
        logprobs.values.iter().skip(logprobs.values.len() - answer.tokens.len()).copied()
    });
    let gaps: Vec<f64> = sampled.iter().zip(trained).map(|(one, other)| f64::from((one - other).abs())).collect();
    let logprob = mean(&sampled.iter().copied().map(f64::from).collect::<Vec<_>>());
    let largest_gap = gaps.iter().copied().fold(0.0, f64::max);
    Ok(Step { number, reward: mean(&rewards), best, logprob, sampler_gap: mean(&gaps), largest_gap })
}

/// A group of answers for each prompt, from the run as it is now.
async fn sample(
    training: &TrainingClient,
    prompts: &[TokenIds],
    settings: &Settings,
    number: usize,
) -> Result<Vec<Vec<SampledSequence>>> {
    let policy = training.save_weights_and_get_sampling_client().await?;
    let mut pending = Vec::new();
    for (index, prompt) in prompts.iter().enumerate() {
        let params = SamplingParams {
            temperature: 1.0,
            seed: Some(settings.seed + (number * prompts.len() + index) as u64),
            ..SamplingParams::greedy(settings.max_tokens)
        };
        pending.push(policy.sample(prompt.clone(), settings.group, params).await?);
    }
    let mut groups = Vec::new();
    for pending in pending {
        groups.push(pending.await?.sequences);
    }
    Ok(groups)
}

/// How often `letter` occurs in an answer, in either case.
pub(crate) fn count_letter(text: &str, letter: char) -> f64 {
    let same = |other: &char| other.eq_ignore_ascii_case(&letter);
    text.chars().filter(same).count() as f64
}

/// Prompts for the model's chat template, ready to be answered.
pub(crate) async fn prompts(processor: &ProcessorClient, questions: &[&str]) -> Result<Vec<TokenIds>> {
    let conversations = questions.iter().map(|question| vec![twinkle_client::ChatMessage::user(*question)]).collect();
    let encoded = processor.encode_chat(conversations, true).await.context("the processor application is needed")?;
    Ok(encoded.into_iter().map(|one| one.tokens).collect())
}

fn mean(values: &[f64]) -> f64 {
    values.iter().sum::<f64>() / values.len().max(1) as f64
}
