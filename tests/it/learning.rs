//! Learning is real: the recipes of `cargo xtask learn`, on a tiny model and in seconds.

#[path = "../../crates/twinkle-client/examples/dpo/recipe.rs"]
mod dpo;
#[path = "../../crates/twinkle-client/examples/rl_letter/recipe.rs"]
mod rl_letter;

use twinkle_client::{LoraOptions, ServiceClient, TrainingClient};
use twinkle_tests::Node;

use crate::fixture_node;
use dpo::{Pair, Preference};

/// Where the test nodes have their processor application.
const PROCESSOR: &str = "/api/v1/processor";
/// The tiny models have random weights and forget nothing: they bear large steps.
const LEARNING_RATE: f64 = 1e-2;

async fn connect(node: &Node) -> ServiceClient {
    ServiceClient::connect(&node.base_url(), "tml-learning").await.expect("a session")
}

async fn fresh_run(service: &ServiceClient, model: &str) -> TrainingClient {
    let lora = LoraOptions { rank: 8, seed: Some(17), train_unembed: false, ..LoraOptions::default() };
    service.create_lora_training_client(model, lora).await.expect("a run")
}

#[tokio::test]
async fn a_letter_that_is_rewarded_is_written_more_often() {
    let node = fixture_node("qwen3").await;
    let service = connect(&node).await;
    let processor = service.processor(PROCESSOR, node.model());
    let prompts = rl_letter::prompts(&processor, &["the sea", "a cat"]).await.expect("prompts");
    let training = fresh_run(&service, node.model()).await;
    let settings = rl_letter::Settings { group: 16, max_tokens: 12, learning_rate: LEARNING_RATE, seed: 5 };
    let mut steps = Vec::new();
    for number in 1..=8 {
        let reward = |text: &str| rl_letter::count_letter(text, 'e');
        let step = rl_letter::step(&training, &processor, &prompts, reward, &settings, number).await.expect("a step");
        assert_eq!(step.number, number);
        assert!(step.best >= step.reward && step.logprob <= 0.0, "{step:?}");
        assert!(step.largest_gap < 1e-4, "sampler and trainer differ in fp32: {step:?}");
        assert!(step.sampler_gap <= step.largest_gap, "{step:?}");
        steps.push(step);
    }
    let (first, last) = (&steps[0], &steps[7]);
    assert!(last.reward > 3.0 && last.reward > 3.0 * first.reward, "the reward did not rise: {steps:#?}");
}

#[tokio::test]
async fn a_preference_is_learned_and_holds_for_pairs_never_seen() {
    let node = fixture_node("llama3").await;
    let service = connect(&node).await;
    let processor = service.processor(PROCESSOR, node.model());
    let base = service.create_sampling_client(node.model()).await.expect("the base");
    let preferences: Vec<Preference> = ["honey", "rain", "bread", "wool", "light", "grass"]
        .map(|word| Preference {
            question: format!("What is {word}?"),
            chosen: format!("Yes, {word}!"),
            rejected: format!("Well, perhaps {word}."),
        })
        .into();
    let pairs = dpo::pairs(&processor, &base, &preferences).await.expect("pairs");
    let (learned, held_out): (Vec<&Pair>, Vec<&Pair>) = (pairs[..4].iter().collect(), pairs[4..].iter().collect());
    let training = fresh_run(&service, node.model()).await;

    // A fresh adapter is the base model, whose logprobs came from the sampler: every margin is nothing.
    let before = dpo::evaluate(&training, &held_out, 0.1).await.expect("measured");
    assert!(before.margin.abs() < 1e-3 && (before.loss - 2_f64.ln()).abs() < 1e-3, "{before:?}");

    let mut steps = Vec::new();
    for number in 1..=8 {
        steps.push(dpo::step(&training, &learned, 0.1, LEARNING_RATE, number).await.expect("a step"));
    }
    let (first, last) = (&steps[0], &steps[7]);
    assert!(first.margin.abs() < 1e-3, "{first:?}");
    assert!(last.margin > 0.5 && last.loss < 0.5 && last.accuracy > 0.9, "the margin did not rise: {steps:#?}");
    let after = dpo::evaluate(&training, &held_out, 0.1).await.expect("measured");
    assert!(after.margin > 0.5 && after.accuracy > 0.9, "it does not hold for pairs never seen: {after:?}");
    // The margin is what the two answers have moved apart.
    assert!((0.1 * (after.chosen - after.rejected) - after.margin).abs() < 1e-9, "{after:?}");
}
