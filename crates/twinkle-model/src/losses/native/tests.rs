use std::collections::BTreeMap;

use twinkle_core::call::LossSpec;
use twinkle_core::data::{Datum, TensorData};

use super::*;
use crate::batch::{self, Example, Limits};
use crate::losses::{DatumView, EmbeddingView, Inputs, Loss, Scope, WholeLoss};

fn spec(name: &str, config: &[(&str, f64)], options: &[(&str, &str)]) -> LossSpec {
    LossSpec {
        config: config.iter().map(|(name, value)| ((*name).to_owned(), *value)).collect(),
        options: options.iter().map(|(name, word)| ((*name).to_owned(), (*word).to_owned())).collect(),
        ..LossSpec::named(name)
    }
}

fn loss(name: &str) -> Box<dyn Loss> {
    crate::losses::build(&LossSpec::named(name)).unwrap()
}

fn mistake(spec: &LossSpec) -> String {
    crate::losses::build(spec).err().unwrap().to_string()
}

fn datum(rows: usize, inputs: &[(&str, &[f32])]) -> Datum {
    let mut loss_inputs: BTreeMap<String, TensorData> =
        inputs.iter().map(|(name, values)| ((*name).to_owned(), TensorData::floats(values.to_vec()))).collect();
    loss_inputs.insert("target_tokens".to_owned(), TensorData::ints(vec![1; rows]));
    Datum { tokens: vec![0; rows], loss_inputs }
}

fn check(name: &str, data: Vec<Datum>) -> twinkle_core::Result<Vec<Example>> {
    batch::check(data, loss(name).as_ref(), Limits { vocabulary: 10, max_length: 16 })
}

fn refused(name: &str, data: Vec<Datum>) -> String {
    check(name, data).unwrap_err().to_string()
}

#[test]
fn unknown_names_and_settings_name_the_nearest_right_one() {
    let cases = [
        (LossSpec::named("GRPPOLoss"), "did you mean `GRPOLoss`"),
        (LossSpec::named("PPOValueLoss"), "needs a model with a value head"),
        (spec("GRPOLoss", &[("epsilom", 0.1)], &[]), "did you mean `epsilon`"),
        (spec("MSELoss", &[("beta", 0.1)], &[]), "it has no settings"),
        (
            spec("GRPOLoss", &[("beta", -0.1)], &[]),
            "`beta` of loss `GRPOLoss` is `-0.1`, but must be a number of at least 0",
        ),
        (spec("DPOLoss", &[("beta", 0.0)], &[]), "a number above 0"),
        (spec("DPOLoss", &[], &[("loss_type", "sigmoyd")]), "did you mean `sigmoid`"),
        (spec("DPOLoss", &[("label_smoothing", 0.1)], &[("loss_type", "ipo")]), "no meaning for the `loss_type` `ipo`"),
        (spec("DPOLoss", &[("reference_free", 0.5)], &[]), "true or false"),
        (spec("GKDLoss", &[("beta", 1.5)], &[]), "a number from 0 to 1"),
        (spec("GKDLoss", &[("temperature", f64::NAN)], &[]), "not a finite number"),
        (
            spec("CrossEntropyLoss", &[], &[("reduction", "none")]),
            "setting `reduction` of loss `CrossEntropyLoss` is `none`",
        ),
        (spec("CrossEntropyLoss", &[("reduction", 1.0)], &[]), "but must be a word"),
        (spec("SimPOLoss", &[], &[("beta", "much")]), "but must be a number"),
        (spec("ChunkedCrossEntropyLoss", &[("chunk_size", 0.5)], &[]), "a whole number of at least 1"),
    ];
    for (spec, expected) in cases {
        let text = mistake(&spec);
        assert!(text.contains(expected), "`{text}` lacks `{expected}`");
    }
    assert!(crate::losses::build(&spec("GRPOLoss", &[("ignore_index", -100.0)], &[])).is_ok());
}

#[test]
fn no_native_name_is_among_the_names_of_tinkers_losses() {
    assert!(!crate::losses::names().iter().any(|name| is_native(name)));
    let error = crate::losses::check_is_tinkers(&LossSpec::named("PPOLoss")).unwrap_err().to_string();
    assert!(error.contains("unknown loss `PPOLoss`") && error.contains("`ppo`"), "{error}");
    assert!(names().iter().all(|name| is_native(name) && crate::losses::build(&LossSpec::named(name)).is_ok()));
}

