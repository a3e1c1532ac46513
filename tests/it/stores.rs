//! Training goes on in the same bits after `kill -9`, wherever the records are.

use serde_json::Value;
use twinkle_tests::{Node, NodeOptions, TinkerHttp};

#[expect(dead_code, reason = "a database is killed in the store's own tests only")]
#[path = "../../crates/twinkle-core/tests/state/databases.rs"]
mod databases;

use databases::Database;

const TOKENS: [u32; 8] = [5, 9, 31, 7, 120, 44, 3, 250];

/// Two steps, a kill if asked for, two more steps; every result, and the logprobs afterwards.
async fn train(persistence: &str, kill: bool) -> (Vec<Value>, Value) {
    let mut options = NodeOptions::fixture(env!("CARGO_BIN_EXE_node"), "qwen3");
    options.persistence = persistence.to_owned();
    let mut node = Node::start(options).await.expect("the server starts");
    let client = TinkerHttp::new(&node.base_url(), "tml-stores");
    let run = client.create_run(node.model(), 4, 11).await.expect("a run");
    let mut requests = Vec::new();
    for step in 1..=4 {
        requests.push(client.submit_forward_backward(&run, 2 * step - 1, &TOKENS).await.expect("accepted"));
        requests.push(client.submit_optim_step(&run, 2 * step, 1e-2).await.expect("accepted"));
        if kill && step == 2 {
            node.kill().expect("killed");
            node.start_again().await.expect("it starts again");
        }
    }
    let mut results = Vec::new();
    for request in &requests {
        results.push(client.result(request).await.expect("a result"));
    }
    let logprobs = client.forward(&run, 9, &TOKENS).await.expect("logprobs");
    (results, logprobs["loss_fn_outputs"].clone())
}

#[tokio::test]
async fn a_killed_server_continues_from_postgres() {
    let Some(database) = Database::postgres() else { return };
    let persistence = format!("mode: postgres, postgres_url: '{}', key_prefix: it", database.url());
    assert_eq!(train(&persistence, true).await, train("mode: memory", false).await);
}

#[tokio::test]
async fn a_killed_server_continues_from_redis() {
    let Some(database) = Database::redis() else { return };
    let persistence = format!("mode: redis, redis_url: '{}', key_prefix: 'it:'", database.url());
    assert_eq!(train(&persistence, true).await, train("mode: memory", false).await);
}
