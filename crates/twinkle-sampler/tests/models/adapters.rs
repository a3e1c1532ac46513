use std::collections::BTreeMap;
use std::fs;
use std::sync::Arc;

use tch::{Device, Kind, Tensor};
use twinkle_core::ErrorCode;
use twinkle_core::call::{Position, SampleRequest, SamplingSource};
use twinkle_core::checkpoint::CheckpointMeta;
use twinkle_core::ids::{CheckpointKind, CheckpointPath, RunId, SamplingSessionId, TenantId};
use twinkle_nn::{Adapter, AdapterLayout, Publication, peft};

use crate::house::{House, fixture, greedy, prompt, request};

/// Puts an adapter of the fixtures where a run would have saved it; an existing one of that name is replaced.
pub(crate) fn save_fixture_adapter(house: &House, adapter: &str, name: &str) -> CheckpointPath {
    let path = CheckpointPath::new(RunId::new("session:train:0"), CheckpointKind::SamplerWeights, name).unwrap();
    let source = fixture(&house.variant).join(adapter);
    let (lora, _) = peft::read(&source, house.base.config()).unwrap();
    let draft = house.checkpoints.draft(&TenantId::new("tenant"), &path).unwrap();
    for file in ["adapter_config.json", "adapter_model.safetensors"] {
        fs::copy(source.join(file), draft.directory().join(file)).unwrap();
    }
    let meta = CheckpointMeta {
        base_model: format!("test/{}", house.variant),
        lora,
        user_metadata: BTreeMap::new(),
        created_at: "2026-01-01T00:00:00Z".parse().unwrap(),
        position: Position::default(),
        optimizer_steps: Some(30),
    };
    draft.commit(&meta, true).unwrap();
    path
}

/// The publication by the operation of this number.
fn publication(number: u64) -> Publication {
    Publication { position: Position { after: number, arrival: 0 }, optimizer_steps: 10 * number }
}

/// Hands an adapter of the fixtures over as the trainer does, by pointer, and returns what it saves afterwards.
fn publish(house: &House, adapter: &str, session: &SamplingSessionId, number: u64) -> (Arc<AdapterLayout>, Tensor) {
    let (spec, parameters) = peft::read(&fixture(&house.variant).join(adapter), house.base.config()).unwrap();
    let layout = Arc::new(AdapterLayout::new(house.base.config(), &spec).unwrap());
    let adapter = Adapter::from_parameters(&layout, &parameters, Kind::Float, Device::Cpu);
    house.published.put(session.clone(), Arc::new(adapter), publication(number));
    (layout, parameters)
}

#[tokio::test]
async fn a_live_adapter_that_was_saved_outlives_the_server_and_samples_the_same_tokens() {
    let house = House::open("qwen3").await;
    let [saved, unsaved] = ["session:sample:1", "session:sample:2"].map(SamplingSessionId::new);
    let question = |session: &SamplingSessionId| {
        let source = SamplingSource::Live(session.clone());
        SampleRequest { source, num_samples: 2, ..request(&prompt(70, 3)) }
    };
    let (layout, parameters) = publish(&house, "attn_mlp_unembed", &saved, 4);
    house.published.save(&saved, &layout, &parameters, "test/qwen3", publication(4)).unwrap();
    let _ = publish(&house, "attn_mlp", &unsaved, 5);
    let before = house.ask(question(&saved)).await.unwrap();
    let weights = &before.sequences[0].weights;
    assert_eq!((weights.operation, weights.optimizer_steps), (Some(4), Some(40)));
    assert!(house.ask(question(&unsaved)).await.is_ok());
    let hash = *house.published.get(&saved).unwrap().adapter.content_hash();

    let house = house.restarted().await;
    assert!(house.published.get(&saved).is_none(), "nothing is in memory yet");
    assert_eq!(house.ask(question(&saved)).await.unwrap(), before);
    assert_eq!(*house.published.get(&saved).unwrap().adapter.content_hash(), hash);
    assert_eq!(house.published.saved().unwrap(), [saved]);
    assert_eq!(house.ask(question(&unsaved)).await.unwrap_err().code, ErrorCode::NotFound);
}

