//! Numbers decide the order of a run, not the order of arrival; a repeated number is not executed again.

use serde_json::json;
use twinkle_tests::TinkerHttp;

use crate::fixture_node;

const TOKENS: [u32; 9] = [5, 9, 31, 7, 120, 44, 3, 250, 18];

#[tokio::test]
async fn operations_wait_for_the_numbers_before_them() {
    let node = fixture_node("qwen2").await;
    let client = TinkerHttp::new(&node.base_url(), "tml-order");
    let mut finals = Vec::new();
    for order in [[1, 2, 3, 4], [4, 2, 3, 1]] {
        let run = client.create_run(node.model(), 4, 1).await.expect("a run");
        let mut requests = Vec::new();
        for sequence in order {
            let request = if sequence % 2 == 1 {
                client.submit_forward_backward(&run, sequence, &TOKENS).await
            } else {
                client.submit_optim_step(&run, sequence, 1e-2).await
            };
            requests.push(request.expect("accepted"));
        }
        for request in &requests {
            client.result(request).await.expect("a result");
        }
        finals.push(client.forward(&run, 5, &TOKENS).await.expect("logprobs")["loss_fn_outputs"].clone());
    }
    assert_eq!(finals[0], finals[1]);
}

#[tokio::test]
async fn a_resent_operation_gets_the_first_answer_and_a_different_one_is_refused() {
    let node = fixture_node("qwen2").await;
    let client = TinkerHttp::new(&node.base_url(), "tml-order");
    let run = client.create_run(node.model(), 4, 1).await.expect("a run");
    let first = client.submit_forward_backward(&run, 1, &TOKENS).await.expect("accepted");
    let again = client.submit_forward_backward(&run, 1, &TOKENS).await.expect("accepted");
    assert_eq!(first, again);
    let step = json!({ "model_id": run, "seq_id": 1, "adam_params": { "learning_rate": 1.0 } });
    let (status, body) = client.post("optim_step", &step).await.expect("an answer");
    assert_eq!(status, 400, "{body}");
}

#[tokio::test]
async fn a_refused_operation_uses_up_its_number() {
    let node = fixture_node("qwen2").await;
    let client = TinkerHttp::new(&node.base_url(), "tml-order");
    let run = client.create_run(node.model(), 4, 1).await.expect("a run");
    let bad = json!({ "model_id": run, "seq_id": 1, "adam_params": { "learning_rate": "fast" } });
    let (status, _) = client.post("optim_step", &bad).await.expect("an answer");
    assert!((400..500).contains(&status) && ![408, 409, 429].contains(&status), "{status}");
    let request = client.submit_forward_backward(&run, 2, &TOKENS).await.expect("accepted");
    let result = client.result(&request).await.expect("it does not wait for number 1");
    assert!(result["metrics"]["loss:sum"].is_number(), "{result}");
}
