//! What `calculate_metric` tells about the forwards since it was last asked.
//!
//! Values are texts where the original has texts, so that its clients print what they are used to; the same as numbers is
//! offered beside them. Every metric keeps a few sums and nothing that grows. They can be saved and taken up again, so that
//! a restart of the server costs none (`counters`).

mod accuracy;
mod embedding;
mod loss;
mod policy;
mod preference;
mod progress;
mod tokens;

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use tokio::time::Instant;
use twinkle_core::call::{AdapterSettings, ForwardBackwardOutcome, MetricSetting, NamedClass};
use twinkle_core::error::{Error, Result, suggestion};

use super::data::Columns;
use super::rows::Rows;

/// Most metrics that an adapter may be given.
pub(super) const MOST_METRICS: usize = 32;

/// The metrics that can be added, by the names of their classes.
const NAMES: [&str; 9] = [
    "LossMetric",
    "Accuracy",
    "TrainMetric",
    "DPOMetric",
    "GRPOMetric",
    "PPOMetric",
    "GSPOMetric",
    "CISPOMetric",
    "EmbeddingMetric",
];

/// Those that every adapter has.
const USUAL: [&str; 3] = ["LossMetric", "Accuracy", "TrainMetric"];

/// What a forward found.
pub(super) struct Observation<'a> {
    /// The texts.
    pub(super) rows: &'a Rows,
    /// What the loss was computed from besides them.
    pub(super) columns: &'a Columns,
    /// What came of it.
    pub(super) outcome: &'a ForwardBackwardOutcome,
    /// Per row, the logprob of each label.
    pub(super) logprobs: &'a [Vec<f32>],
    /// The loss, where one was computed.
    pub(super) loss: Option<f64>,
    /// Whether this forward was seen before, without its loss.
    pub(super) again: bool,
}

/// How the run is when it is asked.
#[derive(Clone, Copy, Debug)]
pub(super) struct Moment {
    /// Backward passes.
    pub(super) cur_step: u64,
    /// Backward passes that an update takes.
    pub(super) accumulation_steps: u64,
    /// The learning rate of the next step; `None`: no optimizer was set.
    pub(super) learning_rate: Option<f64>,
    /// The last gradient norm before clipping, divided by the tokens; `None`: gradients were never clipped.
    pub(super) grad_norm: Option<f64>,
    /// When.
    pub(super) now: Instant,
}

/// One metric: sums over what was observed.
trait Metric: Send {
    /// Adds what a forward found.
    fn observe(&mut self, seen: &Observation<'_>) -> Result<()>;

    /// Whether a loss that is computed after its forward is all that is new to it.
    fn is_about_losses(&self) -> bool {
        false
    }

    /// What came together, as the original shows it; begins anew.
    fn take(&mut self, at: &Moment, found: &mut Found);

    /// What came together, to be taken up again later.
    fn saved(&self, now: Instant) -> Result<Vec<u8>>;

    /// Takes up what was saved.
    fn take_up(&mut self, saved: &[u8], now: Instant) -> Result<()>;
}

/// Sums as bytes, bit for bit.
fn to_bytes(sums: &impl Serialize) -> Result<Vec<u8>> {
    rmp_serde::to_vec_named(sums).map_err(|error| Error::internal(format!("counters could not be encoded: {error}")))
}

/// The inverse of [`to_bytes`].
fn from_bytes<T: DeserializeOwned>(bytes: &[u8]) -> Result<T> {
    rmp_serde::from_slice(bytes).map_err(|error| Error::internal(format!("saved counters cannot be read: {error}")))
}

/// Values as the original shows them, and as numbers.
#[derive(Debug, Default)]
pub(super) struct Found {
    pub(super) shown: Map<String, Value>,
    pub(super) numbers: Map<String, Value>,
}

impl Found {
    /// A number that is shown as this text.
    fn text(&mut self, name: impl Into<String>, number: f64, shown: String) {
        let name = name.into();
        self.numbers.insert(name.clone(), number.into());
        self.shown.insert(name, shown.into());
    }

    /// A number that is shown as it is.
    fn number(&mut self, name: impl Into<String>, number: f64) {
        let name = name.into();
        self.numbers.insert(name.clone(), number.into());
        self.shown.insert(name, number.into());
    }
}

/// The metrics of an adapter, for training or for evaluation.
pub(super) struct Metrics {
    list: Vec<Named>,
}

/// A metric and the name of its class.
struct Named {
    class: String,
    metric: Box<dyn Metric>,
}

/// What one metric has counted.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct SavedMetric {
    class: String,
    sums: Vec<u8>,
}

