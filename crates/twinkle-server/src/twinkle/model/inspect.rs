//! How an adapter is: its configuration, its metrics, its tensors.

use std::fmt::Write;

use axum::extract::State;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};
use tokio::time::Instant;
use twinkle_core::call::{AdapterSettings, LoraSpec, NamedTensor, RunRecord, RunState, SchedulerSpec};
use twinkle_core::error::{Error, Result};
use twinkle_core::ids::{RunId, TenantId};

use super::arguments::Arguments;
use super::forward::AboutAdapter;
use super::metrics::Moment;
use super::work::to_the_end;
use crate::tinker::body::off_runtime;
use crate::twinkle::{Answer, Caller, Json, TwinkleFront, ok};

/// Names of trained tensors that are shown from the beginning and from the end.
const EXAMPLES: usize = 5;

/// The body of `calculate_metric`.
#[derive(Deserialize, JsonSchema)]
pub(super) struct WhichMetrics {
    #[serde(default)]
    adapter_name: Option<String>,
    #[serde(default)]
    is_training: Option<bool>,
}

/// `POST calculate_metric`: what came together since it was last asked, as texts; `values` has the numbers.
pub(super) async fn calculate_metric(
    State(front): State<TwinkleFront>,
    caller: Caller,
    Json(wanted): Json<WhichMetrics>,
) -> Answer {
    let is_training = wanted.is_training.unwrap_or(true);
    let found = to_the_end("calculate_metric", async move {
        let adapter = front.adapter(&caller, wanted.adapter_name.as_deref()).await?;
        let state = front.state_of(&adapter.tenant, adapter.run(), false).await?;
        let has_optimizer = adapter.record.settings.optimizer.is_some();
        let found = adapter.counters(|counters| {
            let at = Moment {
                cur_step: state.cur_step,
                accumulation_steps: state.accumulation_steps,
                learning_rate: has_optimizer.then(|| state.optimizer.lr()),
                grad_norm: counters.grad_norm,
                now: Instant::now(),
            };
            let metrics = if is_training { &mut counters.training } else { &mut counters.evaluation };
            metrics.take(&at)
        });
        front.keep_counters(&adapter).await;
        Ok(found)
    })
    .await?;
    ok(&json!({ "result": found.shown, "values": found.numbers }))
}

/// `POST get_train_configs`
pub(super) async fn get_train_configs(
    State(front): State<TwinkleFront>,
    caller: Caller,
    Json(request): Json<AboutAdapter>,
) -> Answer {
    Arguments::new("get_train_configs", request.rest).end()?;
    let text = to_the_end("get_train_configs", async move {
        let adapter = front.adapter(&caller, request.adapter_name.as_deref()).await?;
        let state = front.state_of(&adapter.tenant, adapter.run(), false).await?;
        let run = front.run(&adapter.tenant, adapter.run().clone()).await?;
        Ok(described(&run, &state, &adapter.record.settings))
    })
    .await?;
    ok(&json!({ "result": text }))
}

/// The body of an answer with tensors: nested lists under the names that a checkpoint has.
#[derive(Serialize, JsonSchema)]
#[schemars(rename = "StateDict")]
pub(super) struct Tensors {
    /// Each tensor's name and its numbers, as lists in lists.
    result: Map<String, Value>,
}

/// `POST get_state_dict`
pub(super) async fn get_state_dict(
    State(front): State<TwinkleFront>,
    caller: Caller,
    Json(request): Json<AboutAdapter>,
) -> Answer {
    Arguments::new("get_state_dict", request.rest).end()?;
    let state = to_the_end("get_state_dict", async move {
        let adapter = front.adapter(&caller, request.adapter_name.as_deref()).await?;
        front.state_of(&adapter.tenant, adapter.run(), true).await
    })
    .await?;
    let size: usize = state.parameters.iter().map(|tensor| 16 * tensor.values.len()).sum();
    let tensors = move || {
        let named = |tensor: NamedTensor| (tensor.name, nested(&tensor.shape, &tensor.values));
        ok(&Tensors { result: state.parameters.into_iter().map(named).collect() })
    };
    off_runtime(size, tensors).await?
}

impl TwinkleFront {
    /// How a run is now.
    pub(super) async fn state_of(&self, tenant: &TenantId, run: &RunId, values: bool) -> Result<RunState> {
        let model = self.model()?;
        let journal = model.journal.as_ref().ok_or_else(|| {
            Error::unsupported(format!("base model `{}` can be sampled here, but not trained", model.name))
        })?;
        journal.describe(tenant, run, values).await
    }
}

