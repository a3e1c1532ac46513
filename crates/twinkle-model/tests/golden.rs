//! Losses, gradients and optimizer steps against what PEFT and torch computed (`tests/golden/`).

use std::collections::BTreeMap;
use std::fs;
use std::path::PathBuf;
use std::sync::Arc;

use safetensors::{Dtype, SafeTensors};
use serde_json::Value;
use tch::{Device, Tensor};
use twinkle_core::call::{AdamParams, LossSpec};
use twinkle_core::data::{Datum, TensorData};
use twinkle_core::ids::TenantId;
use twinkle_model::batch::{self, Example, Limits};
use twinkle_model::losses;
use twinkle_model::optimizer::AdamState;
use twinkle_model::run::Run;
use twinkle_model::step::forward_backward;
use twinkle_nn::{AdapterLayout, BaseModel, LoadOptions, Precision, peft};

const VARIANTS: [&str; 5] = ["llama3", "llama3_tied", "qwen2", "qwen2_untied", "qwen3"];
const ADAPTERS: [&str; 2] = ["attn_mlp", "attn_mlp_unembed"];
const DATUMS: usize = 3;
const ROWS_PER_PASS: usize = 2048;

/// One fixture model with its golden numbers.
struct Golden {
    folder: PathBuf,
    bytes: Vec<u8>,
    facts: Value,
    base: BaseModel,
}

impl Golden {
    fn open(variant: &str) -> Self {
        let folder = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../tests/golden/fixtures").join(variant);
        let options = LoadOptions { precision: Precision::Float32, device: Device::Cpu, row_tile: 64 };
        Self {
            bytes: fs::read(folder.join("golden.safetensors")).unwrap(),
            facts: serde_json::from_slice(&fs::read(folder.join("golden.json")).unwrap()).unwrap(),
            base: BaseModel::load(&folder, &options).unwrap(),
            folder,
        }
    }

    fn floats(&self, key: &str) -> Vec<f32> {
        let file = SafeTensors::deserialize(&self.bytes).unwrap();
        let view = file.tensor(key).unwrap_or_else(|_| panic!("no `{key}`"));
        assert_eq!(view.dtype(), Dtype::F32, "{key}");
        view.data().as_chunks::<4>().0.iter().map(|number| f32::from_le_bytes(*number)).collect()
    }

    fn ints(&self, key: &str) -> Vec<u32> {
        let file = SafeTensors::deserialize(&self.bytes).unwrap();
        let view = file.tensor(key).unwrap_or_else(|_| panic!("no `{key}`"));
        assert_eq!(view.dtype(), Dtype::I32, "{key}");
        let signed = view.data().as_chunks::<4>().0.iter().map(|number| i32::from_le_bytes(*number));
        signed.map(|number| u32::try_from(number).unwrap()).collect()
    }

    fn run(&self, adapter: &str) -> Run {
        let (lora, parameters) = peft::read(&self.folder.join(adapter), self.base.config()).unwrap();
        let layout = Arc::new(AdapterLayout::new(self.base.config(), &lora).unwrap());
        let adam = AdamState::fresh(&parameters);
        Run::assembled(TenantId::new("tenant"), "tiny", layout, lora, parameters, adam)
    }

    fn examples(&self, adapter: &str, loss: &dyn losses::Loss) -> Vec<Example> {
        let data = (0..DATUMS)
            .map(|number| {
                let input = |name: &str| TensorData::floats(self.floats(&format!("datum.{number}.{name}")));
                let targets = self.ints(&format!("datum.{number}.target_tokens"));
                let old_logprobs = self.floats(&format!("{adapter}.datum.{number}.logprobs"));
                Datum {
                    tokens: self.ints(&format!("datum.{number}.tokens")),
                    loss_inputs: BTreeMap::from([
                        ("target_tokens".into(), TensorData::ints(targets.into_iter().map(i64::from).collect())),
                        ("weights".into(), input("weights")),
                        ("advantages".into(), input("advantages")),
                        ("logprobs".into(), TensorData::floats(old_logprobs)),
                    ]),
                }
            })
            .collect();
        let limits = Limits { vocabulary: self.base.config().vocab_size, max_length: 1024 };
        batch::check(data, loss, limits).unwrap()
    }

