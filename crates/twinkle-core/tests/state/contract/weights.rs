//! Who may read a checkpoint, how long it stays, its copies; and the lists of sessions.

use std::collections::BTreeMap;

use jiff::{SignedDuration, Timestamp};
use twinkle_core::ErrorCode;
use twinkle_core::call::{CheckpointRecord, ClientEnd, RunRecord, SessionPlace, SessionRecord};
use twinkle_core::ids::{CheckpointKind, CheckpointPath, RunId, SessionId};
use twinkle_core::state::NewCopy;

use crate::fixtures::{alice, lora, mallory, new_run, run_id, session, with_run};
use crate::lab::Lab;

fn checkpoint(run: RunId, name: &str) -> CheckpointRecord {
    CheckpointRecord {
        path: CheckpointPath::new(run, CheckpointKind::ExternalWeights, name).unwrap(),
        tenant: alice(),
        base_model: "tiny".to_owned(),
        lora: lora(),
        size_bytes: 5,
        user_metadata: BTreeMap::new(),
        created_at: Timestamp::UNIX_EPOCH,
        expires_at: None,
        public: false,
    }
}

pub(crate) async fn a_public_checkpoint_is_read_by_all_and_changed_by_its_owner(lab: &Lab) {
    let store = lab.store().await;
    let record = checkpoint(run_id(), "kept");
    let path = &record.path;
    store.insert_checkpoint(&record).await.unwrap();
    let absent = store.readable_checkpoint(&mallory(), path).await.unwrap_err();
    assert_eq!(absent.code, ErrorCode::NotFound);
    assert_eq!(store.publish_checkpoint(&mallory(), path, true).await.unwrap_err(), absent);
    store.publish_checkpoint(&alice(), path, true).await.unwrap();
    store.publish_checkpoint(&alice(), path, true).await.unwrap();
    let shared = CheckpointRecord { public: true, ..record.clone() };
    assert_eq!(store.readable_checkpoint(&mallory(), path).await.unwrap(), shared);
    assert_eq!(store.checkpoint(&mallory(), path).await.unwrap_err(), absent);
    assert_eq!(store.list_checkpoints(&mallory(), None, 10, 0).await.unwrap(), (vec![], 0));
    for refused in [
        store.publish_checkpoint(&mallory(), path, false).await,
        store.keep_checkpoint_until(&mallory(), path, None).await,
        store.delete_checkpoint(&mallory(), path).await,
    ] {
        assert_eq!(refused.unwrap_err(), absent);
    }
    // Another one of that name is its owner's alone again.
    store.insert_checkpoint(&record).await.unwrap();
    assert_eq!(store.readable_checkpoint(&mallory(), path).await.unwrap_err(), absent);
    assert_eq!(store.readable_checkpoint(&alice(), path).await.unwrap(), record);
}

pub(crate) async fn a_lifetime_can_be_set_and_taken_away_until_it_is_over(lab: &Lab) {
    let store = lab.store().await;
    let record = checkpoint(run_id(), "kept");
    store.insert_checkpoint(&record).await.unwrap();
    let later = Timestamp::now() + SignedDuration::from_hours(1);
    store.keep_checkpoint_until(&alice(), &record.path, Some(later)).await.unwrap();
    assert_eq!(store.checkpoint(&alice(), &record.path).await.unwrap().expires_at, Some(later));
    assert_eq!(store.expired_checkpoints(later, 10).await.unwrap().len(), 1);
    store.keep_checkpoint_until(&alice(), &record.path, None).await.unwrap();
    assert_eq!(store.checkpoint(&alice(), &record.path).await.unwrap(), record);
    store.keep_checkpoint_until(&alice(), &record.path, Some(Timestamp::UNIX_EPOCH)).await.unwrap();
    let over = store.keep_checkpoint_until(&alice(), &record.path, None).await.unwrap_err();
    assert_eq!(over.code, ErrorCode::NotFound);
    assert_eq!(store.readable_checkpoint(&alice(), &record.path).await.unwrap_err(), over);
}

