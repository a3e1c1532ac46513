//! The answer to `sample`.

use axum::body::Body;
use axum::response::Response;
use http::HeaderValue;
use http::header::{CONTENT_LENGTH, CONTENT_TYPE};
use schemars::JsonSchema;
use serde::Serialize;
use twinkle_core::call::{SampleOutcome, SampledSequence, StopReason, TopLogprobs};
use twinkle_core::error::{Error, Result};
use twinkle_core::wire::twinkle::InputFeature;
use twinkle_processor::{Template, extend_feature};

use super::prompts::Asked;

/// Token ids with their logprobs, the likeliest first.
type Likeliest = Vec<(u32, f32)>;

/// What one prompt was continued with.
#[derive(Debug, Serialize, JsonSchema)]
pub(super) struct Sampled {
    sequences: Vec<Sequence>,
    prompt_logprobs: Option<Vec<Option<f32>>>,
    topk_prompt_logprobs: Option<Vec<Option<Likeliest>>>,
}

/// One continuation.
#[derive(Debug, Serialize, JsonSchema)]
pub(super) struct Sequence {
    stop_reason: &'static str,
    tokens: Vec<u32>,
    logprobs: Option<Vec<Likeliest>>,
    decoded: Option<String>,
    new_input_feature: InputFeature,
}

/// One answer for each prompt.
#[derive(Debug, Serialize, JsonSchema)]
pub(super) struct Samples {
    /// In the order of the prompts.
    samples: Vec<Sampled>,
}

/// The bytes of the answer; clients of the first generation read all sequences as those of one prompt. Blocking.
pub(super) fn bytes(asked: &Asked, outcomes: Vec<SampleOutcome>, is_first_generation: bool) -> Result<Vec<u8>> {
    let pairs = asked.prompts.iter().zip(outcomes);
    let samples = pairs.map(|(prompt, outcome)| sampled(asked, prompt, outcome)).collect::<Result<Vec<_>>>()?;
    let bytes = if is_first_generation {
        let mut samples = samples.into_iter();
        let first = samples.next().ok_or_else(|| Error::internal("no prompt was sampled"))?;
        let merged = samples.fold(first, |mut merged, next| {
            merged.sequences.extend(next.sequences);
            merged
        });
        serde_json::to_vec(&merged)
    } else {
        serde_json::to_vec(&Samples { samples })
    };
    bytes.map_err(|error| Error::internal(format!("an answer is not JSON: {error}")))
}

/// 200 with these bytes.
pub(super) fn response(bytes: Vec<u8>) -> Response {
    let length = HeaderValue::from(bytes.len());
    let mut response = Response::new(Body::from(bytes));
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    response.headers_mut().insert(CONTENT_LENGTH, length);
    response
}

fn sampled(asked: &Asked, prompt: &InputFeature, outcome: SampleOutcome) -> Result<Sampled> {
    let wants_prompt = asked.wanted.prompt_logprobs > 0;
    let template = asked.template.as_ref();
    let sequences = outcome.sequences.into_iter().map(|sequence| {
        if asked.wanted.only_prompt { Ok(nothing_drawn(prompt, template)) } else { continued(asked, prompt, sequence) }
    });
    Ok(Sampled {
        sequences: sequences.collect::<Result<_>>()?,
        prompt_logprobs: outcome.prompt_logprobs.filter(|_| wants_prompt),
        topk_prompt_logprobs: outcome.topk_prompt_logprobs.filter(|_| wants_prompt).map(rows_but_the_first),
    })
}

fn continued(asked: &Asked, prompt: &InputFeature, sequence: SampledSequence) -> Result<Sequence> {
    let template = asked.template.as_ref();
    let new_input_feature = match template {
        Some(template) => template.extend(prompt, &sequence.tokens)?,
        None => extend_feature(prompt, &sequence.tokens)?,
    };
    Ok(Sequence {
        stop_reason: stop_reason(sequence.stop_reason),
        decoded: template.map(|template| template.decode(&sequence.tokens, false)).transpose()?,
        logprobs: asked.wanted.logprobs.map(|_| logprobs(&sequence)),
        tokens: sequence.tokens,
        new_input_feature,
    })
}

fn nothing_drawn(prompt: &InputFeature, template: Option<&Template>) -> Sequence {
    Sequence {
        stop_reason: stop_reason(StopReason::Length),
        tokens: Vec::new(),
        logprobs: None,
        decoded: template.map(|_| String::new()),
        new_input_feature: prompt.clone(),
    }
}

/// Why a sample ended, in the client's words.
pub(super) const fn stop_reason(reason: StopReason) -> &'static str {
    match reason {
        StopReason::Stop => "stop",
        StopReason::Length => "length",
    }
}

/// Per token its own logprob among the likeliest that were asked for. It is always there, whatever the number: clients
/// look for it.
fn logprobs(sequence: &SampledSequence) -> Vec<Likeliest> {
    let own = sequence.tokens.iter().copied().zip(sequence.logprobs.iter().copied()).enumerate();
    own.map(|(place, own)| {
        let row = sequence.topk_logprobs.as_ref().and_then(|top| top.rows.get(place));
        let mut row = row.cloned().unwrap_or_default();
        if row.iter().all(|(token, _)| *token != own.0) {
            let behind = row.partition_point(|(_, logprob)| *logprob >= own.1);
            row.insert(behind, own);
        }
        row
    })
    .collect()
}

/// Per prompt token the likeliest; the first has none before it.
fn rows_but_the_first(top: TopLogprobs) -> Vec<Option<Likeliest>> {
    top.rows.into_iter().enumerate().map(|(place, row)| (place > 0).then_some(row)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_sampled_token_is_among_the_likeliest_in_their_order() {
        let mut sequence = SampledSequence::new(vec![5, 9], vec![-1.0, -3.0], StopReason::Stop);
        assert_eq!(logprobs(&sequence), [[(5, -1.0)], [(9, -3.0)]]);
        let rows = vec![vec![(7, -0.5), (5, -1.0)], vec![(1, -2.0), (2, -2.5)]];
        sequence.topk_logprobs = Some(TopLogprobs { k: 2, rows });
        assert_eq!(logprobs(&sequence), [vec![(7, -0.5), (5, -1.0)], vec![(1, -2.0), (2, -2.5), (9, -3.0)]]);
    }
}
