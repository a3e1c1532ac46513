//! What is set for an adapter: loss, template, optimizer and the rest, each by the name of its class.

use axum::extract::State;
use schemars::JsonSchema;
use serde::Deserialize;
use serde_json::{Map, Value};
use tokio::time::Instant;
use twinkle_core::call::{AdapterSettings, MetricSetting, NamedClass, OptimizerSpec, RunOperation, SchedulerSpec};
use twinkle_core::error::{Error, ErrorCode, Result};
use twinkle_processor::TemplateSpec;

use super::arguments::Arguments;
use super::losses;
use super::metrics::{self, MOST_METRICS};
use super::work::to_the_end;
use crate::twinkle::{Answer, Caller, Json, TwinkleFront, null};

/// The learning rate of an optimizer that was given none.
const USUAL_RATE: f64 = 1e-5;
/// The weight decay of an optimizer that was given none, whatever its kind: the original's, so that results are comparable.
const USUAL_DECAY: f64 = 0.01;
/// Names under which the original's other backend has `Adam` with its own defaults.
const MEGATRONS: [&str; 2] = ["default", "MegatronOptimizer"];

/// The body of every `set_…`: each of them names a class under a key of its own.
#[derive(Deserialize, JsonSchema)]
pub(super) struct Setting {
    /// The class: `loss_cls`, `optimizer_cls`, `scheduler_cls`, `template_cls`, `processor_cls` or `metric_cls` say the same.
    #[serde(alias = "loss_cls", alias = "optimizer_cls", alias = "scheduler_cls", alias = "template_cls")]
    #[serde(alias = "processor_cls", alias = "metric_cls", alias = "patch_cls")]
    class: String,
    #[serde(default)]
    adapter_name: Option<String>,
    #[serde(flatten)]
    settings: Map<String, Value>,
}

impl Setting {
    /// The class and what its constructor is given.
    fn named(self) -> (NamedClass, Option<String>) {
        (NamedClass { class: self.class, settings: self.settings }, self.adapter_name)
    }
}

/// `POST set_loss`
pub(super) async fn loss(State(front): State<TwinkleFront>, caller: Caller, Json(wanted): Json<Setting>) -> Answer {
    let (loss, adapter) = wanted.named();
    losses::spec(&loss)?;
    to_the_end("set_loss", async move {
        let mut adapter = front.adapter(&caller, adapter.as_deref()).await?;
        front.set(&mut adapter, |settings| settings.loss = Some(loss)).await
    })
    .await?;
    null()
}

/// `POST set_template`
pub(super) async fn template(State(front): State<TwinkleFront>, caller: Caller, Json(wanted): Json<Setting>) -> Answer {
    let (template, adapter) = wanted.named();
    TemplateSpec::named(&template.class, &template.settings)?;
    to_the_end("set_template", async move {
        let mut adapter = front.adapter(&caller, adapter.as_deref()).await?;
        front.set(&mut adapter, |settings| settings.template = Some(template)).await
    })
    .await?;
    null()
}

/// `POST set_processor`
pub(super) async fn processor(
    State(front): State<TwinkleFront>,
    caller: Caller,
    Json(wanted): Json<Setting>,
) -> Answer {
    let (processor, adapter) = wanted.named();
    check_processor(&processor)?;
    to_the_end("set_processor", async move {
        let mut adapter = front.adapter(&caller, adapter.as_deref()).await?;
        front.set(&mut adapter, |settings| settings.processor = Some(processor)).await
    })
    .await?;
    null()
}

/// `POST set_optimizer`: a fresh one, without a schedule.
pub(super) async fn optimizer(
    State(front): State<TwinkleFront>,
    caller: Caller,
    Json(wanted): Json<Setting>,
) -> Answer {
    let (named, adapter) = wanted.named();
    let spec = optimizer_spec(&named)?;
    to_the_end("set_optimizer", async move {
        let mut adapter = front.adapter(&caller, adapter.as_deref()).await?;
        let operation = RunOperation::SetOptimizer(spec);
        front.perform(&adapter.tenant, adapter.run(), operation).await?.outcome()?;
        let change = |settings: &mut AdapterSettings| (settings.optimizer, settings.scheduler) = (Some(named), None);
        front.set(&mut adapter, change).await
    })
    .await?;
    null()
}

