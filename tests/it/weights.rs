//! Checkpoints as their users have them: exported, downloaded, published, copied, and there after `kill -9`.

use reqwest::header::{ACCEPT_RANGES, CONTENT_LENGTH, CONTENT_RANGE, ETAG, IF_RANGE, LOCATION, RANGE};
use reqwest::redirect::Policy;
use reqwest::{Client, Method, StatusCode};
use serde_json::{Value, json};
use twinkle_tests::{Node, TinkerHttp};

use crate::fixture_node;

const ALICE: &str = "tml-alice";
const BOB: &str = "tml-bob";
const TOKENS: [u32; 8] = [5, 9, 31, 7, 120, 44, 3, 250];

/// A client that follows nothing and sends no key unless told to.
fn plain() -> Client {
    Client::builder().redirect(Policy::none()).build().expect("a client")
}

/// Sends a request of one tenant: status and body.
async fn ask(node: &Node, key: &str, method: Method, route: &str, body: Option<Value>) -> (u16, Value) {
    let request = plain().request(method, format!("{}/api/v1/{route}", node.base_url())).header("X-API-Key", key);
    let request = body.iter().fold(request, reqwest::RequestBuilder::json);
    let response = request.send().await.expect("an answer");
    let status = response.status().as_u16();
    let text = response.text().await.expect("a body");
    (status, serde_json::from_str(&text).unwrap_or(Value::Null))
}

/// Submits an operation that must succeed: its result.
async fn done(client: &TinkerHttp, route: &str, body: Value) -> Value {
    let request = client.submit(route, &body).await.expect("accepted");
    let result = client.result(&request).await.expect("a result");
    assert!(!result["error"].is_string(), "{route}: {result}");
    result
}

/// A run of Alice that was trained for one step.
async fn trained(node: &Node) -> (TinkerHttp, String) {
    let client = TinkerHttp::new(&node.base_url(), ALICE);
    let run = client.create_run(node.model(), 4, 1).await.expect("a run");
    let step = client.submit_forward_backward(&run, 1, &TOKENS).await.expect("accepted");
    client.result(&step).await.expect("a result");
    let step = client.submit_optim_step(&run, 2, 1e-2).await.expect("accepted");
    client.result(&step).await.expect("a result");
    (client, run)
}

/// The links of an export, by file.
async fn links(node: &Node, key: &str, path: &str) -> Value {
    let (run, id) = path.strip_prefix("tinker://").and_then(|rest| rest.split_once('/')).expect("a path");
    let route = format!("training_runs/{run}/checkpoints/{id}/external_weights_urls");
    let (status, answer) = ask(node, key, Method::GET, &route, None).await;
    assert_eq!(status, 200, "{answer}");
    answer["urls"].clone()
}

async fn fetch(url: &str) -> Vec<u8> {
    let response = plain().get(url).send().await.expect("an answer");
    assert_eq!(response.status(), StatusCode::OK);
    response.bytes().await.expect("a body").to_vec()
}

