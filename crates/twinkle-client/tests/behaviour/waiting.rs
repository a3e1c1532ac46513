//! The façade that waits.

use serde_json::json;
use twinkle_client::blocking::ServiceClient;
use twinkle_client::{AdamParams, SamplingParams};
use twinkle_core::wire::tinker::training;

use crate::script::{Server, accepted, datum, json_answer, outcome, proto_answer, sampled};

#[test]
fn a_program_without_an_async_runtime_trains_and_samples() {
    let results = [
        json_answer(200, &json!({ "model_id": "s-1:train:0" })),
        proto_answer(&training::outcome_to_proto(&outcome(1.5))),
        json_answer(200, &json!({ "metrics": { "grad_norm": 2.0 } })),
        json_answer(200, &json!({ "sampling_session_id": "s-1:sample:0" })),
        proto_answer(&sampled(7)),
    ];
    let server = Server::new()
        .on("forward_backward", [accepted("loss")])
        .on("optim_step", [accepted("step")])
        .on("save_weights_for_sampler", [accepted("published")])
        .on("asample", [accepted("sample")])
        .on("sessions/s-1/finish", [json_answer(200, &json!({}))])
        .on("retrieve_future", results);
    // The server's runtime, which the program below does not see.
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let url = runtime.block_on(server.start());

    let service = ServiceClient::connect(&url, "tml-test").unwrap();
    let training = service.create_lora_training_client("tiny", 4).unwrap();
    let loss = training.forward_backward(vec![datum()], "cross_entropy").unwrap().result().unwrap();
    assert_eq!(loss, outcome(1.5));
    let metrics = training.optim_step(AdamParams::default()).unwrap().result().unwrap();
    assert_eq!(metrics, [("grad_norm".to_owned(), 2.0)].into());
    let sampler = training.save_weights_and_get_sampling_client().unwrap();
    let outcome = sampler.sample(vec![1], 1, SamplingParams::greedy(4)).unwrap().result().unwrap();
    assert_eq!(outcome.sequences[0].tokens, [7]);
    service.close().unwrap();
    assert_eq!(server.asked("sessions/s-1/finish").len(), 1);
}
