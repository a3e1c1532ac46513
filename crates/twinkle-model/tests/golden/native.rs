//! The losses of Twinkle's own protocol through a network: `native_losses.json`, which PEFT and torch computed.

use std::path::Path;

use serde_json::Value;
use twinkle_core::call::{ForwardBackwardOutcome, ForwardOptions, ForwardOutputs, LossSpec};
use twinkle_core::data::{Datum, TensorData};
use twinkle_model::batch::Example;
use twinkle_model::losses::{Loss, build, native};
use twinkle_model::run::Run;
use twinkle_model::step::{Batch, compute};

use crate::ROWS_PER_PASS;
use crate::fixture::Golden;

struct Network {
    golden: Golden,
    numbers: Value,
}

impl Network {
    fn open() -> Self {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/golden/native_losses.json");
        let mut all: Value = serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap();
        let numbers = all["network"].take();
        Self { golden: Golden::open(numbers["variant"].as_str().unwrap()), numbers }
    }

    fn run(&self) -> Run {
        self.golden.run(self.numbers["adapter"].as_str().unwrap())
    }

    fn tokens(&self) -> Vec<Vec<u32>> {
        let rows = self.numbers["tokens"].as_array().unwrap();
        rows.iter().map(|row| floats(row).iter().map(|token| *token as u32).collect()).collect()
    }

    fn examples(&self, case: &Value, loss: &dyn Loss) -> Vec<Example> {
        let datum = |(tokens, inputs): (Vec<u32>, &Value)| {
            let tensor = |(name, value): (&String, &Value)| {
                let values = value.as_array().map_or_else(|| vec![value.as_f64().unwrap()], |_| floats(value));
                let candidates = values.len() / tokens.len();
                let shape = if candidates > 1 { vec![tokens.len(), candidates] } else { vec![values.len()] };
                let tensor = match name.as_str() {
                    "target_tokens" => TensorData::ints(values.iter().map(|value| *value as i64).collect()),
                    _ => TensorData::floats(values.iter().map(|value| *value as f32).collect()),
                };
                (name.clone(), TensorData { shape, ..tensor })
            };
            let loss_inputs = inputs.as_object().unwrap().iter().map(tensor).collect();
            Datum { tokens, loss_inputs }
        };
        let data = self.tokens().into_iter().zip(case["data"].as_array().unwrap()).map(datum).collect();
        self.golden.checked(data, loss)
    }

    fn compute(&self, run: &mut Run, case: &Value, row_limit: usize) -> ForwardBackwardOutcome {
        let loss = loss_of(case);
        let examples = self.examples(case, loss.as_ref());
        let options =
            ForwardOptions { temperature: case["temperature"].as_f64().unwrap(), ..ForwardOptions::default() };
        let batch = Batch::new(&examples, loss.as_ref(), true, options, row_limit);
        compute(run, &self.golden.base, batch, row_limit).unwrap()
    }
}

fn floats(value: &Value) -> Vec<f64> {
    value.as_array().unwrap().iter().map(|number| number.as_f64().unwrap()).collect()
}

fn loss_of(case: &Value) -> Box<dyn Loss> {
    let mut spec = LossSpec::named(case["loss"].as_str().unwrap());
    for (name, setting) in case["settings"].as_object().unwrap() {
        match setting {
            Value::String(word) => drop(spec.options.insert(name.clone(), word.clone())),
            Value::Bool(flag) => drop(spec.config.insert(name.clone(), f64::from(u8::from(*flag)))),
            number => drop(spec.config.insert(name.clone(), number.as_f64().unwrap())),
        }
    }
    build(&spec).unwrap()
}

/// The length of a tensor and its product with cos(0.37 i + 0.1).
fn fingerprint(values: &[f32]) -> [f64; 2] {
    let length = values.iter().map(|value| f64::from(*value).powi(2)).sum::<f64>().sqrt();
    let pattern = (0..values.len()).map(|place| (0.37 * place as f64 + 0.1).cos());
    [length, values.iter().zip(pattern).map(|(value, wave)| f64::from(*value) * wave).sum()]
}

