//! What the routes of checkpoints and sessions ask for.

use http::Method;
use serde_json::json;
use twinkle_core::call::{CheckpointCopy, CopyDestination, RunOperation, SessionState};
use twinkle_core::ids::CheckpointKind;

use super::*;

const BELOW: &str = "/training_runs/s:train:0/checkpoints/weights/final";

async fn send(fixture: &Fixture, method: Method, path: &str, body: &str) -> Response {
    fixture.send(Request::builder().method(method).uri(path).body(body.to_owned().into()).unwrap()).await
}

#[tokio::test]
async fn an_export_is_an_operation_in_its_place() {
    let fixture = Fixture::new().await;
    let body = json!({ "model_id": RUN, "path": "out", "seq_id": 3, "ttl_seconds": 7200 });
    fixture.post("/save_weights_external", body.to_string()).await.ok();
    let calls = fixture.operations();
    let RunOperation::SaveExternal { path, ttl_seconds: Some(7200), recipients } = &calls[0].operation else {
        panic!("{calls:?}");
    };
    assert_eq!((calls[0].sequence, path.kind, path.name.as_str()), (Some(3), CheckpointKind::ExternalWeights, "out"));
    assert!(recipients.is_empty());
    for wrong in [
        json!({ "model_id": RUN, "seq_id": 4 }),
        json!({ "model_id": RUN, "seq_id": 5, "path": "a", "ttl_seconds": 3599 }),
        json!({ "model_id": RUN, "seq_id": 6, "path": "a", "age_encryption_recipients": [] }),
        json!({ "model_id": RUN, "seq_id": 7, "path": "a", "age_encryption_recipients": ["age1x"] }),
    ] {
        let request = fixture.post("/save_weights_external", wrong.to_string()).await.ok();
        let failed = fixture.retrieve(request["request_id"].as_str().unwrap(), "application/json").await.ok();
        assert_eq!(failed["category"], "user", "{wrong}: {failed}");
    }
    assert_eq!(fixture.operations().len(), 1, "a wrong operation reached the trainer");
}

