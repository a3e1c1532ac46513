//! A component that loses runs while the server goes on.

use super::*;

async fn sums(node: &Node, requests: &[RequestId]) -> Vec<u64> {
    let mut sums = Vec::new();
    for request in requests {
        sums.push(sum_in(&node.result(request).await).to_bits());
    }
    sums
}

/// The sums after one, two, … steps with these learning rates.
fn sums_after(rates: &[f64]) -> Vec<u64> {
    (1..=rates.len()).map(|steps| sum(&rates[..steps]).to_bits()).collect()
}

/// Returns when these numbers have reached the component.
async fn reached(node: &Node, numbers: &[u64]) {
    while node.recorder.numbers() != numbers {
        tokio::task::yield_now().await;
    }
}

#[tokio::test]
async fn what_a_lost_engine_had_not_answered_is_executed_again_in_order() {
    let folder = tempfile::tempdir().unwrap();
    let node = Node::with_run(folder.path()).await;
    let mut requests = vec![node.submit(1, step(0.1)).await.unwrap()];
    node.result(&requests[0]).await.unwrap();
    node.recorder.keep_answers_back();
    for (number, rate) in [(2, 0.2), (3, 0.3)] {
        requests.push(node.submit(number, step(rate)).await.unwrap());
    }
    reached(&node, &[1, 2, 3]).await;
    node.recorder.die();
    // Accepted while nobody knows of the loss yet.
    requests.push(node.submit(4, step(0.4)).await.unwrap());
    node.recorder.answer_all();
    assert_eq!(sums(&node, &requests).await, sums_after(&[0.1, 0.2, 0.3, 0.4]));
    let seen = node.recorder.numbers_of(&run(0));
    assert_eq!(seen[seen.len() - 5..], [0, 1, 2, 3, 4], "rebuilt from its creation, in order: {seen:?}");
}

#[tokio::test]
async fn a_lost_run_with_a_snapshot_is_restored_from_it() {
    let folder = tempfile::tempdir().unwrap();
    let node = Node::with_run(folder.path()).await;
    for number in 1..=3 {
        node.result(&node.submit(number, step(number as f64)).await.unwrap()).await.unwrap();
        if number == 2 {
            node.snapshot(folder.path(), numbered(2)).await;
        }
    }
    node.recorder.die();
    let fourth = node.submit(4, step(4.0)).await.unwrap();
    assert_eq!(sum_in(&node.result(&fourth).await).to_bits(), sum(&[1.0, 2.0, 3.0, 4.0]).to_bits());
    let seen = node.recorder.seen();
    let expected = [(numbered(2), "restore"), (numbered(3), "optim_step"), (numbered(4), "optim_step")];
    assert_eq!(seen[seen.len() - 3..], expected, "{seen:?}");
}

#[tokio::test]
async fn an_operation_that_tore_its_run_failed_for_good_and_the_run_goes_on_without_it() {
    let folder = tempfile::tempdir().unwrap();
    let node = Node::with_run(folder.path()).await;
    let neighbour = node.submit_as(&alice(), &run(1), None, create("tiny")).await.unwrap();
    node.result(&neighbour).await.unwrap();
    let first = node.submit(1, step(0.1)).await.unwrap();
    let torn = node.submit(2, step(TEARING_RATE)).await.unwrap();
    let third = node.submit(3, step(0.3)).await.unwrap();
    let of_neighbour = node.submit_as(&alice(), &run(1), Some(1), step(0.5)).await.unwrap();
    assert_eq!(sums(&node, &[first, third]).await, sums_after(&[0.1, 0.3]));
    let failure = node.result(&torn).await.unwrap_err();
    assert_eq!(failure.code, ErrorCode::Internal);
    assert_eq!(sums(&node, &[of_neighbour]).await, sums_after(&[0.5]));
    assert_eq!(node.recorder.numbers_of(&run(1)), [0, 1], "the neighbour is not rebuilt");
    node.stop().await;

    let node = Node::start(folder.path()).await;
    let fourth = node.submit(4, step(0.4)).await.unwrap();
    assert_eq!(sum_in(&node.result(&fourth).await).to_bits(), sum(&[0.1, 0.3, 0.4]).to_bits());
    assert_eq!(node.result(&torn).await.unwrap_err(), failure);
    assert_eq!(node.recorder.numbers(), [1, 3, 4]);
}

#[tokio::test]
async fn an_engine_that_is_lost_again_while_a_run_is_rebuilt_costs_only_time() {
    let folder = tempfile::tempdir().unwrap();
    let node = Node::with_run(folder.path()).await;
    let other = node.submit_as(&alice(), &run(1), None, create("tiny")).await.unwrap();
    node.result(&other).await.unwrap();
    node.recorder.engine.lock().kills = 3;
    let mut requests = Vec::new();
    for (number, rate) in [(1, 0.1), (2, KILLING_RATE), (3, 0.3)] {
        requests.push(node.submit(number, step(rate)).await.unwrap());
    }
    let of_other = node.submit_as(&alice(), &run(1), Some(1), step(0.5)).await.unwrap();
    assert_eq!(sums(&node, &requests).await, sums_after(&[0.1, KILLING_RATE, 0.3]));
    assert_eq!(sums(&node, &[of_other]).await, sums_after(&[0.5]));
    assert_eq!(node.recorder.engine.lock().kills, 0);
}

#[tokio::test]
async fn a_run_that_is_lost_while_it_is_created_is_created_again() {
    let folder = tempfile::tempdir().unwrap();
    let node = Node::start(folder.path()).await;
    node.open_session().await;
    node.recorder.keep_answers_back();
    let created = node.submit(None, create("tiny")).await.unwrap();
    let first = node.submit(1, step(0.1)).await.unwrap();
    reached(&node, &[1]).await;
    node.recorder.die();
    node.recorder.answer_all();
    node.result(&created).await.unwrap();
    assert_eq!(sums(&node, &[first]).await, sums_after(&[0.1]));
}

#[tokio::test]
async fn what_a_stopping_server_loses_is_left_for_the_next_one() {
    let folder = tempfile::tempdir().unwrap();
    let node = Node::with_run(folder.path()).await;
    node.recorder.keep_answers_back();
    let first = node.submit(1, step(0.1)).await.unwrap();
    reached(&node, &[1]).await;
    let draining = tokio::spawn({
        let journal = node.journal.clone();
        async move { journal.drain(Duration::from_secs(30)).await }
    });
    while !node.journal.shared.is_draining() {
        tokio::task::yield_now().await;
    }
    node.recorder.die();
    node.recorder.answer_all();
    draining.await.unwrap();
    assert_eq!(node.futures.wait(&alice(), &first, Duration::ZERO).await, Waited::Pending);
    node.stop().await;

    let node = Node::start(folder.path()).await;
    assert_eq!(node.journal.recover().await.unwrap(), 1);
    assert_eq!(sums(&node, &[first]).await, sums_after(&[0.1]));
}
