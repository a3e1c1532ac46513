//! Results in bulk, given up, and after a crash: what a sampling client's own traffic relies on.

use std::time::Duration;

use serde_json::{Value, json};
use tokio::time::{Instant, sleep, timeout};
use twinkle_tests::{Node, NodeOptions, SdkVersion, TinkerHttp, run_script};

use crate::fixture_node;

const TOKENS: [u32; 9] = [5, 9, 31, 7, 120, 44, 3, 250, 18];

/// A sample that takes far longer than any test.
const ENDLESS: (u32, u32) = (1024, 400);

/// How soon cancelled work must be gone: a scheduling turn, and a slow machine's patience.
const SOON: Duration = Duration::from_secs(10);

/// A node without quotas, whose bursts are the test's.
async fn node() -> Node {
    let options = NodeOptions {
        settings: "task_queue: {rps_limit: 0, tps_limit: 0}".to_owned(),
        ..NodeOptions::fixture(env!("CARGO_BIN_EXE_node"), "qwen3")
    };
    Node::start(options).await.expect("the server starts")
}

async fn sampling_session(client: &TinkerHttp, model: &str) -> String {
    let session =
        client.ask("create_session", &json!({ "tags": [], "sdk_version": "0.38.0" })).await.expect("a session");
    let body = json!({ "session_id": session["session_id"], "sampling_session_seq_id": 0, "base_model": model });
    let opened = client.ask("create_sampling_session", &body).await.expect("a sampling session");
    opened["sampling_session_id"].as_str().expect("an id").to_owned()
}

fn sample(session: &str, number: u64, (samples, max_tokens): (u32, u32)) -> Value {
    json!({
        "sampling_session_id": session,
        "seq_id": number,
        "num_samples": samples,
        "prompt": { "chunks": [{ "tokens": [5, 9, 31, 7] }] },
        "sampling_params": { "max_tokens": max_tokens, "stop": [], "temperature": 1.0, "seed": 1 },
    })
}

/// The completions of one client of a sampling session, as its poller sees them.
struct Poller<'a> {
    client: &'a TinkerHttp,
    session: String,
    number: u64,
    cursor: u64,
}

impl<'a> Poller<'a> {
    fn new(client: &'a TinkerHttp, session: &str, number: u64) -> Self {
        Self { client, session: session.to_owned(), number, cursor: 0 }
    }

    async fn poll(&mut self, seconds: f64, retrieved: &[String]) -> Vec<Value> {
        let target = json!({
            "type": "sampling_session", "sampling_session_id": self.session, "cloned_sampler_id": self.number,
        });
        let body = json!({
            "target": target, "prev_cursor": self.cursor, "timeout": seconds, "retrieved_request_ids": retrieved,
        });
        let mut answer = self.client.ask("retrieve_futures", &body).await.expect("completions");
        self.cursor = answer["cursor"].as_u64().expect("a cursor");
        answer["completions"].as_array_mut().map(std::mem::take).expect("a list")
    }

    /// Polls until so many have come.
    async fn collect(&mut self, count: usize) -> Vec<Value> {
        let mut found = Vec::new();
        let all = async {
            while found.len() < count {
                found.extend(self.poll(20.0, &[]).await);
            }
        };
        timeout(Duration::from_mins(1), all).await.expect("all completions");
        found
    }
}

fn ids(completions: &[Value]) -> Vec<String> {
    let mut ids: Vec<_> = completions.iter().map(|it| it["request_id"].as_str().expect("an id").to_owned()).collect();
    ids.sort();
    ids
}

/// What the sampling engine holds.
async fn engine(node: &Node) -> Value {
    let url = format!("{}/health/sampler", node.base_url());
    let asked = reqwest::Client::new().get(url).header("X-API-Key", "tml-futures").send().await.expect("an answer");
    let text = asked.text().await.expect("a text");
    serde_json::from_str::<Value>(&text).expect("JSON")["status"].clone()
}

