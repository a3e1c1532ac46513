//! Large batches go in several requests, and their results become one again.
//!
//! A loss is a sum, so where a batch is cut does not matter for training.

use std::collections::BTreeMap;

use twinkle_core::call::ForwardBackwardOutcome;
use twinkle_core::data::{Datum, TensorValues};
use twinkle_core::wire::tinker::json::ClientConfig;

/// Cuts `data` greedily at the server's limits of examples and of estimated bytes; one example is never cut.
pub(crate) fn split(data: Vec<Datum>, limits: &ClientConfig) -> Vec<Vec<Datum>> {
    let mut chunks = Vec::new();
    let mut chunk = Vec::new();
    let mut chunk_bytes = 0;
    for datum in data {
        let bytes = estimated_bytes(&datum);
        let full = chunk.len() as u64 >= limits.fwdbwd_max_chunk_len
            || chunk_bytes + bytes > limits.fwdbwd_max_chunk_bytes_count;
        if full && !chunk.is_empty() {
            chunks.push(std::mem::take(&mut chunk));
            chunk_bytes = 0;
        }
        chunk_bytes += bytes;
        chunk.push(datum);
    }
    if !chunk.is_empty() {
        chunks.push(chunk);
    }
    chunks
}

/// Bytes on the wire: 4 per token, and the tensors.
fn estimated_bytes(datum: &Datum) -> u64 {
    let tensor_bytes = datum.loss_inputs.values().map(|tensor| match &tensor.values {
        TensorValues::Float32(values) => values.len() as u64 * 4,
        TensorValues::Int64(values) => values.len() as u64 * 8,
    });
    datum.tokens.len() as u64 * 4 + tensor_bytes.sum::<u64>()
}

/// Joins the results of the chunks in order. A metric's name ends in how it is joined: `loss:sum`; one whose way is
/// unknown, or that some chunk lacks, is left out, because any number for it would be wrong.
pub(crate) fn combine(outcomes: Vec<ForwardBackwardOutcome>) -> ForwardBackwardOutcome {
    let mut metrics = BTreeMap::new();
    let names = outcomes.first().map(|first| first.metrics.keys().cloned().collect::<Vec<_>>()).unwrap_or_default();
    for name in names {
        let values: Option<Vec<(f64, f64)>> = outcomes
            .iter()
            .map(|outcome| Some((*outcome.metrics.get(&name)?, outcome.logprobs.len() as f64)))
            .collect();
        if let Some(value) = values.and_then(|values| reduce(&name, &values)) {
            metrics.insert(name, value);
        }
    }
    let logprobs = outcomes.into_iter().flat_map(|outcome| outcome.logprobs).collect();
    ForwardBackwardOutcome { logprobs, metrics, ..ForwardBackwardOutcome::default() }
}

/// One value out of (value, number of examples) pairs.
fn reduce(name: &str, values: &[(f64, f64)]) -> Option<f64> {
    let (_, reduction) = name.split_once(':')?;
    let plain = || values.iter().map(|(value, _)| *value);
    let mean = || {
        let count: f64 = values.iter().map(|(_, count)| count).sum();
        values.iter().map(|(value, weight)| value * weight).sum::<f64>() / count
    };
    match reduction {
        "sum" => Some(plain().sum()),
        "min" => plain().reduce(f64::min),
        "max" => plain().reduce(f64::max),
        "mean" => Some(mean()),
        "slack" => Some(plain().reduce(f64::max)? - mean()),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use twinkle_core::call::Logprobs;
    use twinkle_core::data::TensorData;

    use super::*;

    fn datum(length: usize) -> Datum {
        let targets = TensorData::ints(vec![1; length]);
        Datum { tokens: vec![1; length], loss_inputs: BTreeMap::from([("target_tokens".to_owned(), targets)]) }
    }

    #[test]
    fn a_chunk_ends_before_either_limit_is_passed() {
        let limits =
            ClientConfig { fwdbwd_max_chunk_len: 3, fwdbwd_max_chunk_bytes_count: 240, ..ClientConfig::default() };
        // 12 bytes a position: 20 positions fill a chunk.
        let lengths = [10, 10, 1, 1, 1, 1, 50, 1];
        let chunks = split(lengths.into_iter().map(datum).collect(), &limits);
        let cut: Vec<Vec<usize>> =
            chunks.iter().map(|chunk| chunk.iter().map(|one| one.tokens.len()).collect()).collect();
        assert_eq!(cut, [vec![10, 10], vec![1, 1, 1], vec![1], vec![50], vec![1]]);
    }

    #[test]
    fn metrics_are_joined_as_their_names_say() {
        let outcome = |examples: usize, value: f64| ForwardBackwardOutcome {
            logprobs: vec![Logprobs::flat(vec![value as f32]); examples],
            metrics: ["loss:sum", "a:mean", "b:max", "c:min", "d:slack", "e:unknown", "f"]
                .map(|name| (name.to_owned(), value))
                .into(),
            ..ForwardBackwardOutcome::default()
        };
        let mut first = outcome(1, 2.0);
        first.metrics.insert("only_here:sum".to_owned(), 1.0);
        let joined = combine(vec![first, outcome(3, 6.0)]);
        let expected = [("a:mean", 5.0), ("b:max", 6.0), ("c:min", 2.0), ("d:slack", 1.0), ("loss:sum", 8.0)];
        assert_eq!(joined.metrics, expected.map(|(name, value)| (name.to_owned(), value)).into());
        assert_eq!(joined.logprobs.iter().map(|one| one.values[0]).collect::<Vec<_>>(), [2.0, 6.0, 6.0, 6.0]);
    }
}