impl Metrics {
    /// Those that every adapter has, and those that were added to this one.
    pub(super) fn of(settings: &AdapterSettings, training: bool, now: Instant) -> Self {
        let usual = USUAL.map(|class| NamedClass { class: class.to_owned(), settings: Map::new() });
        let added = settings.metrics.iter().filter(|setting| setting.training.is_none_or(|wanted| wanted == training));
        let all = usual.iter().chain(added.map(|setting| &setting.metric));
        // What was kept has been checked; one that a later version does not know is left out.
        Self { list: all.filter_map(|metric| named(metric, now).ok()).collect() }
    }

    /// What all of them have counted.
    pub(super) fn saved(&self, now: Instant) -> Result<Vec<SavedMetric>> {
        let saved =
            |Named { class, metric }: &Named| Ok(SavedMetric { class: class.clone(), sums: metric.saved(now)? });
        self.list.iter().map(saved).collect()
    }

    /// Takes up what was saved, in the same order. A metric that is another one by now begins anew.
    pub(super) fn take_up(&mut self, saved: &[SavedMetric], now: Instant) {
        for (Named { class, metric }, saved) in self.list.iter_mut().zip(saved) {
            if *class != saved.class {
                continue;
            }
            if let Err(reason) = metric.take_up(&saved.sums, now) {
                tracing::warn!(metric = class.as_str(), %reason, "a metric begins anew");
            }
        }
    }

    /// Adds the metric that was set last, unless these were made after it was.
    pub(super) fn add_once(
        &mut self,
        metric: &NamedClass,
        settings: &AdapterSettings,
        training: bool,
        now: Instant,
    ) -> Result<()> {
        let is_for_these = |setting: &&MetricSetting| setting.training.is_none_or(|wanted| wanted == training);
        if self.list.len() < USUAL.len() + settings.metrics.iter().filter(is_for_these).count() {
            self.list.push(named(metric, now)?);
        }
        Ok(())
    }

    /// Lets all of them see a forward. One that cannot use it says why, and the others have seen it.
    pub(super) fn observe(&mut self, seen: &Observation<'_>) -> Result<()> {
        let mut first = Ok(());
        let metrics = self.list.iter_mut().map(|Named { metric, .. }| metric);
        for metric in metrics.filter(|metric| !seen.again || metric.is_about_losses()) {
            let observed = metric.observe(seen);
            first = first.and(observed);
        }
        first
    }

    /// What came together since the last time.
    pub(super) fn take(&mut self, at: &Moment) -> Found {
        let mut found = Found::default();
        for Named { metric, .. } in &mut self.list {
            metric.take(at, &mut found);
        }
        found
    }
}

/// Checks a metric that is to be added.
pub(super) fn check(setting: &MetricSetting) -> Result<()> {
    build(&setting.metric, Instant::now()).map(|_| ())
}

fn named(metric: &NamedClass, now: Instant) -> Result<Named> {
    Ok(Named { class: metric.class.clone(), metric: build(metric, now)? })
}

fn build(metric: &NamedClass, now: Instant) -> Result<Box<dyn Metric>> {
    let NamedClass { class, settings } = metric;
    Ok(match class.as_str() {
        "LossMetric" => Box::new(loss::Loss::default()),
        "Accuracy" => Box::new(accuracy::Accuracy::default()),
        "TrainMetric" => Box::new(progress::Progress::new(now)),
        "DPOMetric" | "GRPOMetric" | "PPOMetric" | "GSPOMetric" | "CISPOMetric" | "EmbeddingMetric" => {
            tokens::build(class, settings.clone())?
        }
        "PPOValueMetric" => {
            return Err(Error::unsupported(
                "metric `PPOValueMetric` needs a model with a value head, and the models here predict tokens only",
            ));
        }
        "CompletionRewardMetric" => {
            return Err(Error::unsupported(
                "metric `CompletionRewardMetric` is computed by the client from its rewards",
            ));
        }
        other => {
            return Err(
                Error::invalid(format!("there is no metric `{other}`")).hint(suggestion(other, "metrics", &NAMES))
            );
        }
    })
}

#[cfg(test)]
mod tests;
