//! Training all weights: gradients are autograd's, and their bits do not depend on how data are cut into passes.

mod common;

use std::path::Path;
use std::sync::Arc;

use common::{Golden, datums, floats, forward_backward, load};
use serde_json::Value;
use tch::{Kind, Tensor};
use twinkle_nn::full::{TrainedModel, WeightLayout};
use twinkle_nn::{Adapter, AdapterLayout, BaseModel, Gradients, Pack, Precision};

/// A run that trains all weights, without the run.
struct Training {
    layout: Arc<WeightLayout>,
    trained: TrainedModel,
    adapters: [Arc<Adapter>; 1],
    gradients: Gradients,
}

impl Training {
    fn of(base: &BaseModel) -> Self {
        let layout = base.weight_layout();
        let trained = base.with_weights(&layout, &base.masters().unwrap()).unwrap();
        let mut gradients = Gradients::of_weights(base.config(), &layout, base.device());
        gradients.attach(&trained);
        let nothing = Arc::new(AdapterLayout::without_modules(base.config()));
        let none = Tensor::zeros([0], (Kind::Float, base.device()));
        let adapter = Adapter::from_parameters(&nothing, &none, base.kind(), base.device());
        Self { layout, trained, adapters: [Arc::new(adapter)], gradients }
    }

    /// Adds the gradient of the weighted cross entropy of some sequences; returns the loss.
    fn add(&mut self, pack: &Pack, targets: &[u32], weights: &[f32]) -> f64 {
        let loss = |row: usize, logprob: f32| (f64::from(-weights[row] * logprob), -weights[row]);
        let gradients = &mut [&mut self.gradients];
        forward_backward(self.trained.model(), pack, &self.adapters, targets, &loss, gradients).0
    }
}

/// The golden datums, each a pack of its own.
fn apart(golden: &Golden) -> Vec<(Pack, Vec<u32>, Vec<f32>)> {
    let datum = |number: usize| {
        let mut pack = Pack::new();
        pack.push(&golden.ids(&format!("datum.{number}.tokens")), Some(0));
        let targets = golden.ids(&format!("datum.{number}.target_tokens"));
        (pack, targets, golden.floats(&format!("datum.{number}.weights")).to_vec())
    };
    (0..3).map(datum).collect()
}

#[test]
fn gradients_of_all_weights_are_those_of_autograd() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/golden/full_weights.json");
    let known: Value = serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap();
    for (variant, facts) in known.as_object().unwrap() {
        let base = load(variant, Precision::Float32);
        let mut training = Training::of(&base);
        let data = datums(&Golden::read(variant), "attn_mlp");
        let loss = training.add(&data.pack, &data.targets, &data.weights);
        let expected = facts["loss"].as_f64().unwrap();
        assert!((loss - expected).abs() <= 1e-4 * expected.abs().max(1.0), "{variant}: loss {loss}, not {expected}");

        let gradients = floats(&training.gradients.merged());
        let expected = facts["gradients"].as_object().unwrap();
        assert_eq!(training.layout.weights().len(), expected.len(), "{variant}");
        for weight in training.layout.weights() {
            let own: Vec<f64> = gradients[weight.range()].iter().map(|number| f64::from(*number)).collect();
            let wave = |frequency: f64, phase: f64| {
                own.iter().enumerate().map(|(place, number)| number * (frequency * place as f64 + phase).cos()).sum()
            };
            let norm = own.iter().map(|number| number * number).sum::<f64>().sqrt();
            let found: [f64; 3] = [norm, wave(0.37, 0.0), wave(1.13, 0.5)];
            let expected: Vec<f64> = serde_json::from_value(expected[&weight.name].clone()).unwrap();
            for (found, wanted) in found.iter().zip(&expected) {
                let difference = (found - wanted).abs();
                assert!(difference <= 2e-4 * expected[0], "{variant} {}: {found}, not {wanted}", weight.name);
            }
        }
    }
}

#[test]
fn any_cut_into_passes_gives_the_same_bits() {
    for precision in [Precision::Float32, Precision::BFloat16] {
        for variant in ["llama3_tied", "qwen2", "qwen3", "qwen3_moe", "qwen3_5", "qwen3_5_moe"] {
            let base = load(variant, precision);
            let golden = Golden::read(variant);
            let data = datums(&golden, "attn_mlp");
            let (mut together, mut apart_, mut mixed) = (Training::of(&base), Training::of(&base), Training::of(&base));
            together.add(&data.pack, &data.targets, &data.weights);
            let each = apart(&golden);
            for (pack, targets, weights) in &each {
                apart_.add(pack, targets, weights);
            }
            let mut two = Pack::new();
            for number in 0..2 {
                two.push(&golden.ids(&format!("datum.{number}.tokens")), Some(0));
            }
            mixed.add(
                &two,
                &[each[0].1.clone(), each[1].1.clone()].concat(),
                &[each[0].2.clone(), each[1].2.clone()].concat(),
            );
            mixed.add(&each[2].0, &each[2].1, &each[2].2);
            let bits = |training: &mut Training| {
                floats(&training.gradients.merged()).into_iter().map(f32::to_bits).collect::<Vec<_>>()
            };
            let whole = bits(&mut together);
            assert!(whole.iter().any(|bits| *bits != 0), "{variant}");
            assert!(whole == bits(&mut apart_), "{variant} {precision:?}: one by one");
            assert!(whole == bits(&mut mixed), "{variant} {precision:?}: two and one");
        }
    }
}

#[test]
fn a_network_of_the_models_own_weights_is_the_model() {
    for precision in [Precision::Float32, Precision::BFloat16] {
        for variant in ["llama3_tied", "qwen3_moe", "qwen3_5_moe"] {
            let base = load(variant, precision);
            let training = Training::of(&base);
            let tokens = [5, 9, 31, 7];
            let rows = |model: &BaseModel| floats(&model.forward(&Pack::single(&tokens, None), &[]).unwrap());
            assert_eq!(rows(&base), rows(training.trained.model()), "{variant} {precision:?}");
        }
    }
}

/// A decay rounded to bf16 would forget at another rate: the network has it in fp32, and so do the masters.
#[test]
fn what_the_network_has_in_fp32_is_trained_in_fp32() {
    let base = load("qwen3_5", Precision::BFloat16);
    let mut training = Training::of(&base);
    let exact: Vec<_> = training.layout.weights().iter().filter(|weight| weight.is_exact).cloned().collect();
    assert!(!exact.is_empty());
    for weight in &exact {
        assert!(weight.name.ends_with(".A_log") || weight.name.ends_with(".dt_bias"), "{}", weight.name);
        let masters = floats(&base.masters().unwrap());
        let own = &masters[weight.range()];
        assert!(
            own.iter().any(|number| half::bf16::from_f32(*number).to_f32().to_bits() != number.to_bits()),
            "{}",
            weight.name
        );
    }
    let data = datums(&Golden::read("qwen3_5"), "attn_mlp");
    training.add(&data.pack, &data.targets, &data.weights);
    let gradients = floats(&training.gradients.merged());
    for weight in &exact {
        assert!(gradients[weight.range()].iter().any(|number| *number != 0.0), "{}", weight.name);
    }
}
