use super::*;
use crate::call::SampleOutcome;
use crate::ids::{RunId, SamplingSessionId};

const SOON: Duration = Duration::from_millis(20);
const LONG: Duration = Duration::from_secs(30);

fn alice() -> TenantId {
    TenantId::new("alice")
}

#[expect(clippy::unnecessary_wraps, reason = "it is compared with results")]
fn unloaded() -> Result<Outcome> {
    Ok(Outcome::Run(RunOutcome::Unloaded { run: RunId::new("r") }))
}

async fn board(options: FuturesOptions) -> Futures {
    Futures::new(StateStore::open_in_memory().await.unwrap(), options)
}

#[tokio::test]
async fn a_waiter_is_woken_by_the_result_and_later_callers_find_it() {
    let futures = board(FuturesOptions::default()).await;
    let request = RequestId::journaled();
    futures.register(&request, &alice()).unwrap();
    let waiter = tokio::spawn({
        let (futures, request) = (futures.clone(), request.clone());
        async move { futures.wait(&alice(), &request, LONG).await }
    });
    tokio::task::yield_now().await;
    futures.complete(&request, &alice(), unloaded());
    assert_eq!(waiter.await.unwrap(), Waited::Done(Arc::new(unloaded())));
    assert_eq!(futures.wait(&alice(), &request, SOON).await, Waited::Done(Arc::new(unloaded())));
    assert_eq!(futures.pending(), 0);
}

#[tokio::test]
async fn no_result_within_the_limit_is_pending() {
    let futures = board(FuturesOptions::default()).await;
    let request = RequestId::ephemeral();
    futures.register(&request, &alice()).unwrap();
    assert_eq!(futures.wait(&alice(), &request, SOON).await, Waited::Pending);
}

#[tokio::test]
async fn another_tenants_request_looks_like_no_request() {
    let futures = board(FuturesOptions::default()).await;
    let (pending, finished) = (RequestId::journaled(), RequestId::journaled());
    futures.register(&pending, &alice()).unwrap();
    futures.register(&finished, &alice()).unwrap();
    futures.complete(&finished, &alice(), unloaded());
    let mallory = TenantId::new("mallory");
    for request in [pending, finished, RequestId::journaled()] {
        assert_eq!(futures.wait(&mallory, &request, LONG).await, Waited::Unknown);
    }
}

#[tokio::test]
async fn a_result_too_large_for_memory_still_reaches_its_waiter() {
    let futures = board(FuturesOptions { finished_bytes: 1, ..FuturesOptions::default() }).await;
    let request = RequestId::ephemeral();
    let alice = alice();
    futures.register(&request, &alice).unwrap();
    let waiting = futures.wait(&alice, &request, LONG);
    let completing = async {
        tokio::task::yield_now().await;
        futures.complete(&request, &alice, unloaded());
    };
    let (waited, ()) = tokio::join!(waiting, completing);
    assert_eq!(waited, Waited::Done(Arc::new(unloaded())));
}

#[tokio::test]
async fn a_tenant_with_too_many_unfinished_operations_is_refused_and_others_are_not() {
    let futures = board(FuturesOptions { pending_per_tenant: 2, ..FuturesOptions::default() }).await;
    let first = RequestId::ephemeral();
    futures.register(&first, &alice()).unwrap();
    futures.register(&RequestId::ephemeral(), &alice()).unwrap();
    let refused = futures.register(&RequestId::ephemeral(), &alice()).unwrap_err();
    assert_eq!(refused.code, ErrorCode::Overloaded);
    futures.register(&RequestId::ephemeral(), &TenantId::new("bob")).unwrap();
    futures.complete(&first, &alice(), unloaded());
    futures.register(&RequestId::ephemeral(), &alice()).unwrap();
}

#[tokio::test]
async fn all_tenants_together_have_a_bound_too() {
    let futures = board(FuturesOptions { pending_in_all: 1, ..FuturesOptions::default() }).await;
    futures.register(&RequestId::ephemeral(), &alice()).unwrap();
    let refused = futures.register(&RequestId::ephemeral(), &TenantId::new("bob")).unwrap_err();
    assert_eq!(refused.code, ErrorCode::Overloaded);
}

#[tokio::test]
async fn a_panic_in_spawned_work_fails_only_its_own_future() {
    let futures = board(FuturesOptions::default()).await;
    let request = futures.spawn(&alice(), "sample", async { panic!("defect") }).unwrap();
    let Waited::Done(result) = futures.wait(&alice(), &request, LONG).await else { panic!("no result") };
    assert_eq!(result.as_ref().as_ref().unwrap_err().code, ErrorCode::Internal);
}

#[tokio::test]
async fn cancelled_work_is_dropped_and_a_foreign_tenant_cannot_cancel_it() {
    let futures = board(FuturesOptions::default()).await;
    let (alive, dropped) = tokio::sync::oneshot::channel::<()>();
    let request = futures
        .spawn(&alice(), "sample", async move {
            let _alive = alive;
            std::future::pending().await
        })
        .unwrap();
    assert!(!futures.cancel(&TenantId::new("mallory"), &request));
    assert!(futures.cancel(&alice(), &request));
    assert!(dropped.await.is_err());
    assert_eq!(futures.pending(), 0);
}

#[tokio::test]
async fn an_unknown_sampling_request_is_gone_and_an_unknown_training_request_is_not_found() {
    assert_eq!(unknown(&RequestId::ephemeral()).code, ErrorCode::Gone);
    assert_eq!(unknown(&RequestId::journaled()).code, ErrorCode::NotFound);
}

fn stream(client: u64) -> StreamKey {
    StreamKey { tenant: alice(), session: SamplingSessionId::new("s:sample:0"), client }
}

