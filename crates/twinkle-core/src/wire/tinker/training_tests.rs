use prost::Message;

use super::*;
use crate::error::ErrorCode;

fn content() -> ForwardBackwardContent {
    let datum = |tokens: &[u32], weights: &[f32]| Datum {
        tokens: tokens.to_vec(),
        loss_inputs: BTreeMap::from([
            ("target_tokens".to_owned(), TensorData::ints(tokens.iter().map(|token| i64::from(*token) + 1).collect())),
            ("weights".to_owned(), TensorData::floats(weights.to_vec())),
        ]),
    };
    ForwardBackwardContent {
        data: vec![datum(&[1, 2, 3], &[0.0, 1.0, -0.5]), datum(&[9], &[1.0])],
        loss: LossSpec {
            name: "ppo".into(),
            config: BTreeMap::from([("clip_low_threshold".to_owned(), 0.9)]),
            ..LossSpec::default()
        },
        backward: true,
    }
}

#[test]
fn a_request_survives_protobuf() {
    let bytes = Bytes::from(content().to_proto("s:train:0", 7).encode_to_vec());
    let request = ForwardBackward::from_proto(proto::ForwardBackwardRequest::decode(bytes).unwrap());
    let expected =
        ForwardBackward { model_id: "s:train:0".into(), sequence: Some(7), loss_id: None, content: Ok(content()) };
    assert_eq!(request, expected);
}

#[test]
fn zero_means_unnumbered_and_negative_numbers_are_refused() {
    let numbered = |seq_id| ForwardBackward::from_proto(content().to_proto("s:train:0", seq_id));
    assert_eq!(numbered(0).sequence, None);
    assert!(numbered(0).content.is_ok());
    assert!(numbered(-4).content.is_err());
}

#[test]
fn the_second_generation_of_settings_wins() {
    let mut request = content().to_proto("s:train:0", 1);
    request.loss_fn_config.insert("clip_low_threshold".into(), 0.1);
    let read = ForwardBackward::from_proto(request.clone()).content.unwrap();
    assert_eq!(read.loss.config["clip_low_threshold"].to_bits(), 0.9_f64.to_bits());
    request.loss_fn_config_v2.clear();
    let read = ForwardBackward::from_proto(request.clone()).content.unwrap();
    assert_eq!(read.loss.config["clip_low_threshold"].to_bits(), 0.1_f64.to_bits());
    let text = proto::LossConfigValue { value: Some(proto::loss_config_value::Value::Text("x".into())) };
    request.loss_fn_config_v2.insert("loss_id".into(), text);
    let error = ForwardBackward::from_proto(request).content.unwrap_err();
    assert!(error.message.contains("`loss_id`"), "{error}");
}

#[test]
fn the_id_of_a_custom_loss_is_the_only_text_among_settings() {
    let text =
        |text: &str| proto::LossConfigValue { value: Some(proto::loss_config_value::Value::Text(text.to_owned())) };
    let mut request = content().to_proto("s:train:0", 1);
    request.loss_fn = "custom".into();
    request.loss_fn_config = BTreeMap::new();
    request.loss_fn_config_v2 = BTreeMap::from([("loss_id".to_owned(), text("s:loss:0"))]);
    let read = ForwardBackward::from_proto(request.clone());
    assert_eq!(read.loss_id.as_deref(), Some("s:loss:0"));
    assert!(read.content.unwrap().loss.config.is_empty());
    request.loss_fn_config_v2.insert("mode".into(), text("fast"));
    assert!(ForwardBackward::from_proto(request).content.unwrap_err().message.contains("`mode`"));

    let input: json::ForwardBackwardInput = serde_json::from_value(serde_json::json!({
        "data": [{"model_input": {"chunks": [{"tokens": [1]}]}, "loss_fn_inputs": {}}],
        "loss_fn": "custom",
        "loss_fn_config": {"loss_id": "s:loss:1"},
    }))
    .unwrap();
    let read = ForwardBackward::from_json("s:train:0".into(), Some(1), input, true);
    assert_eq!(read.loss_id.as_deref(), Some("s:loss:1"));
    assert!(read.content.is_ok(), "{:?}", read.content);
}

#[test]
fn images_and_empty_data_are_refused_and_named() {
    let mut request = content().to_proto("s:train:0", 1);
    request.data[1].model_input[0].chunk = Some(proto::chunk::Chunk::Image(proto::ImageChunk::default()));
    let error = ForwardBackward::from_proto(request.clone()).content.unwrap_err();
    assert_eq!(error.code, ErrorCode::Unsupported);
    assert!(error.message.contains("datum 1") && error.message.contains("`image`"), "{error}");
    request.data.clear();
    assert!(ForwardBackward::from_proto(request).content.is_err());
}

