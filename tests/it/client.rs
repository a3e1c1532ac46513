//! The native Rust client against a real server: what its methods promise.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use futures::TryStreamExt;
use serde_json::{Value, json};
use twinkle_client::{
    AdamParams, CellLayout, ChatDelta, ChatMessage, ChatOptions, Datum, Logprobs, LoraOptions, Loss, Objective,
    SampleExtras, SamplingParams, ServiceClient, Stop, TargetTokens, TensorData, TensorValues, TrainingClient,
};
use twinkle_tests::{Node, SdkVersion, run_script};

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

/// What the comparison trains: three losses, batches of several lengths, settings that change from step to step.
fn plan() -> Value {
    let example = |length: usize, further: Value| {
        let mut inputs = json!({ "target_tokens": &TOKENS[1..length] });
        inputs.as_object_mut().expect("an object").extend(further.as_object().expect("an object").clone());
        json!({ "tokens": &TOKENS[..length - 1], "inputs": inputs })
    };
    let weighted = |length: usize| {
        let weights: Vec<f32> = (1..length).map(|place| place as f32 / 7.0).collect();
        example(length, json!({ "weights": weights }))
    };
    let policy = |length: usize, advantage: f32| {
        let logprobs: Vec<f32> = (1..length).map(|place| -5.5 - place as f32 / 100.0).collect();
        example(length, json!({ "logprobs": logprobs, "advantages": vec![advantage; length - 1] }))
    };
    let adam = |learning_rate: f64, grad_clip_norm: f64| {
        json!({
            "learning_rate": learning_rate, "beta1": 0.9, "beta2": 0.95, "eps": 1e-12, "weight_decay": 0.01,
            "grad_clip_norm": grad_clip_norm,
        })
    };
    let ppo = json!({ "clip_low_threshold": 0.7, "clip_high_threshold": 1.3 });
    json!({ "rank": 4, "seed": 23, "steps": [
        { "data": [weighted(9), weighted(5)], "loss": "cross_entropy", "loss_config": {}, "adam": adam(1e-2, 0.0) },
        { "data": [policy(9, 0.7), policy(6, -0.3)], "loss": "importance_sampling", "loss_config": {}, "adam": adam(3e-3, 0.5) },
        { "data": [policy(7, 1.1)], "loss": "ppo", "loss_config": ppo, "adam": adam(1e-3, 1.0) },
        { "data": [weighted(9)], "loss": "cross_entropy", "loss_config": {}, "adam": adam(1e-4, 0.0) },
    ] })
}

fn planned_datum(example: &Value) -> Datum {
    let number = |value: &Value| value.as_f64().expect("a number");
    let list = |values: &Value| values.as_array().expect("a list").clone();
    let tensor = |name: &str, values: &Value| match name {
        "target_tokens" => TensorData::ints(list(values).iter().map(|value| number(value) as i64).collect()),
        _ => TensorData::floats(list(values).iter().map(|value| number(value) as f32).collect()),
    };
    let inputs = example["inputs"].as_object().expect("inputs");
    Datum {
        tokens: list(&example["tokens"]).iter().map(|value| number(value) as u32).collect(),
        loss_inputs: inputs.iter().map(|(name, values)| (name.clone(), tensor(name, values))).collect(),
    }
}

/// Trains as the plan says, and saves under `name`.
async fn train_as_planned(node: &Node, plan: &Value, name: &str) {
    let service = connect(node).await;
    let lora = LoraOptions { seed: plan["seed"].as_u64(), ..LoraOptions::from(4) };
    let training = service.create_lora_training_client(node.model(), lora).await.expect("a run");
    let (mut losses, mut steps) = (Vec::new(), Vec::new());
    for step in plan["steps"].as_array().expect("steps") {
        let data = step["data"].as_array().expect("data").iter().map(planned_datum).collect();
        let loss = Loss::named(step["loss"].as_str().expect("a name"));
        let settings = step["loss_config"].as_object().expect("settings").iter();
        let loss = settings.fold(loss, |loss, (name, value)| loss.with(name, value.as_f64().expect("a number")));
        losses.push(training.forward_backward(data, loss).await.expect("accepted"));
        let adam: AdamParams = serde_json::from_value(step["adam"].clone()).expect("settings");
        steps.push(training.optim_step(adam).await.expect("accepted"));
    }
    for (loss, step) in losses.into_iter().zip(steps) {
        loss.await.expect("a loss");
        step.await.expect("a step");
    }
    training.save_state(name).await.expect("accepted").await.expect("saved");
}