#[tokio::test]
async fn a_client_hears_of_its_samples_in_bulk_and_fetches_each() {
    let node = node().await;
    let client = TinkerHttp::new(&node.base_url(), "tml-futures");
    let session = sampling_session(&client, node.model()).await;
    let mut requests = Vec::new();
    for number in 0..8 {
        requests.push(client.submit("asample", &sample(&session, number, (2, 3))).await.expect("accepted"));
    }
    let broken = json!({ "prompt": { "chunks": [] }, "sampling_session_id": session, "seq_id": 8, "num_samples": 1,
                         "sampling_params": { "max_tokens": 3 } });
    let broken = client.submit("asample", &broken).await.expect("accepted");
    let clones = client.submit("asample", &sample(&session, 7_000_000_000, (1, 3))).await.expect("accepted");

    let mut poller = Poller::new(&client, &session, 0);
    let found = poller.collect(9).await;
    let (finished, failed): (Vec<_>, Vec<_>) = found.into_iter().partition(|it| it["state"] == "finished");
    requests.sort();
    assert_eq!(ids(&finished), requests);
    assert!(finished.iter().all(|it| it["response_payload_uncompressed_size"].as_u64() > Some(0)), "{finished:?}");
    assert_eq!(ids(&failed), std::slice::from_ref(&broken));
    assert_eq!(ids(&Poller::new(&client, &session, 7).collect(1).await), [clones]);

    for request in &requests {
        let result = client.result(request).await.expect("a result");
        assert_eq!(result["sequences"].as_array().map(Vec::len), Some(2), "{result}");
    }
    assert_eq!(client.result(&broken).await.expect("an error")["category"], "user");
    let began = Instant::now();
    assert_eq!(poller.poll(0.0, &requests).await, Vec::<Value>::new(), "nothing is told twice");
    assert!(began.elapsed() < SOON, "`timeout` 0 does not wait");
    let (status, _) = client.post("retrieve_future", &json!({ "request_id": requests[0] })).await.expect("an answer");
    assert_eq!(status, 410, "the client has it and said so");
}

#[tokio::test]
async fn samples_lost_with_a_server_are_told_as_failed_and_can_be_submitted_again() {
    let mut node = node().await;
    let client = TinkerHttp::new(&node.base_url(), "tml-futures");
    let session = sampling_session(&client, node.model()).await;
    let mut poller = Poller::new(&client, &session, 0);
    let done = client.submit("asample", &sample(&session, 0, (1, 2))).await.expect("accepted");
    assert_eq!(ids(&poller.collect(1).await), [done]);
    let mut lost = Vec::new();
    for number in 1..4 {
        lost.push(client.submit("asample", &sample(&session, number, ENDLESS)).await.expect("accepted"));
    }
    lost.sort();
    node.kill().expect("killed");
    node.start_again().await.expect("it starts again");

    let told = poller.collect(3).await;
    assert!(told.iter().all(|completion| completion["state"] == "failed"), "{told:?}");
    let told: Vec<_> = ids(&told).into_iter().filter(|request| lost.contains(request)).collect();
    assert_eq!(told, lost, "whoever waits for one of them hears of it");
    for request in &lost {
        let (status, body) =
            client.post("retrieve_future", &json!({ "request_id": request })).await.expect("an answer");
        assert_eq!(status, 410, "the SDK submits a sample again on 410: {body}");
    }
    let again = client.submit("asample", &sample(&session, 4, (1, 2))).await.expect("accepted");
    assert_eq!(ids(&poller.collect(1).await), std::slice::from_ref(&again));
    client.result(&again).await.expect("a result");
}

#[tokio::test]
async fn cancelled_samples_give_their_memory_back_and_a_neighbour_goes_on() {
    let node = node().await;
    let [alice, bob] = ["tml-alice", "tml-bob"].map(|key| TinkerHttp::new(&node.base_url(), key));
    let (hers, his) = (sampling_session(&alice, node.model()).await, sampling_session(&bob, node.model()).await);
    // More than there are seats, so that some run and some wait.
    let mut endless = Vec::new();
    for number in 0..3 {
        endless.push(alice.submit("asample", &sample(&hers, number, ENDLESS)).await.expect("accepted"));
    }
    let deadline = Instant::now() + SOON;
    while engine(&node).await["requests_in_memory"] != 3 {
        assert!(Instant::now() < deadline, "the engine has them");
        sleep(Duration::from_millis(20)).await;
    }
    let small = bob.submit("asample", &sample(&his, 0, (1, 64))).await.expect("accepted");

    for request in &endless {
        let unwanted = json!({ "request_id": request });
        assert_eq!(bob.post("cancel_future", &unwanted).await.expect("an answer").0, 204, "he is told nothing");
    }
    let holds = engine(&node).await;
    assert!(holds["requests_in_memory"].as_u64() >= Some(3), "they are not his to cancel: {holds}");
    assert!(holds["cache_bytes"].as_u64() > Some(0) && holds["samples_waiting"].as_u64() > Some(0), "{holds}");
    let began = Instant::now();
    for request in &endless {
        let unwanted = json!({ "request_id": request });
        assert_eq!(alice.post("cancel_future", &unwanted).await.expect("an answer").0, 204);
    }
    let sampled = timeout(SOON, bob.result(&small)).await.expect("his sample has the engine to itself").expect("it");
    assert_eq!(sampled["sequences"][0]["tokens"].as_array().map(Vec::len), Some(64), "{sampled}");
    loop {
        let holds = engine(&node).await;
        if (&holds["requests_in_memory"], &holds["cache_bytes"]) == (&json!(0), &json!(0)) {
            break;
        }
        assert!(began.elapsed() < SOON, "cancelled samples still hold memory: {holds}");
        sleep(Duration::from_millis(20)).await;
    }
    assert_eq!(Poller::new(&alice, &hers, 0).collect(3).await.len(), 3, "nobody waits for them in vain");
    let late = alice.result(&endless[0]).await.expect("an answer");
    assert_eq!(late["category"], "user", "a late poll is not told to submit it again: {late}");
    assert!(late["error"].as_str().is_some_and(|text| text.contains("was cancelled")), "{late}");
}