#[test]
fn data_that_a_loss_cannot_use_are_refused_by_name() {
    let row = |inputs: &[(&str, &[f32])]| datum(2, inputs);
    let cases = [
        ("CrossEntropyLoss", vec![row(&[("mask", &[1.0, 0.5])])], "`mask` is 0.5 at place 1"),
        ("CrossEntropyLoss", vec![row(&[("masc", &[1.0, 1.0])])], "did you mean `mask`"),
        ("CrossEntropyLoss", vec![row(&[("weights", &[1.0, 1.0])])], "unknown loss input `weights`"),
        ("DPOLoss", vec![row(&[])], "there are 1 sequences, which are no pairs"),
        ("DPOLoss", vec![row(&[("ref_logps", &[-1.0, -1.0])]), row(&[])], "1 of 2 sequences have no `ref_logps`"),
        ("GRPOLoss", vec![row(&[("advantages", &[1.0, 1.0])]), row(&[])], "datum 1 has no `advantages`"),
        ("GRPOLoss", vec![row(&[("advantages", &[1.0])])], "has 1 values"),
        ("GKDLoss", vec![row(&[])], "has no `teacher_logprobs`"),
        (
            "GKDLoss",
            vec![row(&[("teacher_logprobs", &[0.0; 2]), ("candidate_mask", &[1.0, 0.0])])],
            "no candidate there",
        ),
        ("InfonceLoss", vec![row(&[])], "has no `label`"),
        ("InfonceLoss", vec![row(&[("label", &[0.0])])], "datum 0 has `label` 0"),
        ("InfonceLoss", vec![row(&[("label", &[1.0])])], "has no positive"),
        ("InfonceLoss", vec![row(&[("label", &[2.0])])], "must be 1 where a group begins"),
    ];
    for (name, data, expected) in cases {
        let text = refused(name, data);
        assert!(text.contains(expected), "`{text}` lacks `{expected}`");
    }
}

#[test]
fn a_known_input_that_a_loss_does_not_read_is_left_alone() {
    assert!(
        check("CrossEntropyLoss", vec![datum(2, &[("advantages", &[1.0, 2.0]), ("ref_logps", &[0.0, 0.0])])]).is_ok()
    );
}

#[test]
fn a_mask_of_nothing_is_a_loss_of_nothing() {
    for name in ["CrossEntropyLoss", "GRPOLoss", "CISPOLoss", "BNPOLoss"] {
        let advantages: &[f32] = &[1.0, -1.0];
        let inputs: &[(&str, &[f32])] = &[("mask", &[0.0, 0.0]), ("advantages", advantages)];
        let examples = check(name, vec![datum(2, inputs)]).unwrap();
        let (loss, columns) = (loss(name), loss(name).inputs().columns());
        let Scope::Token(rule) = loss.scope() else { panic!("{name} is of another kind") };
        for inputs in examples[0].inputs.chunks(columns) {
            assert_eq!(rule.token(-1.0, inputs), crate::losses::TokenLoss::MASKED, "{name}");
        }
    }
    let examples = check("DPOLoss", vec![datum(1, &[("mask", &[0.0])]), datum(1, &[("mask", &[0.0])])]).unwrap();
    assert_eq!(preference("SimPOLoss", &examples, &[&[-1.0], &[-2.0]]).derivatives, [[0.0], [0.0]]);
}

fn preference(name: &str, examples: &[Example], logprobs: &[&[f32]]) -> WholeLoss {
    let loss = loss(name);
    let Scope::Group(rule, count) = loss.scope() else { panic!("{name} is of another kind") };
    let views: Vec<DatumView> =
        examples.iter().zip(logprobs).map(|(example, logprobs)| DatumView { example, logprobs, facts: &[] }).collect();
    crate::step::in_groups(rule, count, &views)
}

#[test]
fn the_first_loss_of_dpo_is_the_logarithm_of_two() {
    let data = vec![datum(2, &[("ref_logps", &[-1.0, -2.0])]), datum(2, &[("ref_logps", &[-0.5, -3.0])])];
    let whole = preference("DPOLoss", &check("DPOLoss", data).unwrap(), &[&[-1.0, -2.0], &[-0.5, -3.0]]);
    assert!((whole.value - std::f64::consts::LN_2).abs() < 1e-12, "{}", whole.value);
    assert_eq!(whole.derivatives, [[-0.05, -0.05], [0.05, 0.05]]);
}

