//! Forwards, losses and gradients: all at once, or step by step.
//!
//! Step by step, nothing is kept on the device: the inputs of the last `forward` wait in memory, `calculate_loss` sends them
//! through the network again, and `backward` is a `forward_backward` of the same data and the same loss. Because a row has the
//! same bits in every pass, the loss and the gradients are the very ones of a single `forward_backward`; the price is time.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use axum::extract::State;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};
use twinkle_core::call::{ForwardBackwardOutcome, ForwardOptions, ForwardOutputs, LossSpec, RunOperation};
use twinkle_core::data::Datum;
use twinkle_core::error::{Error, ErrorCode, Result};
use twinkle_core::wire::twinkle::{Input, InputFeature, Inputs};
use twinkle_model::losses::native::NO_LOSS;
use twinkle_processor::TemplateSpec;

use super::adapters::Adapter;
use super::arguments::{Arguments, accumulation_steps};
use super::data::{Columns, EMBEDDING_LOSS, LossInputs, data, targets};
use super::kept::{BYTES_PER_TOKEN, Kept};
use super::losses;
use super::metrics::Observation;
use super::output::{ModelOutput, label_logprobs};
use super::rows::Rows;
use super::settings::pads_left;
use super::work::{Done, to_the_end};
use crate::tinker::body::off_runtime;
use crate::twinkle::{Answer, Caller, Json, TwinkleFront, null, ok};

/// Bytes of inputs that one `forward` may leave for the loss that follows it.
const MOST_KEPT: usize = 64 << 20;
/// What a client may ask the network for.
const TASKS: [&str; 3] = ["causal_lm", "embedding", "fused_lm_ce"];

/// A request with inputs.
#[derive(Deserialize, JsonSchema)]
pub(super) struct WithInputs {
    /// What goes through the network.
    inputs: Inputs,
    #[serde(default)]
    adapter_name: Option<String>,
    #[serde(flatten)]
    rest: Map<String, Value>,
}

/// A request about an adapter.
#[derive(Deserialize, JsonSchema)]
pub(super) struct AboutAdapter {
    #[serde(default)]
    pub(super) adapter_name: Option<String>,
    #[serde(flatten)]
    pub(super) rest: Map<String, Value>,
}

/// Which of the forwards it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Way {
    /// `forward`: a loss may follow, and gradients.
    Forward,
    /// `forward_only`: a loss may follow.
    ForwardOnly,
    /// `forward_backward`.
    Backward,
}

/// What is computed, and of what.
struct Computation {
    rows: Arc<Rows>,
    columns: Columns,
    data: Vec<Datum>,
    loss: LossSpec,
}

/// The body of an answer.
#[derive(Serialize, JsonSchema)]
#[schemars(rename = "ForwardResult")]
pub(super) struct Answered {
    /// What came out.
    result: ModelOutput,
}

/// `POST forward`
pub(super) async fn forward(state: State<TwinkleFront>, caller: Caller, request: Json<WithInputs>) -> Answer {
    run(state.0, caller, request.0, Way::Forward, "forward").await
}

/// `POST forward_only`
pub(super) async fn forward_only(state: State<TwinkleFront>, caller: Caller, request: Json<WithInputs>) -> Answer {
    run(state.0, caller, request.0, Way::ForwardOnly, "forward_only").await
}

/// `POST forward_backward`
pub(super) async fn forward_backward(state: State<TwinkleFront>, caller: Caller, request: Json<WithInputs>) -> Answer {
    run(state.0, caller, request.0, Way::Backward, "forward_backward").await
}

async fn run(front: TwinkleFront, caller: Caller, request: WithInputs, way: Way, what: &'static str) -> Answer {
    let output = to_the_end(what, async move { front.forward(caller, request, way, what).await }).await?;
    let (output, size) = output;
    off_runtime(size, move || ok(&Answered { result: output })).await?
}

/// `POST calculate_loss`
pub(super) async fn calculate_loss(
    State(front): State<TwinkleFront>,
    caller: Caller,
    Json(request): Json<AboutAdapter>,
) -> Answer {
    let loss = to_the_end("calculate_loss", async move { front.calculate_loss(caller, request).await }).await?;
    ok(&json!({ "result": loss }))
}

