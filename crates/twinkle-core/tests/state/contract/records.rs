//! Sessions, runs, sampling sessions, checkpoints and keys.

use std::collections::BTreeMap;
use std::time::Duration;

use jiff::Timestamp;
use twinkle_core::call::{CheckpointRecord, RunRecord, SamplingSessionRecord, SamplingSource, SessionRecord};
use twinkle_core::ids::{CheckpointKind, CheckpointPath, RequestId, RunId, SamplingSessionId, SessionId};
use twinkle_core::state::{ApiKeyRecord, EndOfRuns, NewOperation, NewRun, Retention, RunLimits, RunPage};
use twinkle_core::{Error, ErrorCode};

use crate::fixtures::{alice, lora, mallory, new_run, run_id, session, with_run};
use crate::lab::Lab;

pub(crate) async fn another_tenants_objects_look_absent_word_for_word(lab: &Lab) {
    let store = with_run(lab).await;
    let (session, sampling) = (SessionId::new("s"), SamplingSessionId::new("s:sample:0"));
    let record = SamplingSessionRecord {
        id: sampling.clone(),
        tenant: alice(),
        session: session.clone(),
        base_model: "tiny".to_owned(),
        source: SamplingSource::Base,
    };
    store.create_sampling_session(&record).await.unwrap();
    let empty = lab.store().await;
    for (foreign, absent) in [
        (store.session(&mallory(), &session).await.err(), empty.session(&mallory(), &session).await.err()),
        (store.touch_session(&mallory(), &session).await.err(), empty.touch_session(&mallory(), &session).await.err()),
        (
            store.finish_session(&mallory(), &session).await.err(),
            empty.finish_session(&mallory(), &session).await.err(),
        ),
        (store.run(&mallory(), &run_id()).await.err(), empty.run(&mallory(), &run_id()).await.err()),
        (
            store.sampling_session(&mallory(), &sampling).await.err(),
            empty.sampling_session(&mallory(), &sampling).await.err(),
        ),
    ] {
        assert_eq!(foreign.as_ref().map(|error| error.code), Some(ErrorCode::NotFound));
        assert_eq!(foreign, absent);
    }
    let theirs = SamplingSessionRecord { tenant: mallory(), ..record };
    assert_eq!(
        store.create_sampling_session(&theirs).await.unwrap_err(),
        empty.create_sampling_session(&theirs).await.unwrap_err()
    );
    assert_eq!(store.list_runs(&mallory(), 10, 0).await.unwrap(), (vec![], 0));
}

pub(crate) async fn a_finished_session_takes_no_more_runs_or_heartbeats(lab: &Lab) {
    let store = lab.store().await;
    store.create_session(&session("s")).await.unwrap();
    store.finish_session(&alice(), &SessionId::new("s")).await.unwrap();
    store.finish_session(&alice(), &SessionId::new("s")).await.unwrap();
    assert_eq!(store.touch_session(&alice(), &SessionId::new("s")).await.unwrap_err().code, ErrorCode::Gone);
    assert_eq!(store.insert_run(new_run()).await.unwrap_err().code, ErrorCode::Gone);
    assert_eq!(store.run(&alice(), &run_id()).await.unwrap_err().code, ErrorCode::NotFound);
}

pub(crate) async fn a_sampling_session_is_made_once_and_refused_with_other_weights(lab: &Lab) {
    let store = with_run(lab).await;
    let record = SamplingSessionRecord {
        id: SamplingSessionId::new("s:sample:1"),
        tenant: alice(),
        session: SessionId::new("s"),
        base_model: "tiny".to_owned(),
        source: SamplingSource::Base,
    };
    assert_eq!(store.create_sampling_session(&record).await.unwrap(), record);
    assert_eq!(store.create_sampling_session(&record).await.unwrap(), record);
    let other = SamplingSessionRecord { source: SamplingSource::Live(record.id.clone()), ..record };
    assert_eq!(store.create_sampling_session(&other).await.unwrap_err().code, ErrorCode::InvalidArgument);
}