#[tokio::test]
async fn an_accepted_training_operation_is_executed_whoever_cancels_it() {
    let node = fixture_node("qwen3").await;
    let client = TinkerHttp::new(&node.base_url(), "tml-futures");
    let run = client.create_run(node.model(), 4, 1).await.expect("a run");
    let waiting = client.submit_optim_step(&run, 2, 1e-3).await.expect("accepted");
    let (status, _) = client.post("cancel_future", &json!({ "request_id": waiting })).await.expect("an answer");
    assert_eq!(status, 204);
    client.submit_forward_backward(&run, 1, &TOKENS).await.expect("accepted");
    let result = client.result(&waiting).await.expect("a result");
    assert!(result["metrics"].is_object(), "{result}");
}

#[tokio::test]
async fn clients_that_join_a_sampling_session_get_numbers_of_their_own() {
    let mut node = fixture_node("qwen3").await;
    let client = TinkerHttp::new(&node.base_url(), "tml-futures");
    let session = sampling_session(&client, node.model()).await;
    let join = json!({ "sampling_session_id": session, "type": "join_sampling_session" });
    let mut numbers = Vec::new();
    for round in 0..3 {
        if round == 2 {
            node.kill().expect("killed");
            node.start_again().await.expect("it starts again");
        }
        let joined = client.ask("join_sampling_session", &join).await.expect("joined");
        numbers.push(joined["client_counter"].as_u64().expect("a number"));
    }
    assert_eq!(numbers, [1, 2, 3]);
}

#[tokio::test]
async fn every_poll_of_a_result_gets_it_in_the_form_it_takes() {
    let node = fixture_node("qwen3").await;
    let client = TinkerHttp::new(&node.base_url(), "tml-futures");
    let session = sampling_session(&client, node.model()).await;
    let request = client.submit("asample", &sample(&session, 0, (4, 16))).await.expect("accepted");
    let http = reqwest::Client::new();
    let poll = |accept: &'static str| {
        let post = http.post(format!("{}/api/v1/retrieve_future", node.base_url()));
        post.header("X-API-Key", "tml-futures").header("Accept", accept).json(&json!({ "request_id": request })).send()
    };
    // At the same time, and once more afterwards, as after a lost answer.
    let (json, protobuf, either) = tokio::join!(
        poll("application/json"),
        poll("application/x-protobuf"),
        poll("application/x-protobuf, application/json")
    );
    let media_type = |answer: &reqwest::Response| answer.headers()["content-type"].to_str().map(str::to_owned);
    let [json, protobuf, either] = [json, protobuf, either].map(|answer| answer.expect("an answer"));
    assert_eq!(media_type(&json).expect("text"), "application/json");
    for answer in [&protobuf, &either] {
        assert_eq!(media_type(answer).expect("text"), "application/x-protobuf");
    }
    assert_eq!(protobuf.bytes().await.expect("a body"), either.bytes().await.expect("a body"));
    let again = poll("application/json").await.expect("an answer");
    assert_eq!(json.bytes().await.expect("a body"), again.bytes().await.expect("a body"));
}

#[tokio::test]
async fn the_sdk_samples_in_bulk_gives_up_samples_and_joins_sessions() {
    let node = node().await;
    let arguments = ["--base-url", &node.base_url(), "--model", node.model()];
    if let Err(failure) = run_script(SdkVersion::V0_38_0, "futures.py", &arguments).await {
        panic!("{failure:#}\n--- server log ---\n{}", node.log());
    }
}