#[tokio::test]
async fn exported_weights_are_the_adapter_and_survive_a_kill() {
    let mut node = fixture_node("qwen3").await;
    let (client, run) = trained(&node).await;
    let saved = done(&client, "save_weights", json!({ "model_id": run, "path": "all", "seq_id": 3 })).await;
    let exported = done(&client, "save_weights_external", json!({ "model_id": run, "path": "out", "seq_id": 4 })).await;
    assert_eq!(exported["type"], "save_weights_external");
    node.kill().expect("killed");
    node.start_again().await.expect("it starts again");

    let path = exported["path"].as_str().expect("its path");
    let urls = links(&node, ALICE, path).await;
    let names: Vec<&String> = urls.as_object().expect("links").keys().collect();
    assert_eq!(names, ["adapter_config.json", "adapter_model.safetensors"]);
    let weights = urls["adapter_model.safetensors"].as_str().expect("a link");

    // The same bytes as in the training checkpoint, which older clients get as an archive.
    let saved = saved["path"].as_str().expect("its path");
    let (_, id) = saved.strip_prefix("tinker://").and_then(|rest| rest.split_once('/')).expect("a path");
    let archive = format!("{}/api/v1/training_runs/{run}/checkpoints/{id}/archive", node.base_url());
    let redirected = plain().get(&archive).header("X-API-Key", ALICE).send().await.expect("an answer");
    assert_eq!(redirected.status(), StatusCode::FOUND);
    let archive = fetch(redirected.headers()[LOCATION].to_str().expect("text")).await;
    let whole = fetch(weights).await;
    assert!(archive.windows(whole.len()).any(|window| window == whole), "the archive has other weights");

    // A download that was cut off is taken up again, as long as the file is the same.
    let head = plain().head(weights).send().await.expect("an answer");
    assert_eq!(head.headers()[CONTENT_LENGTH], whole.len().to_string());
    assert_eq!(head.headers()[ACCEPT_RANGES], "bytes");
    let etag = head.headers()[ETAG].clone();
    let resume = |tag: reqwest::header::HeaderValue| {
        plain().get(weights).header(RANGE, "bytes=100-").header(IF_RANGE, tag).send()
    };
    let rest = resume(etag).await.expect("an answer");
    assert_eq!(rest.status(), StatusCode::PARTIAL_CONTENT);
    assert_eq!(rest.headers()[CONTENT_RANGE], format!("bytes 100-{}/{}", whole.len() - 1, whole.len()));
    assert_eq!(rest.bytes().await.expect("a body"), whole[100..]);
    let other = resume("\"other\"".parse().expect("a tag")).await.expect("an answer");
    assert_eq!((other.status(), other.bytes().await.expect("a body").to_vec()), (StatusCode::OK, whole));

    // The listing is that of before the kill, and expiry and deletion end the links.
    let route = format!("training_runs/{run}/checkpoints/external_weights/out");
    assert_eq!(ask(&node, ALICE, Method::DELETE, &route, None).await.0, 204);
    assert_eq!(plain().get(weights).send().await.expect("an answer").status(), StatusCode::NOT_FOUND);
    let listed = client.get(&format!("training_runs/{run}/checkpoints")).await.expect("the list");
    assert_eq!(listed["checkpoints"].as_array().map(Vec::len), Some(1), "{listed}");
}

#[tokio::test]
async fn exports_are_encrypted_for_their_recipients_and_bad_ones_are_told() {
    let node = fixture_node("qwen2").await;
    let (client, run) = trained(&node).await;
    let key = "age1ql3z7hjy54pw3hyww5ayyfg7zqgvc7w3j2elw8zmrj2kg5sfn9aqmcac8p";
    let save = |recipients: Value, name: &str, number: u64| json!({ "model_id": run, "path": name, "seq_id": number, "age_encryption_recipients": recipients });
    let request = client.submit("save_weights_external", &save(json!(["age1nobody"]), "bad", 3)).await.expect("taken");
    let refused = client.result(&request).await.expect("a result");
    assert_eq!(refused["category"], "user", "{refused}");
    assert!(refused["error"].as_str().is_some_and(|text| text.contains("`age1nobody`")), "{refused}");

    let exported = done(&client, "save_weights_external", save(json!([key]), "sealed", 4)).await;
    let urls = links(&node, ALICE, exported["path"].as_str().expect("its path")).await;
    for name in ["adapter_config.json.age", "adapter_model.safetensors.age"] {
        let sealed = fetch(urls[name].as_str().unwrap_or_else(|| panic!("no `{name}` in {urls}"))).await;
        assert!(sealed.starts_with(b"age-encryption.org/v1\n"), "`{name}` is not encrypted");
    }
    assert_eq!(urls.as_object().map(serde_json::Map::len), Some(2));
}