pub(crate) async fn sessions_without_runs_are_forgotten_when_their_clients_are_long_gone(lab: &Lab) {
    let store = with_run(lab).await;
    store.create_session(&session("idle")).await.unwrap();
    let at_once = Retention { idle_sessions: Duration::ZERO, ..Retention::default() };
    assert_eq!(store.sweep(&at_once).await.unwrap().sessions, 1);
    store.session(&alice(), &SessionId::new("s")).await.unwrap();
    assert!(store.session(&alice(), &SessionId::new("idle")).await.is_err());
}

pub(crate) async fn checkpoints_are_listed_until_they_expire_or_are_deleted(lab: &Lab) {
    let store = lab.store().await;
    let path = |name| CheckpointPath::new(run_id(), CheckpointKind::Weights, name).unwrap();
    let record = |name, expires_at| CheckpointRecord {
        path: path(name),
        tenant: alice(),
        base_model: "tiny".to_owned(),
        lora: lora(),
        size_bytes: 5,
        user_metadata: BTreeMap::new(),
        created_at: Timestamp::UNIX_EPOCH,
        expires_at,
        public: false,
    };
    store.insert_checkpoint(&record("kept", None)).await.unwrap();
    store.insert_checkpoint(&record("old", Some(Timestamp::UNIX_EPOCH))).await.unwrap();
    assert_eq!(store.list_checkpoints(&alice(), None, 10, 0).await.unwrap(), (vec![record("kept", None)], 1));
    assert_eq!(store.checkpoint(&alice(), &path("kept")).await.unwrap(), record("kept", None));
    let expired = store.expired_checkpoints(Timestamp::now(), 10).await.unwrap();
    assert_eq!(expired, [record("old", Some(Timestamp::UNIX_EPOCH))]);
    let foreign = store.delete_checkpoint(&mallory(), &path("kept")).await.unwrap_err();
    store.delete_checkpoint(&alice(), &path("kept")).await.unwrap();
    assert_eq!(store.checkpoint(&alice(), &path("kept")).await.unwrap_err(), foreign);
}

pub(crate) async fn runs_are_listed_newest_first_in_pages(lab: &Lab) {
    let store = lab.store().await;
    store.create_session(&session("s")).await.unwrap();
    let mut names = Vec::new();
    for number in 0..3_i64 {
        let id = RunId::of_session(&SessionId::new("s"), number.cast_unsigned());
        let NewRun { record, operation } = new_run();
        let created_at = Timestamp::UNIX_EPOCH + jiff::SignedDuration::from_secs(number);
        let record = RunRecord { id: id.clone(), created_at, ..record };
        let operation = NewOperation { run: id.clone(), request: RequestId::journaled(), ..operation };
        store.insert_run(NewRun { record, operation }).await.unwrap();
        names.push(id);
    }
    let page = async |limit, offset| {
        let (runs, total) = store.list_runs(&alice(), limit, offset).await.unwrap();
        (runs.into_iter().map(|run| run.id).collect::<Vec<_>>(), total)
    };
    assert_eq!(page(2, 0).await, (vec![names[2].clone(), names[1].clone()], 3));
    assert_eq!(page(2, 2).await, (vec![names[0].clone()], 3));
    let unfinished: Vec<RunId> = store.unfinished_runs().await.unwrap().into_iter().map(|(_, run)| run).collect();
    assert_eq!(unfinished, names);
    store.close_run(&names[1], &Error::not_found("gone")).await.unwrap();
    let unfinished: Vec<RunId> = store.unfinished_runs().await.unwrap().into_iter().map(|(_, run)| run).collect();
    assert_eq!(unfinished, [names[0].clone(), names[2].clone()]);
}

pub(crate) async fn limits_count_open_runs_and_records(lab: &Lab) {
    let store = with_run(lab).await;
    let limits = RunLimits { per_tenant: Some(1), per_model: Some(1) };
    let NewRun { record, operation } = new_run();
    let id = RunId::new("s:train:1");
    let second =
        NewRun { record: RunRecord { id: id.clone(), ..record }, operation: NewOperation { run: id, ..operation } };
    let refused = store.insert_run_within(second.clone(), limits).await.unwrap_err();
    assert_eq!(refused.code, ErrorCode::LimitReached, "{refused}");
    store.insert_run_within(second, RunLimits { per_tenant: Some(2), per_model: None }).await.unwrap();
    let open = store.open_records().await.unwrap();
    assert_eq!((open.sessions, open.runs, open.sampling_sessions), (1, 2, 0));
}

