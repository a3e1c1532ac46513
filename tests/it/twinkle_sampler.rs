//! Sampling by the native protocol, request by request: what Twinkle's own client never sends, and what it never checks.

use anyhow::{Context, Result, bail, ensure};
use serde_json::{Value, json};
use twinkle_tests::{Node, NodeOptions};

use crate::fixture_node;

const VARIANT: &str = "qwen2";

/// One session of a client.
struct Session {
    http: reqwest::Client,
    base: String,
    key: &'static str,
    id: String,
}

impl Session {
    async fn open(node: &Node, key: &'static str) -> Result<Self> {
        let session =
            Self { http: reqwest::Client::new(), base: format!("{}/api/v1", node.base_url()), key, id: String::new() };
        let opened = session.ask("twinkle/create_session", &json!({ "metadata": null })).await?;
        let id = opened["session_id"].as_str().context("no session id")?.to_owned();
        Ok(Self { id, ..session })
    }

    async fn send(&self, route: &str, body: &Value) -> Result<reqwest::Response> {
        let mut request = self.http.post(format!("{}/{route}", self.base)).bearer_auth(self.key).json(body);
        if !self.id.is_empty() {
            request = request.header("X-Twinkle-Session-Id", &self.id);
        }
        Ok(request.send().await?)
    }

    /// The answer to a request that must succeed.
    async fn ask(&self, route: &str, body: &Value) -> Result<Value> {
        let response = self.send(route, body).await?;
        let (status, text) = (response.status(), response.text().await?);
        ensure!(status.is_success(), "{route} answered {status}: {text}");
        Ok(serde_json::from_str(&text)?)
    }

    /// Status and text of a request that must fail.
    async fn refused(&self, route: &str, body: &Value) -> Result<(u16, String)> {
        let response = self.send(route, body).await?;
        let (status, text) = (response.status(), response.text().await?);
        ensure!(!status.is_success(), "{route} answered {status}: {text}");
        let body: Value = serde_json::from_str(&text).with_context(|| format!("not JSON: {text}"))?;
        Ok((status.as_u16(), body["detail"].as_str().context("no detail")?.to_owned()))
    }

    fn sampler(route: &str) -> String {
        format!("sampler/tiny/{VARIANT}/twinkle/{route}")
    }

    async fn sample(&self, inputs: Value, params: Value) -> Result<Value> {
        let body = json!({ "inputs": inputs, "sampling_params": params, "adapter_name": "" });
        Ok(self.ask(&Self::sampler("sample"), &body).await?["samples"].take())
    }
}

fn question() -> Value {
    json!({ "messages": [{ "role": "user", "content": "Who are you?" }], "id": 7 })
}

fn greedy() -> Value {
    json!({ "max_tokens": 6, "temperature": 0.0, "logprobs": 1 })
}

fn numbers(list: &Value) -> Vec<i64> {
    list.as_array().map(|list| list.iter().filter_map(Value::as_i64).collect()).unwrap_or_default()
}

/// The prompt that a conversation became.
fn prompt(sequence: &Value) -> Vec<i64> {
    let mut tokens = numbers(&sequence["new_input_feature"]["input_ids"]);
    tokens.truncate(tokens.len() - numbers(&sequence["tokens"]).len());
    tokens
}

