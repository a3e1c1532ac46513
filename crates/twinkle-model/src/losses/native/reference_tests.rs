//! Every loss against what torch's autograd makes of it: `tests/golden/native_losses.json`.
//!
//! A head of a few lines in fp64 stands where the network's would: it gives a loss what it reads of some logits, and turns
//! its derivatives into those by the logits.

use std::collections::BTreeMap;
use std::path::Path;

use serde_json::Value;
use twinkle_core::call::LossSpec;
use twinkle_core::data::{Datum, TensorData};
use twinkle_nn::RowFacts;

use crate::batch::{self, Example, Limits};
use crate::losses::{DatumView, EmbeddingView, Loss, RowView, Scope, build};
use crate::step::in_groups;

fn reference() -> Value {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/golden/native_losses.json");
    serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap()
}

fn numbers(value: &Value) -> Vec<f64> {
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

fn examples(case: &Value, loss: &dyn Loss, vocabulary: usize) -> Vec<Example> {
    let tensor = |name: &str, value: &Value, rows: usize| {
        let values = value.as_array().map_or_else(|| vec![value.as_f64().unwrap()], |_| numbers(value));
        let shape = if values.len() == rows { vec![rows] } else { vec![rows, values.len() / rows] };
        let tensor = match name {
            "target_tokens" => TensorData::ints(values.iter().map(|value| *value as i64).collect()),
            _ => TensorData::floats(values.iter().map(|value| *value as f32).collect()),
        };
        (name.to_owned(), TensorData { shape, ..tensor })
    };
    let datum = |inputs: &Value| {
        let rows = inputs["mask"].as_array().map_or(1, Vec::len);
        let inputs = inputs.as_object().unwrap().iter();
        Datum { tokens: vec![0; rows], loss_inputs: inputs.map(|(name, value)| tensor(name, value, rows)).collect() }
    };
    let data = case["data"].as_array().unwrap().iter().map(datum).collect();
    batch::check(data, loss, Limits { vocabulary, max_length: 64 }).unwrap()
}

/// The rows of logits of a sequence, and what a loss is told of them.
struct Rows {
    /// As probabilities are made of them, and their derivatives by the logits.
    scaled: Vec<Vec<(f64, f64)>>,
    logprobs: Vec<f32>,
    facts: Vec<RowFacts>,
}

impl Rows {
    fn of(logits: &[f64], vocabulary: usize, example: &Example, temperature: f64, softcap: Option<f64>) -> Self {
        let scale = |logit: &f64| match softcap {
            None => (logit / temperature, 1.0 / temperature),
            Some(cap) => {
                let tanh = (logit / cap).tanh();
                (cap * tanh / temperature, (1.0 - tanh * tanh) / temperature)
            }
        };
        let scaled: Vec<Vec<(f64, f64)>> =
            logits.chunks(vocabulary).map(|row| row.iter().map(scale).collect()).collect();
        let (mut logprobs, mut facts) = (Vec::new(), Vec::new());
        for (row, targets) in scaled.iter().zip(example.targets.chunks(example.width())) {
            let normaliser = row.iter().map(|(s, _)| s.exp()).sum::<f64>().ln();
            let entropy = -row.iter().map(|(s, _)| (s - normaliser).exp() * (s - normaliser)).sum::<f64>();
            let mean = row.iter().map(|(s, _)| s - normaliser).sum::<f64>() / vocabulary as f64;
            logprobs.extend(targets.iter().map(|target| (row[*target as usize].0 - normaliser) as f32));
            let [normaliser, entropy, mean_logprob] = [normaliser, entropy, mean].map(|number| number as f32);
            facts.push(RowFacts { normaliser, entropy, mean_logprob });
        }
        Self { scaled, logprobs, facts }
    }

    /// From the derivatives by what a loss was told to those by the logits.
    fn pull_back(&self, example: &Example, by_logprobs: &[f32], by_facts: &[RowFacts]) -> Vec<f64> {
        let width = example.width();
        let mut gradient = Vec::new();
        for (place, row) in self.scaled.iter().enumerate() {
            let slopes = &by_logprobs[place * width..(place + 1) * width];
            let targets = &example.targets[place * width..(place + 1) * width];
            let sum: f64 = slopes.iter().map(|slope| f64::from(*slope)).sum();
            let normaliser = row.iter().map(|(s, _)| s.exp()).sum::<f64>().ln();
            let entropy = -row.iter().map(|(s, _)| (s - normaliser).exp() * (s - normaliser)).sum::<f64>();
            let RowFacts { normaliser: by_normaliser, entropy: by_entropy, mean_logprob: by_mean } =
                by_facts.get(place).copied().unwrap_or_default();
            let [by_normaliser, by_entropy, by_mean] = [by_normaliser, by_entropy, by_mean].map(f64::from);
            for (token, (s, slope)) in row.iter().enumerate() {
                let log_p = s - normaliser;
                let named = targets.iter().zip(slopes).filter(|(target, _)| **target as usize == token);
                let named: f64 = named.map(|(_, slope)| f64::from(*slope)).sum();
                let by_p = by_normaliser - sum - by_mean - by_entropy * (log_p + entropy);
                let by_s = named + log_p.exp() * by_p + by_mean / row.len() as f64;
                gradient.push(by_s * slope);
            }
        }
        gradient
    }
}

/// Value and gradients by the logits, per sequence.
fn compute(case: &Value, logits: &[Vec<f64>], vocabulary: usize) -> (f64, Vec<Vec<f64>>, f64) {
    let loss = loss_of(case);
    let examples = examples(case, loss.as_ref(), vocabulary);
    let options = loss.row_options();
    let temperature = case["temperature"].as_f64().unwrap();
    let pairs = logits.iter().zip(&examples);
    let rows: Vec<Rows> =
        pairs.map(|(logits, example)| Rows::of(logits, vocabulary, example, temperature, options.softcap)).collect();
    let views: Vec<DatumView> = examples
        .iter()
        .zip(&rows)
        .map(|(example, rows)| DatumView { example, logprobs: &rows.logprobs, facts: &rows.facts })
        .collect();
    let columns = loss.inputs().columns();
    let mut value = 0.0;
    let mut gradients = Vec::new();
    let whole = match loss.scope() {
        Scope::Group(rule, count) => Some(in_groups(rule, count, &views)),
        _ => None,
    };
    for (place, (view, rows)) in views.iter().zip(&rows).enumerate() {
        let (example, width) = (view.example, view.example.width());
        let mut slopes = vec![0.0; view.logprobs.len()];
        let mut by_facts = vec![RowFacts::default(); rows.facts.len()];
        match loss.scope() {
            Scope::Token(rule) => {
                for ((logprob, inputs), slope) in
                    view.logprobs.iter().zip(example.inputs.chunks(columns)).zip(&mut slopes)
                {
                    let token = rule.token(*logprob, inputs);
                    value += f64::from(token.value);
                    *slope = token.derivative;
                }
            }
            Scope::Row(rule) => {
                let cells = view.logprobs.chunks(width).zip(example.inputs.chunks(columns * width)).zip(&rows.facts);
                let slopes = slopes.chunks_mut(width).zip(&mut by_facts);
                for (((logprobs, inputs), facts), (slopes, by_facts)) in cells.zip(slopes) {
                    let facts = if options.facts { *facts } else { RowFacts::default() };
                    value += rule.row(RowView { logprobs, inputs, facts }, slopes, by_facts);
                }
            }
            Scope::Sequence(rule) => {
                value += rule.sequence(*view, &mut slopes);
                rule.by_facts(*view, &mut by_facts);
            }
            Scope::Group(..) => slopes.clone_from(&whole.as_ref().unwrap().derivatives[place]),
            Scope::Batch(_) | Scope::Embeddings(_) => panic!("no loss of this kind"),
        }
        gradients.push(rows.pull_back(example, &slopes, &by_facts));
    }
    (whole.map_or(value, |whole| whole.value), gradients, loss.num_tokens(&examples))
}

fn compare(name: &str, case: &Value, (value, gradients, num_tokens): (f64, Vec<Vec<f64>>, f64)) {
    let expected = case["value"].as_f64().unwrap();
    assert!((value - expected).abs() <= 2e-6 * expected.abs().max(1e-2), "{name}: {value}, not {expected}");
    assert!((num_tokens - case["num_tokens"].as_f64().unwrap()).abs() < 1e-9, "{name}: {num_tokens} tokens");
    let expected: Vec<Vec<f64>> = case["gradients"].as_array().unwrap().iter().map(numbers).collect();
    assert_eq!(gradients.len(), expected.len(), "{name}");
    let largest = expected.iter().flatten().fold(0.0_f64, |largest, value| largest.max(value.abs()));
    for (datum, (own, expected)) in gradients.iter().zip(&expected).enumerate() {
        assert_eq!(own.len(), expected.len(), "{name}: datum {datum}");
        for (place, (own, expected)) in own.iter().zip(expected).enumerate() {
            let is_near = (own - expected).abs() <= 3e-6 * largest + 1e-9;
            assert!(is_near, "{name}: datum {datum}, {place}: {own}, not {expected}");
        }
    }
}

#[test]
fn every_loss_has_the_value_and_the_gradient_that_torch_finds() {
    let reference = reference();
    let rows = &reference["rows"];
    let vocabulary = rows["vocabulary"].as_u64().unwrap() as usize;
    let logits: Vec<Vec<f64>> = rows["logits"].as_array().unwrap().iter().map(numbers).collect();
    let mut seen: BTreeMap<&str, usize> = BTreeMap::new();
    for (name, case) in rows["cases"].as_object().unwrap() {
        *seen.entry(case["loss"].as_str().unwrap()).or_default() += 1;
        if case["loss"] == "InfonceLoss" {
            continue;
        }
        compare(name, case, compute(case, &logits, vocabulary));
    }
    let untested: Vec<&str> = super::names().into_iter().filter(|name| !seen.contains_key(name)).collect();
    assert_eq!(untested, [""; 0], "losses without a case");
}

#[test]
fn contrastive_losses_have_the_value_and_the_gradient_that_torch_finds() {
    let reference = reference();
    let rows: Vec<Vec<f64>> = reference["rows"]["rows"].as_array().unwrap().iter().map(numbers).collect();
    let lengths: Vec<f64> = rows.iter().map(|row| row.iter().map(|x| x * x).sum::<f64>().sqrt()).collect();
    let unit = |(row, length): (&Vec<f64>, &f64)| row.iter().map(|x| (x / length) as f32).collect::<Vec<f32>>();
    let embeddings: Vec<Vec<f32>> = rows.iter().zip(&lengths).map(unit).collect();
    let cases = reference["rows"]["cases"].as_object().unwrap().iter();
    for (name, case) in cases.filter(|(_, case)| case["loss"] == "InfonceLoss") {
        let loss = loss_of(case);
        let examples = examples(case, loss.as_ref(), 7);
        let Scope::Embeddings(rule) = loss.scope() else { panic!("{name} is of another kind") };
        let views: Vec<EmbeddingView> =
            examples.iter().zip(&embeddings).map(|(example, embedding)| EmbeddingView { example, embedding }).collect();
        let whole = rule.embeddings(&views).unwrap();
        // dx = (g − e (e · g)) / ‖x‖.
        let gradients = whole.derivatives.iter().zip(&embeddings).zip(&lengths).map(|((g, e), length)| {
            let along: f64 = g.iter().zip(e).map(|(g, e)| f64::from(*g) * f64::from(*e)).sum();
            g.iter().zip(e).map(|(g, e)| (f64::from(*g) - f64::from(*e) * along) / length).collect()
        });
        compare(name, case, (whole.value, gradients.collect(), loss.num_tokens(&examples)));
    }
}