    /// The loss as the fixture's generator configured it.
    fn loss(&self, name: &str) -> Box<dyn losses::Loss> {
        let config = self.facts["losses"][name].as_object().map_or_else(BTreeMap::new, |settings| {
            settings.iter().filter_map(|(key, value)| Some((key.clone(), value.as_f64()?))).collect()
        });
        losses::build(&LossSpec { name: name.into(), config, graph: None }).unwrap()
    }

    /// Compares a flat vector with the golden tensors `<prefix>.<module>.lora_{A,B}`; returns the worst difference.
    fn compare(&self, run: &Run, flat: &Tensor, prefix: &str, mut check: impl FnMut(&str, &[f32], &[f32])) {
        let values = Vec::<f32>::try_from(flat).unwrap();
        for module in run.layout.modules() {
            for (side, range) in [("lora_A", module.a_range()), ("lora_B", module.b_range())] {
                let key = format!("{prefix}.{}.{side}", module.name);
                check(&key, &values[range], &self.floats(&key));
            }
        }
    }
}

fn largest(values: &[f32]) -> f32 {
    values.iter().fold(0.0, |largest, value| largest.max(value.abs()))
}

fn worst(values: &[f32], expected: &[f32]) -> f32 {
    assert_eq!(values.len(), expected.len());
    values.iter().zip(expected).fold(0.0, |worst, (value, expected)| worst.max((value - expected).abs()))
}

#[test]
fn losses_logprobs_and_gradients_are_those_of_torch() {
    for variant in VARIANTS {
        let golden = Golden::open(variant);
        for adapter in ADAPTERS {
            for name in losses::names() {
                let loss = golden.loss(name);
                let examples = golden.examples(adapter, loss.as_ref());
                let mut run = golden.run(adapter);
                let outcome =
                    forward_backward(&mut run, &golden.base, &examples, loss.as_ref(), true, ROWS_PER_PASS).unwrap();

                let label = format!("{variant} {adapter} {name}");
                let facts = &golden.facts["adapters"][adapter]["losses"][name];
                let expected = facts["sum"].as_f64().unwrap_or_else(|| panic!("no loss sum of {label}"));
                // Relative to the terms, not to their sum: the datums' losses may cancel, their rounding does not.
                let per_datum = facts["per_datum"].as_array().unwrap_or_else(|| panic!("no terms of {label}"));
                let size: f64 = per_datum.iter().filter_map(Value::as_f64).map(f64::abs).sum();
                let sum = outcome.metrics["loss:sum"];
                assert!((sum - expected).abs() <= 1e-5 * size, "{label}: loss {sum}, not {expected}");
                for (number, logprobs) in outcome.logprobs.iter().enumerate() {
                    let scored = golden.floats(&format!("{adapter}.datum.{number}.scored"));
                    assert!(worst(&logprobs.values, &scored) <= 1e-4, "{label}: logprobs of datum {number}");
                }
                let prefix = format!("{adapter}.{name}.gradient");
                golden.compare(&run, run.gradients.flat(), &prefix, |key, gradient, expected| {
                    let difference = worst(gradient, expected);
                    assert!(difference <= 1e-4 * largest(expected), "{label} {key}: off by {difference}");
                });
            }
        }
    }
}

#[test]
fn two_optimizer_steps_are_those_of_torch() {
    for variant in VARIANTS {
        let golden = Golden::open(variant);
        let adam: AdamParams = serde_json::from_value(adam_settings(&golden.facts["adam"])).unwrap();
        for adapter in ADAPTERS {
            let loss = golden.loss("cross_entropy");
            let examples = golden.examples(adapter, loss.as_ref());
            let mut run = golden.run(adapter);
            for step in [1, 2] {
                forward_backward(&mut run, &golden.base, &examples, loss.as_ref(), true, ROWS_PER_PASS).unwrap();
                let gradients = Vec::<f32>::try_from(run.gradients.flat()).unwrap();
                let norm = run.optimizer_step(&adam).unwrap();

                let label = format!("{variant} {adapter} step {step}");
                let expected_norm = golden.facts["adapters"][adapter]["steps"][step - 1]["gradient_norm"]
                    .as_f64()
                    .unwrap_or_else(|| panic!("no gradient norm of {label}"));
                assert!((norm - expected_norm).abs() <= 1e-4 * expected_norm, "{label}: {norm}, not {expected_norm}");
                let noise = 1e-5 * largest(&gradients);
                let tolerance = [1e-6, 2e-6][step - 1];
                let mut offset = 0;
                golden.compare(
                    &run,
                    &run.parameters,
                    &format!("{adapter}.step{step}.parameter"),
                    |key, values, expected| {
                        for (place, (value, expected)) in values.iter().zip(expected).enumerate() {
                            // With eps = 1e-12 an entry whose gradient is noise may take a whole step either way.
                            let is_noise = gradients[offset + place].abs() < noise;
                            let allowed =
                                if is_noise { 2.0 * step as f32 * adam.learning_rate as f32 } else { tolerance };
                            assert!(
                                (value - expected).abs() <= allowed,
                                "{label} {key}[{place}]: {value}, not {expected}"
                            );
                        }
                        offset += values.len();
                    },
                );
            }
        }
    }
}

