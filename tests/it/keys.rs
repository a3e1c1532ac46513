//! API keys while a node runs: made, used, revoked, and never seen in a log.

use std::path::Path;
use std::time::Duration;

use serde_json::json;
use tempfile::TempDir;
use tokio::process::Command;
use tokio::time::Instant;
use twinkle_tests::{Node, NodeOptions, TinkerHttp};

/// How soon a change of the keys must count: the server looks every two seconds.
const SOON: Duration = Duration::from_secs(20);

/// Runs `keys <arguments>` with a configuration that keeps its keys in `folder`: what it wrote to stdout.
async fn keys(folder: &Path, arguments: &[&str]) -> String {
    let config = folder.join("keys.yaml");
    let yaml =
        format!("{}\napplications: [{{name: server, route_prefix: /api/v1, import_path: server}}]\n", settings(folder));
    std::fs::write(&config, yaml).expect("a configuration");
    let mut command = Command::new(env!("CARGO_BIN_EXE_node"));
    command.arg("keys").args(arguments).arg("--config").arg(&config);
    let output = command.output().await.expect("the program runs");
    assert!(output.status.success(), "keys {arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).expect("text").trim().to_owned()
}

fn settings(folder: &Path) -> String {
    format!("auth: {{keys_file: {}}}", folder.join("keys.txt").display())
}

/// What a session costs a key: its status.
async fn status(node: &Node, key: &str) -> u16 {
    let client = TinkerHttp::new(&node.base_url(), key);
    client.post("create_session", &json!({ "tags": [], "sdk_version": "0.38.0" })).await.expect("an answer").0
}

async fn until(node: &Node, key: &str, wanted: u16) {
    let deadline = Instant::now() + SOON;
    while status(node, key).await != wanted {
        assert!(Instant::now() < deadline, "a changed key was not noticed");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

#[tokio::test]
async fn keys_come_and_go_while_a_node_runs_and_stay_out_of_its_log() {
    let folder = TempDir::new().expect("a folder");
    let laptop = keys(folder.path(), &["create", "--tenant", "alice", "--name", "laptop"]).await;
    let server = keys(folder.path(), &["create", "--tenant", "alice", "--name", "server"]).await;
    let bob = keys(folder.path(), &["create"]).await;
    let mut options = NodeOptions::fixture(env!("CARGO_BIN_EXE_node"), "qwen2");
    options.settings = settings(folder.path());
    options.environment.push(("RUST_LOG".to_owned(), "trace".to_owned()));
    let node = Node::start(options).await.expect("the server starts");

    let client = |key: &str| TinkerHttp::new(&node.base_url(), key);
    let opened = client(&laptop).ask("create_session", &json!({ "tags": [] })).await.expect("a session");
    let heartbeat = json!({ "session_id": opened["session_id"] });
    client(&server).ask("session_heartbeat", &heartbeat).await.expect("another key of the same tenant");
    assert_eq!(client(&bob).post("session_heartbeat", &heartbeat).await.expect("an answer").0, 404);
    let (unknown_status, unknown) = client("tml-never").post("session_heartbeat", &heartbeat).await.expect("an answer");

    assert_eq!(keys(folder.path(), &["revoke", "laptop"]).await, "");
    until(&node, &laptop, 401).await;
    let (revoked_status, revoked) = client(&laptop).post("session_heartbeat", &heartbeat).await.expect("an answer");
    assert_eq!((revoked_status, &revoked["detail"]), (unknown_status, &unknown["detail"]));
    client(&server).ask("session_heartbeat", &heartbeat).await.expect("the other key still works");
    let late = keys(folder.path(), &["create", "--name", "late"]).await;
    until(&node, &late, 200).await;

    let listed = keys(folder.path(), &["list"]).await;
    let (log, stored) = (node.log(), std::fs::read_to_string(folder.path().join("keys.txt")).expect("the keys file"));
    assert!(log.contains("the API keys have changed"), "{log}");
    for key in [laptop, server, bob, late] {
        for (place, text) in [("the log", &log), ("the list", &listed), ("the keys file", &stored)] {
            assert!(!text.contains(&key), "{place} shows a key");
        }
    }
    assert!(!log.contains("tml-never"), "the log shows a key that was not accepted");
    assert!(listed.contains("alice") && listed.contains("server") && !listed.contains("laptop"), "{listed}");
}
