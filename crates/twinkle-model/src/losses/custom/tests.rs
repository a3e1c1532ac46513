//! Graphs as the SDK traces them, against torch (`tests/golden/custom_losses.py`), and graphs that are refused.

use std::collections::BTreeMap;
use std::path::Path;

use serde::Deserialize;
use serde_json::{Value as Json, json};
use twinkle_core::call::{GraphInput, LossGraph};
use twinkle_core::data::{TensorData, TensorValues};
use twinkle_core::wire::tinker::json::CustomLossGraph;
use twinkle_core::{ErrorCode, Result};

use super::limits::{Budget, MAX_VALUES};
use super::operations::supported;
use super::program::compile;

#[derive(Deserialize)]
struct Fixture {
    data: BTreeMap<String, Vec<BTreeMap<String, Tensor>>>,
    cases: Vec<Case>,
}

#[derive(Deserialize)]
struct Tensor {
    dtype: String,
    shape: Vec<usize>,
    data: Vec<f64>,
}

#[derive(Deserialize)]
struct Case {
    name: String,
    candidates: Option<u32>,
    inputs: Vec<GraphInput>,
    graph: CustomLossGraph,
    results: Vec<Expected>,
}

#[derive(Deserialize)]
struct Expected {
    value: f64,
    gradient: Vec<f64>,
    metrics: BTreeMap<String, f64>,
}

impl Tensor {
    fn floats(&self) -> Vec<f32> {
        self.data.iter().map(|value| *value as f32).collect()
    }

    fn data(&self) -> TensorData {
        let values = match self.dtype.as_str() {
            "int64" => TensorValues::Int64(self.data.iter().map(|value| *value as i64).collect()),
            _ => TensorValues::Float32(self.floats()),
        };
        TensorData { values, shape: self.shape.clone() }
    }
}

fn fixture() -> Fixture {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/golden/custom_losses.json");
    serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap()
}

/// Relative to the largest of the numbers compared, or to 1.
fn far(found: &[f64], expected: &[f64]) -> Option<f64> {
    let scale = expected.iter().fold(1.0_f64, |scale, value| scale.max(value.abs()));
    let distances = found.iter().zip(expected).map(|(a, b)| (a - b).abs() / scale);
    let worst =
        distances.fold(0.0, |worst: f64, distance| if distance.is_nan() { f64::INFINITY } else { worst.max(distance) });
    (found.len() != expected.len() || worst > 1e-5).then_some(worst)
}

#[test]
fn every_traced_loss_has_the_value_gradient_and_metrics_of_torch() {
    let Fixture { data, cases } = fixture();
    assert!(cases.len() > 250);
    let mut wrong = Vec::new();
    for case in cases {
        let Case { name, candidates, inputs, graph, results } = case;
        let graph = graph.into_graph(name.clone(), inputs).unwrap();
        let program = match compile(&graph) {
            Ok(program) => program,
            Err(error) => {
                wrong.push(format!("{name}: {error}"));
                continue;
            }
        };
        let datums = &data[if candidates.is_some() { "tables" } else { "flat" }];
        for (datum, expected) in datums.iter().zip(results) {
            let logprobs = &datum["logprobs"];
            let shape: Vec<i64> = logprobs.shape.iter().map(|size| *size as i64).collect();
            let others: Vec<TensorData> =
                program.inputs.iter().skip(1).map(|input| datum[&input.name].data()).collect();
            let found = program.run(&logprobs.floats(), &shape, &others.iter().collect::<Vec<_>>(), &Budget::new());
            let found = match found {
                Ok(found) => found,
                Err(error) => {
                    wrong.push(format!("{name}: {error}"));
                    break;
                }
            };
            let gradient: Vec<f64> = found.derivatives.iter().map(|value| f64::from(*value)).collect();
            if let Some(distance) = far(&[found.value], &[expected.value]) {
                wrong.push(format!("{name}: value {} is {distance} from {}", found.value, expected.value));
            }
            if let Some(distance) = far(&gradient, &expected.gradient) {
                wrong.push(format!("{name}: gradient {gradient:?} is {distance} from {:?}", expected.gradient));
            }
            for ((key, _), metric) in program.metrics.iter().zip(found.metrics) {
                if let Some(distance) = far(&[metric], &[expected.metrics[key]]) {
                    wrong.push(format!("{name}: metric {key} {metric} is {distance} from {}", expected.metrics[key]));
                }
            }
        }
    }
    assert!(wrong.is_empty(), "{} wrong:\n{}", wrong.len(), wrong.join("\n"));
}