#[tokio::test]
async fn conversations_and_tokens_are_continued_streamed_and_scored() -> Result<()> {
    let node = fixture_node(VARIANT).await;
    let session = Session::open(&node, "alice").await?;
    let sampled = session.sample(json!([question()]), greedy()).await?;
    let sequence = &sampled[0]["sequences"][0];
    let feature = &sequence["new_input_feature"];

    let said = feature["messages"][1].clone();
    ensure!(said["role"] == "assistant" && feature["id"] == 7, "{feature}");
    let labels = numbers(&feature["labels"]);
    let tokens = numbers(&sequence["tokens"]);
    ensure!(labels.iter().filter(|label| **label != -100).count() == tokens.len(), "{labels:?}");
    ensure!(labels[labels.len() - tokens.len() - 1] == tokens[0] && labels.last() == Some(&-100), "{labels:?}");
    let own: Vec<i64> =
        sequence["logprobs"].as_array().context("no logprobs")?.iter().map(|row| numbers(&row[0])[0]).collect();
    ensure!(own == tokens, "logprobs of {own:?}, not of {tokens:?}");

    // Its tokens give the same, alone and without a list around them, and as the first generation asks.
    let as_tokens = json!({ "input_ids": prompt(sequence) });
    let of_tokens = session.sample(as_tokens.clone(), greedy()).await?;
    ensure!(of_tokens[0]["sequences"][0]["tokens"] == sequence["tokens"], "{of_tokens}");
    let first_generation = json!({ "inputs": [as_tokens, question()], "sampling_params": greedy(), "num_samples": 2 });
    let merged = session.ask(&format!("sampler/tiny/{VARIANT}/sample"), &first_generation).await?;
    ensure!(merged["sequences"].as_array().is_some_and(|sequences| sequences.len() == 4), "{merged}");

    // More turns: the feature goes on as it came.
    let again = session.sample(json!([feature]), greedy()).await?;
    let longer = &again[0]["sequences"][0]["new_input_feature"];
    ensure!(longer["messages"].as_array().is_some_and(|messages| messages.len() == 3), "{longer}");
    let learned = numbers(&longer["labels"]).iter().filter(|label| **label != -100).count();
    ensure!(learned == tokens.len() + numbers(&again[0]["sequences"][0]["tokens"]).len(), "{learned} labels");

    streams(&session, sequence).await?;
    scores(&session, sequence).await
}

/// The pieces of a stream are the text of the sample.
async fn streams(session: &Session, sequence: &Value) -> Result<()> {
    let body = json!({ "inputs": [question()], "sampling_params": greedy() });
    let response = session.send(&Session::sampler("sample_stream"), &body).await?;
    ensure!(response.headers()["content-type"] == "application/x-ndjson", "{:?}", response.headers());
    let text = response.text().await?;
    let lines: Vec<Value> = text.lines().map(serde_json::from_str).collect::<Result<_, _>>()?;
    let (last, others) = lines.split_last().context("no lines")?;
    ensure!(last["finish_reason"] == sequence["stop_reason"], "{last}");
    ensure!(others.iter().all(|line| line["finish_reason"].is_null()), "{text}");
    let pieces: String = lines.iter().filter_map(|line| line["delta"].as_str()).collect();
    let said = &sequence["new_input_feature"]["messages"][1]["content"];
    ensure!(said == pieces.as_str(), "`{pieces}` is not `{said}`");

    let two = json!({ "inputs": [question(), question()] });
    let refused = session.refused(&Session::sampler("sample_stream"), &two).await?;
    ensure!(refused == (400, "Streaming only supports a single input".to_owned()), "{refused:?}");
    Ok(())
}

/// What a prompt scores when nothing is drawn.
async fn scores(session: &Session, sequence: &Value) -> Result<()> {
    let params = json!({ "max_tokens": 0, "prompt_logprobs": 2 });
    let feature = &sequence["new_input_feature"];
    let scored = session.sample(json!([feature]), params).await?;
    let own = scored[0]["prompt_logprobs"].as_array().context("no logprobs")?;
    ensure!(own.len() == numbers(&feature["input_ids"]).len() && own[0].is_null(), "{own:?}");
    let drawn = &scored[0]["sequences"][0];
    ensure!(drawn["tokens"] == json!([]) && &drawn["new_input_feature"] == feature, "{drawn}");
    // What was drawn greedily scores the same as a prompt.
    let tokens = numbers(&sequence["tokens"]).len();
    for place in 0..tokens {
        let told = sequence["logprobs"][place][0][1].as_f64().context("no number")?;
        let scored = own[own.len() - tokens + place].as_f64().context("no number")?;
        ensure!((told - scored).abs() < 1e-4, "token {place}: {told} when drawn, {scored} in a prompt");
    }
    let likeliest = scored[0]["topk_prompt_logprobs"].as_array().context("no likeliest")?;
    ensure!(likeliest[0].is_null() && likeliest[1].as_array().is_some_and(|row| row.len() == 2), "{likeliest:?}");
    Ok(())
}