/// A tensor as nested lists.
fn nested(shape: &[usize], values: &[f32]) -> Value {
    match shape {
        [] | [_] => values.iter().map(|value| json!(value)).collect(),
        [_, inner @ ..] => {
            let width = inner.iter().product::<usize>().max(1);
            values.chunks(width).map(|part| nested(inner, part)).collect()
        }
    }
}

/// The text that people read: the adapter, what is trained, the optimizer.
fn described(run: &RunRecord, state: &RunState, settings: &AdapterSettings) -> String {
    let mut text = String::new();
    let config = if run.lora.full { json!({}) } else { config(&run.lora) };
    let config = serde_json::to_string_pretty(&config).unwrap_or_default();
    let names: Vec<&str> = state.parameters.iter().map(|tensor| tensor.name.as_str()).collect();
    let examples = if names.len() > 2 * EXAMPLES {
        [&names[..EXAMPLES], &["..."], &names[names.len() - EXAMPLES..]].concat()
    } else {
        names
    };
    let share = 100.0 * state.trained as f64 / (state.base.max(1) as f64);
    // Writing to a text does not fail.
    let _ = write!(
        text,
        "Adapter config:\n{config}\nTrainable parameters examples:\n{}\nTrainable params: {} || ",
        examples.join("\n"),
        grouped(state.trained),
    );
    let _ = match state.base {
        0 => writeln!(text, "all params: unknown"),
        base => writeln!(text, "all params: {} || trainable%: {share:.4}", grouped(base)),
    };
    if settings.optimizer.is_some() {
        let scheduler = state.scheduler.as_ref().map_or("NoneType", SchedulerSpec::name);
        let _ = write!(
            text,
            "Optimizer: {}\nLearning rate: {}\nWeight decay: {}\nLr scheduler: {scheduler}\nGradient accumulation steps: {}\n",
            state.optimizer.name(),
            state.optimizer.lr(),
            state.optimizer.weight_decay(),
            state.accumulation_steps,
        );
    }
    text
}

/// An adapter's shape in the words of PEFT's `LoraConfig`.
fn config(lora: &LoraSpec) -> Value {
    let targets = lora.targets.as_ref();
    let patterns = |patterns: Vec<(String, Value)>| Value::Object(patterns.into_iter().collect());
    json!({
        "r": lora.rank,
        "lora_alpha": lora.alpha,
        "use_rslora": lora.use_rslora,
        "target_modules": targets.map(|targets| &targets.modules),
        "exclude_modules": targets.and_then(|targets| targets.exclude.as_ref()),
        "layers_to_transform": targets.and_then(|targets| targets.layers.as_ref()),
        "rank_pattern": patterns(lora.rank_pattern.iter().map(|(name, rank)| (name.clone(), json!(rank))).collect()),
        "alpha_pattern": patterns(lora.alpha_pattern.iter().map(|(name, alpha)| (name.clone(), json!(alpha))).collect()),
        "bias": "none",
        "lora_dropout": 0.0,
    })
}

/// A number with a comma between every three digits.
fn grouped(number: u64) -> String {
    let digits = number.to_string();
    let mut text = String::new();
    for (place, digit) in digits.chars().enumerate() {
        if place > 0 && (digits.len() - place).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tensors_are_nested_by_their_shape() {
        assert_eq!(nested(&[2, 3], &[1.0, 2.0, 3.0, 4.0, 5.0, 6.0]), json!([[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]]));
        assert_eq!(nested(&[2, 1, 2], &[1.0, 2.0, 3.0, 4.0]), json!([[[1.0, 2.0]], [[3.0, 4.0]]]));
        assert_eq!(nested(&[2], &[1.0, 2.0]), json!([1.0, 2.0]));
    }

    #[test]
    fn an_adapter_is_shown_in_pefts_words() {
        let lora = LoraSpec { rank: 4, rank_pattern: vec![("q_proj".to_owned(), 2)], ..LoraSpec::default() };
        let shown = config(&lora);
        assert_eq!((&shown["r"], &shown["rank_pattern"]), (&json!(4), &json!({ "q_proj": 2 })));
    }

    #[test]
    fn large_numbers_are_readable() {
        assert_eq!(
            ["7", "123", "1,234", "12,345,678"],
            [7, 123, 1234, 12_345_678].map(grouped).each_ref().map(String::as_str)
        );
    }
}