/// The generator's names of the settings, as ours.
fn adam_settings(facts: &Value) -> Value {
    let mut settings = facts.clone();
    if let Some(settings) = settings.as_object_mut() {
        for (theirs, ours) in [("lr", "learning_rate"), ("clip", "grad_clip_norm"), ("max_norm", "grad_clip_norm")] {
            if let Some(value) = settings.remove(theirs) {
                settings.insert(ours.into(), value);
            }
        }
        if let Some(Value::Array(betas)) = settings.remove("betas") {
            settings.insert("beta1".into(), betas[0].clone());
            settings.insert("beta2".into(), betas[1].clone());
        }
    }
    settings
}

#[test]
fn many_calls_and_one_give_the_same_bits() {
    let golden = Golden::open("qwen3");
    let loss = golden.loss("cross_entropy");
    let examples = golden.examples("attn_mlp", loss.as_ref());
    let mut together = golden.run("attn_mlp");
    forward_backward(&mut together, &golden.base, &examples, loss.as_ref(), true, ROWS_PER_PASS).unwrap();
    let mut apart = golden.run("attn_mlp");
    for example in &examples {
        let one = std::slice::from_ref(example);
        forward_backward(&mut apart, &golden.base, one, loss.as_ref(), true, ROWS_PER_PASS).unwrap();
    }
    let mut in_small_passes = golden.run("attn_mlp");
    forward_backward(&mut in_small_passes, &golden.base, &examples, loss.as_ref(), true, 1).unwrap();
    assert_eq!(together.gradients.flat(), apart.gradients.flat());
    assert_eq!(together.gradients.flat(), in_small_passes.gradients.flat());
}

#[test]
fn forward_alone_gives_the_logprobs_of_forward_backward_and_touches_nothing() {
    let golden = Golden::open("llama3");
    let loss = golden.loss("cross_entropy");
    let examples = golden.examples("attn_mlp", loss.as_ref());
    let mut run = golden.run("attn_mlp");
    let forward = forward_backward(&mut run, &golden.base, &examples, loss.as_ref(), false, ROWS_PER_PASS).unwrap();
    assert_eq!(Vec::<f32>::try_from(run.gradients.flat()).unwrap().iter().filter(|value| **value != 0.0).count(), 0);
    let backward = forward_backward(&mut run, &golden.base, &examples, loss.as_ref(), true, ROWS_PER_PASS).unwrap();
    assert_eq!(forward, backward);
}

#[test]
fn a_loss_that_overflows_fails_and_leaves_the_gradients_as_they_were() {
    let golden = Golden::open("llama3");
    let loss = golden.loss("importance_sampling");
    let mut examples = golden.examples("attn_mlp", loss.as_ref());
    let mut run = golden.run("attn_mlp");
    forward_backward(&mut run, &golden.base, &examples, loss.as_ref(), true, ROWS_PER_PASS).unwrap();
    let before = run.gradients.copy();
    // The old policy's logprob so low that the ratio overflows where it counts.
    let last = examples[2].inputs.len() - 2;
    examples[2].inputs[last] = -300.0;
    examples[2].inputs[last + 1] = 1.0;
    let error = forward_backward(&mut run, &golden.base, &examples, loss.as_ref(), true, ROWS_PER_PASS).unwrap_err();
    assert!(error.code.is_users_fault(), "{error}");
    assert_eq!(run.gradients.flat(), before.flat());
}