/// `POST set_lr_scheduler`
pub(super) async fn scheduler(
    State(front): State<TwinkleFront>,
    caller: Caller,
    Json(wanted): Json<Setting>,
) -> Answer {
    let (named, adapter) = wanted.named();
    losses::refuse_plugin(&named.class)?;
    let spec = SchedulerSpec::named(&named.class, without_nulls(&named.settings))?;
    to_the_end("set_lr_scheduler", async move {
        let mut adapter = front.adapter(&caller, adapter.as_deref()).await?;
        check_has_optimizer(&adapter.record.settings)?;
        let operation = RunOperation::SetScheduler(spec);
        front.perform(&adapter.tenant, adapter.run(), operation).await?.outcome()?;
        front.set(&mut adapter, |settings| settings.scheduler = Some(named)).await
    })
    .await?;
    null()
}

/// `POST add_metric`
pub(super) async fn metric(State(front): State<TwinkleFront>, caller: Caller, Json(wanted): Json<Setting>) -> Answer {
    let (mut named, adapter) = wanted.named();
    losses::refuse_plugin(&named.class)?;
    let training = match named.settings.shift_remove("is_training") {
        None | Some(Value::Null) => None,
        Some(Value::Bool(training)) => Some(training),
        Some(other) => {
            return Err(Error::invalid(format!("`is_training` is {other}, but must be true, false or null")).into());
        }
    };
    let setting = MetricSetting { metric: named, training };
    metrics::check(&setting)?;
    to_the_end("add_metric", async move {
        let mut adapter = front.adapter(&caller, adapter.as_deref()).await?;
        if adapter.record.settings.metrics.len() >= MOST_METRICS {
            return Err(Error::new(ErrorCode::LimitReached, format!("an adapter has at most {MOST_METRICS} metrics")));
        }
        let kept = setting.clone();
        front.set(&mut adapter, |settings| settings.metrics.push(kept)).await?;
        adapter.counters(|counters| {
            let now = Instant::now();
            // Counters that were only made now have it already.
            for (metrics, of_training) in [(&mut counters.training, true), (&mut counters.evaluation, false)] {
                if setting.training.is_none_or(|wanted| wanted == of_training) {
                    metrics.add_once(&setting.metric, &adapter.record.settings, of_training, now)?;
                }
            }
            Ok(())
        })
    })
    .await?;
    null()
}

/// `POST apply_patch`: patches are Python code.
pub(super) async fn patch(State(_): State<TwinkleFront>, _: Caller, Json(wanted): Json<Setting>) -> Answer {
    let class = wanted.class;
    losses::refuse_plugin(&class)?;
    Err(Error::unsupported(format!("`{class}` is a patch of a Python model, and no Python runs here"))
        .hint("leave it out: the models here need no patches")
        .into())
}

/// The optimizer of this class. Learning rate and weight decay are the original's when none is given, and everything else is
/// torch's: `Adam` adds the decay to its gradients, `AdamW` does not.
fn optimizer_spec(named: &NamedClass) -> Result<OptimizerSpec> {
    losses::refuse_plugin(&named.class)?;
    let mut settings = without_nulls(&named.settings);
    let (class, rate, decay) = if MEGATRONS.contains(&named.class.as_str()) {
        ("Adam", 1e-4, 0.0)
    } else {
        (named.class.as_str(), USUAL_RATE, USUAL_DECAY)
    };
    settings.entry("lr").or_insert(rate.into());
    settings.entry("weight_decay").or_insert(decay.into());
    OptimizerSpec::named(class, settings)
}