#[tokio::test]
async fn templates_and_weights_are_each_sessions_own() -> Result<()> {
    let mut node = fixture_node(VARIANT).await;
    let alice = Session::open(&node, "alice").await?;
    let elsewhere = Session::open(&node, "alice").await?;
    let bob = Session::open(&node, "bob").await?;
    let few = json!({ "max_tokens": 1, "temperature": 0 });
    let prompt_of = async |session: &Session| -> Result<Vec<i64>> {
        Ok(prompt(&session.sample(json!([question()]), few.clone()).await?[0]["sequences"][0]))
    };
    let usual = prompt_of(&alice).await?;
    let robin =
        json!({ "template_cls": "Template", "adapter_name": "a", "model_id": "Qwen/X", "default_system": "Robin." });
    let set = alice.ask(&Session::sampler("set_template"), &robin).await?;
    ensure!(set == json!({ "status": "ok" }), "{set}");
    let own = prompt_of(&alice).await?;
    ensure!(own.len() > usual.len(), "the default system turn is missing: {own:?}");
    ensure!(prompt_of(&elsewhere).await? == usual && prompt_of(&bob).await? == usual, "a template is shared");
    node.kill()?;
    node.start_again().await?;
    ensure!(prompt_of(&alice).await? == own, "a restart forgot the template");

    // Another tenant can neither be the session nor sample its weights, and hears what it would of none.
    let stolen = Session { http: bob.http.clone(), base: bob.base.clone(), key: "bob", id: alice.id.clone() };
    let (status, _) = stolen.refused(&Session::sampler("sample"), &json!({ "inputs": [question()] })).await?;
    ensure!(status == 404, "a foreign session answered {status}");
    let path = train_and_save(&alice).await?;
    let ask =
        |uri: &str| json!({ "inputs": [{ "input_ids": [5, 6, 7] }], "sampling_params": greedy(), "adapter_uri": uri });
    let trained = alice.ask(&Session::sampler("sample"), &ask(&path)).await?;
    let base = alice.ask(&Session::sampler("sample"), &ask("")).await?;
    ensure!(
        trained["samples"][0]["sequences"][0]["logprobs"] != base["samples"][0]["sequences"][0]["logprobs"],
        "the adapter changes nothing"
    );
    let foreign = bob.refused(&Session::sampler("sample"), &ask(&path)).await?;
    let missing = path.replace("sampler_weights/", "sampler_weights/no");
    let nowhere = bob.refused(&Session::sampler("sample"), &ask(&missing)).await?;
    let same = nowhere.1.replace("sampler_weights/no", "sampler_weights/");
    ensure!((foreign.0, &foreign.1) == (404, &same), "{foreign:?} {nowhere:?}");

    refusals(&alice).await
}

/// A step of an adapter, saved for sampling: where.
async fn train_and_save(session: &Session) -> Result<String> {
    let model = |route: &str| format!("model/tiny/{VARIANT}/twinkle/{route}");
    let config = json!({ "r": 4, "lora_alpha": 32, "target_modules": "all-linear" });
    session.ask(&model("add_adapter_to_model"), &json!({ "adapter_name": "a", "config": config })).await?;
    let optimizer = json!({ "optimizer_cls": "Adam", "adapter_name": "a", "lr": 0.05 });
    session.ask(&model("set_optimizer"), &optimizer).await?;
    let inputs = json!([{ "input_ids": [5, 6, 7, 8], "labels": [6, 7, 8, -100] }]);
    session.ask(&model("forward_backward"), &json!({ "inputs": inputs, "adapter_name": "a" })).await?;
    session.ask(&model("clip_grad_and_step"), &json!({ "adapter_name": "a" })).await?;
    let save = json!({ "name": "s", "adapter_name": "a", "is_sampler": true });
    let saved = session.ask(&model("save"), &save).await?;
    Ok(saved["twinkle_path"].as_str().context("no path")?.to_owned())
}

