use std::sync::Arc;

use twinkle_core::call::{SampleRequest, SamplingSource};
use twinkle_core::ids::TenantId;
use twinkle_nn::{Adapter, AdapterLayout, Pack, peft};

use crate::adapters::save_fixture_adapter;
use crate::house::{House, VARIANTS, prompt, request};

/// The trainer's logprobs of `tokens[1..]`.
fn forward_logprobs(house: &House, tokens: &[u32], adapters: &[Arc<Adapter>]) -> Vec<f32> {
    let pack = Pack::single(&tokens[..tokens.len() - 1], (!adapters.is_empty()).then_some(0));
    let hidden = house.base.forward(&pack, adapters).unwrap();
    house.base.head_loss(&hidden, &pack, adapters, &tokens[1..], &mut |_, _, _| {}, None).unwrap().logprobs
}

fn assert_close(ours: &[f32], theirs: &[f32], what: &str) {
    assert_eq!(ours.len(), theirs.len());
    for (index, (ours, theirs)) in ours.iter().zip(theirs).enumerate() {
        // A prompt is computed in tiles over a cache, a training sequence at once: their sums differ in the last bits of
        // logits that are several units large, so the limit grows with the size of an unlikely token's logprob.
        let limit = 1e-5 * theirs.abs().max(1.0);
        assert!((ours - theirs).abs() <= limit, "{what}, token {index}: {ours} and {theirs}");
    }
}

#[tokio::test]
async fn prompt_and_sampled_logprobs_are_the_trainers() {
    for variant in VARIANTS {
        let house = House::open(variant).await;
        let path = save_fixture_adapter(&house, "attn_mlp_unembed", "a");
        let opened = house.checkpoints.open(&TenantId::new("tenant"), &path).unwrap();
        let (spec, parameters) = peft::read(opened.directory(), house.base.config()).unwrap();
        let layout = Arc::new(AdapterLayout::new(house.base.config(), &spec).unwrap());
        let adapter = Arc::new(Adapter::from_parameters(&layout, &parameters, house.base.kind(), house.base.device()));
        for (source, adapters) in [(SamplingSource::Base, vec![]), (SamplingSource::Checkpoint(path), vec![adapter])] {
            for length in [1, 2, 63, 64, 65, 130] {
                let prompt = prompt(length, 5);
                let outcome = house
                    .ask(SampleRequest { source: source.clone(), prompt_logprobs: true, ..request(&prompt) })
                    .await
                    .unwrap();
                let whole: Vec<u32> = prompt.iter().chain(&outcome.sequences[0].tokens).copied().collect();
                let expected = forward_logprobs(&house, &whole, &adapters);
                let logprobs = outcome.prompt_logprobs.unwrap();
                assert_eq!((logprobs.len(), logprobs[0]), (length, None));
                let logprobs: Vec<f32> = logprobs.into_iter().skip(1).map(Option::unwrap).collect();
                assert_close(&logprobs, &expected[..length - 1], &format!("{variant}, prompt of {length}"));
                assert_close(&outcome.sequences[0].logprobs, &expected[length - 1..], &format!("{variant}, sampled"));
            }
        }
    }
}

#[tokio::test]
async fn a_temperature_scales_the_reported_logprobs() {
    let house = House::open("llama3").await;
    let logprob = |temperature, seed| {
        let mut request = request(&prompt(20, 5));
        request.params.temperature = temperature;
        request.params.seed = Some(seed);
        request.params.max_tokens = Some(1);
        let house = &house;
        async move {
            let sequence = house.ask(request).await.unwrap().sequences.remove(0);
            (sequence.tokens[0], sequence.logprobs[0])
        }
    };
    let mut plain = std::collections::HashMap::new();
    let mut scaled = std::collections::HashMap::new();
    for seed in 0..60 {
        plain.extend([logprob(1.0, seed).await]);
        scaled.extend([logprob(2.0, seed).await]);
    }
    // lp₂(i) − lp₂(j) = (lp₁(i) − lp₁(j)) / 2
    let both: Vec<u32> = plain.keys().filter(|token| scaled.contains_key(token)).copied().collect();
    assert!(both.len() > 3, "too few tokens were drawn at both temperatures");
    for pair in both.windows(2) {
        let distance = scaled[&pair[0]] - scaled[&pair[1]] - (plain[&pair[0]] - plain[&pair[1]]) / 2.0;
        assert!(distance.abs() < 1e-5, "{distance}");
    }
}
