//! Logits with adapters in every format, and their gradients.

use std::sync::Arc;

use twinkle_nn::{BaseModel, Gradients, Pack, Precision};

use crate::common::{
    Datums, FORMATS, Golden, LoadedAdapter, VARIANTS, adapters, datums, floats, forward_backward, golden_json, largest,
    load, load_adapter, max_abs,
};
use crate::{Tolerance, worst_logits};

#[test]
fn adapted_logits_agree_in_fp32() {
    for variant in VARIANTS {
        let (base, golden) = (load(variant, Precision::Float32), Golden::read(variant));
        for name in adapters(variant).iter().chain(&FORMATS) {
            let loaded = load_adapter(&base, variant, name);
            let error = worst_logits(&base, &golden, Some(&loaded.adapter), &format!("{name}."));
            assert!(error <= Tolerance::of(base.config()).logits, "{variant} {name}: logits are off by {error}");
        }
    }
}

/// The derivative of each of the fixtures' losses by a token's logprob.
fn derivative(loss: &str, logprob: f32, weight: f32, advantage: f32, old: f32) -> f32 {
    let ratio = (logprob - old).exp();
    match loss {
        "cross_entropy" => -weight,
        "importance_sampling" => -ratio * advantage,
        "ppo" => {
            let clipped = ratio.clamp(0.8, 1.2);
            if ratio * advantage <= clipped * advantage { -ratio * advantage } else { 0.0 }
        }
        "cispo" => -ratio.clamp(0.0, 4.0) * advantage,
        other => panic!("no loss `{other}`"),
    }
}

/// Sum of the loss, logprobs, and the flat gradient.
fn gradient_of(base: &BaseModel, loaded: &LoadedAdapter, data: &Datums, loss: &str) -> (f64, Vec<f32>, Vec<f32>) {
    let mut gradients = Gradients::zeros(&loaded.layout, base.device());
    let row_loss = |row: usize, logprob: f32| {
        let slope = derivative(loss, logprob, data.weights[row], data.advantages[row], data.old_logprobs[row]);
        (f64::from(-data.weights[row] * logprob), slope)
    };
    let adapters = [Arc::clone(&loaded.adapter)];
    let (sum, logprobs) =
        forward_backward(base, &data.pack, &adapters, &data.targets, &row_loss, &mut [&mut gradients]);
    (sum, logprobs, floats(gradients.flat()))
}

/// Each factor's part of a flat gradient with the fixture's, and its name.
fn factors<'a>(
    golden: &'a Golden,
    loaded: &'a LoadedAdapter,
    prefix: &'a str,
) -> impl Iterator<Item = (String, std::ops::Range<usize>, &'a [f32])> {
    loaded.layout.modules().iter().flat_map(move |module| {
        [("lora_A", module.a_range()), ("lora_B", module.b_range())].map(|(factor, range)| {
            let key = format!("{prefix}.gradient.{}.{factor}", module.name);
            let expected = golden.floats(&key);
            (key, range, expected)
        })
    })
}

fn assert_gradient_agrees(golden: &Golden, loaded: &LoadedAdapter, prefix: &str, flat: &[f32], allowed: f32) {
    for (key, range, expected) in factors(golden, loaded, prefix) {
        let (error, largest) = (max_abs(&flat[range], expected), largest(expected));
        assert!(error <= allowed * largest, "{key}: off by {error}, the largest is {largest}");
    }
}

