//! Sampling results in both codecs, and sampling settings.

use super::json;
use super::proto;
use super::scores;
use super::tensor;
use crate::call::{SampleOutcome, SampledSequence, SamplingParams, Stop, StopReason};
use crate::error::{Error, Result};

/// Reads sampling settings, applying the protocol's defaults.
///
/// Errors: a temperature that is not a finite number from 0 up, a `top_p` outside (0, 1], a `top_k`
/// below -1, no new token at all, an empty stop text.
pub fn params(wire: json::SamplingParams) -> Result<SamplingParams> {
    if !wire.temperature.is_finite() || wire.temperature < 0.0 {
        return Err(Error::invalid(format!("`temperature` {} is not a number from 0 up", wire.temperature)));
    }
    if !(wire.top_p > 0.0 && wire.top_p <= 1.0) {
        return Err(Error::invalid(format!("`top_p` {} is not in (0, 1]", wire.top_p)));
    }
    let top_k = match wire.top_k {
        -1 | 0 => None,
        k => Some(u32::try_from(k).map_err(|_| Error::invalid(format!("`top_k` {k} is neither -1 nor a count")))?),
    };
    if wire.max_tokens == Some(0) {
        return Err(Error::invalid("`max_tokens` is 0").hint("ask for at least one token, or leave it out"));
    }
    Ok(SamplingParams {
        max_tokens: wire.max_tokens,
        seed: wire.seed.map(json::Seed::bits),
        stop: stop(wire.stop)?,
        temperature: wire.temperature as f32,
        top_k,
        top_p: wire.top_p as f32,
    })
}

/// No list: the model's end of sequence. An empty list: nothing stops it.
fn stop(wire: Option<json::Stop>) -> Result<Stop> {
    let stop = match wire {
        None => return Ok(Stop::EndOfSequence),
        Some(json::Stop::Text(text)) => Stop::Strings(vec![text]),
        Some(json::Stop::Tokens(tokens)) if tokens.is_empty() => Stop::Never,
        Some(json::Stop::Tokens(tokens)) => Stop::Tokens(tokens),
        Some(json::Stop::Texts(texts)) => Stop::Strings(texts),
    };
    match &stop {
        Stop::Strings(texts) if texts.iter().any(String::is_empty) => {
            Err(Error::invalid("a stop text is empty").hint("an empty list, `[]`, means that nothing stops a sample"))
        }
        _ => Ok(stop),
    }
}

/// Writes sampling settings, for a client.
#[must_use]
pub fn params_to_json(params: &SamplingParams) -> json::SamplingParams {
    json::SamplingParams {
        max_tokens: params.max_tokens,
        seed: params.seed.map(json::Seed::from_bits),
        stop: match &params.stop {
            Stop::EndOfSequence => None,
            Stop::Never => Some(json::Stop::Tokens(Vec::new())),
            Stop::Strings(texts) => Some(json::Stop::Texts(texts.clone())),
            Stop::Tokens(tokens) => Some(json::Stop::Tokens(tokens.clone())),
        },
        temperature: f64::from(params.temperature),
        top_k: params.top_k.map_or(-1, i64::from),
        top_p: f64::from(params.top_p),
    }
}

/// Writes a result as protobuf; a prompt token without logprob is NaN.
#[must_use]
pub fn outcome_to_proto(outcome: &SampleOutcome) -> proto::SampleResponse {
    let sequence = |sequence: &SampledSequence| proto::SampledSequence {
        stop_reason: match sequence.stop_reason {
            StopReason::Stop => proto::StopReason::Stop.into(),
            StopReason::Length => proto::StopReason::Length.into(),
        },
        tokens: tensor::token_bytes(&sequence.tokens),
        logprobs: Some(tensor::float_bytes(&sequence.logprobs)),
        topk_sampled_logprobs: sequence.topk_logprobs.as_ref().map(scores::top_to_proto),
        weight_spans: scores::weights_to_proto(&sequence.weights, sequence.tokens.len()),
    };
    let prompt_logprobs = outcome.prompt_logprobs.as_ref().map(|logprobs| {
        let values: Vec<f32> = logprobs.iter().map(|logprob| logprob.unwrap_or(f32::NAN)).collect();
        tensor::float_bytes(&values)
    });
    proto::SampleResponse {
        sequences: outcome.sequences.iter().map(sequence).collect(),
        prompt_logprobs,
        topk_prompt_logprobs: outcome.topk_prompt_logprobs.as_ref().map(scores::top_to_proto),
        prompt_cache_hit_tokens: 0,
        target_prompt_logprobs: outcome.target_prompt_logprobs.as_ref().map(scores::targets_to_proto),
        prompt_alt_tokens: outcome.prompt_alt_tokens.as_ref().map(scores::alternatives_to_proto),
    }
}