/// A graph of one input with these nodes between it and the output, which returns the last of them.
fn graph(nodes: &Json) -> Result<LossGraph> {
    let last = nodes.as_array().and_then(|nodes| nodes.last()).map_or(json!("logprobs"), |node| node["name"].clone());
    graph_returning(nodes, &json!([{"tuple": [{"ref": last}, {"dict": {}}]}]))
}

fn graph_returning(nodes: &Json, output: &Json) -> Result<LossGraph> {
    let mut all = vec![json!({"op": "placeholder", "name": "logprobs", "target": "logprobs"})];
    all.extend(nodes.as_array().unwrap().iter().cloned());
    all.push(json!({"op": "output", "name": "output", "target": "output", "args": output}));
    let graph: CustomLossGraph = serde_json::from_value(json!({"format": 1, "nodes": all})).unwrap();
    graph.into_graph("loss".into(), vec![GraphInput { name: "logprobs".into(), rank: 1 }])
}

fn function(name: &str, target: &str, args: &Json) -> Json {
    json!({"op": "call_function", "name": name, "target": target, "args": args})
}

fn of_logprobs(target: &str) -> Json {
    function("r", target, &json!([{"ref": "logprobs"}]))
}

/// The text of the error that compiling or running the graph ends with.
fn refusal(nodes: &Json, logprobs: &[f32]) -> String {
    let program = graph(nodes).and_then(|graph| compile(&graph));
    let run = program.and_then(|program| program.run(logprobs, &[logprobs.len() as i64], &[], &Budget::new()));
    let error = run.unwrap_err();
    assert!(error.code.is_users_fault(), "{error:?}");
    error.to_string()
}

#[test]
fn an_operation_that_is_not_supported_is_named_with_the_nearest_that_are() {
    let cases = [
        (of_logprobs("torch.rand_like"), "node `r`: function `torch.rand_like` is not supported"),
        (of_logprobs("torch.nn.functional.dropout"), "function `torch.nn.functional.dropout`"),
        (of_logprobs("torch.empty_like"), "function `torch.empty_like`"),
        (of_logprobs("os.system"), "function `os.system`"),
        (of_logprobs("torch.clmap"), "`torch.clamp`"),
        (of_logprobs("operator.setitem"), "function `operator.setitem`"),
        (json!({"op": "call_method", "name": "r", "target": "item", "args": [{"ref": "logprobs"}]}), "method `item`"),
        (json!({"op": "call_method", "name": "r", "target": "cumsun", "args": [{"ref": "logprobs"}]}), "`cumsum`"),
        (json!({"op": "call_method", "name": "r", "target": "backward", "args": [{"ref": "logprobs"}]}), "`backward`"),
        (
            json!({"op": "call_method", "name": "r", "target": "unsqueeze_", "args": [{"ref": "logprobs"}, 0]}),
            "`unsqueeze_`",
        ),
        (json!({"op": "get_attr", "name": "r", "target": "_tensor_constant0"}), "captured tensor"),
        (json!({"op": "call_module", "name": "r", "target": "layer"}), "module `layer`"),
    ];
    for (node, expected) in cases {
        let error = compile(&graph(&json!([node])).unwrap()).err().unwrap();
        assert_eq!(error.code, ErrorCode::Unsupported, "{error}");
        assert!(error.to_string().contains(expected), "`{error}` lacks `{expected}`");
    }
}