#[test]
fn adapter_gradients_agree_in_fp32() {
    for variant in VARIANTS {
        let (base, golden) = (load(variant, Precision::Float32), Golden::read(variant));
        let tolerance = Tolerance::of(base.config());
        for name in adapters(variant) {
            let (loaded, data) = (load_adapter(&base, variant, name), datums(&golden, name));
            for loss in ["cross_entropy", "importance_sampling", "ppo", "cispo"] {
                let (sum, logprobs, flat) = gradient_of(&base, &loaded, &data, loss);
                let error = max_abs(&logprobs, &data.scored);
                assert!(error <= tolerance.logits, "{variant} {name}: logprobs are off by {error}");
                if loss == "cross_entropy" {
                    let expected = golden_json(variant)["adapters"][name]["losses"][loss]["sum"].as_f64().unwrap();
                    let allowed = f64::from(tolerance.logits) / 10.0 * expected.abs();
                    assert!((sum - expected).abs() <= allowed, "{variant}: loss {sum}, not {expected}");
                }
                assert_gradient_agrees(&golden, &loaded, &format!("{name}.{loss}"), &flat, tolerance.gradient);
            }
        }
    }
}

#[test]
fn gradients_of_adapters_in_other_formats_agree_in_fp32() {
    for variant in VARIANTS {
        let (base, golden) = (load(variant, Precision::Float32), Golden::read(variant));
        for name in FORMATS {
            let loaded = load_adapter(&base, variant, name);
            let (_, _, flat) = gradient_of(&base, &loaded, &datums(&golden, "attn_mlp"), "cross_entropy");
            let prefix = format!("{name}.cross_entropy");
            assert_gradient_agrees(&golden, &loaded, &prefix, &flat, Tolerance::of(base.config()).gradient);
        }
    }
}

/// The data of bf16 gradients: with experts, a sequence in which rounding sends no token to another one.
fn data_for_bf16(golden: &Golden, name: &str) -> Datums {
    if golden.find(&format!("{name}.clear.tokens")).is_none() {
        return datums(golden, name);
    }
    let tokens = golden.ids(&format!("{name}.clear.tokens"));
    let mut targets = tokens.clone();
    targets.rotate_left(1);
    let rows = tokens.len();
    Datums {
        pack: Pack::single(&tokens, Some(0)),
        targets,
        weights: vec![1.0; rows],
        advantages: vec![0.0; rows],
        old_logprobs: vec![0.0; rows],
        scored: vec![],
    }
}

/// The fp32 gradient is the one that `adapter_gradients_agree_in_fp32` compares with the reference.
#[test]
fn adapter_gradients_in_bf16_point_the_same_way() {
    for variant in VARIANTS {
        let golden = Golden::read(variant);
        let (exact, rounded) = (load(variant, Precision::Float32), load(variant, Precision::BFloat16));
        for name in adapters(variant) {
            let data = data_for_bf16(&golden, name);
            let gradient =
                |base: &BaseModel| gradient_of(base, &load_adapter(base, variant, name), &data, "cross_entropy").2;
            let (expected, found) = (gradient(&exact), gradient(&rounded));
            let dot = |a: &[f32], b: &[f32]| a.iter().zip(b).map(|(x, y)| f64::from(*x) * f64::from(*y)).sum::<f64>();
            let (norm, expected_norm) = (dot(&found, &found).sqrt(), dot(&expected, &expected).sqrt());
            let cosine = dot(&found, &expected) / (norm * expected_norm);
            // Within 1.5 times the reference's own distance, as an angle and as a length.
            let reference = &golden_json(variant)["adapters"][name]["bfloat16_gradient"];
            let [reference, reference_ratio] = ["cosine", "norm_ratio"].map(|key| reference[key].as_f64().unwrap());
            let angle = |cosine: f64| (2.0 * (1.0 - cosine)).sqrt();
            let allowed = 1.5 * angle(reference.min(0.9993));
            assert!(angle(cosine) <= allowed, "{variant} {name}: cosine {cosine}, of the reference {reference}");
            // A length that the reference itself does not keep is not compared.
            let (length, of_reference) = ((norm / expected_norm - 1.0).abs(), (reference_ratio - 1.0).abs());
            let allowed = (1.5 * of_reference).max(angle(reference) / 2.0).max(0.01);
            assert!(length <= allowed || of_reference > 0.1, "{variant} {name}: {norm}, not {expected_norm}");
        }
    }
}
