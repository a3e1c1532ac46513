//! Logits, logprobs and the residual stream of the base models.

use twinkle_nn::{Pack, Precision};

use crate::common::{Golden, VARIANTS, floats, golden_json, largest, load, logits_of, max_abs};
use crate::{Tolerance, worst_logits};

#[test]
fn logits_agree_in_fp32() {
    for variant in VARIANTS {
        let (base, golden) = (load(variant, Precision::Float32), Golden::read(variant));
        let error = worst_logits(&base, &golden, None, "");
        assert!(error <= Tolerance::of(base.config()).logits, "{variant}: logits are off by {error}");
    }
}

#[test]
fn logprobs_agree_in_fp32_at_every_length() {
    for variant in VARIANTS {
        let (base, golden) = (load(variant, Precision::Float32), Golden::read(variant));
        for (i, tokens) in golden.sequences().iter().enumerate().filter(|(_, tokens)| tokens.len() > 1) {
            let mut targets = tokens[1..].to_vec();
            targets.push(0);
            let pack = Pack::single(tokens, None);
            let hidden = base.forward(&pack, &[]).unwrap();
            let found = base.head_loss(&hidden, &pack, &[], &targets, &mut |_, _, _| {}, None).unwrap().logprobs;
            let error = max_abs(&found[..tokens.len() - 1], golden.floats(&format!("logprobs.{i}")));
            let allowed = Tolerance::of(base.config()).logits;
            assert!(error <= allowed, "{variant} sequence {i} of {}: logprobs are off by {error}", tokens.len());
        }
    }
}

/// A mistake is found in the layer that makes it.
#[test]
fn the_residual_stream_agrees_after_every_layer() {
    for variant in VARIANTS {
        let (base, golden) = (load(variant, Precision::Float32), Golden::read(variant));
        let (i, expected) = golden.hidden();
        let (_, tape) = base.forward_training(&Pack::single(&golden.sequences()[i], None), &[]).unwrap();
        let found = tape.residual_stream();
        assert_eq!(found.len(), expected.len(), "{variant}");
        for (layer, (found, expected)) in found.iter().zip(expected).enumerate() {
            let error = max_abs(&floats(found), &expected) / largest(&expected);
            let allowed = Tolerance::of(base.config()).logits / 5.0;
            assert!(error <= allowed, "{variant} layer {layer} is off by {error} of its largest number");
        }
    }
}

#[test]
fn logits_in_bf16_err_no_more_than_the_reference_does() {
    for variant in VARIANTS {
        let (base, golden) = (load(variant, Precision::BFloat16), Golden::read(variant));
        let noise = &golden_json(variant)["noise"];
        let [reference, reference_divergence] =
            ["bfloat16_max_abs", "bfloat16_mean_kl"].map(|name| noise[name].as_f64().unwrap());
        let (mut error, mut divergence, mut rows) = (0.0_f32, 0.0_f64, 0);
        for (tokens, expected) in golden.rounded() {
            let found = logits_of(&base, &tokens, None);
            error = error.max(max_abs(&found, expected));
            let vocabulary = base.config().vocab_size;
            for (found, expected) in found.chunks(vocabulary).zip(expected.chunks(vocabulary)) {
                divergence += kl_divergence(expected, found);
                rows += 1;
            }
        }
        let divergence = divergence / f64::from(rows);
        assert!(f64::from(error) <= 1.5 * reference, "{variant}: bf16 logits are off by {error}, not {reference}");
        let usual = if base.config().delta.is_some() { 2e-2 } else { 2e-3 };
        let allowed = f64::max(usual, 1.5 * reference_divergence);
        assert!(divergence <= allowed, "{variant}: the mean divergence is {divergence}");
    }
}

fn kl_divergence(expected: &[f32], found: &[f32]) -> f64 {
    let log_softmax = |row: &[f32]| -> Vec<f64> {
        let top = row.iter().copied().fold(f32::MIN, f32::max);
        let sum: f64 = row.iter().map(|value| f64::from(value - top).exp()).sum();
        row.iter().map(|value| f64::from(value - top) - sum.ln()).collect()
    };
    let (expected, found) = (log_softmax(expected), log_softmax(found));
    expected.iter().zip(&found).map(|(p, q)| p.exp() * (p - q)).sum()
}