#[test]
fn wrong_arguments_are_found_when_the_loss_is_created() {
    let logprobs = json!({"ref": "logprobs"});
    let cases = [
        (function("r", "torch.exp", &json!([])), "argument `input` of `torch.exp` is missing"),
        (function("r", "torch.exp", &json!([1.5])), "argument `input` of `torch.exp` must be a tensor"),
        (function("r", "torch.exp", &json!([logprobs, 1, 2, 3])), "takes at most 3 arguments, not 4"),
        (function("r", "torch.exp", &json!([{"ref": "nobody"}])), "there is no node `nobody` before it"),
        (function("r", "torch.sum", &json!([logprobs, "all"])), "argument `dim` of `torch.sum` must be an int"),
        (function("r", "torch.exp", &json!([{"device": "cuda:0"}])), "device `cuda:0` is not supported"),
        (function("r", "torch.sum", &json!([{"dtype": "complex64"}])), "dtype `complex64` is not supported"),
        (function("logprobs", "torch.exp", &json!([logprobs])), "two nodes are named `logprobs`"),
        (
            json!({"op": "call_function", "name": "r", "target": "torch.sum", "args": [logprobs], "kwargs": {"dims": 0}}),
            "argument `dims` of `torch.sum` is not supported",
        ),
        (
            json!({"op": "call_function", "name": "r", "target": "torch.sum", "args": [logprobs], "kwargs": {"input": logprobs}}),
            "argument `input` of `torch.sum` is given twice",
        ),
    ];
    for (node, expected) in cases {
        let error = compile(&graph(&json!([node])).unwrap()).err().unwrap().to_string();
        assert!(error.contains(expected), "`{error}` lacks `{expected}`");
    }
    for output in [json!([]), json!([logprobs]), json!([{"tuple": [logprobs, {"dict": {"loss:sum": logprobs}}]}])] {
        assert!(compile(&graph_returning(&json!([]), &output).unwrap()).is_err(), "{output}");
    }
}

#[test]
fn a_graph_must_begin_with_its_inputs_and_end_with_its_output() {
    let whole = graph(&json!([of_logprobs("torch.sum")])).unwrap();
    assert!(compile(&whole).is_ok());
    let without = |place: usize| {
        let mut graph = whole.clone();
        graph.nodes.remove(place);
        graph
    };
    for place in 0..3 {
        assert!(compile(&without(place)).is_err(), "{place}");
    }
    let mut other = whole.clone();
    other.inputs[0].name = "weights".into();
    assert!(compile(&other).err().unwrap().message.contains("must be `logprobs`"));
    let mut other = whole.clone();
    other.inputs.push(GraphInput { name: "not sent".into(), rank: 1 });
    assert!(compile(&other).is_err());
    let mut other = whole;
    other.inputs[0].rank = 0;
    assert!(compile(&other).err().unwrap().message.contains("rank 1 or 2"));
}

#[test]
fn a_graph_has_a_largest_size() {
    let chain = |count: usize| {
        let node = |place: usize| {
            let from = if place == 0 { "logprobs".to_owned() } else { format!("n{}", place - 1) };
            function(&format!("n{place}"), "torch.sum", &json!([{"ref": from}]))
        };
        compile(&graph(&(0..count).map(node).collect()).unwrap())
    };
    assert!(chain(300).is_ok());
    assert!(chain(super::MAX_NODES).err().unwrap().message.contains("more than 1024"));
    let text = function("r", "torch.sum", &json!(["a".repeat(200_000)]));
    assert!(compile(&graph(&json!([text])).unwrap()).err().unwrap().message.contains("bytes"));
}

#[test]
fn what_would_need_too_much_is_refused_before_it_is_done() {
    let logprobs = json!({"ref": "logprobs"});
    let method = |target: &str, args: Json| json!([{"op": "call_method", "name": "r", "target": target, "args": args}]);
    let huge = 1_i64 << 40;
    let cases = [
        method("expand", json!([logprobs, huge, 2])),
        method("repeat", json!([logprobs, huge])),
        method("new_zeros", json!([logprobs, huge, huge])),
        method("repeat_interleave", json!([logprobs, huge])),
        json!([function("r", "torch.arange", &json!([huge]))]),
        json!([function("r", "torch.linspace", &json!([0, 1, huge]))]),
        json!([function("r", "torch.eye", &json!([huge]))]),
        json!([function("r", "torch.nn.functional.pad", &json!([logprobs, [0, huge]]))]),
        json!([function("r", "torch._C._nn.one_hot", &json!([logprobs, huge]))]),
        json!([function("r", "torch.diag", &json!([logprobs, huge]))]),
        json!([function("r", "torch.full", &json!([[huge], 1.0]))]),
    ];
    for nodes in cases {
        let error = refusal(&nodes, &[-1.0, -2.0]);
        assert!(error.contains(&MAX_VALUES.to_string()), "{nodes}: {error}");
    }
    // Each step doubles what there is.
    let doubled = |place: usize| {
        let from = if place == 0 { "logprobs".to_owned() } else { format!("n{}", place - 1) };
        function(&format!("n{place}"), "torch.cat", &json!([[{"ref": from}, {"ref": from}]]))
    };
    let error = refusal(&(0..60).map(doubled).collect(), &[-1.0]);
    assert!(error.contains("node `n2"), "{error}");
}