#[tokio::test]
async fn a_live_adapter_samples_like_the_saved_one_and_is_pinned_when_a_request_begins() {
    let house = House::open("qwen3").await;
    let session = SamplingSessionId::new("session:sample:1");
    let ask = |source| house.ask(SampleRequest { source, ..greedy(&prompt(70, 3)) });
    let first = ask(SamplingSource::Checkpoint(save_fixture_adapter(&house, "attn_mlp", "a"))).await.unwrap();
    let second = ask(SamplingSource::Checkpoint(save_fixture_adapter(&house, "attn_mlp_unembed", "b"))).await.unwrap();
    assert_ne!(first, second);
    assert_eq!(first.sequences[0].weights.optimizer_steps, Some(30), "as its manifest says");

    let _ = publish(&house, "attn_mlp", &session, 1);
    let mut running = ask(SamplingSource::Live(session.clone()));
    // Polled once, the request has its weights.
    assert!(futures::poll!(&mut running).is_pending());
    let _ = publish(&house, "attn_mlp_unembed", &session, 2);
    let newer = ask(SamplingSource::Live(session.clone()));
    let [old, new] = [running.await.unwrap(), newer.await.unwrap()].map(|mut outcome| outcome.sequences.remove(0));
    for (live, saved, number) in [(old, first, 1), (new, second, 2)] {
        let saved = &saved.sequences[0];
        assert_eq!((&live.tokens, &live.logprobs), (&saved.tokens, &saved.logprobs));
        // The same adapter in both, and each token's tag says which publication it is.
        assert_eq!(live.weights.adapter, saved.weights.adapter);
        assert_eq!((live.weights.operation, live.weights.optimizer_steps), (Some(number), Some(10 * number)));
    }

    house.published.remove(&session).unwrap();
    let error = ask(SamplingSource::Live(session)).await.unwrap_err();
    assert_eq!(error.code, ErrorCode::NotFound);
}

#[tokio::test]
async fn a_replaced_checkpoint_is_read_again_and_a_deleted_one_is_gone() {
    let house = House::open("llama3").await;
    let path = save_fixture_adapter(&house, "attn_mlp", "latest");
    let ask = || {
        let source = SamplingSource::Checkpoint(path.clone());
        house.ask(SampleRequest { source, ..greedy(&prompt(9, 1)) })
    };
    let first = ask().await.unwrap();
    assert_eq!(ask().await.unwrap(), first);
    save_fixture_adapter(&house, "attn_mlp_unembed", "latest");
    assert_ne!(ask().await.unwrap(), first);
    house.checkpoints.delete(&TenantId::new("tenant"), &path).unwrap();
    assert_eq!(ask().await.unwrap_err().code, ErrorCode::NotFound);
}

#[tokio::test]
async fn foreign_damaged_and_unfit_adapters_are_refused() {
    let house = House::open_with("qwen2", "enable_lora: true, max_lora_rank: 5").await;
    let ask = |tenant, path: &CheckpointPath| {
        let source = SamplingSource::Checkpoint(path.clone());
        house.ask_as(tenant, SampleRequest { source, ..greedy(&prompt(9, 1)) })
    };
    let path = save_fixture_adapter(&house, "attn_mlp", "mine");
    assert!(ask("tenant", &path).await.is_ok());
    assert_eq!(ask("stranger", &path).await.unwrap_err().code, ErrorCode::NotFound);

    let large = save_fixture_adapter(&house, "attn_mlp_unembed", "large");
    let error = ask("tenant", &large).await.unwrap_err();
    assert!(error.message.contains("rank 6"), "{error}");

    let damaged = save_fixture_adapter(&house, "attn_mlp", "damaged");
    let opened = house.checkpoints.open(&TenantId::new("tenant"), &damaged).unwrap();
    let file = opened.directory().join("adapter_model.safetensors");
    assert!(file.starts_with(house.state_folder()));
    let mut bytes = fs::read(&file).unwrap();
    *bytes.last_mut().unwrap() ^= 1;
    fs::write(&file, bytes).unwrap();
    let error = ask("tenant", &damaged).await.unwrap_err();
    assert!(error.message.contains("adapter_model.safetensors"), "{error}");
    assert_eq!(error.code, ErrorCode::InvalidArgument);
}

#[tokio::test]
async fn a_sampler_without_adapters_says_so() {
    let house = House::open_with("qwen2", "").await;
    let path = save_fixture_adapter(&house, "attn_mlp", "mine");
    let request = SampleRequest { source: SamplingSource::Checkpoint(path), ..greedy(&[1, 2]) };
    let error = house.ask(request).await.unwrap_err();
    assert_eq!(error.code, ErrorCode::Unsupported);
    assert_eq!(house.sampler.capabilities().max_lora_rank, 0);
    assert_eq!(house.sampler.capabilities().sampler_type, "vllm");
    assert_eq!(house.sampler.capabilities().engine, "torch");
}
