//! Group-relative policy optimization (Shao et al. 2024), one step.
//!
//! Each problem is answered several times by the run as it is. An answer's advantage is how many standard deviations its
//! reward lies above the mean of its group; a group whose answers are all worth the same teaches nothing and is left out.
//! `ppo` clips the ratio of the run's probabilities to those at the time of sampling, so what was sampled may be learned
//! from more than once.

use anyhow::{Context, Result};
use twinkle_client::{
    AdamParams, Datum, ForwardBackwardOutcome, Loss, ProcessorClient, SampledSequence, SamplingClient, SamplingParams,
    TokenIds, TrainingClient, policy_datum,
};

use crate::sums::Sum;

/// What is trained, and how.
pub(crate) struct Policy {
    pub(crate) training: TrainingClient,
    pub(crate) processor: ProcessorClient,
    pub(crate) settings: Settings,
}

pub(crate) struct Settings {
    /// Answers per problem.
    pub(crate) group: u32,
    /// Optimizer steps per sampling.
    pub(crate) updates: usize,
    /// Tokens per answer.
    pub(crate) max_tokens: u32,
    /// The optimizer's step size.
    pub(crate) learning_rate: f64,
    /// The same seed gives the same run.
    pub(crate) seed: u64,
}

/// What one step saw.
pub(crate) struct Step {
    /// Mean reward of all answers.
    pub(crate) reward: f64,
    /// Share of the answers that are right.
    pub(crate) right: f64,
    /// Mean of `log q - log p` over the answers' tokens after the updates but the last: how far the run has moved.
    pub(crate) kl: f64,
}

impl Policy {
    /// Samples, scores and learns. `number` counts the steps from 1.
    pub(crate) async fn step(&self, problems: &[Sum], number: usize) -> Result<Step> {
        let sampler = self.training.save_weights_and_get_sampling_client().await?;
        let prompts = self.prompts(problems).await?;
        let params = SamplingParams {
            temperature: 1.0,
            seed: Some(self.settings.seed + number as u64),
            ..SamplingParams::greedy(self.settings.max_tokens)
        };
        let groups = sample(&sampler, &prompts, self.settings.group, &params).await?;
        let texts = self.texts(groups.iter().flatten()).await?;

        let (mut data, mut rewards, mut right) = (Vec::new(), Vec::new(), 0);
        let per_problem = texts.chunks(self.settings.group as usize);
        for (((problem, prompt), group), texts) in problems.iter().zip(&prompts).zip(&groups).zip(per_problem) {
            let worth: Vec<f64> = texts.iter().map(|text| problem.reward(text)).collect();
            right += texts.iter().filter(|text| problem.is_right(text)).count();
            for (answer, advantage) in group.iter().zip(advantages(&worth)) {
                if advantage != 0.0 {
                    data.push(policy_datum(prompt, answer, advantage as f32)?);
                }
            }
            rewards.extend(worth);
        }
        let kl = self.learn(&data).await?;
        Ok(Step { reward: mean(&rewards), right: right as f64 / texts.len().max(1) as f64, kl })
    }

    /// The share of problems whose likeliest answer is right.
    pub(crate) async fn accuracy(&self, problems: &[Sum]) -> Result<f64> {
        let sampler = self.training.save_weights_and_get_sampling_client().await?;
        let prompts = self.prompts(problems).await?;
        let groups = sample(&sampler, &prompts, 1, &SamplingParams::greedy(self.settings.max_tokens)).await?;
        let texts = self.texts(groups.iter().flatten()).await?;
        let right = problems.iter().zip(&texts).filter(|(problem, text)| problem.is_right(text)).count();
        Ok(right as f64 / problems.len().max(1) as f64)
    }

    /// Submits all updates before it awaits the first.
    async fn learn(&self, data: &[Datum]) -> Result<f64> {
        if data.is_empty() {
            return Ok(0.0);
        }
        let adam = AdamParams { learning_rate: self.settings.learning_rate, ..AdamParams::default() };
        let mut updates = Vec::new();
        for _ in 0..self.settings.updates {
            let loss = self.training.forward_backward(data.to_vec(), Loss::ppo()).await?;
            updates.push((loss, self.training.optim_step(adam.clone()).await?));
        }
        let mut kl = 0.0;
        for (loss, stepped) in updates {
            kl = mean_kl(&loss.await?)?;
            stepped.await?;
        }
        Ok(kl)
    }

    async fn prompts(&self, problems: &[Sum]) -> Result<Vec<TokenIds>> {
        let conversations = problems.iter().map(Sum::conversation).collect();
        let encoded = self.processor.encode_chat(conversations, true).await?;
        Ok(encoded.into_iter().map(|one| one.tokens).collect())
    }

    async fn texts(&self, answers: impl Iterator<Item = &SampledSequence>) -> Result<Vec<String>> {
        Ok(self.processor.decode(answers.map(|answer| answer.tokens.clone()).collect()).await?)
    }
}

/// A group of answers for each prompt; all prompts are sampled together.
async fn sample(
    sampler: &SamplingClient,
    prompts: &[TokenIds],
    group: u32,
    params: &SamplingParams,
) -> Result<Vec<Vec<SampledSequence>>> {
    let mut under_way = Vec::new();
    for prompt in prompts {
        under_way.push(sampler.sample(prompt.clone(), group, params.clone()).await?);
    }
    let mut groups = Vec::new();
    for pending in under_way {
        groups.push(pending.await?.sequences);
    }
    Ok(groups)
}

/// How many standard deviations each reward lies above the mean; nothing where they do not differ.
fn advantages(rewards: &[f64]) -> Vec<f64> {
    let mean_reward = mean(rewards);
    let variance = mean(&rewards.iter().map(|reward| (reward - mean_reward).powi(2)).collect::<Vec<_>>());
    let deviation = variance.sqrt();
    rewards.iter().map(|reward| if deviation < 1e-6 { 0.0 } else { (reward - mean_reward) / deviation }).collect()
}

fn mean_kl(outcome: &ForwardBackwardOutcome) -> Result<f64> {
    let metric = |name| outcome.metrics.get(name).copied().with_context(|| format!("the server sent no `{name}`"));
    Ok(metric("kl:sum")? / metric("tokens:sum")?.max(1.0))
}

fn mean(values: &[f64]) -> f64 {
    values.iter().sum::<f64>() / values.len().max(1) as f64
}