#[tokio::test]
async fn lifetimes_and_publishing_are_of_one_checkpoint() {
    let fixture = Fixture::new().await;
    let ttl = format!("{BELOW}/ttl");
    for (body, expected) in [(r#"{"ttl_seconds":3600}"#, Some(3_600)), (r#"{"ttl_seconds":null}"#, None)] {
        assert_eq!(send(&fixture, Method::PUT, &ttl, body).await.status, StatusCode::NO_CONTENT);
        let asked = asked(&fixture.server);
        let Some(ServeRequest::KeepCheckpoint { path, ttl_seconds }) = asked.last() else { panic!("{asked:?}") };
        assert_eq!((path.to_string().as_str(), *ttl_seconds), (CHECKPOINT, expected));
    }
    for wrong in [r#"{"ttl_seconds":3599}"#, r#"{"ttl_seconds":315360001}"#, r#"{"ttl_seconds":-1}"#] {
        send(&fixture, Method::PUT, &ttl, wrong).await.refused(StatusCode::BAD_REQUEST);
    }
    for (method, expected) in [(Method::POST, true), (Method::DELETE, false)] {
        let answer = send(&fixture, method, &format!("{BELOW}/publish"), "").await;
        assert_eq!(answer.status, StatusCode::NO_CONTENT);
        let asked = asked(&fixture.server);
        assert!(
            matches!(asked.last(), Some(ServeRequest::PublishCheckpoint { public, .. }) if *public == expected),
            "{asked:?}"
        );
    }
    let unknown = "/training_runs/s:train:0/checkpoints/code/final/publish";
    send(&fixture, Method::POST, unknown, "").await.refused(StatusCode::BAD_REQUEST);
}

#[tokio::test]
async fn an_archive_is_where_the_answer_points() {
    let fixture = Fixture::new().await;
    let request = Request::get(format!("{BELOW}/archive")).header("host", "node:1").body(Body::empty()).unwrap();
    let found = fixture.send(request).await;
    assert_eq!((found.status, &found.headers["content-length"]), (StatusCode::FOUND, &"0".parse().unwrap()));
    let location = found.headers["location"].to_str().unwrap();
    assert!(location.starts_with("http://node:1/downloads/s:train:0/weights/final/archive.tar?"), "{location}");
    assert!(found.headers["expires"].to_str().unwrap().ends_with(" GMT"));
    // A link that nobody signed is refused, whatever it names.
    let unsigned = location.split_once('?').unwrap().0.strip_prefix("http://node:1").unwrap();
    fixture.get(unsigned).await.refused(StatusCode::NOT_FOUND);
    let request = Request::get(format!("{BELOW}/external_weights_urls")).header("host", "node:1");
    fixture.send(request.body(Body::empty()).unwrap()).await.refused(StatusCode::BAD_REQUEST);
}

#[tokio::test]
async fn a_copy_has_one_destination_and_one_key() {
    let fixture = Fixture::new().await;
    let copy = async |body: serde_json::Value| {
        let request = Request::post("/copy_weights").header("x-idempotency-key", "k");
        fixture.send(request.body(body.to_string().into()).unwrap()).await
    };
    let answer = copy(json!({ "source_path": CHECKPOINT, "destination_project_id": "p", "ttl_seconds": 3600 })).await;
    assert_eq!(answer.ok(), json!({ "tinker_path": "tinker://copy:train:0/weights/final" }));
    let asked = asked(&fixture.server);
    let Some(ServeRequest::CopyCheckpoint(wanted)) = asked.last() else { panic!("{asked:?}") };
    let CheckpointCopy { destination, ttl_seconds, key, .. } = wanted.as_ref();
    assert_eq!((destination, *ttl_seconds), (&CopyDestination::Project("p".to_owned()), Some(3_600)));
    assert_eq!(key.as_deref(), Some("k"));
    for wrong in [
        json!({ "source_path": CHECKPOINT }),
        json!({ "source_path": CHECKPOINT, "session_id": "s" }),
        json!({ "source_path": CHECKPOINT, "session_id": "s", "model_seq_id": 1, "destination_project_id": "p" }),
        json!({ "source_path": CHECKPOINT, "destination_project_id": "p", "weights_access_token": "t" }),
        json!({ "source_path": "elsewhere", "destination_project_id": "p" }),
    ] {
        copy(wrong).await.refused(StatusCode::BAD_REQUEST);
    }
}

#[tokio::test]
async fn a_search_asks_for_what_the_client_wrote() {
    let fixture = Fixture::new().await;
    let body = json!({
        "display_name": "Nightly  RUN",
        "user_metadata": { "a": "b" },
        "owner": { "type": "own" },
        "statuses": [{ "type": "client_finished", "reasons": ["errored"] }, { "type": "failed" }],
        "limit": 7,
        "cursor": { "last_created_at": "2026-01-02T03:04:05.123456Z", "last_session_id": "x" },
    });
    let answer = fixture.post("/sessions/search", body.to_string()).await.ok();
    assert_eq!(answer, json!({ "sessions": [], "next_cursor": null }));
    let asked_first = asked(&fixture.server);
    let Some(ServeRequest::SearchSessions(search)) = asked_first.last() else { panic!("{asked_first:?}") };
    assert_eq!(search.words, Some(vec!["nightly".to_owned(), "run".to_owned()]));
    assert_eq!(search.after.as_ref().unwrap().created_at.as_microsecond() % 1_000_000, 123_456);
    let expected = [SessionState::ClientFinished(Some(vec!["errored".to_owned()])), SessionState::Never];
    assert_eq!((search.states.as_deref(), search.limit), (Some(&expected[..]), 7));

    // Other people's sessions are nobody's to see; no search is needed to know.
    let body = json!({ "owner": { "type": "user", "owner_urns": ["bob"] } });
    assert_eq!(fixture.post("/sessions/search", body.to_string()).await.ok()["sessions"], json!([]));
    assert_eq!(asked(&fixture.server).len(), asked_first.len());
    fixture.post("/sessions/search", r#"{"limit":201}"#).await.refused(StatusCode::BAD_REQUEST);
}
