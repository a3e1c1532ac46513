//! What must be equal bit for bit: any cut of a batch, forward and backward, a loss and its derivatives as weights.

use std::collections::BTreeMap;

use proptest::prelude::*;
use twinkle_core::Result;
use twinkle_core::call::{ForwardBackwardOutcome, LossSpec};
use twinkle_core::data::{Datum, TensorData};
use twinkle_model::batch::Example;
use twinkle_model::losses::{DatumView, Inputs, Loss, PerBatch, Scope, WholeLoss, build};
use twinkle_model::run::Run;
use twinkle_model::step::forward_backward;

use crate::fixture::Golden;
use crate::{HARD_CASES, ROWS_PER_PASS};

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
fn the_use_of_experts_is_a_metric_that_the_number_of_passes_does_not_change() {
    for (variant, has_experts) in [("qwen3_moe_mixed", true), ("qwen3", false)] {
        let golden = Golden::open(variant);
        let loss = golden.loss("cross_entropy");
        let examples = golden.examples("attn_mlp", loss.as_ref());
        let violation = |rows: usize| {
            let mut run = golden.run("attn_mlp");
            let found = forward_backward(&mut run, &golden.base, &examples, loss.as_ref(), true, rows).unwrap();
            found.metrics.get("expert_max_violation:mean").copied()
        };
        assert_eq!(violation(ROWS_PER_PASS), violation(1), "{variant}");
        assert_eq!(violation(ROWS_PER_PASS).is_some_and(|violation| violation > 0.0), has_experts, "{variant}");
    }
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

fn cross_entropy() -> Box<dyn Loss> {
    build(&LossSpec::named("cross_entropy")).unwrap()
}

/// Each case of each model, and the datums with and without candidates as one batch.
fn batches(golden: &Golden) -> Vec<(String, Box<dyn Loss>, Vec<Example>)> {
    let mut batches: Vec<_> = golden
        .cases()
        .into_iter()
        .map(|case| {
            let loss = golden.loss_of(&case);
            let examples = golden.checked(golden.case(&case), loss.as_ref());
            (case, loss, examples)
        })
        .collect();
    let mut mixed = golden.case("candidates");
    mixed.extend(golden.case("cross_entropy"));
    mixed.swap(1, 4);
    let examples = golden.checked(mixed, cross_entropy().as_ref());
    batches.push(("mixed".to_owned(), cross_entropy(), examples));
    batches
}

/// What a client makes of the metrics of several requests: all of ours are sums.
fn joined(outcomes: &[ForwardBackwardOutcome]) -> BTreeMap<String, f64> {
    let mut metrics = BTreeMap::new();
    for (name, value) in outcomes.iter().flat_map(|outcome| &outcome.metrics) {
        assert!(name.ends_with(":sum") && name.matches(':').count() == 1, "{name}");
        *metrics.entry(name.clone()).or_insert(0.0) += value;
    }
    metrics
}

#[test]
fn any_cut_of_a_batch_gives_the_same_bits_and_metrics() {
    for (variant, adapter) in HARD_CASES {
        let golden = Golden::losses(variant);
        for (case, loss, examples) in batches(&golden) {
            let mut whole = golden.run(adapter);
            let expected =
                forward_backward(&mut whole, &golden.base, &examples, loss.as_ref(), true, ROWS_PER_PASS).unwrap();
            let expected_metrics = joined(std::slice::from_ref(&expected));
            // Where a request ends, and how many rows a pass of each may have.
            let cuts = prop::collection::vec(any::<bool>(), examples.len() - 1);
            let config = ProptestConfig { cases: 6, ..ProptestConfig::default() };
            proptest!(config, |(cuts in cuts, row_limit in 1_usize..70)| {
                let mut run = golden.run(adapter);
                let mut outcomes = Vec::new();
                let mut start = 0;
                for end in 1..=examples.len() {
                    if cuts.get(end - 1).is_some_and(|cut| !cut) {
                        continue;
                    }
                    let request = &examples[start..end];
                    start = end;
                    let outcome =
                        forward_backward(&mut run, &golden.base, request, loss.as_ref(), true, row_limit).unwrap();
                    outcomes.push(outcome);
                }
                prop_assert!(run.gradients.flat() == whole.gradients.flat(), "{variant} {case}");
                for (name, value) in joined(&outcomes) {
                    let expected = expected_metrics[&name];
                    let close = (value - expected).abs() <= 1e-12 * expected.abs().max(1.0);
                    prop_assert!(close, "{variant} {case} {name}: {value}, not {expected}");
                }
                let logprobs: Vec<_> = outcomes.into_iter().flat_map(|outcome| outcome.logprobs).collect();
                prop_assert_eq!(&logprobs, &expected.logprobs);
            });
        }
    }
}

#[test]
fn forward_gives_the_outcome_of_forward_backward_for_every_loss() {
    for (variant, adapter) in HARD_CASES {
        let golden = Golden::losses(variant);
        for (case, loss, examples) in batches(&golden) {
            let mut run = golden.run(adapter);
            let mut outcome = |backward| {
                forward_backward(&mut run, &golden.base, &examples, loss.as_ref(), backward, ROWS_PER_PASS).unwrap()
            };
            assert_eq!(outcome(false), outcome(true), "{variant} {case}");
        }
    }
}

/// The derivative of a loss by each logprob, as a client that knows the formula computes it.
fn derivatives(loss: &dyn Loss, example: &Example, logprobs: &[f32]) -> Vec<f32> {
    let columns = loss.inputs().columns();
    let mut derivatives = vec![0.0; logprobs.len()];
    match loss.scope() {
        Scope::Token(rule) => {
            for (place, logprob) in logprobs.iter().enumerate() {
                let inputs = &example.inputs[place * columns..(place + 1) * columns];
                derivatives[place] = rule.token(*logprob, inputs).derivative;
            }
        }
        Scope::Sequence(rule) => {
            rule.sequence(DatumView { example, logprobs, facts: &[] }, &mut derivatives);
        }
        Scope::Row(_) | Scope::Group(..) | Scope::Batch(_) | Scope::Embeddings(_) => panic!("no case is of this kind"),
    }
    derivatives
}

#[test]
fn a_client_that_sends_minus_the_derivatives_as_weights_gets_the_gradient_of_its_loss() {
    for (variant, adapter) in HARD_CASES {
        let golden = Golden::losses(variant);
        for case in golden.cases() {
            let loss = golden.loss_of(&case);
            let data = golden.case(&case);
            let examples = golden.checked(data.clone(), loss.as_ref());
            let mut directly = golden.run(adapter);
            forward_backward(&mut directly, &golden.base, &examples, loss.as_ref(), true, ROWS_PER_PASS).unwrap();

            // As `forward_backward_custom`: forward, derive, and backward with cross entropy.
            let mut custom = golden.run(adapter);
            let target_of = |datum: &Datum| datum.loss_inputs["target_tokens"].clone();
            let asked = data.iter().map(|datum| Datum {
                tokens: datum.tokens.clone(),
                loss_inputs: BTreeMap::from([("target_tokens".to_owned(), target_of(datum))]),
            });
            let asked = golden.checked(asked.collect(), cross_entropy().as_ref());
            let forward =
                forward_backward(&mut custom, &golden.base, &asked, cross_entropy().as_ref(), false, 40).unwrap();
            let weighted = data.iter().zip(&examples).zip(&forward.logprobs).map(|((datum, example), logprobs)| {
                let weights = derivatives(loss.as_ref(), example, &logprobs.values).iter().map(|c| -c).collect();
                let targets = target_of(datum);
                let weights = TensorData { shape: targets.shape.clone(), ..TensorData::floats(weights) };
                Datum {
                    tokens: datum.tokens.clone(),
                    loss_inputs: BTreeMap::from([
                        ("target_tokens".to_owned(), targets),
                        ("weights".to_owned(), weights),
                    ]),
                }
            });
            let weighted = golden.checked(weighted.collect(), cross_entropy().as_ref());
            let backward =
                forward_backward(&mut custom, &golden.base, &weighted, cross_entropy().as_ref(), true, 40).unwrap();
            assert_eq!(backward.logprobs, forward.logprobs, "{variant} {case}");
            assert_eq!(custom.gradients.flat(), directly.gradients.flat(), "{variant} {case}");
        }
    }
}

#[test]
fn twice_the_weights_are_twice_the_gradient_to_the_bit() {
    let golden = Golden::losses("llama3_tied");
    for case in ["candidates", "cross_entropy"] {
        let examples = golden.checked(golden.case(case), cross_entropy().as_ref());
        let gradient = |factor: f32| {
            let mut examples = examples.clone();
            for weight in examples.iter_mut().flat_map(|example| &mut example.inputs) {
                *weight *= factor;
            }
            let mut run = golden.run("attn_mlp_unembed");
            forward_backward(&mut run, &golden.base, &examples, cross_entropy().as_ref(), true, ROWS_PER_PASS).unwrap();
            Vec::<f32>::try_from(run.gradients.flat()).unwrap()
        };
        let doubled: Vec<f32> = gradient(1.0).iter().map(|value| 2.0 * value).collect();
        assert_eq!(gradient(2.0), doubled, "{case}");
        let negative: Vec<f32> = gradient(1.0).iter().map(|value| -value).collect();
        assert_eq!(gradient(-1.0), negative, "{case}");
    }
}

#[test]
fn one_candidate_per_position_is_one_target_to_the_bit() {
    for (variant, adapter) in HARD_CASES {
        let golden = Golden::losses(variant);
        let flat = golden.case("cross_entropy");
        let mut tables = flat.clone();
        for tensor in tables.iter_mut().flat_map(|datum| datum.loss_inputs.values_mut()) {
            tensor.shape.push(1);
        }
        let compute = |data: Vec<Datum>| {
            let examples = golden.checked(data, cross_entropy().as_ref());
            let mut run = golden.run(adapter);
            let outcome =
                forward_backward(&mut run, &golden.base, &examples, cross_entropy().as_ref(), true, ROWS_PER_PASS)
                    .unwrap();
            (outcome, run)
        };
        let ((flat, flat_run), (tables, tables_run)) = (compute(flat), compute(tables));
        assert_eq!(flat.metrics, tables.metrics);
        assert_eq!(flat_run.gradients.flat(), tables_run.gradients.flat(), "{variant}");
        for (flat, table) in flat.logprobs.iter().zip(&tables.logprobs) {
            assert_eq!((&flat.values, table.candidates), (&table.values, Some(1)));
        }
    }
}

/// Cross entropy written as a function of the whole batch.
struct WholeCrossEntropy {
    fails: bool,
}

impl Loss for WholeCrossEntropy {
    fn inputs(&self) -> Inputs<'_> {
        Inputs::AsSent
    }

    fn scope(&self) -> Scope<'_> {
        Scope::Batch(self)
    }

    fn takes_candidates(&self) -> bool {
        true
    }
}

