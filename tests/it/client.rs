//! The native Rust client against a real server: what its methods promise.

use std::collections::BTreeMap;

use twinkle_client::{
    AdamParams, CellLayout, Datum, LoraOptions, Loss, SampleExtras, SamplingParams, ServiceClient, Stop, TargetTokens,
    TensorData, TensorValues, TrainingClient,
};
use twinkle_tests::Node;

use crate::fixture_node;

const TOKENS: [u32; 9] = [5, 9, 31, 7, 120, 44, 3, 250, 18];

/// Further inputs of a loss.
type Inputs<'a> = &'a [(&'a str, TensorData)];

async fn connect(node: &Node) -> ServiceClient {
    ServiceClient::connect(&node.base_url(), "tml-client").await.expect("a session")
}

async fn fresh_run(service: &ServiceClient, model: &str) -> TrainingClient {
    let lora = LoraOptions { rank: 4, seed: Some(3), ..LoraOptions::default() };
    service.create_lora_training_client(model, lora).await.expect("a run")
}

/// Each of `TOKENS` predicts the next, with further inputs.
fn datum(inputs: Inputs<'_>) -> Datum {
    let targets = TOKENS[1..].iter().map(|token| i64::from(*token)).collect();
    let mut loss_inputs = BTreeMap::from([("target_tokens".to_owned(), TensorData::ints(targets))]);
    loss_inputs.extend(inputs.iter().map(|(name, tensor)| ((*name).to_owned(), tensor.clone())));
    Datum { tokens: TOKENS[..8].to_vec(), loss_inputs }
}

fn params(max_tokens: u32, seed: u64) -> SamplingParams {
    SamplingParams { temperature: 1.0, seed: Some(seed), stop: Stop::Never, ..SamplingParams::greedy(max_tokens) }
}

#[tokio::test]
async fn every_loss_trains_and_returns_the_logprobs_it_used() {
    let node = fixture_node("qwen3").await;
    let service = connect(&node).await;
    let training = fresh_run(&service, node.model()).await;
    let plain = training.forward(vec![datum(&[])], "cross_entropy").await.unwrap().await.unwrap();
    let logprobs = plain.logprobs[0].values.clone();
    assert_eq!(logprobs.len(), 8);

    let policy = [("logprobs", TensorData::floats(logprobs.clone())), ("advantages", TensorData::floats(vec![0.5; 8]))];
    let sequence = [policy.as_slice(), &[("sequence_ratio_mask", TensorData::floats(vec![1.0; 8]))]].concat();
    let losses: [(Loss, Inputs<'_>, f64); 5] = [
        (Loss::importance_sampling(), &policy, -4.0),
        (Loss::ppo().with("clip_low_threshold", 0.9), &policy, -4.0),
        (Loss::cispo(), &policy, -0.5 * logprobs.iter().map(|one| f64::from(*one)).sum::<f64>()),
        (Loss::dro(0.05), &policy, -0.5 * logprobs.iter().map(|one| f64::from(*one)).sum::<f64>()),
        (Loss::gspo(), &sequence, -4.0),
    ];
    for (loss, inputs, expected) in losses {
        let outcome = training.forward_backward(vec![datum(inputs)], loss.clone()).await.unwrap().await.unwrap();
        assert_eq!(outcome.logprobs[0].values, logprobs, "{loss:?}");
        let value = outcome.metrics["loss:sum"];
        assert!((value - expected).abs() < 1e-3, "{loss:?}: {value}, not {expected}");
    }
    let adam = AdamParams { grad_clip_norm: 1.0, ..AdamParams::default() };
    let metrics = training.optim_step(adam).await.unwrap().await.unwrap();
    assert!(metrics["grad_norm"] > 0.0, "{metrics:?}");
}

#[tokio::test]
async fn several_targets_of_a_position_are_targets_of_their_own() {
    let node = fixture_node("llama3").await;
    let service = connect(&node).await;
    let training = fresh_run(&service, node.model()).await;
    let two = |values| TensorData { values, shape: vec![8, 2] };
    let targets = TOKENS[1..].iter().flat_map(|token| [i64::from(*token), 11]).collect();
    let weights = (0..8).flat_map(|_| [1.0, 0.0]).collect();
    let teacher = datum(&[
        ("target_tokens", two(TensorValues::Int64(targets))),
        ("weights", two(TensorValues::Float32(weights))),
    ]);
    let plain = training.forward(vec![datum(&[])], "cross_entropy").await.unwrap().await.unwrap();
    let outcome = training.forward(vec![teacher], "cross_entropy").await.unwrap().await.unwrap();
    let logprobs = &outcome.logprobs[0];
    assert_eq!((logprobs.candidates, logprobs.values.len()), (Some(2), 16));
    let first: Vec<f32> = logprobs.values.iter().step_by(2).copied().collect();
    assert_eq!(first, plain.logprobs[0].values);
    assert!((outcome.metrics["loss:sum"] - plain.metrics["loss:sum"]).abs() < 1e-4, "{outcome:?}");
}

#[tokio::test]
async fn a_prompt_is_scored_by_its_own_by_likely_and_by_given_tokens() {
    let node = fixture_node("qwen2").await;
    let service = connect(&node).await;
    let sampler = service.create_sampling_client(node.model()).await.unwrap();
    let prompt = TOKENS.to_vec();
    let layout = CellLayout { rows: 8, columns: 2, sparse: None };
    // The prompt's own next token, and one cell that is skipped.
    let cells = TOKENS[1..].iter().flat_map(|token| [Some(*token), None]).collect();
    let extras = SampleExtras {
        topk_prompt_logprobs: 3,
        topk_sample_logprobs: 2,
        target_prompt_logprobs: Some(TargetTokens { layout, cells }),
        prompt_alt_tokens_k: 4,
        ..SampleExtras::default()
    };
    let pending = sampler.sample_and_score(prompt.clone(), 1, params(5, 1), true, extras).await.unwrap();
    let outcome = pending.await.unwrap();
    let own = outcome.prompt_logprobs.expect("prompt logprobs");
    assert_eq!(own, sampler.compute_logprobs(prompt.clone()).await.unwrap().await.unwrap());
    assert!(outcome.topk_prompt_logprobs.is_some() && outcome.prompt_alt_tokens.is_some());
    assert!(outcome.sequences[0].topk_logprobs.is_some());
    let targets = outcome.target_prompt_logprobs.expect("targets");
    let scored: Vec<Option<f32>> = targets.logprobs.iter().step_by(2).copied().map(Some).collect();
    assert_eq!(scored, own[1..]);

    let last = SampleExtras { prompt_logprobs_last_n: Some(3), ..SampleExtras::default() };
    let outcome = sampler.sample_and_score(prompt, 1, params(1, 1), true, last).await.unwrap().await.unwrap();
    let few = outcome.prompt_logprobs.expect("prompt logprobs");
    assert!(few[..6].iter().all(Option::is_none), "{few:?}");
    assert_eq!(few[6..], own[6..]);
}

#[tokio::test]
async fn a_sample_that_is_given_up_ends_and_others_go_on() {
    let node = fixture_node("llama3").await;
    let service = connect(&node).await;
    let sampler = service.create_sampling_client(node.model()).await.unwrap();
    let long = sampler.sample(TOKENS.to_vec(), 64, params(500, 1)).await.unwrap();
    sampler.cancel(&long).await.unwrap();
    let error = long.await.expect_err("it was given up");
    assert!(error.is_users_fault(), "{error}");
    let short = sampler.sample(TOKENS.to_vec(), 1, params(2, 1)).await.unwrap().await.unwrap();
    assert_eq!(short.sequences[0].tokens.len(), 2);
}

#[tokio::test]
async fn runs_and_checkpoints_are_listed_kept_continued_and_deleted() {
    let node = fixture_node("qwen3").await;
    let service = connect(&node).await;
    let training = fresh_run(&service, node.model()).await;
    training.forward_backward(vec![datum(&[])], "cross_entropy").await.unwrap().await.unwrap();
    training.optim_step(AdamParams { learning_rate: 1e-2, ..AdamParams::default() }).await.unwrap().await.unwrap();
    let path = training.save_state("kept").await.unwrap().await.unwrap();
    let sampled = training.save_weights_for_sampler("kept").await.unwrap().await.unwrap();

    let rest = service.create_rest_client();
    let runs = rest.list_training_runs(10, 0).await.unwrap().training_runs;
    assert_eq!(runs.len(), 1);
    assert_eq!(runs[0], rest.get_training_run(training.model_id()).await.unwrap());
    let info = rest.get_weights_info_by_tinker_path(&path).await.unwrap();
    assert_eq!((info.base_model.as_str(), info.lora_rank), (node.model(), Some(4)));
    rest.set_checkpoint_ttl_from_tinker_path(&path, Some(7200)).await.unwrap();
    rest.publish_checkpoint_from_tinker_path(&sampled).await.unwrap();
    let listed = rest.list_checkpoints(training.model_id()).await.unwrap().checkpoints;
    let of = |path: &str| listed.iter().find(|one| one.tinker_path == path).expect("listed").clone();
    assert!(of(&path).expires_at.is_some() && of(&sampled).public, "{listed:?}");
    rest.unpublish_checkpoint_from_tinker_path(&sampled).await.unwrap();
    assert!(rest.list_user_checkpoints(10, 0).await.unwrap().checkpoints.iter().all(|one| !one.public));

    // Continued with the optimizer, the next step is that of the run itself; without it, another.
    let mut after = Vec::new();
    let with = service.create_training_client_from_state_with_optimizer(&path).await.unwrap();
    let without = service.create_training_client_from_state(&path).await.unwrap();
    for run in [&training, &with, &without] {
        run.forward_backward(vec![datum(&[])], "cross_entropy").await.unwrap().await.unwrap();
        run.optim_step(AdamParams { learning_rate: 1e-2, ..AdamParams::default() }).await.unwrap().await.unwrap();
        after.push(run.forward(vec![datum(&[])], "cross_entropy").await.unwrap().await.unwrap().logprobs);
    }
    assert_eq!(after[0], after[1]);
    assert_ne!(after[0], after[2]);

    rest.delete_checkpoint_from_tinker_path(&path).await.unwrap();
    let error = rest.get_weights_info_by_tinker_path(&path).await.expect_err("it is gone");
    assert!(error.is_users_fault(), "{error}");
}
