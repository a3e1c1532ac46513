//! A crowd: thousands of held polls and a burst of samples cost the server no thread and no error.

use std::collections::BTreeMap;
use std::fs;
use std::sync::Arc;
use std::time::Duration;

use serde_json::{Value, json};
use tokio::task::JoinSet;
use tokio::time::{Instant, MissedTickBehavior, interval, sleep, timeout};
use twinkle_tests::{Node, NodeOptions, TinkerHttp};

/// Polls that are held while the samples are drawn.
const POLLS: usize = 2000;
/// Operations whose results they wait for; each waits for one that never comes.
const WAITING: u64 = 40;
/// Samples at once: what one sampling client of the SDK has on its way.
const SAMPLES: u64 = 512;
/// The longest a sign of life may take meanwhile, on a machine whose cores the samples and this test fill.
const PROMPT: Duration = Duration::from_secs(1);
const LIMIT: Duration = Duration::from_mins(1);

/// Answers by route and status.
type Answers = BTreeMap<(&'static str, u16), usize>;

fn threads(node: &Node) -> usize {
    let status = fs::read_to_string(format!("/proc/{}/status", node.process_id())).expect("the process lives");
    let line = status.lines().find_map(|line| line.strip_prefix("Threads:")).expect("a count");
    line.trim().parse().expect("a number")
}

fn open_files(node: &Node) -> usize {
    fs::read_dir(format!("/proc/{}/fd", node.process_id())).expect("the process lives").count()
}

/// Operations of a run that wait for its first: their request ids.
async fn waiting(client: &TinkerHttp, model: &str) -> Vec<String> {
    let run = client.create_run(model, 2, 1).await.expect("a run");
    let mut requests = Vec::new();
    for number in 0..WAITING {
        requests.push(client.submit_optim_step(&run, 100 + number, 1e-3).await.expect("accepted"));
    }
    requests
}

/// Polls of these results, each on a connection of its own, until they are dropped.
fn park(node: &Node, requests: &[String]) -> JoinSet<u16> {
    let mut polls = JoinSet::new();
    let client = Arc::new(TinkerHttp::new(&node.base_url(), "tml-load"));
    for index in 0..POLLS {
        let body = json!({ "request_id": requests[index % requests.len()] });
        let client = Arc::clone(&client);
        polls.spawn(async move {
            loop {
                match client.post("retrieve_future", &body).await.expect("an answer").0 {
                    408 => {}
                    other => return other,
                }
            }
        });
    }
    polls
}

async fn sampling_session(client: &TinkerHttp, model: &str) -> String {
    let session =
        client.ask("create_session", &json!({ "tags": [], "sdk_version": "0.38.0" })).await.expect("a session");
    let body = json!({ "session_id": session["session_id"], "sampling_session_seq_id": 0, "base_model": model });
    let opened = client.ask("create_sampling_session", &body).await.expect("a sampling session");
    opened["sampling_session_id"].as_str().expect("an id").to_owned()
}

/// Submits one sample and polls until it is there: the statuses it met.
async fn one_sample(client: &TinkerHttp, session: &str, number: u64) -> Answers {
    let body = json!({
        "sampling_session_id": session,
        "seq_id": number,
        "num_samples": 1,
        "prompt": { "chunks": [{ "tokens": [5, 9, 31, number % 200] }] },
        "sampling_params": { "max_tokens": 4, "stop": [], "temperature": 1.0, "seed": number },
    });
    let mut answers = Answers::new();
    let (status, accepted) = client.post("asample", &body).await.expect("an answer");
    *answers.entry(("asample", status)).or_default() += 1;
    assert_eq!(status, 200, "{accepted}");
    loop {
        let poll = json!({ "request_id": accepted["request_id"] });
        let (status, result) = client.post("retrieve_future", &poll).await.expect("an answer");
        *answers.entry(("retrieve_future", status)).or_default() += 1;
        if status != 408 {
            assert_eq!(result["sequences"][0]["tokens"].as_array().map(Vec::len), Some(4), "{result}");
            return answers;
        }
    }
}

/// Asks for a sign of life again and again: how long each took.
async fn signs_of_life(url: String, mut enough: tokio::sync::oneshot::Receiver<()>) -> Vec<Duration> {
    let client = reqwest::Client::new();
    let mut ticks = interval(Duration::from_millis(20));
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut latencies = Vec::new();
    while enough.try_recv().is_err() {
        ticks.tick().await;
        let began = Instant::now();
        let status = client.get(&url).send().await.expect("an answer").status();
        assert!(status.is_success(), "{status}");
        latencies.push(began.elapsed());
    }
    latencies.sort();
    latencies
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_thousand_polls_and_512_samples_at_once_cost_no_thread_and_no_error() {
    let options = NodeOptions {
        settings: "task_queue: {rps_limit: 0, tps_limit: 0}".to_owned(),
        ..NodeOptions::fixture(env!("CARGO_BIN_EXE_node"), "llama3")
    };
    let node = Node::start(options).await.expect("the server starts");
    let client = Arc::new(TinkerHttp::new(&node.base_url(), "tml-load"));
    let requests = waiting(&client, node.model()).await;
    let session = sampling_session(&client, node.model()).await;
    // Both engines have worked: whatever threads they need are there.
    one_sample(&client, &session, 1_000_000).await;
    let (threads_before, files_before) = (threads(&node), open_files(&node));

    let mut polls = park(&node, &requests);
    let parked = async {
        while open_files(&node) < files_before + POLLS {
            sleep(Duration::from_millis(20)).await;
        }
    };
    timeout(LIMIT, parked).await.expect("every poll has its connection");
    let threads_parked = threads(&node);

    let (done, enough) = tokio::sync::oneshot::channel();
    let life = tokio::spawn(signs_of_life(format!("{}/api/v1/healthz", node.base_url()), enough));
    let mut samples = JoinSet::new();
    for number in 0..SAMPLES {
        let (client, session) = (Arc::clone(&client), session.clone());
        samples.spawn(async move { one_sample(&client, &session, number).await });
    }
    let (mut answers, mut most_threads) = (Answers::new(), threads_parked);
    let sampling = async {
        while let Some(sampled) = samples.join_next().await {
            for (kind, count) in sampled.expect("sampled") {
                *answers.entry(kind).or_default() += count;
            }
            most_threads = most_threads.max(threads(&node));
        }
    };
    timeout(LIMIT, sampling).await.expect("every sample in time");
    done.send(()).expect("still asking");
    let latencies = life.await.expect("signs of life");

    assert_eq!(answers[&("asample", 200)], usize::try_from(SAMPLES).expect("small"), "{answers:?}");
    assert!(answers.keys().all(|(_, status)| *status == 200 || *status == 408), "{answers:?}");
    assert!(polls.try_join_next().is_none(), "a poll was answered with something else than 408");
    assert_eq!(polls.len(), POLLS);
    let slowest = latencies.last().copied().unwrap_or_default();
    assert!(slowest < PROMPT, "`healthz` took {slowest:?} of {} times", latencies.len());
    // The runtime may lend a thread or two to blocking work, which does not grow with the crowd.
    assert!(
        most_threads <= threads_before + 8,
        "{threads_before} threads before, {threads_parked} with the polls, {most_threads} at most"
    );
}

/// What a client that was cut off leaves behind: nothing that holds a thread, a connection or a result.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn polls_whose_clients_are_gone_are_let_go() {
    let node =
        Node::start(NodeOptions::fixture(env!("CARGO_BIN_EXE_node"), "llama3")).await.expect("the server starts");
    let client = TinkerHttp::new(&node.base_url(), "tml-load");
    let run = client.create_run(node.model(), 2, 1).await.expect("a run");
    let request = client.submit_optim_step(&run, 2, 1e-3).await.expect("accepted");
    let before = open_files(&node);
    let mut polls = JoinSet::new();
    for _ in 0..100 {
        let client = TinkerHttp::new(&node.base_url(), "tml-load");
        let body: Value = json!({ "request_id": request });
        polls.spawn(async move { client.post("retrieve_future", &body).await.map(|_| ()) });
    }
    let until = async |enough: &dyn Fn(usize) -> bool| {
        let reached = async {
            while !enough(open_files(&node)) {
                sleep(Duration::from_millis(10)).await;
            }
        };
        timeout(Duration::from_secs(20), reached).await.is_ok()
    };
    assert!(until(&|files| files >= before + 100).await, "every poll has its connection");
    polls.shutdown().await;
    assert!(until(&|files| files <= before + 5).await, "{} connections are still open", open_files(&node) - before);
}