/// Reads a result, for a client.
pub fn outcome_from_proto(response: &proto::SampleResponse) -> Result<SampleOutcome> {
    let mut sequences = Vec::with_capacity(response.sequences.len());
    for sequence in &response.sequences {
        sequences.push(SampledSequence {
            tokens: tensor::tokens(&sequence.tokens)?,
            logprobs: tensor::floats(sequence.logprobs.as_deref().unwrap_or_default())?,
            stop_reason: match sequence.stop_reason() {
                proto::StopReason::Stop => StopReason::Stop,
                proto::StopReason::Length => StopReason::Length,
            },
            topk_logprobs: sequence.topk_sampled_logprobs.as_ref().map(scores::top_from_proto).transpose()?,
            weights: scores::weights_from_proto(&sequence.weight_spans),
        });
    }
    let prompt_logprobs = match response.prompt_logprobs.as_deref() {
        None | Some([]) => None,
        Some(bytes) => {
            Some(tensor::floats(bytes)?.into_iter().map(|logprob| (!logprob.is_nan()).then_some(logprob)).collect())
        }
    };
    Ok(SampleOutcome {
        sequences,
        prompt_logprobs,
        topk_prompt_logprobs: response.topk_prompt_logprobs.as_ref().map(scores::top_from_proto).transpose()?,
        target_prompt_logprobs: response.target_prompt_logprobs.as_ref().map(scores::targets_from_proto).transpose()?,
        prompt_alt_tokens: response.prompt_alt_tokens.as_ref().map(scores::alternatives_from_proto).transpose()?,
    })
}

/// Writes a result as JSON, for SDKs before protobuf.
#[must_use]
pub fn outcome_to_json(outcome: &SampleOutcome) -> json::SampleResponse {
    let sequence = |sequence: &SampledSequence| json::SampledSequence {
        stop_reason: match sequence.stop_reason {
            StopReason::Stop => json::StopReason::Stop,
            StopReason::Length => json::StopReason::Length,
        },
        tokens: sequence.tokens.clone(),
        logprobs: Some(sequence.logprobs.clone()),
        topk_logprobs: sequence.topk_logprobs.as_ref().map(scores::top_to_json),
        weight_spans: scores::weights_to_json(&sequence.weights, sequence.tokens.len()),
    };
    json::SampleResponse {
        kind: json::Tag::new("sample"),
        sequences: outcome.sequences.iter().map(sequence).collect(),
        prompt_logprobs: outcome.prompt_logprobs.clone(),
        topk_prompt_logprobs: outcome.topk_prompt_logprobs.as_ref().map(scores::top_to_json),
        target_prompt_logprobs: outcome.target_prompt_logprobs.as_ref().map(scores::targets_to_json),
        prompt_alt_tokens: outcome.prompt_alt_tokens.as_ref().map(scores::alternatives_to_json),
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use prost::Message;

    use super::*;

    fn read(json: &str) -> Result<SamplingParams> {
        params(serde_json::from_str(json).unwrap())
    }

    #[test]
    fn omitted_settings_have_the_protocols_defaults() {
        let expected = SamplingParams {
            max_tokens: None,
            seed: None,
            stop: Stop::EndOfSequence,
            temperature: 1.0,
            top_k: None,
            top_p: 1.0,
        };
        assert_eq!(read("{}").unwrap(), expected);
        assert_eq!(read(r#"{"stop":null,"seed":null,"top_k":0}"#).unwrap(), expected);
    }

    #[test]
    fn every_form_of_stop_is_read() {
        let stop = |json: &str| read(&format!(r#"{{"stop":{json}}}"#)).map(|params| params.stop);
        assert_eq!(stop(r#""\n\nUser:""#).unwrap(), Stop::Strings(vec!["\n\nUser:".into()]));
        assert_eq!(stop(r#"["a","b"]"#).unwrap(), Stop::Strings(vec!["a".into(), "b".into()]));
        assert_eq!(stop("[2,7]").unwrap(), Stop::Tokens(vec![2, 7]));
        assert_eq!(stop("[]").unwrap(), Stop::Never);
        assert!(stop(r#"[""]"#).is_err());
    }

    #[test]
    fn settings_out_of_range_are_refused() {
        for json in
            [r#"{"temperature":-1}"#, r#"{"top_p":0}"#, r#"{"top_p":1.5}"#, r#"{"top_k":-2}"#, r#"{"max_tokens":0}"#]
        {
            assert!(read(json).is_err(), "{json} was accepted");
        }
    }

    #[test]
    fn seeds_of_either_sign_fold_into_64_bits() {
        assert_eq!(read(r#"{"seed":-1}"#).unwrap().seed, Some(u64::MAX));
        assert_eq!(read(r#"{"seed":18446744073709551615}"#).unwrap().seed, Some(u64::MAX));
        assert_eq!(read(r#"{"seed":7}"#).unwrap().seed, Some(7));
    }

    #[test]
    fn a_result_survives_protobuf() {
        let outcome = SampleOutcome {
            sequences: vec![
                SampledSequence::new(vec![5, 2], vec![-0.5, -1.5], StopReason::Stop),
                SampledSequence::new(vec![6], vec![-3.0], StopReason::Length),
            ],
            prompt_logprobs: Some(vec![None, Some(-2.0)]),
            ..SampleOutcome::default()
        };
        let bytes = Bytes::from(outcome_to_proto(&outcome).encode_to_vec());
        let read = outcome_from_proto(&proto::SampleResponse::decode(bytes).unwrap()).unwrap();
        assert_eq!(read, outcome);
        let json = serde_json::to_value(outcome_to_json(&outcome)).unwrap();
        assert_eq!(json["prompt_logprobs"], serde_json::json!([null, -2.0]));
        assert_eq!(json["sequences"][0]["stop_reason"], "stop");
        assert_eq!(json["type"], "sample");
    }
}