fn assert_near(what: &str, found: &[f32], expected: &Value, tolerance: f64) {
    let (found, expected) = (fingerprint(found), floats(expected));
    let size = expected[0].max(1e-6);
    for (found, expected) in found.iter().zip(&expected) {
        assert!((found - expected).abs() <= tolerance * size, "{what}: {found}, not {expected} (of length {size})");
    }
}

#[test]
fn native_losses_have_the_gradients_of_peft_whatever_passes_their_data_take() {
    let network = Network::open();
    for (name, case) in network.numbers["cases"].as_object().unwrap() {
        let mut run = network.run();
        let outcome = network.compute(&mut run, case, ROWS_PER_PASS);
        let (value, expected) = (outcome.metrics["loss:sum"], case["value"].as_f64().unwrap());
        assert!((value - expected).abs() <= 1e-4 * expected.abs().max(0.1), "{name}: {value}, not {expected}");
        assert!((outcome.num_tokens - case["num_tokens"].as_f64().unwrap()).abs() < 1e-9, "{name}");

        let flat = Vec::<f32>::try_from(run.gradients.flat()).unwrap();
        for module in run.layout.modules() {
            for (side, range) in [("lora_A", module.a_range()), ("lora_B", module.b_range())] {
                let key = format!("{}.{side}", module.name);
                let expected = &case["gradients"][&key];
                assert_near(&format!("{name} {key}"), &flat[range], expected, 5e-4);
            }
        }

        // Each datum in a pass of its own: groups are cut, and nothing changes.
        let mut cut = network.run();
        assert_eq!(network.compute(&mut cut, case, 1), outcome, "{name}");
        assert_eq!(cut.gradients.flat(), run.gradients.flat(), "{name}");
    }
}

#[test]
fn a_forward_returns_what_it_is_asked_for() {
    let network = Network::open();
    let loss = build(&LossSpec::named(native::NO_LOSS)).unwrap();
    let datum = |tokens: Vec<u32>| {
        let targets = tokens.iter().map(|token| i64::from(*token)).collect();
        Datum { tokens, loss_inputs: [("target_tokens".to_owned(), TensorData::ints(targets))].into() }
    };
    let examples = network.golden.checked(network.tokens().into_iter().map(datum).collect(), loss.as_ref());
    let forward = |disable_lora: bool, outputs: ForwardOutputs, row_limit: usize| {
        let options = ForwardOptions { disable_lora, outputs, ..ForwardOptions::default() };
        let batch = Batch::new(&examples, loss.as_ref(), false, options, row_limit);
        compute(&mut network.run(), &network.golden.base, batch, row_limit).unwrap()
    };
    let everything = ForwardOutputs { logits: true, entropies: true, embeddings: true };
    let found = forward(false, everything, ROWS_PER_PASS);
    let near = |found: &[f32], expected: &Value| {
        let expected = floats(expected);
        assert_eq!(found.len(), expected.len());
        for (found, expected) in found.iter().zip(expected) {
            assert!((f64::from(*found) - expected).abs() <= 2e-4, "{found}, not {expected}");
        }
    };
    for (place, tokens) in network.tokens().iter().enumerate() {
        near(&found.entropies[place].values, &network.numbers["entropies"][place]);
        near(&found.embeddings[place].values, &network.numbers["embeddings"][place]);
        assert_eq!(found.logits[place].width, network.golden.base.config().vocab_size);
        assert_eq!(found.logits[place].values.len(), tokens.len() * found.logits[place].width);
        assert_near("logits", &found.logits[place].values, &network.numbers["logits"][place], 1e-4);
    }
    assert!((found.metrics["loss:sum"]).abs() < 1e-12);
    assert_eq!(forward(false, everything, 1), found);

    let plain = forward(false, ForwardOutputs::default(), ROWS_PER_PASS);
    assert_eq!(plain.logprobs, found.logprobs, "logprobs do not depend on what else is asked for");
    assert!(plain.entropies.is_empty() && plain.logits.is_empty() && plain.embeddings.is_empty());

    let bare = forward(true, ForwardOutputs { entropies: true, ..ForwardOutputs::default() }, ROWS_PER_PASS);
    for (place, table) in bare.entropies.iter().enumerate() {
        near(&table.values, &network.numbers["bare_entropies"][place]);
    }
}