pub(crate) async fn a_copy_comes_with_its_run_and_session_or_not_at_all(lab: &Lab) {
    let store = with_run(lab).await;
    let copy = |session: &str, with_session: bool| {
        let owner = SessionId::new(session);
        let id = RunId::of_session(&owner, 0);
        let run = RunRecord { id: id.clone(), session: owner, closed: true, ..new_run().record };
        let made =
            SessionRecord { finished: true, project_id: Some("kept".to_owned()), ..crate::fixtures::session(session) };
        NewCopy { session: with_session.then_some(made), run, checkpoint: checkpoint(id, "a") }
    };
    // Its run is there, its session is not.
    for refused in [copy("s", false), copy("nowhere", false)] {
        let path = refused.checkpoint.path.clone();
        store.insert_copy(refused).await.unwrap_err();
        assert!(store.checkpoint(&alice(), &path).await.is_err());
    }
    let made = copy("new", true);
    store.insert_copy(made.clone()).await.unwrap();
    assert!(store.insert_copy(made.clone()).await.is_err());
    assert_eq!(store.checkpoint(&alice(), &made.checkpoint.path).await.unwrap(), made.checkpoint);
    assert!(store.run(&alice(), &made.run.id).await.unwrap().closed);
    assert!(store.end_of(&made.run.id).await.unwrap().message.contains("copy"));
    let (runs, total) = store.list_runs_of_project(&alice(), "kept", 10, 0).await.unwrap();
    assert_eq!((runs.len(), total), (1, 1));
    let (runs, total) = store.list_runs_of_project(&alice(), "default", 10, 0).await.unwrap();
    assert_eq!((runs.len(), total, &runs[0].id), (1, 1, &run_id()));
}

pub(crate) async fn sessions_are_listed_newest_first_with_what_belongs_to_them(lab: &Lab) {
    let store = with_run(lab).await;
    let mut names = Vec::new();
    for number in 0..3_i64 {
        let id = format!("old-{number}");
        let created_at = Timestamp::UNIX_EPOCH + SignedDuration::from_secs(number / 2);
        store.create_session(&SessionRecord { created_at, ..session(&id) }).await.unwrap();
        names.push(SessionId::new(id));
    }
    names.push(SessionId::new("s"));
    names.reverse();
    assert_eq!(store.list_sessions(&alice(), 10, 0).await.unwrap(), names);
    assert_eq!(store.list_sessions(&alice(), 2, 1).await.unwrap(), names[1..3]);
    assert_eq!(store.list_sessions(&mallory(), 10, 0).await.unwrap(), []);
    let mut place: Option<SessionPlace> = None;
    let mut seen = Vec::new();
    while let [record] = &store.sessions_after(&alice(), place.as_ref(), 1).await.unwrap()[..] {
        place = Some(SessionPlace { created_at: record.created_at, session: record.id.clone() });
        seen.push(record.id.clone());
    }
    assert_eq!(seen, names, "two of them are of the same second");

    let id = SessionId::new("s");
    assert_eq!(store.runs_of_session(&alice(), &id, 10).await.unwrap(), [run_id()]);
    assert_eq!(store.runs_of_session(&mallory(), &id, 10).await.unwrap(), []);
    assert_eq!(store.samplers_of_session(&alice(), &id, 10).await.unwrap(), []);
    assert_eq!(store.checkpoints_of_session(&alice(), &id).await.unwrap(), (0, 0));
    for name in ["a", "b"] {
        store.insert_checkpoint(&checkpoint(run_id(), name)).await.unwrap();
    }
    assert_eq!(store.checkpoints_of_session(&alice(), &id).await.unwrap(), (2, 10));
}

pub(crate) async fn a_session_keeps_its_project_and_its_clients_last_word(lab: &Lab) {
    let store = lab.store().await;
    let record = SessionRecord { display_name: Some("Nachtlauf ü".to_owned()), ..session("s") };
    store.create_session(&record).await.unwrap();
    let foreign = store.assign_project(&mallory(), &record.id, "p").await.unwrap_err();
    assert_eq!(foreign.code, ErrorCode::NotFound);
    store.assign_project(&alice(), &record.id, "p").await.unwrap();
    let end = |reason: &str| Some(ClientEnd { reason: reason.to_owned(), detail: Some("why".to_owned()) });
    store.finish_session_with(&alice(), &record.id, end("errored")).await.unwrap();
    store.finish_session_with(&alice(), &record.id, end("success")).await.unwrap();
    let expected =
        SessionRecord { project_id: Some("p".to_owned()), finished: true, client_end: end("errored"), ..record };
    assert_eq!(store.session(&alice(), &expected.id).await.unwrap(), expected);
}