/// A datum whose targets and weights list different cells.
fn sparse_datum(rows: i64, candidates: i64) -> proto::Datum {
    let tensor = |values: Bytes, dtype: proto::Dtype, column: i64| proto::Tensor {
        encoding: Some(proto::tensor::Encoding::SparseCsr(proto::SparseCsr {
            values,
            crow_indices: tensor::long_bytes(&[vec![0], vec![1; rows as usize]].concat()),
            col_indices: tensor::long_bytes(&[column]),
        })),
        dtype: dtype.into(),
        shape: vec![rows, candidates],
    };
    let mut datum = datum_to_proto(&Datum { tokens: vec![1; rows as usize], loss_inputs: BTreeMap::new() });
    let targets = tensor(tensor::long_bytes(&[7]), proto::Dtype::Int64, 1);
    let weights = tensor(tensor::float_bytes(&[0.5]), proto::Dtype::Float32, 0);
    datum.loss_fn_inputs = BTreeMap::from([("target_tokens".into(), targets), ("weights".into(), weights)]);
    datum
}

#[test]
fn targets_and_weights_may_be_sparse_in_patterns_of_their_own() {
    let request = proto::ForwardBackwardRequest { data: vec![sparse_datum(2, 3)], ..content().to_proto("r", 1) };
    let read = ForwardBackward::from_proto(request).content.unwrap();
    let inputs = &read.data[0].loss_inputs;
    assert_eq!(inputs["target_tokens"], TensorData { shape: vec![2, 3], ..TensorData::ints(vec![0, 7, 0, 0, 0, 0]) });
    let weights = TensorData::floats(vec![0.5, 0.0, 0.0, 0.0, 0.0, 0.0]);
    assert_eq!(inputs["weights"], TensorData { shape: vec![2, 3], ..weights });
}

#[test]
fn sparse_tensors_of_one_request_share_a_bound() {
    // Two tensors of 2^22 cells a datum: two datums are as much as fits.
    let request = |datums| proto::ForwardBackwardRequest {
        data: vec![sparse_datum(4096, 1024); datums],
        ..content().to_proto("r", 1)
    };
    assert!(ForwardBackward::from_proto(request(2)).content.is_ok());
    let error = ForwardBackward::from_proto(request(3)).content.unwrap_err();
    assert!(error.message.contains("sparse tensors of this request") && error.code.is_users_fault(), "{error}");
}

#[test]
fn results_are_cut_at_their_byte_offsets() {
    let outcome = ForwardBackwardOutcome {
        logprobs: vec![Logprobs::flat(vec![-1.0, -2.0]), Logprobs::flat(vec![]), Logprobs::flat(vec![-0.25])],
        metrics: BTreeMap::from([("loss:sum".to_owned(), 3.25)]),
        ..ForwardBackwardOutcome::default()
    };
    let output = outcome_to_proto(&outcome);
    let field = &output.loss_fn_outputs[0].fields[LOGPROBS];
    assert_eq!(tensor::longs(&field.offsets).unwrap(), [0, 8, 8, 12]);
    assert_eq!(output.loss_fn_outputs[0].num_datums, 3);
    let bytes = Bytes::from(output.encode_to_vec());
    let read = proto::ForwardBackwardOutput::decode(bytes).unwrap();
    assert_eq!(outcome_from_proto(&read).unwrap(), outcome);

    let json = serde_json::to_value(outcome_to_json(&outcome)).unwrap();
    assert_eq!(
        json["loss_fn_outputs"][2]["logprobs"],
        serde_json::json!({"data": [-0.25], "dtype": "float32", "shape": [1]})
    );
}

#[test]
fn targets_with_candidates_get_logprobs_of_their_shape() {
    let table = |values: Vec<f32>, candidates| Logprobs { values, candidates: Some(candidates) };
    let outcome = ForwardBackwardOutcome {
        logprobs: vec![
            table(vec![-1.0, -2.0, -3.0, -4.0], 2),
            table(vec![-5.0, -6.0], 2),
            Logprobs::flat(vec![-7.0]),
            table(vec![-8.0], 1),
        ],
        ..ForwardBackwardOutcome::default()
    };
    let output = outcome_to_proto(&outcome);
    let shapes: Vec<_> =
        output.loss_fn_outputs.iter().map(|record| record.fields[LOGPROBS].trailing_shape.clone()).collect();
    assert_eq!(shapes, [vec![2], vec![], vec![1]]);
    assert_eq!(output.loss_fn_outputs[0].num_datums, 2);
    assert_eq!(outcome_from_proto(&output).unwrap(), outcome);

    let json = serde_json::to_value(outcome_to_json(&outcome)).unwrap();
    let shape = |index: usize| json["loss_fn_outputs"][index]["logprobs"]["shape"].clone();
    assert_eq!(shape(0), serde_json::json!([2, 2]));
    assert_eq!(shape(2), serde_json::json!([1]));
    assert_eq!(shape(3), serde_json::json!([1, 1]));
}
