use prost::Message;
use serde_json::{Value, json};

use super::*;
use crate::call::{SampleOutcome, SampledSequence, StopReason};
use crate::wire::tinker::sampling::{outcome_from_proto, outcome_to_json, outcome_to_proto};

fn read(fields: &Value) -> Result<SampleExtras> {
    let mut request = json!({"prompt": {"chunks": [{"tokens": [1, 2, 3]}]}});
    request.as_object_mut().unwrap().extend(fields.as_object().unwrap().clone());
    extras(&serde_json::from_value(request).unwrap())
}

fn targets(tensor: &Value) -> Result<TargetTokens> {
    read(&json!({ "target_prompt_logprobs": tensor })).map(|extras| extras.target_prompt_logprobs.unwrap())
}

#[test]
fn nothing_is_wanted_unless_it_is_asked_for() {
    assert_eq!(read(&json!({})).unwrap(), SampleExtras::default());
    let explicit = json!({"topk_prompt_logprobs": 0, "topk_sample_logprobs": null, "prompt_alt_tokens_k": 0});
    assert_eq!(read(&explicit).unwrap(), SampleExtras::default());
}

#[test]
fn targets_are_read_in_both_layouts() {
    let dense = targets(&json!({"data": [4, -1, 5, 6], "dtype": "int64", "shape": [2, 2]})).unwrap();
    assert_eq!(dense.cells, [Some(4), None, Some(5), Some(6)]);
    assert_eq!((dense.layout.row(0), dense.layout.row(1)), (0..2, 2..4));

    let sparse = targets(&json!({
        "data": [7, -1, 9], "dtype": "int64", "shape": [3, 100],
        "sparse_crow_indices": [0, 0, 2, 3], "sparse_col_indices": [0, 99, 5],
    }));
    let sparse = sparse.unwrap();
    assert_eq!(sparse.cells, [Some(7), None, Some(9)]);
    assert_eq!([0, 1, 2].map(|row| sparse.layout.row(row)), [0..0, 0..2, 2..3]);
}

#[test]
fn targets_that_contradict_themselves_are_refused() {
    let sparse = |starts: Value, columns: Value| json!({"data": [1, 2], "dtype": "int64", "shape": [2, 3], "sparse_crow_indices": starts, "sparse_col_indices": columns});
    for tensor in [
        json!({"data": [1.0, 2.0], "dtype": "float32", "shape": [2, 1]}),
        json!({"data": [1, 2], "dtype": "int64"}),
        json!({"data": [1, 2], "dtype": "int64", "shape": [2]}),
        json!({"data": [1, 2], "dtype": "int64", "shape": [2, 1, 1]}),
        json!({"data": [1, 2], "dtype": "int64", "shape": [2, 2]}),
        json!({"data": [1, 2], "dtype": "int64", "shape": [-1, -2]}),
        json!({"data": [], "dtype": "int64", "shape": [i64::MAX, i64::MAX]}),
        json!({"data": [1, -2], "dtype": "int64", "shape": [2, 1]}),
        json!({"data": [1, 4_294_967_296_i64], "dtype": "int64", "shape": [2, 1]}),
        sparse(json!([0, 1]), json!([0, 1])),
        sparse(json!([1, 1, 2]), json!([0, 1])),
        sparse(json!([0, 2, 1]), json!([0, 1])),
        sparse(json!([0, 1, 3]), json!([0, 1])),
        sparse(json!([0, 1, 2]), json!([0, 3])),
        sparse(json!([0, 1, 2]), json!([0, -1])),
        sparse(json!([0, 1, 2]), json!([0])),
        sparse(json!([0, 1, 2]), Value::Null),
        sparse(json!([]), json!([])),
    ] {
        let error = targets(&tensor).expect_err(&tensor.to_string());
        assert!(error.message.contains("`target_prompt_logprobs`"), "{error}");
    }
}

