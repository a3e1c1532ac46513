//! What the tests store.

use std::collections::BTreeMap;

use jiff::Timestamp;
use twinkle_core::Result;
use twinkle_core::call::{LoraSpec, Position, RunOutcome, RunRecord, SessionRecord};
use twinkle_core::ids::{RequestId, RunId, SessionId, TenantId};
use twinkle_core::state::{NewOperation, NewRun, StateStore};

use crate::lab::Lab;

pub(crate) fn alice() -> TenantId {
    TenantId::new("alice")
}

pub(crate) fn mallory() -> TenantId {
    TenantId::new("mallory")
}

pub(crate) fn lora() -> LoraSpec {
    LoraSpec { rank: 8, alpha: 0.1 + 0.2, seed: u64::MAX, train_mlp: false, ..LoraSpec::default() }
}

pub(crate) fn session(id: &str) -> SessionRecord {
    SessionRecord {
        id: SessionId::new(id),
        tenant: alice(),
        tags: vec!["a".to_owned(), "ü".to_owned()],
        user_metadata: BTreeMap::from([("k".to_owned(), "v".to_owned())]),
        sdk_version: Some("0.38.0".to_owned()),
        finished: false,
        created_at: Timestamp::now(),
        project_id: None,
        display_name: None,
        client_end: None,
    }
}

pub(crate) fn run_id() -> RunId {
    RunId::new("s:train:0")
}

pub(crate) fn operation(position: Position) -> NewOperation {
    NewOperation {
        request: RequestId::journaled(),
        tenant: alice(),
        run: run_id(),
        position,
        name: "optim_step",
        payload: vec![1, 2, 3],
        fingerprint: [7; 32],
    }
}

pub(crate) fn numbered(number: u64) -> Position {
    Position { after: number, arrival: 0 }
}

pub(crate) fn new_run() -> NewRun {
    let record = RunRecord {
        id: run_id(),
        tenant: alice(),
        session: SessionId::new("s"),
        base_model: "tiny".to_owned(),
        lora: lora(),
        user_metadata: BTreeMap::new(),
        closed: false,
        created_at: Timestamp::now(),
        last_used_at: Timestamp::now(),
    };
    NewRun { record, operation: NewOperation { name: "create_model", ..operation(Position::default()) } }
}

pub(crate) async fn with_run(lab: &Lab) -> StateStore {
    let store = lab.store().await;
    store.create_session(&session("s")).await.unwrap();
    store.insert_run(new_run()).await.unwrap();
    store
}

#[expect(clippy::unnecessary_wraps, reason = "it is compared with results")]
pub(crate) fn stepped() -> Result<RunOutcome> {
    Ok(RunOutcome::OptimStep { metrics: BTreeMap::from([("grad_norm".to_owned(), 0.1 + 0.2)]) })
}
