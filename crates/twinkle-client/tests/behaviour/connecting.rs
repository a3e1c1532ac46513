//! Sessions: opened, kept alive, ended.

use serde_json::{Value, json};
use twinkle_client::{ConnectOptions, Error, RestClient, ServiceClient};

use crate::script::{Server, json_answer};

#[tokio::test]
async fn a_session_sends_signs_of_life_by_itself() {
    let server = Server::new();
    let _service = server.connect().await.unwrap();
    while server.asked("session_heartbeat").len() < 3 {
        tokio::task::yield_now().await;
    }
}

#[tokio::test]
async fn addresses_and_keys_that_cannot_work_are_refused_at_once() {
    for (url, key) in [("127.0.0.1:8000", "tml-x"), ("http://127.0.0.1:9", ""), ("http://127.0.0.1:9", "a\nb")] {
        let error = ServiceClient::connect(url, key).await.unwrap_err();
        assert!(matches!(error, Error::InvalidArgument(_)), "{error}");
    }
}

#[tokio::test]
async fn the_key_is_in_every_header_that_some_server_looks_for_it_in() {
    let server = Server::new();
    let _service = server.connect().await.unwrap();
    assert_eq!(server.header("create_session", "x-api-key"), ["tml-test"]);
    assert_eq!(server.header("create_session", "authorization"), ["Bearer tml-test"]);
    assert_eq!(server.header("create_session", "twinkle-authorization"), ["Bearer tml-test"]);
}

#[tokio::test]
async fn options_describe_the_session() {
    let server = Server::new();
    let options = ConnectOptions {
        tags: vec!["nightly".to_owned()],
        project_id: Some("p".to_owned()),
        headers: [("x-team".to_owned(), "blue".to_owned())].into(),
        ..ConnectOptions::default()
    };
    let _service = ServiceClient::connect_with(&server.start().await, "tml-test", options).await.unwrap();
    let body: Value = serde_json::from_slice(&server.asked("create_session")[0]).unwrap();
    assert_eq!((&body["tags"], &body["project_id"]), (&json!(["nightly"]), &json!("p")));
    assert_eq!(server.header("create_session", "x-team"), ["blue"]);
}

#[tokio::test]
async fn a_server_that_wants_keys_exchanged_is_not_talked_to() {
    let config = json_answer(200, &json!({ "pjwt_auth_enabled": true }));
    let server = Server::default().on("client/config", [config]);
    let error = server.connect().await.unwrap_err();
    assert!(matches!(&error, Error::InvalidArgument(message) if message.contains("exchanged")), "{error}");
    assert!(server.asked("create_session").is_empty());
}

#[tokio::test]
async fn what_lies_on_a_server_is_listed_without_a_session() {
    let sessions = json_answer(200, &json!({ "sessions": ["s-1"] }));
    let server = Server::new().on("sessions", [sessions]);
    let rest = RestClient::connect(&server.start().await, "tml-test", ConnectOptions::default()).unwrap();
    assert_eq!(rest.list_sessions(5, 0).await.unwrap().sessions, ["s-1"]);
    assert!(server.asked("create_session").is_empty());
    assert!(matches!(rest.get_session("../secrets").await, Err(Error::InvalidArgument(_))));
}

#[tokio::test]
async fn a_session_ends_with_how_it_went() {
    let server = Server::new().on("sessions/s-1/finish", [json_answer(200, &json!({}))]);
    server.connect().await.unwrap().close_failed("out of data").await.unwrap();
    let body: Value = serde_json::from_slice(&server.asked("sessions/s-1/finish")[0]).unwrap();
    assert_eq!(body, json!({ "reason": { "type": "errored" }, "detail": "out of data" }));
}