#[tokio::test]
async fn a_published_checkpoint_can_be_read_by_everybody_and_changed_by_nobody_else() {
    let node = fixture_node("qwen2").await;
    let (alice, run) = trained(&node).await;
    done(&alice, "save_weights", json!({ "model_id": run, "path": "shared", "seq_id": 3 })).await;
    let path = format!("tinker://{run}/weights/shared");
    let below = |end: &str| format!("training_runs/{run}/checkpoints/weights/shared{end}");
    let expected = alice.forward(&run, 4, &TOKENS).await.expect("logprobs")["loss_fn_outputs"].clone();

    let bob = TinkerHttp::new(&node.base_url(), BOB);
    let described = async || bob.post("weights_info", &json!({ "tinker_path": path })).await.expect("an answer");
    let private = described().await;
    assert_eq!(private.0, 404);
    assert_eq!(ask(&node, ALICE, Method::POST, &below("/publish"), None).await.0, 204);

    // Read in every way there is.
    assert_eq!(described().await.0, 200);
    let session = bob.ask("create_session", &json!({ "tags": [] })).await.expect("a session");
    let session = session["session_id"].as_str().expect("its id").to_owned();
    let load = json!({ "session_id": session, "model_seq_id": 0, "path": path, "optimizer": true });
    let loaded = done(&bob, "load_weights", load).await;
    let own = loaded["model_id"].as_str().expect("its id").to_owned();
    assert_eq!(bob.forward(&own, 1, &TOKENS).await.expect("logprobs")["loss_fn_outputs"], expected);
    let open = json!({ "session_id": session, "sampling_session_seq_id": 0, "model_path": path });
    let opened = bob.ask("create_sampling_session", &open).await.expect("a sampling session");
    let sample = json!({
        "sampling_session_id": opened["sampling_session_id"],
        "prompt": { "chunks": [{ "tokens": [1, 2, 3] }] },
        "sampling_params": { "max_tokens": 2, "seed": 1 },
        "num_samples": 1,
    });
    done(&bob, "asample", sample.clone()).await;
    assert_eq!(ask(&node, BOB, Method::GET, &below("/archive"), None).await.0, 302);
    let copy = json!({ "source_path": path, "session_id": session, "model_seq_id": 7 });
    let copied = bob.ask("copy_weights", &copy).await.expect("a copy");
    assert_eq!(copied["tinker_path"], format!("tinker://{session}:train:7/weights/shared"));
    assert_eq!(bob.ask("copy_weights", &copy).await.expect("the same copy"), copied);

    // Changed in none: it is not there for him.
    for (method, end, body) in [
        (Method::DELETE, "", None),
        (Method::PUT, "/ttl", Some(json!({ "ttl_seconds": 3600 }))),
        (Method::POST, "/publish", None),
        (Method::DELETE, "/publish", None),
    ] {
        let (status, answer) = ask(&node, BOB, method.clone(), &below(end), body).await;
        assert_eq!((status, &answer["detail"]), (404, &private.1["detail"]), "{method} {end}");
    }

    // Taken back, and deleted: what Bob has made of it stays.
    assert_eq!(ask(&node, ALICE, Method::DELETE, &below("/publish"), None).await.0, 204);
    assert_eq!(described().await.1["detail"], private.1["detail"]);
    assert_eq!(bob.post("asample", &sample).await.expect("an answer").0, 404);
    assert_eq!(ask(&node, ALICE, Method::DELETE, &below(""), None).await.0, 204);
    let load = json!({ "session_id": session, "model_seq_id": 8, "path": copied["tinker_path"], "optimizer": true });
    let again = done(&bob, "load_weights", load).await;
    let again = again["model_id"].as_str().expect("its id");
    assert_eq!(bob.forward(again, 1, &TOKENS).await.expect("logprobs")["loss_fn_outputs"], expected);
    let trained = bob
        .post(
            "optim_step",
            &json!({ "model_id": format!("{session}:train:7"), "adam_params": { "learning_rate": 0.0 } }),
        )
        .await;
    let (status, answer) = trained.expect("an answer");
    assert!(status == 404 && answer["detail"].to_string().contains("copy"), "{status} {answer}");
}
