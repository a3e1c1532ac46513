//! What a tenant learns of another's objects: nothing.
//!
//! Generated from the server's own list of routes: Bob asks every route for every kind of object, once with the name of
//! one that Alice owns and once with one that never was. Answers may differ in nothing but the name he sent.
//! Then Alice asks the same of her own objects: had Bob's requests done anything to them, or had the requests been
//! wrong for another reason than the owner, hers would fail.

mod cases;
mod native;
mod objects;

use std::time::Duration;

use reqwest::header::{ACCEPT, CONTENT_TYPE};
use serde_json::{Value, json};
use tokio::time::Instant;
use twinkle_tests::{Node, TinkerHttp};

use crate::fixture_node;
use cases::{Body, Case, Expected, cases};
use objects::Objects;

const ALICE: &str = "tml-alice";
const BOB: &str = "tml-bob";

/// An answer for what is not there must not wait for it to come.
const PROMPT: Duration = Duration::from_secs(10);

const PROTOBUF: &str = "application/x-protobuf";

/// What came back, with nothing left out that a client could look at.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Answer {
    status: u16,
    headers: Vec<(String, String)>,
    body: String,
}

impl Answer {
    fn json(&self) -> Value {
        serde_json::from_str(&self.body).unwrap_or(Value::Null)
    }

    /// The answer with the names that were sent, and those every request has of its own, taken out.
    fn without(mut self, sent: &Objects) -> Self {
        for (kind, name) in sent.names() {
            self.body = self.body.replace(&name, kind);
        }
        let own = self.json()["request_id"].as_str().map(str::to_owned);
        if let Some(own) = own {
            self.body = self.body.replace(&own, "<request>");
        }
        self.headers.retain(|(name, _)| name != "x-request-id" && name != "date");
        self
    }
}

struct Asker<'a> {
    client: reqwest::Client,
    node: &'a Node,
    key: &'static str,
}

impl Asker<'_> {
    async fn send(&self, case: &Case) -> Answer {
        let url = format!("{}{}", self.node.base_url(), case.path);
        let request = self.client.request(case.method.parse().expect("a method"), url).header("X-API-Key", self.key);
        let request = match &case.session {
            Some(session) => request.header("X-Twinkle-Session-Id", session),
            None => request,
        };
        let request = if case.takes_protobuf { request.header(ACCEPT, PROTOBUF) } else { request };
        let request = match &case.body {
            Body::None => request,
            Body::Json(body) => request.json(body),
            Body::Protobuf(bytes) => request.header(CONTENT_TYPE, PROTOBUF).body(bytes.clone()),
        };
        let response = request.timeout(Duration::from_mins(1)).send().await.expect("an answer");
        let status = response.status().as_u16();
        let mut headers: Vec<(String, String)> = response
            .headers()
            .iter()
            .map(|(name, value)| (name.to_string(), String::from_utf8_lossy(value.as_bytes()).into_owned()))
            .collect();
        headers.sort();
        let body = String::from_utf8_lossy(&response.bytes().await.expect("a body")).into_owned();
        Answer { status, headers, body }
    }

    /// The answer, and the result of the operation when one was started.
    async fn ask(&self, case: &Case) -> (Answer, Option<Answer>) {
        let answer = self.send(case).await;
        let started = answer.json()["request_id"].as_str().filter(|_| answer.status == 200).map(str::to_owned);
        let (Some(request), Expected::FailedOperation) = (started, case.expected) else { return (answer, None) };
        let poll = Case::post("/api/v1/retrieve_future", json!({ "request_id": request }));
        loop {
            let result = self.send(&poll).await;
            if result.status != 408 {
                return (answer, Some(result));
            }
        }
    }
}

/// Every method and path the node answers, as it lists them itself.
async fn routes(node: &Node) -> Vec<(String, String)> {
    let listed = tokio::process::Command::new(env!("CARGO_BIN_EXE_node"))
        .args(["routes", "--config"])
        .arg(node.folder().join("node.yaml"))
        .output()
        .await
        .expect("the list of routes");
    assert!(listed.status.success(), "{}", String::from_utf8_lossy(&listed.stderr));
    let text = String::from_utf8(listed.stdout).expect("text");
    let route = |line: &str| {
        let mut words = line.split_whitespace().map(str::to_owned);
        Some((words.next()?, words.next()?))
    };
    let routes: Vec<_> = text.lines().filter_map(route).collect();
    assert!(routes.len() > 30, "the list is too short:\n{text}");
    routes
}

#[tokio::test]
async fn a_foreign_object_is_answered_exactly_like_one_that_never_was() {
    let node = fixture_node("qwen2").await;
    let alices = Objects::make(&TinkerHttp::new(&node.base_url(), ALICE), node.model()).await;
    let bobs = Objects::make(&TinkerHttp::new(&node.base_url(), BOB), node.model()).await;
    let absent = alices.absent();
    let asker = |key| Asker { client: reqwest::Client::new(), node: &node, key };
    let (alice, bob) = (asker(ALICE), asker(BOB));

    let routes = routes(&node).await;
    let of = |theirs: &Objects, mine: &Objects| -> Vec<(String, Vec<Case>)> {
        let of_route = |(method, path): &(String, String)| {
            let cases = cases(method, path, theirs, mine, node.model());
            (format!("{method} {path}"), cases.unwrap_or_else(|| panic!("no case for `{method} {path}`: add one")))
        };
        routes.iter().map(of_route).collect()
    };
    for ((route, foreign), (_, missing)) in of(&alices, &bobs).iter().zip(of(&absent, &bobs)) {
        for (case, missing) in foreign.iter().zip(&missing) {
            let about = format!("{route} with {}", case.about);
            let began = Instant::now();
            let (answer, result) = bob.ask(case).await;
            assert!(began.elapsed() < PROMPT, "{about}: answered after {:?}", began.elapsed());
            case.check(&about, answer.status, &result.as_ref().unwrap_or(&answer).json());
            let (never, never_result) = bob.ask(missing).await;
            if case.expected == Expected::NothingForeign {
                for (_, name) in alices.names() {
                    assert!(!answer.body.contains(&name), "{about}: shows Bob `{name}`: {}", answer.body);
                }
                continue;
            }
            assert_eq!(answer.without(&alices), never.without(&absent), "{about}");
            let results = (result.map(|it| it.without(&alices)), never_result.map(|it| it.without(&absent)));
            assert_eq!(results.0, results.1, "{about}: the results of the operations");
        }
    }

    let mut own = Vec::new();
    for (route, cases) in of(&alices, &alices) {
        own.extend(cases.into_iter().filter(Case::works_for_the_owner).map(|case| (route.clone(), case)));
    }
    // What ends an object comes after what needs it, and a session after its runs.
    own.sort_by_key(|(_, case)| case.ends);
    for (route, case) in own {
        let about = format!("{route} with {} of her own", case.about);
        let (answer, result) = alice.ask(&case).await;
        assert!(answer.status < 300, "{about}: {answer:?}");
        let failed = result.is_some_and(|result| result.json()["error"].is_string());
        assert!(!failed, "{about}: the operation failed");
    }
}