/// The folder of the checkpoint of this name, somewhere below `folder`.
fn checkpoint_folder(folder: &Path, name: &str) -> Option<PathBuf> {
    let entries = std::fs::read_dir(folder).ok()?.filter_map(|entry| Some(entry.ok()?.path()));
    for path in entries.filter(|path| path.is_dir()) {
        if path.ends_with(Path::new("weights").join(name)) {
            return Some(path);
        }
        if let Some(found) = checkpoint_folder(&path, name) {
            return Some(found);
        }
    }
    None
}

#[tokio::test]
async fn the_same_run_through_the_python_sdk_and_this_client_ends_in_the_same_bits() {
    let node = fixture_node("qwen3").await;
    let plan = plan();
    let file = node.folder().join("plan.json");
    std::fs::write(&file, plan.to_string()).expect("written");
    train_as_planned(&node, &plan, "rust").await;
    let (address, file) = (node.base_url(), file.to_string_lossy().into_owned());
    for (version, name) in [(SdkVersion::V0_38_0, "protobuf"), (SdkVersion::V0_16_1, "json")] {
        let arguments = ["--base-url", &address, "--model", node.model(), "--plan", &file, "--name", name];
        if let Err(failure) = run_script(version, "same_bits.py", &arguments).await {
            panic!("{failure:#}\n--- server log ---\n{}", node.log());
        }
    }
    let read = |name: &str, file: &str| {
        let folder = checkpoint_folder(&node.folder().join("state"), name).expect("a checkpoint");
        std::fs::read(folder.join(file)).expect("a file")
    };
    for part in ["adapter_model.safetensors", "optimizer.safetensors"] {
        let rust = read("rust", part);
        assert!(rust.len() > 1000);
        for name in ["protobuf", "json"] {
            assert!(rust == read(name, part), "`{part}` of the {name} client has other bits");
        }
    }
    // A comparison that could not fail would prove nothing: another seed has other bits.
    let mut other = plan;
    other["seed"] = json!(24);
    train_as_planned(&node, &other, "other").await;
    assert!(read("rust", "adapter_model.safetensors") != read("other", "adapter_model.safetensors"));
}

#[test]
fn a_program_without_an_async_runtime_trains_and_samples_too() {
    use twinkle_client::blocking;

    let runtime = tokio::runtime::Runtime::new().expect("a runtime for the node");
    let node = runtime.block_on(fixture_node("llama3"));
    let service = blocking::ServiceClient::connect(&node.base_url(), "tml-blocking").expect("a session");
    let training = service.create_lora_training_client(node.model(), 4).expect("a run");
    let mut losses = Vec::new();
    for _ in 0..4 {
        let loss = training.forward_backward(vec![datum(&[])], "cross_entropy").expect("accepted");
        let adam = AdamParams { learning_rate: 1e-2, ..AdamParams::default() };
        let step = training.optim_step(adam).expect("accepted");
        losses.push(loss.result().expect("a loss").metrics["loss:sum"]);
        step.result().expect("a step");
    }
    assert!(losses[3] < losses[0], "{losses:?}");
    let sampler = training.save_weights_and_get_sampling_client().expect("published");
    let outcome = sampler.sample(TOKENS.to_vec(), 2, params(3, 1)).expect("accepted").result().expect("samples");
    assert_eq!(outcome.sequences.len(), 2);
    assert_eq!(sampler.get_base_model().expect("a name"), node.model());
    let runs = service.create_rest_client().list_training_runs(10, 0).expect("runs").training_runs;
    assert_eq!(runs[0].training_run_id, training.model_id());
    service.close().expect("closed");
}

