//! Metrics against numbers that were computed by hand.

use std::time::Duration;

use serde_json::json;
use twinkle_core::call::Table;

use super::*;
use crate::twinkle::model::arguments::Arguments;
use crate::twinkle::model::data::LossInputs;

/// Two texts of two learned positions each.
fn rows() -> Rows {
    let features = serde_json::from_value(json!([
        { "input_ids": [1, 2, 3], "labels": [-100, 3, 4] },
        { "input_ids": [5, 6, 7], "labels": [6, -100, 8] },
    ]));
    Rows::of(features.unwrap(), false, false).unwrap()
}

fn columns(given: &Value, rows: &Rows) -> Columns {
    LossInputs::take(&mut Arguments::new("forward", given.as_object().cloned().unwrap())).columns(rows).unwrap()
}

const LOGPROBS: [[f32; 3]; 2] = [[-9.0, -1.0, -2.0], [-0.5, -9.0, -1.5]];

fn moment() -> Moment {
    Moment { cur_step: 5, accumulation_steps: 2, learning_rate: Some(1e-3), grad_norm: Some(1.25), now: Instant::now() }
}

/// What one metric says of one forward.
fn said(class: &str, settings: &Value, given: &Value, outcome: &ForwardBackwardOutcome) -> Found {
    let (rows, logprobs) = (rows(), LOGPROBS.map(Vec::from));
    let columns = columns(given, &rows);
    let class = NamedClass { class: class.to_owned(), settings: settings.as_object().cloned().unwrap() };
    let mut metric = build(&class, Instant::now()).unwrap();
    let seen =
        Observation { rows: &rows, columns: &columns, outcome, logprobs: &logprobs, loss: Some(6.0), again: false };
    metric.observe(&seen).unwrap();
    let mut found = Found::default();
    metric.take(&moment(), &mut found);
    found
}

fn near(found: &Found, name: &str, expected: f64) {
    let number = found.numbers.get(name).and_then(Value::as_f64);
    assert!(number.is_some_and(|number| (number - expected).abs() < 1e-6), "{name}: {number:?}, not {expected}");
}

#[test]
fn a_sum_is_shown_per_token_and_a_mean_per_forward() {
    let sum = ForwardBackwardOutcome { num_tokens: 4.0, ..ForwardBackwardOutcome::default() };
    let found = said("LossMetric", &json!({}), &json!({}), &sum);
    assert_eq!((&found.shown["loss"], &found.shown["grad_norm"]), (&json!("1.5000"), &json!("1.250000")));
    let mean = said("LossMetric", &json!({}), &json!({}), &ForwardBackwardOutcome::default());
    assert_eq!(mean.shown["loss"], "6.0000");
}

#[test]
fn a_policys_distance_is_that_of_its_formulas() {
    let given = json!({ "old_logps": [[-1.5, -2.0], [-0.25, -1.5]], "advantages": [1.0, -1.0] });
    let outcome = ForwardBackwardOutcome {
        entropies: vec![
            Table { values: vec![9.0, 1.0, 2.0], width: 1 },
            Table { values: vec![3.0, 9.0, 4.0], width: 1 },
        ],
        ..ForwardBackwardOutcome::default()
    };
    let found = said("GRPOMetric", &json!({ "top_k_kl": 1 }), &given, &outcome);
    let (up, down) = (0.5_f64, -0.25_f64);
    near(&found, "train/mean_new_logp", -1.25);
    near(&found, "train/policy_confidence", (-1.25_f64).exp());
    near(&found, "train/mean_old_logp", -5.25 / 4.0);
    near(&found, "train/logp_diff_mean", (up + down) / 4.0);
    near(&found, "train/approx_kl", (up.exp() - up - 1.0 + down.exp() - down - 1.0) / 4.0);
    near(&found, "train/token_kl_max", up.exp() - up - 1.0);
    near(&found, "train/token_ratio_max", up.exp());
    near(&found, "train/entropy", 2.5);
    // The first ratio is above 1.2 with an advantage above 0, the second below 0.8 with one below 0.
    near(&found, "train/clip_ratio_high", 0.25);
    near(&found, "train/clip_ratio_low", 0.25);
    let records = found.shown["_high_kl_records"].as_array().unwrap();
    assert_eq!((records.len(), &records[0]["gsi"], &records[0]["pos"]), (1, &json!(0), &json!(1)));
    // A text's ratio is the geometric mean of its tokens': exp(0.25) is clipped, exp(-0.125) is not.
    let sequences = said("GSPOMetric", &json!({}), &given, &outcome);
    near(&sequences, "train/clip_ratio_high", 0.5);
    near(&sequences, "train/clip_ratio_low", 0.0);
    let unconditional = said(
        "CISPOMetric",
        &json!({}),
        &json!({ "old_logps": [[-1.5, -2.0], [-0.25, -1.5]], "advantages": [-1, 1] }),
        &outcome,
    );
    near(&unconditional, "train/clip_ratio", 0.5);
}

