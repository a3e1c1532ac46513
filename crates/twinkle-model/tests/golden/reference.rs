//! The numbers of PEFT and torch.

use serde_json::Value;
use twinkle_core::call::AdamParams;
use twinkle_model::losses;
use twinkle_model::step::forward_backward;

use crate::fixture::{Golden, largest, worst};
use crate::{HARD_CASES, ROWS_PER_PASS};

const VARIANTS: [&str; 13] = [
    "llama3",
    "llama3_tied",
    "qwen2",
    "qwen2_untied",
    "qwen3",
    "qwen3_moe",
    "qwen3_moe_mixed",
    "qwen3_5",
    "qwen3_5_vl",
    "qwen3_5_moe",
    "qwen3_yarn",
    "llama_linear",
    "smollm3",
];

/// How near to the reference is near enough; a recurrence over a sequence leaves the reference's own fp32 further from
/// fp64.
struct Tolerance {
    /// Of logprobs, absolute; a tenth of it of a loss, relative.
    logprobs: f32,
    /// Of a gradient's tensor, relative to its largest number.
    gradient: f32,
    /// Of a parameter after the first and the second step.
    parameters: [f32; 2],
    /// Gradients below this, relative to the largest, are noise.
    noise: f32,
}

impl Tolerance {
    fn of(golden: &Golden) -> Self {
        if golden.base.config().delta.is_some() {
            Self { logprobs: 1e-3, gradient: 5e-4, parameters: [1e-6, 2e-5], noise: 1e-3 }
        } else {
            Self { logprobs: 1e-4, gradient: 1e-4, parameters: [1e-6, 2e-6], noise: 1e-5 }
        }
    }
}

#[test]
fn losses_logprobs_and_gradients_are_those_of_torch() {
    for variant in VARIANTS {
        let golden = Golden::open(variant);
        let tolerance = Tolerance::of(&golden);
        for adapter in &golden.adapters() {
            for name in golden.facts["losses"].as_object().unwrap().keys() {
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
                let allowed = f64::from(tolerance.logprobs) / 10.0 * size;
                assert!((sum - expected).abs() <= allowed, "{label}: loss {sum}, not {expected}");
                for (number, logprobs) in outcome.logprobs.iter().enumerate() {
                    let scored = golden.floats(&format!("{adapter}.datum.{number}.scored"));
                    let error = worst(&logprobs.values, &scored);
                    assert!(error <= tolerance.logprobs, "{label}: logprobs of datum {number} are off by {error}");
                }
                let prefix = format!("{adapter}.{name}.gradient");
                golden.compare(&run, run.gradients.flat(), &prefix, |key, gradient, expected| {
                    let difference = worst(gradient, expected);
                    let allowed = tolerance.gradient * largest(expected);
                    assert!(difference <= allowed, "{label} {key}: off by {difference}");
                });
            }
        }
    }
}

#[test]
fn every_loss_is_torchs_on_inputs_made_to_go_wrong() {
    for (variant, adapter) in HARD_CASES {
        let golden = Golden::losses(variant);
        for case in golden.cases() {
            let loss = golden.loss_of(&case);
            let examples = golden.checked(golden.case(&case), loss.as_ref());
            let mut run = golden.run(adapter);
            let outcome =
                forward_backward(&mut run, &golden.base, &examples, loss.as_ref(), true, ROWS_PER_PASS).unwrap();

            let label = format!("{variant} {case}");
            let terms: Vec<f64> = serde_json::from_value(golden.facts["cases"][&case]["per_datum"].clone()).unwrap();
            let size: f64 = terms.iter().map(|term| term.abs()).sum();
            let (sum, expected) = (outcome.metrics["loss:sum"], terms.iter().sum::<f64>());
            assert!((sum - expected).abs() <= 1e-4 * size, "{label}: loss {sum}, not {expected}");
            for (number, logprobs) in outcome.logprobs.iter().enumerate() {
                let scored = golden.floats(&format!("{case}.{number}.scored"));
                assert!(worst(&logprobs.values, &scored) <= 1e-4, "{label}: logprobs of datum {number}");
                assert_eq!(logprobs.candidates, (case == "candidates").then_some(5), "{label}");
            }
            golden.compare(&run, run.gradients.flat(), &format!("{case}.gradient"), |key, gradient, expected| {
                let difference = worst(gradient, expected);
                assert!(difference <= 1e-4 * largest(expected), "{label} {key}: off by {difference}");
            });
        }
    }
}

#[test]
fn no_loss_is_without_a_reference() {
    let golden = Golden::losses("qwen3");
    let cases = golden.facts["cases"].as_object().unwrap();
    // A custom loss has no formula of ours: its graph's operators have their own references.
    for name in losses::names().into_iter().filter(|name| *name != "custom") {
        assert!(cases.values().any(|case| case["loss"] == name), "torch never computed `{name}`");
    }
}

#[test]
fn two_optimizer_steps_are_those_of_torch() {
    for variant in VARIANTS {
        let golden = Golden::open(variant);
        let adam: AdamParams = serde_json::from_value(adam_settings(&golden.facts["adam"])).unwrap();
        let tolerance = Tolerance::of(&golden);
        for adapter in &golden.adapters() {
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
                let allowed = f64::from(tolerance.gradient) * expected_norm;
                assert!((norm - expected_norm).abs() <= allowed, "{label}: {norm}, not {expected_norm}");
                let noise = tolerance.noise * largest(&gradients);
                let mut offset = 0;
                golden.compare(
                    &run,
                    &run.parameters,
                    &format!("{adapter}.step{step}.parameter"),
                    |key, values, expected| {
                        for (place, (value, expected)) in values.iter().zip(expected).enumerate() {
                            // With eps = 1e-12 an entry whose gradient is noise may take a whole step either way.
                            let is_noise = gradients[offset + place].abs() < noise;
                            let allowed = if is_noise {
                                2.0 * step as f32 * adam.learning_rate as f32
                            } else {
                                tolerance.parameters[step - 1]
                            };
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
