//! `OpenAI`'s own client against a running server.

use serde_json::json;
use twinkle_tests::{Node, TinkerHttp, run_with_openai};

use crate::fixture_node;

const KEY: &str = "tml-openai-door";
/// The tiny models have random weights and forget nothing: they bear large steps.
const LEARNING_RATE: f64 = 1e-2;
/// What the model learns to say to `hi`, as a Qwen model would: a thought, a word, a call.
const ANSWER: &str = "<think>hm</think>ok<tool_call>{\"name\":\"f\",\"arguments\":{\"a\":1}}</tool_call><|im_end|>";

#[tokio::test]
async fn openais_client_chats_completes_streams_and_calls_tools() {
    let node = fixture_node("qwen3").await;
    let (checkpoint, run) = learn(&node).await.expect("the model learns its answer");
    let address = node.base_url();
    let mut arguments = vec!["--base-url", &address, "--model", node.model(), "--key", KEY];
    arguments.extend(["--checkpoint", &checkpoint, "--run", &run]);
    if let Err(failure) = run_with_openai("openai_door.py", &arguments).await {
        panic!("{failure:#}\n--- server log ---\n{}", node.log());
    }
}

/// Trains a run until it knows [`ANSWER`] by heart: its checkpoint and its name.
async fn learn(node: &Node) -> anyhow::Result<(String, String)> {
    let http = TinkerHttp::new(&node.base_url(), KEY);
    let conversation = json!([[{"role": "user", "content": "hi"}]]);
    let prompt = json!({"conversations": conversation, "add_generation_prompt": true});
    let prompt = http.ask("processor/encode_chat", &prompt).await?;
    let answer = http.ask("processor/encode", &json!({"texts": [ANSWER]})).await?;
    let mut tokens: Vec<u32> = serde_json::from_value(prompt["encoded"][0]["tokens"].clone())?;
    tokens.extend(serde_json::from_value::<Vec<u32>>(answer["encoded"][0]["tokens"].clone())?);
    let run = http.create_run(node.model(), 16, 3).await?;
    let mut last = String::new();
    for step in 0..50 {
        http.submit_forward_backward(&run, 2 * step + 1, &tokens).await?;
        last = http.submit_optim_step(&run, 2 * step + 2, LEARNING_RATE).await?;
    }
    http.result(&last).await?;
    let save = json!({"model_id": run, "path": "openai", "seq_id": 101});
    let saved = http.result(&http.submit("save_weights_for_sampler", &save).await?).await?;
    let path = saved["path"].as_str().ok_or_else(|| anyhow::anyhow!("no path: {saved}"))?;
    Ok((path.to_owned(), run))
}