/// Mistakes are 4xx, name themselves, and change nothing.
async fn refusals(session: &Session) -> Result<()> {
    let image = json!([{ "messages": [{ "role": "user", "content": [{ "type": "image", "url": "x" }] }] }]);
    for (route, body, status, text) in [
        ("sample", json!({ "inputs": [] }), 400, "`inputs` is empty"),
        ("sample", json!({ "inputs": [{ "text": "a" }] }), 400, "neither `input_ids` nor `messages`"),
        ("sample", json!({ "inputs": [{ "input_ids": [] }] }), 400, "input 0 has no tokens"),
        ("sample", json!({ "inputs": [{ "input_ids": [-1] }] }), 400, "`-1` is not a token id"),
        ("sample", json!({ "inputs": [{ "input_ids": [1] }, { "input_ids": [1_000_000] }] }), 400, "input 1: "),
        ("sample", json!({ "inputs": image }), 400, "reads text alone"),
        (
            "sample",
            json!({ "inputs": [question()], "sampling_params": { "temperature": -1 } }),
            400,
            "temperature must be >= 0, got -1",
        ),
        ("sample", json!({ "inputs": [question()], "adapter_uri": "/etc/passwd" }), 404, "does not exist"),
        ("sample", json!({ "inputs": [question()], "adapter_uri": "twinkle://a" }), 400, "three parts"),
        ("sample", json!({ "inputs": [question()], "num_samples": 0 }), 400, "num_samples must be >= 1, got 0"),
        ("set_template", json!({ "template_cls": "Templat" }), 400, "did you mean `Template`?"),
        ("set_template", json!({ "template_cls": "Template", "max_lenght": 3 }), 400, "did you mean `max_length`?"),
        ("set_template", json!({ "template_cls": "ms://org/plugin" }), 400, "Python code"),
        ("apply_patch", json!({ "patch_cls": "hf://org/patch", "adapter_name": null }), 400, "Python code"),
        (
            "add_adapter_to_sampler",
            json!({ "adapter_name": "../x", "config": {} }),
            400,
            "invalid adapter_name: `../x`",
        ),
        (
            "add_adapter_to_sampler",
            json!({ "adapter_name": "x", "config": 3 }),
            400,
            "`config` is no LoRA configuration",
        ),
    ] {
        let (found, detail) = session.refused(&Session::sampler(route), &body).await?;
        if found != status || !detail.contains(text) {
            bail!("{route} {body} answered {found}: `{detail}`, not {status}: `{text}`");
        }
    }
    let added = session
        .ask(&Session::sampler("add_adapter_to_sampler"), &json!({ "adapter_name": "x", "config": { "r": 8 } }))
        .await?;
    ensure!(added == json!({ "status": "ok", "adapter_name": format!("{}-x", session.id) }), "{added}");
    ensure!(
        session.ask(&Session::sampler("create"), &json!({ "any": 1 })).await? == json!({ "status": "ok" }),
        "create"
    );
    Ok(())
}

#[tokio::test]
async fn a_batch_over_the_quota_comes_as_fast_as_it_may_and_is_not_refused() -> Result<()> {
    let mut options = NodeOptions::fixture(env!("CARGO_BIN_EXE_node"), VARIANT);
    options.sampler_args = "queue_config: {rps_limit: 4, window_seconds: 0.5}".to_owned();
    let node = Node::start(options).await?;
    let session = Session::open(&node, "alice").await?;
    let inputs: Vec<Value> = (1..=8).map(|token| json!({ "input_ids": [token, 2, 3] })).collect();
    let sampled = session.sample(json!(inputs), json!({ "max_tokens": 1 })).await?;
    ensure!(sampled.as_array().is_some_and(|samples| samples.len() == 8), "{sampled}");
    Ok(())
}
