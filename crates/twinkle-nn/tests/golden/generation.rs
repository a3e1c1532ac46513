//! Greedy generations over a cache.

use std::sync::Arc;

use twinkle_nn::{Adapter, BaseModel, KvCache, Precision};

use crate::Tolerance;
use crate::common::{VARIANTS, golden_json, load, load_adapter};

#[test]
fn greedy_generations_are_exact() {
    for variant in VARIANTS {
        let base = load(variant, Precision::Float32);
        for generation in golden_json(variant)["generations"].as_array().unwrap() {
            let loaded = generation["adapter"].as_str().map(|name| load_adapter(&base, variant, name));
            let adapter = loaded.as_ref().map(|loaded| &loaded.adapter);
            let ids = |key: &str| -> Vec<u32> {
                generation[key].as_array().unwrap().iter().map(|id| id.as_u64().unwrap() as u32).collect()
            };
            let (prompt, expected) = (ids("prompt"), ids("tokens"));
            let (found, logprobs) = greedy(&base, &prompt, adapter, expected.len());
            assert_eq!(found, expected, "{variant} {}", generation["adapter"]);
            let allowed = f64::from(Tolerance::of(base.config()).logits);
            for (found, expected) in logprobs.iter().zip(generation["logprobs"].as_array().unwrap()) {
                let error = (f64::from(*found) - expected.as_f64().unwrap()).abs();
                assert!(error <= allowed, "{variant}: a logprob is off by {error}");
            }
        }
    }
}

fn greedy(base: &BaseModel, prompt: &[u32], adapter: Option<&Arc<Adapter>>, count: usize) -> (Vec<u32>, Vec<f32>) {
    let mut cache = KvCache::new(base);
    let hidden = base.prefill(prompt, &mut cache, adapter).unwrap();
    let mut row = hidden.narrow(0, prompt.len() as i64 - 1, 1);
    let (mut tokens, mut logprobs) = (vec![], vec![]);
    for _ in 0..count {
        let log_softmax = base.logits(&row, &[adapter]).unwrap().log_softmax(-1, tch::Kind::Float);
        let token = log_softmax.argmax(-1, false).int64_value(&[0]);
        logprobs.push(log_softmax.double_value(&[0, token]) as f32);
        tokens.push(token as u32);
        row = base.decode(&[token as u32], &mut [&mut cache], &[adapter]).unwrap();
    }
    (tokens, logprobs)
}
