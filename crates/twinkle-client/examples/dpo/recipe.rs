//! Direct preference optimization (Rafailov et al. 2023) with an exact gradient computed by the client.
//!
//! For a pair of answers to one prompt, `Δ` is how much more the policy has raised the chosen answer's logprob over the
//! reference than the rejected one's, `C = softplus(-β Δ)`, averaged over the pairs. The server need not know this loss:
//! `forward_backward_custom` asks it for the logprobs, computes `C` and its derivatives here, and has them taken back to the
//! weights.

use std::sync::Arc;

use anyhow::Result;
use serde::{Deserialize, Serialize};
use twinkle_client::{
    AdamParams, ChatMessage, Datum, Logprobs, Objective, ProcessorClient, SamplingClient, TensorValues, TrainingClient,
    supervised_datum,
};

/// A question with two answers.
#[derive(Clone, Debug, Deserialize)]
pub(crate) struct Preference {
    pub(crate) question: String,
    pub(crate) chosen: String,
    pub(crate) rejected: String,
}

/// A preference as the model sees it.
#[derive(Clone)]
pub(crate) struct Pair {
    chosen: Arc<Datum>,
    rejected: Arc<Datum>,
    /// `log p` of the chosen and of the rejected answer by the base model.
    reference: [f64; 2],
}

/// What one step saw, before its update.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Step {
    /// Counted from 1.
    #[serde(rename = "step")]
    pub(crate) number: usize,
    /// Mean of `softplus(-margin)`; log 2 at the start.
    pub(crate) loss: f64,
    /// Mean of `β Δ`; 0 at the start.
    pub(crate) margin: f64,
    /// Share of the pairs whose margin is above 0.
    pub(crate) accuracy: f64,
}

/// Means over some pairs, without their derivatives.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Measured {
    pub(crate) loss: f64,
    pub(crate) margin: f64,
    pub(crate) accuracy: f64,
    /// How far the logprob of a chosen answer has moved from the base model's.
    pub(crate) chosen: f64,
    /// The same of a rejected answer.
    pub(crate) rejected: f64,
}

/// Tokenizes the preferences and asks the frozen base model for its logprobs.
pub(crate) async fn pairs(
    processor: &ProcessorClient,
    reference: &SamplingClient,
    preferences: &[Preference],
) -> Result<Vec<Pair>> {
    let answered = |answer: fn(&Preference) -> &str| {
        preferences
            .iter()
            .map(|one| vec![ChatMessage::user(&one.question), ChatMessage::assistant(answer(one))])
            .collect::<Vec<_>>()
    };
    let chosen = processor.encode_chat(answered(|one| &one.chosen), false).await?;
    let rejected = processor.encode_chat(answered(|one| &one.rejected), false).await?;
    // All are on their way before the first is awaited: the server scores them together.
    let mut scores = Vec::new();
    for answer in chosen.iter().chain(&rejected) {
        scores.push(reference.compute_logprobs(answer.tokens.clone()).await?);
    }
    let mut data = Vec::new();
    for (answer, scores) in chosen.iter().chain(&rejected).zip(scores) {
        let datum = Arc::new(supervised_datum(answer)?);
        // The first token of a sequence has no logprob, and is nobody's target.
        let logprobs = scores.await?.into_iter().skip(1).map(|one| one.unwrap_or(0.0)).collect();
        let logprob = answer_logprob(&datum, &Logprobs::flat(logprobs));
        data.push((datum, logprob));
    }
    let of_rejected = data.split_off(chosen.len());
    let pair =
        |((chosen, of_chosen), (rejected, of_rejected))| Pair { chosen, rejected, reference: [of_chosen, of_rejected] };
    Ok(data.into_iter().zip(of_rejected).map(pair).collect())
}

/// One update with the pairs of a batch. `number` counts the steps from 1.
pub(crate) async fn step(
    training: &TrainingClient,
    batch: &[&Pair],
    beta: f64,
    learning_rate: f64,
    number: usize,
) -> Result<Step> {
    let pairs: Vec<Pair> = batch.iter().map(|pair| (*pair).clone()).collect();
    let objective = move |logprobs: &[Logprobs]| Ok(objective(&pairs, logprobs, beta));
    let backward = training.forward_backward_custom(data(batch), objective).await?;
    let params = AdamParams { learning_rate, ..AdamParams::default() };
    let stepped = training.optim_step(params).await?;
    let outcome = backward.await?;
    stepped.await?;
    let Measured { loss, margin, accuracy, .. } = measure(batch, &outcome.logprobs, beta);
    Ok(Step { number, loss, margin, accuracy })
}