fn without_nulls(settings: &Map<String, Value>) -> Map<String, Value> {
    settings.iter().filter(|(_, value)| !value.is_null()).map(|(name, value)| (name.clone(), value.clone())).collect()
}

/// Refuses what needs an optimizer from an adapter that was given none.
pub(super) fn check_has_optimizer(settings: &AdapterSettings) -> Result<()> {
    match settings.optimizer {
        Some(_) => Ok(()),
        None => Err(Error::new(ErrorCode::Conflict, "the adapter has no optimizer")
            .hint("set one first, for example `set_optimizer(\"AdamW\", lr=1e-4)`")),
    }
}

/// Inputs are batched in one way. Its settings say where a client wants shorter rows filled up, and how the original saves
/// time: here, padding never reaches the network.
fn check_processor(processor: &NamedClass) -> Result<()> {
    losses::refuse_plugin(&processor.class)?;
    if processor.class != "InputProcessor" {
        return Err(losses::unknown("processor", "processors", &processor.class, &["InputProcessor"]));
    }
    let mut settings = Arguments::new("InputProcessor", processor.settings.clone());
    match settings.text("padding_side")?.as_deref() {
        None | Some("left" | "right") => {}
        Some(side) => return Err(Error::invalid(format!("`padding_side` is `{side}`, but must be `left` or `right`"))),
    }
    settings.flag("padding_free")?;
    settings.text("framework")?;
    settings.end()
}

/// Whether shorter rows of an answer are filled up on the left.
pub(super) fn pads_left(settings: &AdapterSettings) -> bool {
    let side = settings.processor.as_ref().and_then(|processor| processor.settings.get("padding_side"));
    side.is_some_and(|side| side == "left")
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn named(class: &str, settings: &Value) -> NamedClass {
        NamedClass { class: class.to_owned(), settings: settings.as_object().cloned().unwrap() }
    }

    #[test]
    fn a_class_is_read_under_every_key_that_clients_use() {
        for key in ["loss_cls", "optimizer_cls", "scheduler_cls", "template_cls", "processor_cls", "metric_cls"] {
            let body = json!({ key: "X", "adapter_name": "a", "lr": 1 });
            let setting: Setting = serde_json::from_value(body).unwrap();
            let (class, adapter) = setting.named();
            assert_eq!((class, adapter.as_deref()), (named("X", &json!({ "lr": 1 })), Some("a")));
        }
    }

    #[test]
    fn rates_and_decays_are_the_originals_unless_they_are_given() {
        for class in OptimizerSpec::NAMES {
            let usual = optimizer_spec(&named(class, &json!({ "lr": null }))).unwrap();
            assert_eq!((usual.name(), usual.lr(), usual.weight_decay()), (class, 1e-5, 0.01));
        }
        let told = optimizer_spec(&named("Adam", &json!({ "lr": 0.1, "weight_decay": 0 }))).unwrap();
        assert_eq!((told.lr(), told.weight_decay()), (0.1, 0.0));
        let megatrons = optimizer_spec(&named("default", &json!({}))).unwrap();
        assert_eq!((megatrons.name(), megatrons.lr(), megatrons.weight_decay()), ("Adam", 1e-4, 0.0));
        assert!(optimizer_spec(&named("hf://a/b", &json!({}))).unwrap_err().message.contains("plugin"));
    }

    #[test]
    fn a_processor_has_a_side_to_pad() {
        check_processor(&named("InputProcessor", &json!({ "padding_side": "left", "padding_free": true }))).unwrap();
        assert!(check_processor(&named("InputProcessor", &json!({ "padding_side": "up" }))).is_err());
        assert!(check_processor(&named("Processor", &json!({}))).unwrap_err().to_string().contains("InputProcessor"));
        let settings = |side: &str| AdapterSettings {
            processor: Some(named("InputProcessor", &json!({ "padding_side": side }))),
            ..AdapterSettings::default()
        };
        assert!(pads_left(&settings("left")) && !pads_left(&settings("right")));
        assert!(!pads_left(&AdapterSettings::default()));
    }
}