/// Everything that can be asked for; the targets are sparse.
fn outcome() -> SampleOutcome {
    let top = |rows| Some(TopLogprobs { k: 3, rows });
    let sparse = SparseLayout { row_starts: vec![0, 0, 2], columns: vec![0, 7] };
    SampleOutcome {
        sequences: vec![SampledSequence {
            topk_logprobs: top(vec![vec![(0, -0.25), (9, -1.5), (3, -2.0)], vec![(4, -0.5)]]),
            weights: WeightVersion { adapter: Some("ab".into()), operation: Some(7), optimizer_steps: Some(0) },
            ..SampledSequence::new(vec![9, 4], vec![-1.5, -0.5], StopReason::Length)
        }],
        prompt_logprobs: Some(vec![None, None, Some(-2.5)]),
        topk_prompt_logprobs: top(vec![vec![], vec![], vec![(5, -0.1), (6, -0.2), (0, -7.0)]]),
        target_prompt_logprobs: Some(TargetLogprobs {
            layout: CellLayout { rows: 2, columns: 8, sparse: Some(sparse) },
            logprobs: vec![-3.0, 0.0],
        }),
        prompt_alt_tokens: Some(AltTokens { k: 1, tokens: vec![5, 5], logprobs: vec![-0.5, -0.1] }),
    }
}

#[test]
fn every_extra_survives_protobuf() {
    let mut outcome = outcome();
    let again = |outcome: &SampleOutcome| {
        let bytes = outcome_to_proto(outcome).encode_to_vec();
        outcome_from_proto(&proto::SampleResponse::decode(&bytes[..]).unwrap()).unwrap()
    };
    assert_eq!(again(&outcome), outcome);
    let layout = CellLayout { rows: 1, columns: 2, sparse: None };
    outcome.target_prompt_logprobs = Some(TargetLogprobs { layout, logprobs: vec![-1.0, 0.0] });
    assert_eq!(again(&outcome), outcome);
}

#[test]
fn rows_without_tokens_are_sentinels_and_short_rows_end_in_them() {
    let response = outcome_to_proto(&outcome());
    let top = response.topk_prompt_logprobs.unwrap();
    assert_eq!((top.k, top.length), (3, 3));
    assert_eq!(tokens(&top.token_ids).unwrap(), [0, 0, 0, 0, 0, 0, 5, 6, 0]);
    assert_eq!(floats(&top.logprobs).unwrap()[..6], [NO_TOKEN; 6]);
    let top = response.sequences[0].topk_sampled_logprobs.as_ref().unwrap();
    assert_eq!(tokens(&top.token_ids).unwrap(), [0, 9, 3, 4, 0, 0]);
    assert_eq!(floats(&top.logprobs).unwrap(), [-0.25, -1.5, -2.0, -0.5, NO_TOKEN, NO_TOKEN]);
    let drawn = response.prompt_alt_tokens.unwrap();
    assert_eq!(drawn.tokens.unwrap().dtype(), proto::Dtype::Int32);
    assert_eq!(drawn.logprobs.unwrap().shape, [2, 1]);
}

#[test]
fn every_extra_is_written_as_json() {
    let written = serde_json::to_value(outcome_to_json(&outcome())).unwrap();
    assert_eq!(written["prompt_logprobs"], json!([null, null, -2.5]));
    assert_eq!(written["topk_prompt_logprobs"][0], Value::Null);
    assert_eq!(written["topk_prompt_logprobs"][2][0][0], 5);
    assert_eq!(written["target_prompt_logprobs"]["shape"], json!([2, 8]));
    assert_eq!(written["target_prompt_logprobs"]["sparse_crow_indices"], json!([0, 0, 2]));
    assert_eq!(written["target_prompt_logprobs"]["sparse_col_indices"], json!([0, 7]));
    assert_eq!(written["prompt_alt_tokens"]["tokens"]["dtype"], "int64");
    assert_eq!(written["prompt_alt_tokens"]["tokens"]["shape"], json!([2, 1]));
    let sequence = &written["sequences"][0];
    assert_eq!(sequence["topk_logprobs"][1][0][0], 4);
    let span = json!({"length": 2, "adapter": "ab", "operation": 7, "optimizer_steps": 0});
    assert_eq!(sequence["weight_spans"], json!([span]));
    let plain = SampleOutcome {
        sequences: vec![SampledSequence::new(vec![1], vec![-1.0], StopReason::Stop)],
        ..SampleOutcome::default()
    };
    let plain = serde_json::to_value(outcome_to_json(&plain)).unwrap();
    assert_eq!(plain["topk_prompt_logprobs"], Value::Null);
    assert!(plain.get("prompt_alt_tokens").is_none() && plain["sequences"][0].get("topk_logprobs").is_none());
}