/// The mean of `softplus(-βΔ)` and its derivatives. `d softplus(-βΔ) / dΔ = -β σ(-βΔ)`; Δ grows with the chosen answer's
/// logprobs and falls with the rejected one's.
fn objective(pairs: &[Pair], logprobs: &[Logprobs], beta: f64) -> Objective {
    let (mut value, mut derivatives) = (0.0, Vec::new());
    for (pair, logprobs) in pairs.iter().zip(logprobs.chunks(2)) {
        let margin = margin(pair, logprobs, beta);
        value += (-margin).exp().ln_1p() / pairs.len() as f64;
        let slope = beta * sigmoid(-margin) / pairs.len() as f64;
        for (datum, slope) in [(&pair.chosen, -slope), (&pair.rejected, slope)] {
            derivatives.push(answer_weights(datum).iter().map(|weight| slope as f32 * weight).collect());
        }
    }
    Objective { value, derivatives }
}

/// Loss, margin and accuracy of pairs the run does not learn from.
pub(crate) async fn evaluate(training: &TrainingClient, pairs: &[&Pair], beta: f64) -> Result<Measured> {
    let logprobs = training.forward(data(pairs), "cross_entropy").await?.await?.logprobs;
    Ok(measure(pairs, &logprobs, beta))
}

/// Chosen and rejected answers in turn.
fn data(pairs: &[&Pair]) -> Vec<Datum> {
    pairs.iter().flat_map(|pair| [&pair.chosen, &pair.rejected]).map(|datum| Datum::clone(datum)).collect()
}

fn measure(pairs: &[&Pair], logprobs: &[Logprobs], beta: f64) -> Measured {
    let moved: Vec<[f64; 2]> =
        pairs.iter().zip(logprobs.chunks(2)).map(|(pair, logprobs)| moved(pair, logprobs)).collect();
    let mean = |of: &dyn Fn(&[f64; 2]) -> f64| moved.iter().map(of).sum::<f64>() / moved.len().max(1) as f64;
    let margin = |[chosen, rejected]: &[f64; 2]| beta * (chosen - rejected);
    Measured {
        loss: mean(&|moved| (-margin(moved)).exp().ln_1p()),
        margin: mean(&margin),
        accuracy: mean(&|moved| f64::from(u8::from(margin(moved) > 0.0))),
        chosen: mean(&|[chosen, _]| *chosen),
        rejected: mean(&|[_, rejected]| *rejected),
    }
}

/// `β Δ` of a pair.
fn margin(pair: &Pair, logprobs: &[Logprobs], beta: f64) -> f64 {
    let [chosen, rejected] = moved(pair, logprobs);
    beta * (chosen - rejected)
}

/// How far the logprobs of the chosen and of the rejected answer have moved from the reference.
fn moved(pair: &Pair, logprobs: &[Logprobs]) -> [f64; 2] {
    let [chosen, rejected] = logprobs else { return [0.0; 2] };
    let [of_chosen, of_rejected] = pair.reference;
    [answer_logprob(&pair.chosen, chosen) - of_chosen, answer_logprob(&pair.rejected, rejected) - of_rejected]
}

/// The logprob of the answer's tokens together.
fn answer_logprob(datum: &Datum, logprobs: &Logprobs) -> f64 {
    answer_weights(datum)
        .iter()
        .zip(&logprobs.values)
        .map(|(weight, logprob)| f64::from(*weight) * f64::from(*logprob))
        .sum()
}

/// 1 where the assistant wrote the target, else 0.
fn answer_weights(datum: &Datum) -> &[f32] {
    match datum.loss_inputs.get("weights").map(|weights| &weights.values) {
        Some(TensorValues::Float32(weights)) => weights,
        _ => &[],
    }
}

fn sigmoid(value: f64) -> f64 {
    1.0 / (1.0 + (-value).exp())
}