/// `POST backward`
pub(super) async fn backward(
    State(front): State<TwinkleFront>,
    caller: Caller,
    Json(request): Json<AboutAdapter>,
) -> Answer {
    to_the_end("backward", async move { front.backward(caller, request).await }).await?;
    null()
}

impl TwinkleFront {
    async fn forward(
        &self,
        caller: Caller,
        request: WithInputs,
        way: Way,
        what: &'static str,
    ) -> Result<(ModelOutput, usize)> {
        let WithInputs { inputs, adapter_name, rest } = request;
        let mut arguments = Arguments::new(what, rest);
        let given = LossInputs::take(&mut arguments);
        let asked = Asked::read(&mut arguments, way)?;
        arguments.end()?;
        let adapter = self.adapter(&caller, adapter_name.as_deref()).await?;
        let own = losses::of(&adapter.record.settings)?;
        let is_embedding = asked.is_embedding || own.name == EMBEDDING_LOSS;
        if is_embedding && way == Way::Backward && own.name != EMBEDDING_LOSS {
            return Err(Error::invalid(format!("`{}` reads no embeddings", own.name))
                .hint("set `InfonceLoss` to train embeddings, or leave `task` out"));
        }
        let rows = Arc::new(self.rows(&adapter, inputs, is_embedding).await?);
        let loss = if way == Way::Backward { given.applied_to(own)? } else { LossSpec::named(NO_LOSS) };
        let options = ForwardOptions {
            outputs: ForwardOutputs {
                logits: asked.return_logits,
                entropies: losses::reads_entropies(&loss),
                embeddings: is_embedding,
            },
            ..asked.options
        };
        let kept_inputs = if way == Way::Backward { LossInputs::default() } else { given.clone() };
        let mut computation = prepared(Arc::clone(&rows), loss, given).await?;
        let done = self.compute(&adapter, &mut computation, options, way == Way::Backward).await?;
        let outcome = done.forward()?;
        let logprobs = label_logprobs(outcome);
        let loss = (way == Way::Backward).then(|| loss_of(outcome));
        match way {
            Way::Backward => {
                self.forget_forward(&adapter);
                observe(&adapter, true, &computation, outcome, &logprobs, loss, false);
                self.keep_counters(&adapter).await;
            }
            Way::Forward | Way::ForwardOnly => {
                let is_training = way == Way::Forward;
                if !is_training {
                    observe(&adapter, false, &computation, outcome, &logprobs, None, false);
                    self.keep_counters(&adapter).await;
                }
                let kept = Kept {
                    rows: Arc::clone(&rows),
                    options,
                    is_embedding,
                    is_training,
                    inputs: kept_inputs,
                    computed: None,
                    is_seen: Arc::default(),
                };
                if kept.bytes() <= MOST_KEPT {
                    self.keep_forward(&adapter, kept);
                } else {
                    self.forget_forward(&adapter);
                }
            }
        }
        let numbers = outcome.logits.iter().map(|table| table.values.len()).sum::<usize>()
            + logprobs.iter().map(Vec::len).sum::<usize>()
            + outcome.embeddings.iter().map(|table| table.values.len()).sum::<usize>();
        Ok((ModelOutput::of(&rows, outcome, &logprobs, loss), BYTES_PER_TOKEN * numbers))
    }