impl PerBatch for WholeCrossEntropy {
    fn batch(&self, data: &[DatumView]) -> Result<WholeLoss> {
        let weights = |datum: &DatumView| match &datum.example.sent["weights"].values {
            twinkle_core::data::TensorValues::Float32(weights) => weights.clone(),
            twinkle_core::data::TensorValues::Int64(_) => panic!("weights are floats"),
        };
        if self.fails {
            return Err(twinkle_core::Error::invalid("no"));
        }
        let mut value = 0.0;
        for datum in data {
            for (weight, logprob) in weights(datum).iter().zip(datum.logprobs).filter(|(weight, _)| **weight != 0.0) {
                value += f64::from(-weight * logprob);
            }
        }
        let derivatives = data.iter().map(|datum| weights(datum).iter().map(|weight| -weight).collect()).collect();
        Ok(WholeLoss { value, derivatives, metrics: BTreeMap::from([("custom:mean".to_owned(), 2.0)]) })
    }
}

#[test]
fn a_loss_of_the_whole_batch_gets_the_same_logprobs_and_gives_the_same_bits() {
    for (variant, adapter) in HARD_CASES {
        let golden = Golden::losses(variant);
        let mut data = golden.case("candidates");
        data.extend(golden.case("cross_entropy"));
        let compute = |loss: &dyn Loss, backward: bool, run: &mut Run| {
            let examples = golden.checked(data.clone(), loss);
            forward_backward(run, &golden.base, &examples, loss, backward, 40)
        };
        let (mut by_token, mut whole) = (golden.run(adapter), golden.run(adapter));
        let expected = compute(cross_entropy().as_ref(), true, &mut by_token).unwrap();
        let found = compute(&WholeCrossEntropy { fails: false }, true, &mut whole).unwrap();
        assert_eq!(found.logprobs, expected.logprobs);
        assert_eq!(found.metrics["loss:sum"].to_bits(), expected.metrics["loss:sum"].to_bits());
        assert_eq!(found.metrics["custom:mean"].to_bits(), 2.0_f64.to_bits());
        assert_eq!(whole.gradients.flat(), by_token.gradients.flat(), "{variant}");
        assert_eq!(compute(&WholeCrossEntropy { fails: false }, false, &mut whole).unwrap(), found);

        compute(&WholeCrossEntropy { fails: true }, true, &mut whole).unwrap_err();
        assert_eq!(whole.gradients.flat(), by_token.gradients.flat());
    }
}
