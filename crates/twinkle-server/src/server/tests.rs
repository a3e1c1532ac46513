//! The `server` component over a real store.

use std::collections::BTreeMap;
use std::path::PathBuf;

use jiff::Timestamp;
use tempfile::TempDir;
use twinkle_core::call::{
    Call, CheckpointRecord, LoraSpec, Operation, Reply, SamplingSource, ServeOutcome, ServeRequest, SessionRecord,
};
use twinkle_core::checkpoint::CheckpointStore;
use twinkle_core::component::{BoxComponent, Component};
use twinkle_core::config::{ServerArgs, TrainMode};
use twinkle_core::error::{Error, ErrorCode, Result};
use twinkle_core::ids::{CheckpointKind, CheckpointPath, RunId, SessionId, TenantId};
use twinkle_core::state::StateStore;

use crate::directory::{Directory, ServedModel};
use crate::server_component::{ServerComponent, ServerContext};

const BASE: &str = "tiny/llama";

struct Node {
    server: BoxComponent,
    store: StateStore,
    _folder: TempDir,
}

impl Node {
    async fn ask(&self, tenant: &str, request: ServeRequest) -> Result<ServeOutcome> {
        let call = Call { tenant: TenantId::new(tenant), operation: Operation::Serve(request) };
        match self.server.ask(call).await? {
            Reply::Serve(outcome) => Ok(outcome),
            other => Err(Error::internal(format!("answered {other:?}"))),
        }
    }

    async fn session(&self, tenant: &str) -> SessionRecord {
        let request = ServeRequest::CreateSession {
            id: None,
            tags: vec!["a".to_owned()],
            user_metadata: BTreeMap::from([("k".to_owned(), "v".to_owned())]),
            sdk_version: Some("0.38.0".to_owned()),
            project_id: None,
            display_name: None,
        };
        match self.ask(tenant, request).await.unwrap() {
            ServeOutcome::Session(session) => session,
            other => panic!("answered {other:?}"),
        }
    }
}

/// A node that samples [`BASE`]; the sampler itself is never asked here.
async fn node() -> Node {
    let folder = tempfile::tempdir().unwrap();
    let store = StateStore::open_in_memory().await.unwrap();
    let checkpoints = CheckpointStore::new(folder.path().to_path_buf());
    let context = |directory| ServerContext { store: store.clone(), checkpoints: checkpoints.clone(), directory };
    let stand_in = ServerComponent::build(ServerArgs::default(), context(Directory::default())).await.unwrap().boxed();
    let model = ServedModel {
        name: BASE.to_owned(),
        max_context: 128,
        vocabulary: 256,
        train_mode: TrainMode::Lora,
        max_rank: 32,
        max_loras: 8,
        default_alpha: 32.0,
        tokenizer: PathBuf::new(),
        trainer: None,
        journal: None,
        sampler: Some(stand_in),
    };
    let server = ServerComponent::build(ServerArgs::default(), context(Directory::new(vec![model]))).await.unwrap();
    Node { server: server.boxed(), store, _folder: folder }
}

fn sampling(session: &SessionId, base_model: Option<&str>, source: SamplingSource) -> ServeRequest {
    ServeRequest::CreateSamplingSession {
        session: session.clone(),
        number: 0,
        base_model: base_model.map(str::to_owned),
        source,
    }
}

fn checkpoint(tenant: &str) -> CheckpointRecord {
    CheckpointRecord {
        path: CheckpointPath::new(RunId::new("s:train:0"), CheckpointKind::SamplerWeights, "step-1").unwrap(),
        tenant: TenantId::new(tenant),
        base_model: BASE.to_owned(),
        lora: LoraSpec { rank: 4, train_unembed: false, ..LoraSpec::default() },
        size_bytes: 10,
        user_metadata: BTreeMap::new(),
        created_at: Timestamp::now(),
        expires_at: None,
        public: false,
    }
}

#[tokio::test]
async fn a_session_is_described_to_its_owner_and_to_nobody_else() {
    let node = node().await;
    let session = node.session("alice").await;
    let described = node.ask("alice", ServeRequest::DescribeSession(session.id.clone())).await.unwrap();
    assert_eq!(described, ServeOutcome::Session(session.clone()));

    let foreign = node.ask("bob", ServeRequest::DescribeSession(session.id.clone())).await.unwrap_err();
    let absent = node.ask("bob", ServeRequest::DescribeSession(SessionId::new("nope"))).await.unwrap_err();
    assert_eq!(foreign.code, ErrorCode::NotFound);
    assert_eq!(foreign.message.replace(session.id.as_str(), "nope"), absent.message);
}

