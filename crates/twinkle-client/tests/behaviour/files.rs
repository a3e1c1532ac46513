//! Files from the server.

use serde_json::json;
use twinkle_client::{ConnectOptions, Download, Error, RestClient, RetryPolicy};

use crate::script::{Answer, Server, json_answer};

const PATH: &str = "twinkle://s-1:train:0/sampler_weights/last";
const ROUTE: &str = "training_runs/s-1:train:0/checkpoints/sampler_weights/last";

async fn rest(server: &Server) -> RestClient {
    let retry = RetryPolicy {
        first_pause: std::time::Duration::from_millis(1),
        give_up_after: std::time::Duration::from_millis(10),
        ..RetryPolicy::default()
    };
    let options = ConnectOptions { retry, ..ConnectOptions::default() };
    RestClient::connect(&server.start().await, "tml-test", options).unwrap()
}

fn archive_at(location: &'static str) -> Answer {
    Answer { status: 302, headers: vec![("location", location)], body: Vec::new() }
}

fn file(content: &str) -> Answer {
    Answer { status: 200, headers: Vec::new(), body: content.as_bytes().to_vec() }
}

#[tokio::test]
async fn an_archive_is_downloaded_without_the_key_and_appears_when_it_is_complete() {
    let busy = json_answer(503, &json!({ "detail": "still building" }));
    let archive = format!("{ROUTE}/archive").leak();
    let server = Server::new()
        .on(archive, [busy.clone(), archive_at("/files/last.tar?signature=x")])
        .on("/files/last.tar", [busy, file("all of it")]);
    let folder = tempfile::tempdir().unwrap();
    let to = folder.path().join("last.tar");
    let mut seen = Vec::new();
    let bytes = rest(&server).await.download_checkpoint_archive(PATH, &to, |piece| seen.push(piece)).await.unwrap();
    assert_eq!((bytes, std::fs::read_to_string(&to).unwrap().as_str()), (9, "all of it"));
    assert_eq!(seen.last(), Some(&Download { bytes: 9, total: Some(9) }));
    assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 1, "nothing else is left");
    assert_eq!(server.header(archive, "x-api-key").len(), 2);
    assert!(server.header("/files/last.tar", "x-api-key").is_empty());
    assert!(server.header("/files/last.tar", "authorization").is_empty());
}

#[tokio::test]
async fn a_file_that_is_refused_leaves_nothing() {
    let archive = format!("{ROUTE}/archive").leak();
    let refused = json_answer(403, &json!({ "detail": "the link is too old" }));
    let server = Server::new().on(archive, [archive_at("/files/last.tar")]).on("/files/last.tar", [refused]);
    let folder = tempfile::tempdir().unwrap();
    let to = folder.path().join("last.tar");
    let error = rest(&server).await.download_checkpoint_archive(PATH, &to, |_| ()).await.unwrap_err();
    assert!(matches!(&error, Error::Rejected { status: 403, message } if message.contains("too old")), "{error}");
    assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0);
}

#[tokio::test]
async fn external_weights_are_downloaded_file_by_file() {
    let urls = json!({
        "urls": { "adapter_config.json": "/files/a", "adapter_model.safetensors": "/files/b" },
        "expires": "2026-11-21T12:00:00Z",
    });
    let route = "training_runs/s-1:train:0/checkpoints/external_weights/last/external_weights_urls";
    let server =
        Server::new().on(route, [json_answer(200, &urls)]).on("/files/a", [file("{}")]).on("/files/b", [file("xy")]);
    let folder = tempfile::tempdir().unwrap();
    let into = folder.path().join("deep/adapter");
    let path = "tinker://s-1:train:0/external_weights/last";
    let files = rest(&server).await.download_external_weights(path, &into, |_, _| ()).await.unwrap();
    assert_eq!(files, [into.join("adapter_config.json"), into.join("adapter_model.safetensors")]);
    assert_eq!(std::fs::read_to_string(&files[1]).unwrap(), "xy");
}

#[tokio::test]
async fn a_server_does_not_choose_where_a_file_is_written() {
    let urls = json!({ "urls": { "../evil": "/files/a" }, "expires": "2026-11-21T12:00:00Z" });
    let route = "training_runs/s-1:train:0/checkpoints/external_weights/last/external_weights_urls";
    let server = Server::new().on(route, [json_answer(200, &urls)]).on("/files/a", [file("{}")]);
    let folder = tempfile::tempdir().unwrap();
    let into = folder.path().join("adapter");
    let path = "tinker://s-1:train:0/external_weights/last";
    let error = rest(&server).await.download_external_weights(path, &into, |_, _| ()).await.unwrap_err();
    assert!(matches!(error, Error::Malformed { .. }), "{error}");
    assert!(server.asked("/files/a").is_empty() && !folder.path().join("evil").exists());
}
