//! What outlives a store's handles, and who may open it.

use twinkle_core::ErrorCode;
use twinkle_core::ids::SessionId;
use twinkle_core::state::{OperationState, StateStore};

use crate::fixtures::{alice, new_run, numbered, operation, run_id, session, stepped, with_run};
use crate::lab::Lab;

pub(crate) async fn everything_is_there_again_after_reopening(lab: &Lab) {
    let location = lab.location();
    let store = StateStore::open(location.clone()).await.unwrap();
    let session = session("s");
    store.create_session(&session).await.unwrap();
    let run = new_run();
    store.insert_run(run.clone()).await.unwrap();
    store.finish(&run.operation.request, &stepped()).await.unwrap();
    store.append(operation(numbered(1))).await.unwrap();
    store.close().await;
    assert_eq!(store.create_session(&session).await.unwrap_err().code, ErrorCode::Draining);
    if !lab.is_lasting() {
        return;
    }
    for _ in 0..2 {
        let store = StateStore::open(location.clone()).await.unwrap();
        assert_eq!(store.session(&alice(), &session.id).await.unwrap(), session);
        assert_eq!(store.run(&alice(), &run_id()).await.unwrap().created_at, run.record.created_at);
        let state = store.operation_result(&alice(), &run.operation.request).await.unwrap();
        assert_eq!(state, Some(OperationState::Finished(stepped())));
        assert_eq!(store.run_order(&run_id()).await.unwrap().pending, [1]);
        store.close().await;
    }
}

pub(crate) async fn two_servers_cannot_share_a_store(lab: &Lab) {
    if !lab.is_lasting() {
        return;
    }
    let location = lab.location();
    let first = StateStore::open(location.clone()).await.unwrap();
    let refused = StateStore::open(location.clone()).await.unwrap_err();
    assert_eq!(refused.code, ErrorCode::Conflict);
    assert!(refused.message.contains("in use by another server"), "{refused}");
    first.create_session(&session("s")).await.unwrap();
    first.close().await;
    let second = StateStore::open(location).await.unwrap();
    second.session(&alice(), &SessionId::new("s")).await.unwrap();
}

pub(crate) async fn clearing_forgets_every_record_of_this_store_only(lab: &Lab) {
    let (store, other) = (with_run(lab).await, with_run(lab).await);
    // A session, a run and its creation.
    assert_eq!(store.clear().await.unwrap(), 3);
    assert_eq!(store.clear().await.unwrap(), 0);
    assert!(store.run(&alice(), &run_id()).await.is_err());
    assert_eq!(other.run(&alice(), &run_id()).await.unwrap().id, run_id());
    store.create_session(&session("s")).await.unwrap();
}
