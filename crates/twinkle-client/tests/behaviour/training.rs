//! Batches in chunks, compressed batches, objectives of the client's own.

use serde_json::{Value, json};
use twinkle_client::{AdamParams, Error, Logprobs, Loss, Objective, Progress, TensorData};
use twinkle_core::wire::tinker::{proto, training};

use crate::script::{Server, accepted, datum, json_answer, outcome, proto_answer};

fn sent(server: &Server) -> Vec<proto::ForwardBackwardRequest> {
    let bodies = server.asked("forward_backward").into_iter();
    bodies.map(|body| prost::Message::decode(body.as_slice()).unwrap()).collect()
}

#[tokio::test]
async fn a_large_batch_goes_in_numbered_chunks_and_comes_back_as_one() {
    let server = Server::new().on("forward_backward", [accepted("one"), accepted("two")]);
    let training = server.training().await;
    let results = [outcome(1.0), outcome(2.0)].map(|outcome| proto_answer(&training::outcome_to_proto(&outcome)));
    let server = server.on("retrieve_future", results);
    let data = vec![datum(); 1025];
    let pending = training.forward_backward(data, Loss::cross_entropy()).await.unwrap();
    // The first chunk is sent last, so that the server has all when it begins.
    assert_eq!(pending.request_ids(), ["two", "one"]);
    let result = pending.await.unwrap();
    assert_eq!(result.metrics["loss:sum"].to_bits(), 3.0_f64.to_bits());
    assert_eq!(result.logprobs.len(), 2);
    let sent: Vec<(i32, usize)> = sent(&server).iter().map(|request| (request.seq_id, request.data.len())).collect();
    assert_eq!(sent, [(2, 1), (1, 1024)]);
}

#[tokio::test]
async fn a_batch_is_compressed_for_a_server_that_wants_it() {
    let config = json_answer(200, &json!({ "proto_compress_fwdbwd": true }));
    let server = Server::default()
        .on("client/config", [config])
        .on("create_session", [json_answer(200, &json!({ "session_id": "s-1" }))])
        .on("create_model", [accepted("create")])
        .on("forward_backward", [accepted("loss")]);
    let training = server.training().await;
    training.forward_backward(vec![datum(); 50], "cross_entropy").await.map(drop).unwrap();
    assert_eq!(server.header("forward_backward", "content-encoding"), ["zstd"]);
    let body = zstd::decode_all(server.asked("forward_backward")[0].as_slice()).unwrap();
    let request: proto::ForwardBackwardRequest = prost::Message::decode(body.as_slice()).unwrap();
    assert_eq!(request.data.len(), 50);
}

#[tokio::test]
async fn an_objective_of_the_clients_own_goes_forward_and_comes_back_as_weights() {
    let server = Server::new()
        .on("forward_backward", [accepted("forward"), accepted("backward")])
        .on("optim_step", [accepted("step")]);
    let training = server.training().await;
    let both = [outcome(1.5), outcome(1.5)].map(|one| proto_answer(&training::outcome_to_proto(&one)));
    let server = server.on("retrieve_future", both);
    let objective = |logprobs: &[Logprobs]| {
        assert_eq!(logprobs, [Logprobs::flat(vec![-1.5])]);
        Ok(Objective { value: 7.0, derivatives: vec![vec![0.25]] })
    };
    let result = training.forward_backward_custom(vec![datum()], objective).await.unwrap().await.unwrap();
    assert_eq!(
        result.metrics,
        [("loss:sum", 7.0), ("surrogate_loss:sum", 1.5)].map(|(name, value)| (name.to_owned(), value)).into()
    );
    let step = json_answer(200, &json!({ "metrics": {} }));
    let server = server.on("retrieve_future", [step]);
    training.optim_step(AdamParams::default()).await.unwrap().await.unwrap();

    let requests = sent(&server);
    assert_eq!(requests.iter().map(|one| (one.seq_id, one.forward_only)).collect::<Vec<_>>(), [(1, true), (2, false)]);
    let content = training::ForwardBackward::from_proto(requests[1].clone()).content.unwrap();
    assert_eq!(content.data[0].loss_inputs["weights"], TensorData::floats(vec![-0.25]));
    let step: Value = serde_json::from_slice(&server.asked("optim_step")[0]).unwrap();
    assert_eq!(step["seq_id"], 3);
}

#[tokio::test]
async fn an_objective_that_fails_accumulates_nothing_and_leaves_no_hole() {
    let server = Server::new().on("forward_backward", [accepted("forward"), accepted("next")]);
    let training = server.training().await;
    let result = proto_answer(&training::outcome_to_proto(&outcome(1.5)));
    let server = server.on("retrieve_future", [result]);
    let fails = |_: &[Logprobs]| Err(Error::InvalidArgument("no reference".to_owned()));
    let error = training.forward_backward_custom(vec![datum()], fails).await.unwrap_err();
    assert!(error.to_string().contains("no reference"), "{error}");
    training.forward_backward(vec![datum()], Loss::cross_entropy()).await.map(drop).unwrap();
    assert_eq!(sent(&server).iter().map(|one| one.seq_id).collect::<Vec<_>>(), [1, 2]);
}

#[tokio::test]
async fn a_queue_that_stands_still_is_seen_in_the_progress() {
    let server = Server::new().on("forward_backward", [accepted("loss")]);
    let training = server.training().await;
    let paused = json!({ "queue_state": "paused_capacity", "queue_state_reason": "the device is full" });
    let result = proto_answer(&training::outcome_to_proto(&outcome(1.0)));
    let _server = server.on("retrieve_future", [json_answer(408, &paused), result]);
    let mut pending = training.forward_backward(vec![datum()], "cross_entropy").await.unwrap();
    let mut seen = Vec::new();
    while let Some(progress) = pending.next_progress().await {
        seen.push(progress);
    }
    let last = Progress {
        finished: 1,
        requests: 1,
        queue_state: Some("paused_capacity".to_owned()),
        queue_state_reason: Some("the device is full".to_owned()),
    };
    assert_eq!(seen.last(), Some(&last), "{seen:?}");
    assert_eq!(pending.progress(), last);
    pending.await.unwrap();
}

#[tokio::test]
async fn numbers_follow_each_other_when_a_caller_stops_waiting() {
    let server = Server::new().on("optim_step", [accepted("step")]);
    let training = server.training().await;
    for _ in 0..5 {
        // Polled once and dropped: the operation is on its way all the same.
        let mut submitted = Box::pin(training.optim_step(AdamParams::default()));
        let _ = futures::poll!(&mut submitted);
    }
    training.optim_step(AdamParams::default()).await.map(drop).unwrap();
    let numbers: Vec<Value> = server
        .asked("optim_step")
        .iter()
        .map(|body| serde_json::from_slice::<Value>(body).unwrap()["seq_id"].clone())
        .collect();
    assert_eq!(numbers, [1, 2, 3, 4, 5, 6]);
}
