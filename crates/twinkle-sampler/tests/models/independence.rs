use futures::future::join_all;
use twinkle_core::call::{SampleRequest, SamplingSource};

use crate::adapters::save_fixture_adapter;
use crate::house::{House, MIXED, VARIANTS, fixture, prompt, request};

#[tokio::test]
async fn the_same_seed_gives_the_same_bits_alone_and_in_a_full_batch() {
    for variant in VARIANTS.into_iter().chain(MIXED) {
        let house = House::open(variant).await;
        let adapter = SamplingSource::Checkpoint(save_fixture_adapter(&house, "attn_mlp", "a"));
        let unembed = "attn_mlp_unembed";
        let other = if fixture(variant).join(unembed).is_dir() { unembed } else { "rslora" };
        let other = SamplingSource::Checkpoint(save_fixture_adapter(&house, other, "b"));
        let mine = || {
            let mut mine = SampleRequest { num_samples: 3, source: adapter.clone(), ..request(&prompt(150, 11)) };
            mine.params.temperature = 1.3;
            mine.params.top_p = 0.95;
            mine.prompt_logprobs = true;
            mine
        };
        let alone = house.ask(mine()).await.unwrap();
        let neighbours = (0..20_usize).map(|index| {
            let source = [SamplingSource::Base, adapter.clone(), other.clone()][index % 3].clone();
            let mut neighbour = SampleRequest { source, ..request(&prompt(1 + index * 13, index as u32)) };
            neighbour.params.max_tokens = Some(5 + index as u32);
            house.ask_as(&format!("tenant-{}", index % 4), neighbour)
        });
        // Only the owner can read its checkpoints, so the neighbours with adapters must fail cleanly beside the others.
        let (neighbours, crowded) = futures::join!(join_all(neighbours), house.ask(mine()));
        assert_eq!(bits(&crowded.unwrap()), bits(&alone), "{variant}");
        assert_eq!(neighbours.iter().filter(|outcome| outcome.is_ok()).count(), 7);

        let crowd = (0..24).map(|index| {
            let source = [SamplingSource::Base, adapter.clone(), other.clone()][index % 3].clone();
            house.ask(SampleRequest { source, ..request(&prompt(1 + index * 13, index as u32)) })
        });
        let (crowd, crowded) = futures::join!(join_all(crowd), house.ask(mine()));
        assert_eq!(bits(&crowded.unwrap()), bits(&alone), "{variant}");
        assert!(crowd.iter().all(Result::is_ok));
    }
}

/// Tokens and the bits of every logprob.
fn bits(outcome: &twinkle_core::call::SampleOutcome) -> Vec<(Vec<u32>, Vec<u32>)> {
    let mut bits: Vec<_> = outcome
        .sequences
        .iter()
        .map(|sequence| (sequence.tokens.clone(), sequence.logprobs.iter().map(|logprob| logprob.to_bits()).collect()))
        .collect();
    let prompt = outcome.prompt_logprobs.iter().flatten().flatten().map(|logprob| logprob.to_bits()).collect();
    bits.push((Vec::new(), prompt));
    bits
}

#[tokio::test]
async fn the_samples_of_a_request_differ_and_each_can_be_drawn_alone() {
    let house = House::open("qwen3").await;
    let many = house.ask(SampleRequest { num_samples: 5, ..request(&prompt(70, 2)) }).await.unwrap();
    assert_eq!(many.sequences.len(), 5);
    for (index, sequence) in many.sequences.iter().enumerate() {
        let mut single = request(&prompt(70, 2));
        single.params.seed = Some(7 ^ index as u64);
        assert_eq!(house.ask(single).await.unwrap().sequences[0], *sequence);
        let twins = many.sequences.iter().filter(|other| other.tokens == sequence.tokens).count();
        assert_eq!(twins, 1, "two samples are equal");
    }
}

#[tokio::test]
async fn requests_without_a_seed_differ() {
    let house = House::open("qwen2").await;
    let draw = || {
        let mut request = request(&prompt(5, 2));
        request.params.seed = None;
        house.ask(request)
    };
    assert_ne!(draw().await.unwrap(), draw().await.unwrap());
}