    async fn calculate_loss(&self, caller: Caller, request: AboutAdapter) -> Result<f64> {
        let mut arguments = Arguments::new("calculate_loss", request.rest);
        let given = LossInputs::take(&mut arguments);
        arguments.end()?;
        let adapter = self.adapter(&caller, request.adapter_name.as_deref()).await?;
        let kept = self.kept_forward(&adapter).ok_or_else(|| nothing_kept("calculate_loss"))?;
        let inputs = kept.inputs.clone().replaced_by(given);
        let loss = inputs.applied_to(losses::of(&adapter.record.settings)?)?;
        if kept.is_embedding != (loss.name == EMBEDDING_LOSS) {
            return Err(Error::invalid(format!("the last forward is not what `{}` reads", loss.name))
                .hint("embeddings are for `InfonceLoss`, and it reads nothing else"));
        }
        let outputs = ForwardOutputs { entropies: losses::reads_entropies(&loss), ..kept.options.outputs };
        let options = ForwardOptions { outputs, ..kept.options };
        let mut computation = prepared(Arc::clone(&kept.rows), loss.clone(), inputs.clone()).await?;
        let done = self.compute(&adapter, &mut computation, options, false).await?;
        let outcome = done.forward()?;
        let value = loss_of(outcome);
        if !kept.is_seen.swap(true, Ordering::Relaxed) {
            let logprobs = label_logprobs(outcome);
            observe(&adapter, kept.is_training, &computation, outcome, &logprobs, Some(value), !kept.is_training);
            self.keep_counters(&adapter).await;
        }
        self.keep_forward(&adapter, Kept { computed: Some((loss, inputs)), ..Kept::clone(&kept) });
        Ok(value)
    }

    async fn backward(&self, caller: Caller, request: AboutAdapter) -> Result<()> {
        let mut arguments = Arguments::new("backward", request.rest);
        let accumulation_steps = accumulation_steps(&mut arguments)?;
        arguments.end()?;
        let adapter = self.adapter(&caller, request.adapter_name.as_deref()).await?;
        let kept = self.kept_forward(&adapter).ok_or_else(|| nothing_kept("backward"))?;
        if !kept.is_training {
            return Err(Error::new(
                ErrorCode::Conflict,
                "the last forward was a `forward_only`, which has no gradients",
            )
            .hint("use `forward`, then `calculate_loss`, then `backward`"));
        }
        let Some((loss, inputs)) = kept.computed.clone() else {
            return Err(Error::new(ErrorCode::Conflict, "the loss of the last forward was not computed")
                .hint("use `calculate_loss` before `backward`"));
        };
        let outputs = ForwardOutputs::default();
        let options = ForwardOptions { outputs, accumulation_steps, ..kept.options };
        let mut computation = prepared(Arc::clone(&kept.rows), loss, inputs).await?;
        let done = self.compute(&adapter, &mut computation, options, true).await?;
        done.forward()?;
        // A second `backward` of the same loss would count its gradients twice.
        self.forget_forward(&adapter);
        Ok(())
    }

    /// Sends the data through the network; they are not needed afterwards.
    async fn compute(
        &self,
        adapter: &Adapter,
        computation: &mut Computation,
        options: ForwardOptions,
        backward: bool,
    ) -> Result<Done> {
        let data = std::mem::take(&mut computation.data);
        let operation = RunOperation::ForwardBackward { data, loss: computation.loss.clone(), backward, options };
        let done = self.perform(&adapter.tenant, adapter.run(), operation).await?;
        done.outcome()?;
        Ok(done)
    }

    /// The inputs as texts of tokens: conversations go through the adapter's template first.
    async fn rows(&self, adapter: &Adapter, inputs: Inputs, is_embedding: bool) -> Result<Rows> {
        let pad_left = pads_left(&adapter.record.settings);
        let is_encoded = inputs.0.iter().all(|input| matches!(input, Input::Feature(_)));
        let tokens: usize = inputs.0.iter().map(Input::tokens).sum();
        let features: Vec<InputFeature> = if is_encoded {
            let feature = |input| if let Input::Feature(feature) = input { Some(feature) } else { None };
            inputs.0.into_iter().filter_map(feature).collect()
        } else {
            let model = self.model()?;
            let spec = match &adapter.record.settings.template {
                Some(template) => TemplateSpec::named(&template.class, &template.settings)?,
                None => TemplateSpec::for_model(&model.name),
            };
            let labels: Vec<Option<Vec<i64>>> = inputs.0.iter().map(label_of_conversation).collect();
            let template = self.context.templates.load(&model.tokenizer, &spec).await?;
            let encoded = self.context.templates.encode(&template, inputs.0, false).await?;
            let labelled = |(features, label): (Vec<InputFeature>, Option<Vec<i64>>)| {
                features.into_iter().map(move |feature| match &label {
                    Some(label) if is_embedding => InputFeature { labels: Some(label.clone()), ..feature },
                    None if is_embedding => InputFeature { labels: None, ..feature },
                    _ => feature,
                })
            };
            encoded.into_iter().zip(labels).flat_map(labelled).collect()
        };
        off_runtime(BYTES_PER_TOKEN * tokens, move || Rows::of(features, pad_left, is_embedding)).await?
    }
}