fn of_stream(client: u64) -> Parties {
    Parties { stream: Some(stream(client)), worker: None }
}

fn told(found: &(Vec<Completion>, u64)) -> Vec<RequestId> {
    found.0.iter().map(|completion| completion.request.clone()).collect()
}

#[tokio::test]
async fn a_client_waits_for_whichever_sample_finishes_next() {
    let futures = board(FuturesOptions::default()).await;
    let (finish, finished) = tokio::sync::oneshot::channel::<()>();
    let slow = futures
        .spawn_for(&alice(), "sample", &of_stream(0), async move {
            let _ = finished.await;
            Ok(Outcome::Sample(SampleOutcome::default()))
        })
        .unwrap();
    let wrong = futures.spawn_for(&alice(), "sample", &of_stream(0), async { Err(Error::invalid("no")) }).unwrap();
    let first = futures.completions(&stream(0), 0, LONG).await;
    assert_eq!(first.0, [Completion { request: wrong, bytes: None }]);
    let waiting = tokio::spawn({
        let futures = futures.clone();
        async move { futures.completions(&stream(0), first.1, LONG).await }
    });
    tokio::task::yield_now().await;
    finish.send(()).unwrap();
    let second = waiting.await.unwrap();
    assert_eq!(told(&second), [slow]);
    assert!(second.1 > first.1);
    assert_eq!(futures.completions(&stream(0), second.1, SOON).await, (vec![], second.1), "nothing is told twice");
    assert_eq!(futures.completions(&stream(1), 0, SOON).await, (vec![], 0), "another client's samples are not told");
}

#[tokio::test]
async fn a_fetched_or_discarded_result_is_not_told_any_more() {
    let futures = board(FuturesOptions::default()).await;
    let sample = || async { Ok(Outcome::Sample(SampleOutcome::default())) };
    let fetched = futures.spawn_for(&alice(), "sample", &of_stream(0), sample()).unwrap();
    let discarded = futures.spawn_for(&alice(), "sample", &of_stream(0), sample()).unwrap();
    for request in [&fetched, &discarded] {
        assert!(matches!(futures.wait(&alice(), request, LONG).await, Waited::Done(_)));
    }
    futures.fetched(&fetched);
    futures.discard(&TenantId::new("mallory"), [discarded.clone()]);
    assert!(matches!(futures.wait(&alice(), &discarded, SOON).await, Waited::Done(_)), "not hers to discard");
    futures.discard(&alice(), [discarded.clone()]);
    assert_eq!(futures.wait(&alice(), &discarded, SOON).await, Waited::Unknown);
    assert!(matches!(futures.wait(&alice(), &fetched, SOON).await, Waited::Done(_)), "its answer may have been lost");
    assert_eq!(futures.completions(&stream(0), 0, SOON).await, (vec![], 0));
}

#[tokio::test]
async fn a_cancelled_sample_is_told_as_failed() {
    let futures = board(FuturesOptions::default()).await;
    let request = futures.spawn_for(&alice(), "sample", &of_stream(3), std::future::pending()).unwrap();
    assert!(futures.cancel(&alice(), &request));
    assert!(!futures.cancel(&alice(), &request), "it is over");
    let found = futures.completions(&stream(3), 0, LONG).await;
    assert_eq!(found.0, [Completion { request, bytes: None }]);
}

#[tokio::test]
async fn samples_that_a_stopped_server_lost_are_told_as_failed() {
    let store = StateStore::open_in_memory().await.unwrap();
    let before = Futures::new(store.clone(), FuturesOptions::default());
    let mut lost = Vec::new();
    for _ in 0..3 {
        let request = before.spawn_for(&alice(), "sample", &of_stream(0), std::future::pending()).unwrap();
        before.note(&request, &stream(0)).await;
        lost.push(request);
    }
    let done = before.spawn_for(&alice(), "sample", &of_stream(0), async { Err(Error::invalid("no")) }).unwrap();
    before.note(&done, &stream(0)).await;
    let (_, cursor) = before.completions(&stream(0), 0, LONG).await;
    before.completions(&stream(0), cursor, Duration::ZERO).await;
    while store.awaited_samples().await.unwrap().len() > 3 {
        tokio::task::yield_now().await;
    }

    let after = Futures::new(store.clone(), FuturesOptions::default());
    after.take_up().await.unwrap();
    let found = after.completions(&stream(0), cursor, LONG).await;
    let mut names = told(&found);
    names.sort();
    lost.sort();
    assert_eq!(names, lost, "what was finished and seen is not told again");
    assert!(found.0.iter().all(|completion| completion.bytes.is_none()));
    for request in &lost {
        assert_eq!(after.wait(&alice(), request, SOON).await, Waited::Unknown);
    }
    after.completions(&stream(0), found.1, Duration::ZERO).await;
    while !store.awaited_samples().await.unwrap().is_empty() {
        tokio::task::yield_now().await;
    }
}

#[tokio::test]
async fn one_result_reaches_every_poll_that_waits_for_it() {
    let futures = board(FuturesOptions::default()).await;
    let request = RequestId::journaled();
    futures.register(&request, &alice()).unwrap();
    let alice = alice();
    let polls = ::futures::future::join_all((0..8).map(|_| futures.wait(&alice, &request, LONG)));
    let completing = async {
        tokio::task::yield_now().await;
        futures.complete(&request, &alice, unloaded());
        // The operation came back a second time: the first result stays.
        futures.complete(&request, &alice, Err(Error::internal("late")));
    };
    let (waited, ()) = tokio::join!(polls, completing);
    assert!(waited.iter().all(|waited| *waited == Waited::Done(Arc::new(unloaded()))));
}
