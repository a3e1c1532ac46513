//! What is sent again, what is not, and for how long.

use serde_json::{Value, json};
use twinkle_client::{AdamParams, Error, Loss};
use twinkle_core::wire::tinker::training;

use crate::script::{Answer, Server, accepted, datum, json_answer, outcome, proto_answer};

#[tokio::test]
async fn busy_answers_are_tried_again_with_the_same_idempotency_key() {
    let server = Server::new().on(
        "optim_step",
        [
            json_answer(503, &json!({ "detail": "queue full" })),
            json_answer(429, &json!({ "detail": "slow down" })),
            accepted("step"),
        ],
    );
    let training = server.training().await;
    let server = server.on("retrieve_future", [json_answer(200, &json!({ "metrics": { "grad_norm": 2.0 } }))]);
    let metrics = training.optim_step(AdamParams::default()).await.unwrap().await.unwrap();
    assert_eq!(metrics["grad_norm"].to_bits(), 2.0_f64.to_bits());
    let keys = server.header("optim_step", "x-idempotency-key");
    assert!(keys.len() == 3 && keys.iter().all(|key| *key == keys[0]), "{keys:?}");
    let bodies = server.asked("optim_step");
    assert!(bodies.iter().all(|body| *body == bodies[0]), "a retry is the same request");
    assert_eq!(server.header("optim_step", "x-api-key"), ["tml-test"; 3]);
}

#[tokio::test]
async fn a_refusal_is_not_tried_again_and_the_next_operation_has_the_next_number() {
    let refused = json_answer(400, &json!({ "detail": "learning rate is NaN" }));
    let server = Server::new().on("optim_step", [refused, accepted("step")]);
    let training = server.training().await;
    let error = training.optim_step(AdamParams::default()).await.unwrap_err();
    assert!(matches!(&error, Error::Rejected { status: 400, message } if message == "learning rate is NaN"), "{error}");
    assert!(error.is_users_fault());
    training.optim_step(AdamParams::default()).await.map(drop).unwrap();
    let numbers: Vec<Value> = server
        .asked("optim_step")
        .iter()
        .map(|body| serde_json::from_slice::<Value>(body).unwrap()["seq_id"].clone())
        .collect();
    assert_eq!(numbers, [1, 2]);
}

#[tokio::test]
async fn a_server_that_stays_down_is_given_up_on() {
    let server = Server::new().on("optim_step", [json_answer(500, &json!({ "detail": "broken" }))]);
    let training = server.training().await;
    let error = training.optim_step(AdamParams::default()).await.unwrap_err();
    assert!(matches!(error, Error::Rejected { status: 500, .. }), "{error}");
    assert!(server.asked("optim_step").len() > 3);
}

#[tokio::test]
async fn a_result_is_asked_for_until_it_is_there() {
    let server = Server::new().on("forward_backward", [accepted("loss")]);
    let training = server.training().await;
    let pending = json_answer(408, &json!({ "queue_state": "active" }));
    let again = json_answer(200, &json!({ "type": "try_again", "request_id": "loss", "queue_state": "active" }));
    let down = json_answer(502, &json!({}));
    let server =
        server.on("retrieve_future", [pending, again, down, proto_answer(&training::outcome_to_proto(&outcome(1.5)))]);
    let result = training.forward_backward(vec![datum()], Loss::cross_entropy()).await.unwrap().await.unwrap();
    assert_eq!(result, outcome(1.5));
    // Creation asked once, the loss four times.
    assert_eq!(server.asked("retrieve_future").len(), 5);
}

#[tokio::test]
async fn a_failed_operation_says_whose_fault_it_is() {
    let server = Server::new().on("forward_backward", [accepted("loss")]);
    let training = server.training().await;
    let _server =
        server.on("retrieve_future", [json_answer(200, &json!({ "error": "unknown loss", "category": "User" }))]);
    let error = training.forward(vec![datum()], Loss::named("nope")).await.unwrap().await.unwrap_err();
    assert!(matches!(&error, Error::Failed { category, .. } if category == "user"), "{error}");
    assert!(error.is_users_fault());
}

#[tokio::test]
async fn a_refusal_without_a_word_is_tried_again() {
    let silent = Answer { status: 400, headers: Vec::new(), body: Vec::new() };
    let server = Server::new().on("optim_step", [silent, accepted("step")]);
    let training = server.training().await;
    training.optim_step(AdamParams::default()).await.map(drop).unwrap();
    assert_eq!(server.asked("optim_step").len(), 2);
}
