//! Direct preference optimization (Rafailov et al. 2023) with an exact gradient computed by the client.
//!
//! For a pair of answers to one prompt, `Δ` is how much more the policy has raised the chosen answer's logprob over the
//! reference than the rejected one's, `C = softplus(-β Δ)`, averaged over the pairs. The server knows no such loss, and need not: the
//! gradient of any `C` of the logprobs is that of `cross_entropy` with the weights `-∂C/∂logprob`. So a step asks for the
//! logprobs with `forward`, computes the derivatives here, and sends them as weights.

use anyhow::{Result, ensure};
use serde::{Deserialize, Serialize};
use twinkle_client::{
    AdamParams, ChatMessage, Datum, Logprobs, Loss, ProcessorClient, SamplingClient, TensorData, TensorValues,
    TrainingClient, supervised_datum,
};

/// A question with two answers.
#[derive(Clone, Debug, Deserialize)]
pub(crate) struct Preference {
    pub(crate) question: String,
    pub(crate) chosen: String,
    pub(crate) rejected: String,
}

/// A preference as the model sees it.
pub(crate) struct Pair {
    chosen: Datum,
    rejected: Datum,
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
    let mut pairs = Vec::new();
    for (chosen, rejected) in chosen.iter().zip(&rejected) {
        let of_chosen = reference.compute_logprobs(chosen.tokens.clone()).await?;
        let of_rejected = reference.compute_logprobs(rejected.tokens.clone()).await?;
        let (chosen, rejected) = (supervised_datum(chosen)?, supervised_datum(rejected)?);
        // The first token of a sequence has no logprob, and is nobody's target.
        let of = |datum: &Datum, logprobs: Vec<Option<f32>>| {
            answer_logprob(datum, &Logprobs::flat(logprobs.into_iter().skip(1).map(|one| one.unwrap_or(0.0)).collect()))
        };
        let reference = [of(&chosen, of_chosen), of(&rejected, of_rejected)];
        pairs.push(Pair { chosen, rejected, reference });
    }
    Ok(pairs)
}

/// One update with the pairs of a batch. `number` counts the steps from 1.
pub(crate) async fn step(
    training: &TrainingClient,
    batch: &[&Pair],
    beta: f64,
    learning_rate: f64,
    number: usize,
) -> Result<Step> {
    let data = data(batch);
    let logprobs = training.forward(data.clone(), Loss::cross_entropy()).await?.await?.logprobs;
    let measured = measure(batch, &logprobs, beta);

    let mut weighted = data;
    for ((pair, answers), logprobs) in batch.iter().zip(weighted.chunks_mut(2)).zip(logprobs.chunks(2)) {
        // d softplus(-βΔ) / dΔ = -β σ(-βΔ); Δ grows with the chosen answer's logprobs and falls with the rejected one's.
        let slope = beta * sigmoid(-margin(pair, logprobs, beta)) / batch.len() as f64;
        for (datum, sign) in answers.iter_mut().zip([1.0, -1.0]) {
            scale_weights(datum, (sign * slope) as f32);
        }
    }
    let backward = training.forward_backward(weighted, Loss::cross_entropy()).await?;
    let params = AdamParams { learning_rate, ..AdamParams::default() };
    let stepped = training.optim_step(params).await?;
    ensure!(
        backward.await?.logprobs == logprobs,
        "the backward pass had other logprobs than the forward pass its derivatives were computed from"
    );
    stepped.await?;
    Ok(Step { number, loss: measured.loss, margin: measured.margin, accuracy: measured.accuracy })
}

/// Loss, margin and accuracy of pairs the run does not learn from.
pub(crate) async fn evaluate(training: &TrainingClient, pairs: &[&Pair], beta: f64) -> Result<Measured> {
    let logprobs = training.forward(data(pairs), Loss::cross_entropy()).await?.await?.logprobs;
    Ok(measure(pairs, &logprobs, beta))
}

/// Chosen and rejected answers in turn.
fn data(pairs: &[&Pair]) -> Vec<Datum> {
    pairs.iter().flat_map(|pair| [pair.chosen.clone(), pair.rejected.clone()]).collect()
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
    let Some(TensorValues::Float32(weights)) = datum.loss_inputs.get("weights").map(|weights| &weights.values) else {
        return 0.0;
    };
    weights.iter().zip(&logprobs.values).map(|(weight, logprob)| f64::from(*weight) * f64::from(*logprob)).sum()
}

fn scale_weights(datum: &mut Datum, factor: f32) {
    if let Some(TensorData { values: TensorValues::Float32(weights), .. }) = datum.loss_inputs.get_mut("weights") {
        for weight in weights {
            *weight *= factor;
        }
    }
}

fn sigmoid(value: f64) -> f64 {
    1.0 / (1.0 + (-value).exp())
}