#[test]
fn work_is_bounded_for_a_request_and_not_for_a_datum() {
    let nodes = json!([
        {"op": "call_method", "name": "wide", "target": "expand", "args": [{"ref": "logprobs"}, 1 << 22, 1]},
        {"op": "call_function", "name": "r", "target": "torch.sum", "args": [{"ref": "wide"}]},
    ]);
    let program = compile(&graph(&nodes).unwrap()).unwrap();
    let budget = Budget::new();
    let mut refused = None;
    for round in 0..2000 {
        if let Err(error) = program.run(&[-1.0], &[1], &[], &budget) {
            refused = Some((round, error.to_string()));
            break;
        }
    }
    let (round, error) = refused.unwrap();
    assert!(round > 100 && error.contains("more work than one request may take"), "{round}: {error}");
}

#[test]
fn a_loss_must_be_a_finite_scalar_that_depends_on_the_logprobs() {
    let logprobs = json!({"ref": "logprobs"});
    let cases = [
        (json!([of_logprobs("torch.exp")]), "must be a scalar"),
        (json!([of_logprobs("torch.argmax")]), "must be a scalar of floats"),
        (json!([of_logprobs("torch.detach"), function("s", "torch.sum", &json!([{"ref": "r"}]))]), "does not depend"),
        (json!([function("r", "operator.add", &json!([1, 2]))]), "is not a tensor"),
        (
            json!([
                function("r", "operator.mul", &json!([logprobs, {"float": "inf"}])),
                function("s", "torch.sum", &json!([{"ref": "r"}]))
            ]),
            "is -inf",
        ),
        (json!([of_logprobs("torch.log"), function("s", "torch.sum", &json!([{"ref": "r"}]))]), "is NaN"),
        (
            json!([
                function("m", "operator.mul", &json!([logprobs, 0.0])),
                function("r", "torch.sqrt", &json!([{"ref": "m"}])),
                function("s", "torch.sum", &json!([{"ref": "r"}]))
            ]),
            "derivative",
        ),
    ];
    for (nodes, expected) in cases {
        let error = refusal(&nodes, &[-1.0, -2.0]);
        assert!(error.contains(expected), "`{error}` lacks `{expected}`");
    }
}

#[test]
fn errors_of_libtorch_name_the_node_and_nothing_of_its_sources() {
    let nodes =
        json!([function("oops", "torch.nn.functional.nll_loss", &json!([{"ref": "logprobs"}, {"ref": "logprobs"}]))]);
    let error = refusal(&nodes, &[-1.0, -2.0]);
    assert!(error.contains("node `oops` (`torch.nn.functional.nll_loss`)"), "{error}");
    assert!(!error.contains(".cpp") && !error.contains('\n'), "{error}");
    // The processor would stop the program here.
    let nodes = json!([
        {"op": "call_method", "name": "whole", "target": "long", "args": [{"ref": "logprobs"}]},
        function("r", "torch.floor_divide", &json!([{"ref": "whole"}, -1])),
    ]);
    assert!(refusal(&nodes, &[-1.0]).contains("divided by -1"));
}

#[test]
fn the_same_graph_gives_the_same_bits() {
    let Fixture { data, cases } = fixture();
    for case in cases.into_iter().take(12) {
        let Case { name, candidates, inputs, graph, .. } = case;
        let program = compile(&graph.into_graph(name, inputs).unwrap()).unwrap();
        let datum = &data[if candidates.is_some() { "tables" } else { "flat" }][0];
        let shape: Vec<i64> = datum["logprobs"].shape.iter().map(|size| *size as i64).collect();
        let others: Vec<TensorData> = program.inputs.iter().skip(1).map(|input| datum[&input.name].data()).collect();
        let run = || {
            program
                .run(&datum["logprobs"].floats(), &shape, &others.iter().collect::<Vec<_>>(), &Budget::new())
                .unwrap()
        };
        assert_eq!(run(), run());
    }
}

#[test]
fn no_operation_is_random_or_reaches_outside() {
    let forbidden =
        ["rand", "dropout", "bernoulli", "multinomial", "empty", "save", "load", "as_strided", "set_", "resize"];
    for name in supported() {
        assert!(!forbidden.iter().any(|word| name.contains(word)), "{name}");
    }
}