#[tokio::test]
async fn a_finished_session_takes_no_heartbeat_and_no_sampling_session() {
    let node = node().await;
    let session = node.session("alice").await.id;
    node.ask("alice", ServeRequest::Heartbeat(session.clone())).await.unwrap();
    node.ask("alice", ServeRequest::FinishSession { session: session.clone(), end: None }).await.unwrap();
    node.ask("alice", ServeRequest::FinishSession { session: session.clone(), end: None }).await.unwrap();

    for request in [
        ServeRequest::Heartbeat(session.clone()),
        ServeRequest::DescribeSession(session.clone()),
        sampling(&session, Some(BASE), SamplingSource::Base),
    ] {
        assert_eq!(node.ask("alice", request.clone()).await.unwrap_err().code, ErrorCode::Gone, "{request:?}");
    }
}

#[tokio::test]
async fn the_same_number_is_the_same_sampling_session() {
    let node = node().await;
    let session = node.session("alice").await.id;
    let first = node.ask("alice", sampling(&session, Some(BASE), SamplingSource::Base)).await.unwrap();
    let again = node.ask("alice", sampling(&session, Some(BASE), SamplingSource::Base)).await.unwrap();
    assert_eq!(first, again);
    let ServeOutcome::SamplingSession(record) = first else { panic!("answered {first:?}") };
    assert_eq!(record.id.as_str(), format!("{session}:sample:0"));
    let described = node.ask("alice", ServeRequest::DescribeSamplingSession(record.id.clone())).await.unwrap();
    assert_eq!(described, ServeOutcome::SamplingSession(record));
}

#[tokio::test]
async fn a_sampling_session_takes_its_base_model_from_the_checkpoint_and_refuses_another() {
    let node = node().await;
    let session = node.session("alice").await.id;
    let checkpoint = checkpoint("alice");
    node.store.insert_checkpoint(&checkpoint).await.unwrap();
    let source = SamplingSource::Checkpoint(checkpoint.path.clone());

    let contradicted = node.ask("alice", sampling(&session, Some("other"), source.clone())).await.unwrap_err();
    assert_eq!(contradicted.code, ErrorCode::InvalidArgument);
    let created = node.ask("alice", sampling(&session, None, source)).await.unwrap();
    let ServeOutcome::SamplingSession(record) = created else { panic!("answered {created:?}") };
    assert_eq!(record.base_model, BASE);
}

#[tokio::test]
async fn unknown_models_and_foreign_checkpoints_are_refused() {
    let node = node().await;
    let session = node.session("bob").await.id;
    let unknown = node.ask("bob", sampling(&session, Some("tiny/lama"), SamplingSource::Base)).await.unwrap_err();
    assert_eq!(unknown.code, ErrorCode::Unsupported);
    assert!(unknown.hint.unwrap().starts_with("did you mean `tiny/llama`?"));

    let checkpoint = checkpoint("alice");
    node.store.insert_checkpoint(&checkpoint).await.unwrap();
    let source = SamplingSource::Checkpoint(checkpoint.path.clone());
    let foreign = node.ask("bob", sampling(&session, None, source)).await.unwrap_err();
    assert_eq!(foreign, node.ask("bob", ServeRequest::DescribeCheckpoint(checkpoint.path)).await.unwrap_err());
    assert_eq!(foreign.code, ErrorCode::NotFound);
}

#[tokio::test]
async fn a_deleted_checkpoint_is_gone_from_the_list() {
    let node = node().await;
    let checkpoint = checkpoint("alice");
    node.store.insert_checkpoint(&checkpoint).await.unwrap();
    let listed = node.ask("alice", ServeRequest::ListCheckpoints { run: None, limit: 10, offset: 0 }).await.unwrap();
    assert_eq!(listed, ServeOutcome::Checkpoints { checkpoints: vec![checkpoint.clone()], total: 1 });

    let foreign = node.ask("bob", ServeRequest::DeleteCheckpoint(checkpoint.path.clone())).await.unwrap_err();
    assert_eq!(foreign.code, ErrorCode::NotFound);
    node.ask("alice", ServeRequest::DeleteCheckpoint(checkpoint.path.clone())).await.unwrap();
    let listed = node.ask("alice", ServeRequest::ListCheckpoints { run: None, limit: 10, offset: 0 }).await.unwrap();
    assert_eq!(listed, ServeOutcome::Checkpoints { checkpoints: Vec::new(), total: 0 });
    let again = node.ask("alice", ServeRequest::DeleteCheckpoint(checkpoint.path)).await.unwrap_err();
    assert_eq!(again.code, ErrorCode::NotFound);
}

#[tokio::test]
async fn a_drained_server_takes_no_more_requests() {
    let node = node().await;
    node.server.drain(std::time::Duration::ZERO).await;
    let refused =
        node.ask("alice", ServeRequest::ListCheckpoints { run: None, limit: 10, offset: 0 }).await.unwrap_err();
    assert_eq!(refused.code, ErrorCode::Draining);
}