pub(crate) async fn silent_sessions_end_and_their_runs_are_due(lab: &Lab) {
    let store = lab.store().await;
    let beginning = Timestamp::UNIX_EPOCH;
    let later = beginning + jiff::SignedDuration::from_mins(5);
    store.create_session(&SessionRecord { created_at: beginning, ..session("s") }).await.unwrap();
    store.create_session(&SessionRecord { created_at: beginning, ..session("idle") }).await.unwrap();
    let NewRun { record, operation } = new_run();
    let record = RunRecord { created_at: beginning, last_used_at: later, ..record };
    store.insert_run(NewRun { record, operation }).await.unwrap();

    let page = RunPage { base_model: "tiny", after: None, limit: 10 };
    let silenced = store.silenced_runs(page, later, later + jiff::SignedDuration::from_mins(1)).await.unwrap();
    assert_eq!(silenced, [(alice(), run_id())]);
    assert_eq!(store.finish_silent_sessions(later, 10).await.unwrap(), [SessionId::new("idle")]);
    let end = EndOfRuns { made_before: None, session_silent_before: later };
    assert_eq!(store.due_runs(page, end).await.unwrap(), []);
    let after_it = later + jiff::SignedDuration::from_mins(1);
    assert_eq!(store.finish_silent_sessions(after_it, 10).await.unwrap(), [SessionId::new("s")]);
    assert_eq!(store.due_runs(page, end).await.unwrap().len(), 1);
    assert!(store.is_over(&SessionId::new("s"), later).await.unwrap());

    assert!(store.is_open(&run_id()).await.unwrap());
    store.close_run(&run_id(), &Error::new(ErrorCode::Gone, "it was ended")).await.unwrap();
    assert!(!store.is_open(&run_id()).await.unwrap());
    assert_eq!(store.end_of(&run_id()).await.unwrap().message, "it was ended");
}

pub(crate) async fn api_keys_are_kept_in_order_and_forgotten(lab: &Lab) {
    let store = lab.store().await;
    let key = |prefix: &str, name: &str, digest| ApiKeyRecord {
        prefix: prefix.to_owned(),
        digest: [digest; 32],
        tenant: alice(),
        name: name.to_owned(),
        created_at: Timestamp::UNIX_EPOCH,
    };
    let (first, second) = (key("tml-a", "laptop", 7), key("tml-b", "server", 8));
    store.insert_api_key(&second).await.unwrap();
    store.insert_api_key(&first).await.unwrap();
    for taken in [key("tml-c", "laptop", 9), key("tml-a", "other", 9)] {
        assert_eq!(store.insert_api_key(&taken).await.unwrap_err().code, ErrorCode::Conflict);
    }
    assert_eq!(store.api_keys().await.unwrap(), [first, second.clone()]);
    assert!(store.delete_api_key("tml-a").await.unwrap());
    assert!(!store.delete_api_key("tml-a").await.unwrap());
    assert_eq!(store.api_keys().await.unwrap(), [second]);
}

/// A database that cannot hold a text says so to its author only.
pub(crate) async fn odd_texts_are_kept_or_refused_alone(lab: &Lab) {
    let store = lab.store().await;
    let odd = SessionRecord { sdk_version: Some("a\0b".to_owned()), ..session("odd") };
    let plain = SessionRecord { sdk_version: Some("'; DROP TABLE sessions; --\u{10ffff}".to_owned()), ..session("s") };
    let (odd_created, plain_created) = tokio::join!(store.create_session(&odd), store.create_session(&plain));
    plain_created.unwrap();
    assert_eq!(store.session(&alice(), &plain.id).await.unwrap(), plain);
    match odd_created {
        Ok(()) => assert_eq!(store.session(&alice(), &odd.id).await.unwrap(), odd),
        Err(error) => assert_eq!(error.code, ErrorCode::InvalidArgument, "{error}"),
    }
}