#[tokio::test]
async fn an_objective_of_the_clients_own_has_the_gradient_of_the_loss_it_equals() {
    let node = fixture_node("qwen2").await;
    let service = connect(&node).await;
    let mut after = Vec::new();
    for own in [false, true] {
        let training = fresh_run(&service, node.model()).await;
        let pending = if own {
            // Cross-entropy, written as somebody's own objective: the value is the negative sum, every derivative -1.
            let objective = |logprobs: &[Logprobs]| {
                let values = logprobs[0].values.clone();
                let value = -values.iter().map(|value| f64::from(*value)).sum::<f64>();
                Ok(Objective { value, derivatives: vec![vec![-1.0; values.len()]] })
            };
            training.forward_backward_custom(vec![datum(&[])], objective).await.unwrap()
        } else {
            training.forward_backward(vec![datum(&[])], "cross_entropy").await.unwrap()
        };
        training.optim_step(AdamParams { learning_rate: 1e-2, ..AdamParams::default() }).await.unwrap().await.unwrap();
        let loss = pending.await.unwrap().metrics["loss:sum"];
        let logprobs = training.forward(vec![datum(&[])], "cross_entropy").await.unwrap().await.unwrap().logprobs;
        after.push((loss, logprobs));
    }
    assert!((after[0].0 - after[1].0).abs() < 1e-3, "{after:?}");
    assert_eq!(after[0].1, after[1].1, "the step was the same to the last bit");
}

#[tokio::test]
async fn files_of_a_run_are_downloaded_with_progress() {
    let node = fixture_node("qwen3").await;
    let service = connect(&node).await;
    let training = fresh_run(&service, node.model()).await;
    let sampler = training.save_weights_for_sampler("files").await.unwrap().await.unwrap();
    let external = training.save_weights_external("files", Vec::new()).await.unwrap().await.unwrap();
    let rest = service.create_rest_client();
    let (archive, folder) = (node.folder().join("files.tar"), node.folder().join("adapter"));
    let mut last = None;
    let bytes = rest.download_checkpoint_archive(&sampler, &archive, |piece| last = Some(piece)).await.unwrap();
    assert_eq!(std::fs::metadata(&archive).unwrap().len(), bytes);
    assert_eq!(last.map(|piece| piece.bytes), Some(bytes));
    let files = rest.download_external_weights(&external, &folder, |_, _| ()).await.unwrap();
    let weights = files.iter().find(|file| file.ends_with("adapter_model.safetensors")).expect("weights");
    assert!(std::fs::metadata(weights).unwrap().len() > 1000);
    assert!(folder.join("adapter_config.json").is_file());
}

#[tokio::test]
async fn a_conversation_is_answered_whole_and_piece_by_piece_alike() {
    let node = fixture_node("qwen3").await;
    let service = connect(&node).await;
    let training = fresh_run(&service, node.model()).await;
    let path = training.save_weights_for_sampler("chat").await.unwrap().await.unwrap();
    let options = ChatOptions { max_tokens: Some(12), temperature: Some(1.0), seed: Some(3), ..ChatOptions::default() };
    let conversation = [ChatMessage::user("What is rain?")];
    for weights in [node.model(), &path] {
        let chat = service.create_chat_client(weights);
        let whole = chat.complete(&conversation, &options).await.unwrap();
        assert!(
            !whole.content.is_empty() && whole.usage.is_some_and(|usage| usage.completion_tokens == 12),
            "{whole:?}"
        );
        let pieces: Vec<ChatDelta> = chat.stream(&conversation, &options).await.unwrap().try_collect().await.unwrap();
        let text: String = pieces.iter().map(|piece| piece.content.as_str()).collect();
        assert_eq!(text, whole.content, "{weights}");
        assert!(
            pieces.len() > 2 && pieces.iter().any(|piece| piece.finish_reason == whole.finish_reason),
            "{pieces:?}"
        );
    }
    let error = service.create_chat_client("no/such").complete(&conversation, &options).await.unwrap_err();
    assert!(error.is_users_fault() && error.to_string().contains("no/such"), "{error}");
}