/// What a forward was asked for besides its loss.
struct Asked {
    options: ForwardOptions,
    return_logits: bool,
    is_embedding: bool,
}

impl Asked {
    fn read(arguments: &mut Arguments, way: Way) -> Result<Self> {
        let temperature = arguments.number("temperature")?.unwrap_or(1.0);
        if temperature <= 0.0 {
            return Err(Error::invalid(format!("`temperature` is {temperature}, but must be above 0")));
        }
        let task = arguments.text("task")?.unwrap_or_else(|| "causal_lm".to_owned());
        if !TASKS.contains(&task.as_str()) {
            return Err(losses::unknown("task", "tasks", &task, &TASKS));
        }
        let disable_lora = if way == Way::Backward { None } else { arguments.flag("disable_lora")? };
        let accumulation_steps = if way == Way::Backward { accumulation_steps(arguments)? } else { None };
        let options = ForwardOptions {
            temperature,
            disable_lora: disable_lora.unwrap_or(false),
            accumulation_steps,
            ..ForwardOptions::default()
        };
        let return_logits = arguments.flag("return_logits")?.unwrap_or(false);
        Ok(Self { options, return_logits, is_embedding: task == "embedding" })
    }
}

/// Aligns everything to the tokens, beside the async runtime where that is much.
async fn prepared(rows: Arc<Rows>, loss: LossSpec, inputs: LossInputs) -> Result<Computation> {
    let tokens: usize = rows.list.iter().map(|row| row.tokens.len()).sum();
    let size = BYTES_PER_TOKEN * tokens + inputs.bytes();
    off_runtime(size, move || {
        let columns = inputs.columns(&rows)?;
        let data = if loss.name == NO_LOSS { bare(&rows) } else { data(&rows, &loss, &inputs, &columns)? };
        Ok(Computation { rows, columns, data, loss })
    })
    .await?
}

/// For a forward without a loss: labels, where there are some, and nothing else.
fn bare(rows: &Rows) -> Vec<Datum> {
    let datum = |row: &super::rows::Row| {
        let mut loss_inputs =
            if rows.has_labels && !rows.per_text { targets(row) } else { std::collections::BTreeMap::new() };
        loss_inputs.remove("mask");
        Datum { tokens: row.tokens.clone(), loss_inputs }
    };
    rows.list.iter().map(datum).collect()
}

/// The one label of a conversation that is to be embedded.
fn label_of_conversation(input: &Input) -> Option<Vec<i64>> {
    let Input::Trajectory(trajectory) = input else { return None };
    match trajectory.extra.get("labels")? {
        Value::Array(labels) => labels.iter().map(Value::as_i64).collect(),
        label => label.as_i64().map(|label| vec![label]),
    }
}

fn loss_of(outcome: &ForwardBackwardOutcome) -> f64 {
    outcome.metrics.get("loss:sum").copied().unwrap_or_default()
}

/// Lets the adapter's metrics see what was found. What one of them cannot use costs the request nothing.
fn observe(
    adapter: &Adapter,
    is_training: bool,
    computation: &Computation,
    outcome: &ForwardBackwardOutcome,
    logprobs: &[Vec<f32>],
    loss: Option<f64>,
    again: bool,
) {
    let Computation { rows, columns, .. } = computation;
    let seen = Observation { rows, columns, outcome, logprobs, loss, again };
    let observed = adapter.counters(|counters| {
        let metrics = if is_training { &mut counters.training } else { &mut counters.evaluation };
        metrics.observe(&seen)
    });
    if let Err(reason) = observed {
        tracing::warn!(run = %adapter.run(), %reason, "a metric could not use a forward");
    }
}

fn nothing_kept(what: &str) -> Error {
    Error::new(ErrorCode::Conflict, format!("there is no forward for `{what}`")).hint(format!(
        "use `forward` first: its inputs are kept for an hour, up to {} MiB, until the weights change or the server restarts",
        MOST_KEPT >> 20
    ))
}