#[test]
fn grpo_without_old_logprobs_is_minus_the_mean_advantage() {
    let data = vec![datum(2, &[("advantages", &[3.0, 3.0])]), datum(1, &[("advantages", &[-1.0])])];
    let examples = check("GRPOLoss", data).unwrap();
    let (loss, mut value) = (loss("GRPOLoss"), 0.0);
    let (Scope::Token(rule), Inputs::Columns(columns)) = (loss.scope(), loss.inputs()) else { panic!("another kind") };
    for inputs in examples.iter().flat_map(|example| example.inputs.chunks(columns.len())) {
        value += f64::from(rule.token(-0.7, inputs).value);
    }
    assert!((value + 1.0).abs() < 1e-6, "{value}");
}

#[test]
fn a_ratio_far_away_and_a_probability_of_one_stay_finite() {
    let far: &[(&str, &[f32])] = &[("advantages", &[-1.0]), ("old_logps", &[-500.0]), ("ref_logps", &[-0.5])];
    let examples = check("GRPOLoss", vec![datum(1, far)]).unwrap();
    let loss_of = loss("GRPOLoss");
    let Scope::Token(rule) = loss_of.scope() else { panic!("another kind") };
    let token = rule.token(-0.5, &examples[0].inputs);
    assert!(token.value.is_finite() && token.derivative == 0.0, "{token:?}");

    let examples = check("ORPOLoss", vec![datum(1, &[]), datum(1, &[])]).unwrap();
    for logprobs in [[&[0.0][..], &[-200.0][..]], [&[-200.0][..], &[0.0][..]]] {
        let whole = preference("ORPOLoss", &examples, &logprobs);
        assert!(whole.value.is_finite(), "{}", whole.value);
        assert!(whole.derivatives.iter().flatten().all(|derivative| derivative.is_finite()), "{:?}", whole.derivatives);
    }
}

#[test]
fn one_number_for_a_position_counts_for_all_its_candidates() {
    let table = |values: Vec<f32>| TensorData { shape: vec![2, 2], ..TensorData::floats(values) };
    let loss_inputs = BTreeMap::from([
        ("target_tokens".to_owned(), TensorData { shape: vec![2, 2], ..TensorData::ints(vec![1, 2, 3, 4]) }),
        ("teacher_logprobs".to_owned(), table(vec![-1.0, -2.0, -3.0, -4.0])),
        ("mask".to_owned(), TensorData::floats(vec![0.0, 1.0])),
    ]);
    let examples = check("GKDLoss", vec![Datum { tokens: vec![0, 0], loss_inputs }]).unwrap();
    // Mask, teacher, candidate mask.
    let expected = [0.0, -1.0, 1.0, 0.0, -2.0, 1.0, 1.0, -3.0, 1.0, 1.0, -4.0, 1.0];
    assert_eq!(examples[0].inputs, expected);
}

#[test]
fn the_likeliest_of_a_teacher_come_in_order() {
    let logits = [0.5, 3.0, -1.0, 3.0, 2.0];
    assert_eq!(distillation::likeliest(&logits, 3), [(1, 3.0), (3, 3.0), (4, 2.0)]);
    assert_eq!(distillation::likeliest(&logits, 9).len(), 5);
    assert_eq!(distillation::likeliest(&logits, 0), []);
}

#[test]
fn groups_with_too_few_negatives_repeat_them_in_order() {
    let label = |label: f32| datum(1, &[("label", &[label])]);
    let data = vec![label(1.0), label(0.0), label(0.0), label(1.0), label(0.0), label(0.0)];
    let spec = spec("InfonceLoss", &[("hard_negatives", 3.0), ("use_batch", 0.0)], &[]);
    let loss = crate::losses::build(&spec).unwrap();
    let examples = batch::check(data, loss.as_ref(), Limits { vocabulary: 10, max_length: 16 }).unwrap();
    let Scope::Embeddings(rule) = loss.scope() else { panic!("another kind") };
    let embeddings: [&[f32]; 6] = [&[1.0, 0.0], &[1.0, 0.0], &[0.0, 1.0], &[0.0, 1.0], &[0.0, 1.0], &[1.0, 0.0]];
    let views: Vec<EmbeddingView> =
        examples.iter().zip(embeddings).map(|(example, embedding)| EmbeddingView { example, embedding }).collect();
    let whole = rule.embeddings(&views).unwrap();
    // Every anchor: its positive at 1 / 0.1 and three times a negative at 0.
    let expected = (1.0 + 3.0 * (-10.0_f64).exp()).ln();
    assert!((whole.value - expected).abs() < 1e-9, "{}", whole.value);
}
