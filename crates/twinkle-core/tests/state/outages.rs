//! Databases that are killed, emptied or taken over while a server works with them.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use sqlx::Connection as _;
use tokio::task::JoinSet;
use twinkle_core::ErrorCode;
use twinkle_core::ids::SessionId;
use twinkle_core::state::{StateLocation, StateStore};

use crate::fixtures::{alice, numbered, operation, run_id, session, stepped, with_run};
use crate::lab::Lab;

const WRITERS: usize = 16;
const KILLS: usize = 3;

/// Sixteen writers write on while the database is killed again and again. Every write succeeds, exactly once.
async fn kills_lose_and_repeat_nothing(mut lab: Lab) {
    let location = lab.location();
    let store = StateStore::open(location.clone()).await.unwrap();
    let (stop, acknowledged) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicUsize::new(0)));
    let mut writers = JoinSet::new();
    for writer in 0..WRITERS {
        let (store, stop, acknowledged) = (store.clone(), Arc::clone(&stop), Arc::clone(&acknowledged));
        writers.spawn(async move {
            let mut written = Vec::new();
            while !stop.load(Ordering::Relaxed) {
                let session = session(&format!("{writer}-{}", written.len()));
                // A write that was applied twice would be a conflict.
                store.create_session(&session).await.unwrap();
                acknowledged.fetch_add(1, Ordering::Relaxed);
                written.push(session);
            }
            written
        });
    }
    for _ in 0..KILLS {
        let before = acknowledged.load(Ordering::Relaxed);
        while acknowledged.load(Ordering::Relaxed) < before + 10 * WRITERS {
            tokio::task::yield_now().await;
        }
        let database = lab.database().unwrap();
        tokio::task::block_in_place(|| {
            database.kill();
            database.start_again();
        });
    }
    stop.store(true, Ordering::Relaxed);
    let written: Vec<_> = writers.join_all().await.into_iter().flatten().collect();
    store.close().await;

    let store = StateStore::open(location).await.unwrap();
    for session in &written {
        assert_eq!(store.session(&alice(), &session.id).await.unwrap(), *session);
    }
    assert_eq!(store.open_records().await.unwrap().sessions, written.len() as u64);
}

/// While the database is away, clients are told to try again, and results wait until it is back.
async fn an_outage_is_told_and_results_outlast_it(mut lab: Lab, reads_go_on: bool) {
    let store = with_run(&lab).await;
    let waiting = operation(numbered(1));
    store.append(waiting.clone()).await.unwrap();
    lab.database().unwrap().kill();

    let (name, result) = (SessionId::new("s"), stepped());
    let finishing = store.finish(&waiting.request, &result);
    let told = async {
        let refused = store.create_session(&session("other")).await.unwrap_err();
        assert_eq!(refused.code, ErrorCode::Overloaded, "{refused}");
        assert!(refused.retry_after_ms.is_some() && refused.message.contains("cannot be reached"), "{refused}");
        let read = store.session(&alice(), &name).await;
        if reads_go_on {
            assert_eq!(read.unwrap().id, name);
        } else {
            assert_eq!(read.unwrap_err().code, ErrorCode::Overloaded);
        }
        tokio::task::block_in_place(|| lab.database().unwrap().start_again());
    };
    let (finished, ()) = tokio::join!(finishing, told);
    finished.unwrap();
    store.create_session(&session("other")).await.unwrap();
    assert_eq!(store.run_order(&run_id()).await.unwrap().passed_through, 1);
}

async fn is_told_that_it_was_replaced(store: &StateStore) {
    for name in ["late", "later"] {
        let refused = store.create_session(&session(name)).await.unwrap_err();
        assert_eq!(refused.code, ErrorCode::Conflict, "{refused}");
        assert!(refused.message.contains("taken over"), "{refused}");
    }
    assert!(store.session(&alice(), &SessionId::new("late")).await.is_err());
}

async fn redis_command(url: &str, command: &[&str]) {
    let client = redis::Client::open(url).unwrap();
    let mut connection = client.get_multiplexed_async_connection().await.unwrap();
    let (name, arguments) = command.split_first().unwrap();
    redis::cmd(name).arg(arguments).query_async::<redis::Value>(&mut connection).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn killing_postgres_loses_and_repeats_nothing() {
    let Some(lab) = Lab::postgres() else { return };
    kills_lose_and_repeat_nothing(lab).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn killing_redis_loses_and_repeats_nothing() {
    let Some(lab) = Lab::redis() else { return };
    kills_lose_and_repeat_nothing(lab).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_outage_of_postgres_is_told() {
    let Some(lab) = Lab::postgres() else { return };
    an_outage_is_told_and_results_outlast_it(lab, false).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_outage_of_redis_is_told_and_reads_go_on() {
    let Some(lab) = Lab::redis() else { return };
    an_outage_is_told_and_results_outlast_it(lab, true).await;
}

#[tokio::test]
async fn a_server_whose_schema_was_taken_over_writes_no_more() {
    let Some(lab) = Lab::postgres() else { return };
    let location = lab.location();
    let store = StateStore::open(location.clone()).await.unwrap();
    let StateLocation::Postgres { url, key_prefix } = location else { unreachable!() };
    let mut other = sqlx::PgConnection::connect(&url).await.unwrap();
    let take_over = format!("UPDATE \"{key_prefix}\".ownership SET epoch = epoch + 1");
    sqlx::raw_sql(sqlx::AssertSqlSafe(take_over)).execute(&mut other).await.unwrap();
    is_told_that_it_was_replaced(&store).await;
}

#[tokio::test]
async fn a_server_whose_prefix_was_taken_over_writes_no_more() {
    let Some(lab) = Lab::redis() else { return };
    let location = lab.location();
    let store = StateStore::open(location.clone()).await.unwrap();
    let StateLocation::Redis { url, key_prefix } = location else { unreachable!() };
    redis_command(&url, &["SET", &format!("{key_prefix}twinkle:fence"), "somebody"]).await;
    is_told_that_it_was_replaced(&store).await;
}

#[tokio::test]
async fn a_redis_that_lost_everything_gets_it_again() {
    let Some(lab) = Lab::redis() else { return };
    let location = lab.location();
    let store = StateStore::open(location.clone()).await.unwrap();
    for name in ["a", "b"] {
        store.create_session(&session(name)).await.unwrap();
    }
    let StateLocation::Redis { url, .. } = &location else { unreachable!() };
    redis_command(url, &["FLUSHALL"]).await;
    store.create_session(&session("c")).await.unwrap();
    store.close().await;
    let store = StateStore::open(location).await.unwrap();
    for name in ["a", "b", "c"] {
        store.session(&alice(), &SessionId::new(name)).await.unwrap();
    }
}