#[test]
fn preferences_are_compared_with_the_reference() {
    let outcome = ForwardBackwardOutcome::default();
    let bare = said("DPOMetric", &json!({}), &json!({}), &outcome);
    assert_eq!((&bare.shown["logps/chosen"], &bare.shown["logps/rejected"]), (&json!("-3.00"), &json!("-2.00")));
    assert!(!bare.shown.contains_key("rewards/chosen"));
    let reference = json!({ "ref_outputs": { "logps": [[-9, -2, -2], [-1, -9, -1]] } });
    let found = said("DPOMetric", &json!({ "beta": 0.5 }), &reference, &outcome);
    assert_eq!(found.shown["logps/ref_chosen"], "-4.00");
    near(&found, "rewards/chosen", 0.5);
    near(&found, "rewards/rejected", 0.0);
    near(&found, "rewards/margins", 0.5);
    assert_eq!(found.shown["rewards/accuracies"], "100.0%");
}

#[test]
fn a_pair_without_its_other_half_costs_the_others_nothing() {
    let features = serde_json::from_value(json!([{ "input_ids": [1], "labels": [2] }])).unwrap();
    let rows = Rows::of(features, false, false).unwrap();
    let settings = AdapterSettings {
        metrics: vec![MetricSetting {
            metric: NamedClass { class: "DPOMetric".to_owned(), settings: Map::new() },
            training: None,
        }],
        ..AdapterSettings::default()
    };
    let mut metrics = Metrics::of(&settings, true, Instant::now());
    let (columns, outcome) = (Columns::default(), ForwardBackwardOutcome::default());
    let seen = Observation {
        rows: &rows,
        columns: &columns,
        outcome: &outcome,
        logprobs: &[vec![-1.0]],
        loss: Some(2.0),
        again: false,
    };
    assert!(metrics.observe(&seen).is_err());
    assert_eq!(metrics.take(&moment()).shown["loss"], "2.0000");
    assert_eq!(metrics.take(&moment()).shown["loss"], "0.0000", "it began anew");
}

#[test]
fn steps_are_counted_as_the_original_counts_them() {
    let began = Instant::now();
    let mut metrics = Metrics::of(&AdapterSettings::default(), true, began);
    let at = Moment { now: began + Duration::from_secs(4), ..moment() };
    let found = metrics.take(&at);
    assert_eq!((&found.shown["iters"], &found.shown["total time elapse"]), (&json!(2), &json!("4 seconds")));
    assert_eq!(found.shown["speed"], "0.50 iters/s");
    assert!(!found.shown.contains_key("learning rate(param group 1)"), "nothing was seen");
    let later = Moment { now: began + Duration::from_secs(124), cur_step: 9, ..moment() };
    assert_eq!(metrics.take(&later).shown["total time elapse"], "2.1 minutes");
}

#[test]
fn embeddings_are_compared_with_their_own_and_other_positives() {
    let features = json!([
        { "input_ids": [1], "labels": [1] }, { "input_ids": [2], "labels": [0] },
        { "input_ids": [3], "labels": [1] }, { "input_ids": [4], "labels": [0] },
    ]);
    let rows = Rows::of(serde_json::from_value(features).unwrap(), false, true).unwrap();
    let vectors = [[1.0, 0.0], [0.6, 0.8], [0.0, 1.0], [0.0, 1.0]];
    let embeddings = vectors.map(|vector: [f32; 2]| Table { values: vector.to_vec(), width: 2 }).to_vec();
    let outcome = ForwardBackwardOutcome { embeddings, ..ForwardBackwardOutcome::default() };
    let mut metric =
        build(&NamedClass { class: "EmbeddingMetric".to_owned(), settings: Map::new() }, Instant::now()).unwrap();
    let columns = Columns::default();
    metric
        .observe(&Observation {
            rows: &rows,
            columns: &columns,
            outcome: &outcome,
            logprobs: &[],
            loss: Some(0.5),
            again: false,
        })
        .unwrap();
    let mut found = Found::default();
    metric.take(&moment(), &mut found);
    assert_eq!((&found.shown["pos_sim"], &found.shown["pos_sim_min"]), (&json!("0.8000"), &json!("0.6000")));
    // The first anchor to the second positive is 0, the second anchor to the first positive 0.8.
    assert_eq!(found.shown["neg_sim"], "0.4000");
}

#[test]
fn settings_of_metrics_are_checked() {
    for (class, settings, expected) in [
        ("GRPOMetric", json!({ "epsilom": 0.1 }), "did you mean `epsilon`"),
        ("GRPOMetric", json!({ "top_k_kl": 1000 }), "at most 100"),
        ("DPOMetric", json!({ "ignore_index": 0 }), "`ignore_index`"),
        ("PPOValueMetric", json!({}), "value head"),
        ("CompletionRewardMetric", json!({}), "by the client"),
    ] {
        let class = NamedClass { class: class.to_owned(), settings: settings.as_object().cloned().unwrap() };
        let error = check(&MetricSetting { metric: class, training: None }).unwrap_err().to_string();
        assert!(error.contains(expected), "`{error}` lacks `{expected}`");
    }
}
