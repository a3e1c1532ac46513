use std::fs;

use serde::Deserialize;
use twinkle_core::call::SamplingSource;

use crate::adapters::save_fixture_adapter;
use crate::house::{House, MIXED, VARIANTS, fixture, greedy};

#[derive(Deserialize)]
struct Golden {
    generations: Vec<Generation>,
}

#[derive(Deserialize)]
struct Generation {
    adapter: Option<String>,
    prompt: Vec<u32>,
    tokens: Vec<u32>,
    logprobs: Vec<f32>,
}

#[tokio::test]
async fn greedy_generations_are_those_of_transformers_and_peft() {
    for variant in VARIANTS.into_iter().chain(MIXED) {
        let house = House::open(variant).await;
        let golden: Golden = serde_json::from_slice(&fs::read(fixture(variant).join("golden.json")).unwrap()).unwrap();
        for generation in golden.generations {
            let mut request = greedy(&generation.prompt);
            request.params.max_tokens = Some(generation.tokens.len() as u32);
            if let Some(adapter) = &generation.adapter {
                request.source = SamplingSource::Checkpoint(save_fixture_adapter(&house, adapter, "greedy"));
            }
            let outcome = house.ask(request).await.unwrap();
            let sequence = &outcome.sequences[0];
            assert_eq!(sequence.tokens, generation.tokens, "{variant}");
            for (ours, theirs) in sequence.logprobs.iter().zip(&generation.logprobs) {
                let allowed = if variant.starts_with("qwen3_5") { 1e-3 } else { 1e-4 };
                assert!((ours - theirs).abs() < allowed, "{variant}: {ours} and {theirs}");
            }
        }
    }
}
