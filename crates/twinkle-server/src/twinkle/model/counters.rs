//! What the metrics of an adapter have counted: worked with in memory, kept in the store before the client is answered.

use serde::{Deserialize, Serialize};
use tokio::time::Instant;
use twinkle_core::call::{AdapterCounters, AdapterRecord};
use twinkle_core::error::{Error, Result};
use twinkle_core::ids::RunId;

use super::adapters::Adapter;
use super::metrics::{Metrics, SavedMetric};
use crate::twinkle::TwinkleFront;

/// The metrics of an adapter's run.
pub(super) struct Counters {
    /// The run they are of.
    pub(super) run: RunId,
    pub(super) training: Metrics,
    pub(super) evaluation: Metrics,
    /// The last gradient norm that clipping told.
    pub(super) grad_norm: Option<f64>,
}

/// The form in the store: fields may be added, never renamed.
#[derive(Debug, Default, Serialize, Deserialize)]
#[serde(default)]
struct Saved {
    training: Vec<SavedMetric>,
    evaluation: Vec<SavedMetric>,
    grad_norm: Option<f64>,
}

impl Counters {
    /// What was kept of the adapter's run; else everything begins.
    pub(super) fn of(record: &AdapterRecord, now: Instant) -> Self {
        let metrics = |training| Metrics::of(&record.settings, training, now);
        let mut counters =
            Self { run: record.run.clone(), training: metrics(true), evaluation: metrics(false), grad_norm: None };
        if record.counters.is_empty() {
            return counters;
        }
        match rmp_serde::from_slice(&record.counters) {
            Ok(Saved { training, evaluation, grad_norm }) => {
                counters.training.take_up(&training, now);
                counters.evaluation.take_up(&evaluation, now);
                counters.grad_norm = grad_norm;
            }
            Err(reason) => tracing::warn!(run = %record.run, %reason, "an adapter's metrics begin anew"),
        }
        counters
    }

    fn saved(&self, now: Instant) -> Result<Vec<u8>> {
        let (training, evaluation) = (self.training.saved(now)?, self.evaluation.saved(now)?);
        let saved = Saved { training, evaluation, grad_norm: self.grad_norm };
        rmp_serde::to_vec_named(&saved)
            .map_err(|error| Error::internal(format!("an adapter's counters could not be encoded: {error}")))
    }
}

impl TwinkleFront {
    /// Keeps what an adapter's metrics have counted. What they tell is no reason to fail a training step.
    pub(super) async fn keep_counters(&self, adapter: &Adapter) {
        let AdapterRecord { session, name, tenant, run, .. } = adapter.record.clone();
        let kept = match adapter.counters(|counters| counters.saved(Instant::now())) {
            Ok(counters) => {
                let counters = AdapterCounters { session, name, tenant, run, counters };
                self.context.store.keep_counters(counters).await
            }
            Err(error) => Err(error),
        };
        if let Err(reason) = kept {
            tracing::warn!(run = %adapter.run(), %reason, "an adapter's counters were not kept");
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;
    use twinkle_core::call::{AdapterSettings, ForwardBackwardOutcome, MetricSetting, NamedClass};
    use twinkle_core::ids::{SessionId, TenantId};

    use super::super::data::Columns;
    use super::super::metrics::{Moment, Observation};
    use super::super::rows::Rows;
    use super::*;

    fn record(metrics: &[&str]) -> AdapterRecord {
        let setting = |class: &&str| MetricSetting {
            metric: NamedClass { class: (*class).to_owned(), ..NamedClass::default() },
            training: None,
        };
        AdapterRecord {
            session: SessionId::new("s"),
            name: "a".to_owned(),
            tenant: TenantId::new("alice"),
            run: RunId::new("s-a"),
            settings: AdapterSettings { metrics: metrics.iter().map(setting).collect(), ..AdapterSettings::default() },
            counters: Vec::new(),
        }
    }

    fn moment(now: Instant) -> Moment {
        Moment { cur_step: 4, accumulation_steps: 1, learning_rate: Some(0.5), grad_norm: Some(0.25), now }
    }

    fn see(counters: &mut Counters, rows: &Rows, loss: f64) {
        let (columns, outcome) =
            (Columns::default(), ForwardBackwardOutcome { num_tokens: 3.0, ..ForwardBackwardOutcome::default() });
        let logprobs = vec![vec![-0.1, -0.7]; rows.list.len()];
        let seen = Observation {
            rows,
            columns: &columns,
            outcome: &outcome,
            logprobs: &logprobs,
            loss: Some(loss),
            again: false,
        };
        counters.training.observe(&seen).unwrap();
    }

    #[tokio::test(start_paused = true)]
    async fn what_was_counted_is_told_after_a_restart_in_the_same_numbers() {
        let metrics = ["DPOMetric", "GRPOMetric", "EmbeddingMetric"];
        let features = serde_json::from_value(json!([
            { "input_ids": [1, 2], "labels": [2, 3] },
            { "input_ids": [4, 5], "labels": [5, -100] },
        ]));
        let rows = Rows::of(features.unwrap(), false, false).unwrap();
        let (mut one, mut record) = (Counters::of(&record(&metrics), Instant::now()), record(&metrics));
        see(&mut one, &rows, 0.1 + 0.2);
        one.grad_norm = Some(0.25);
        record.counters = one.saved(Instant::now()).unwrap();
        let mut other = Counters::of(&record, Instant::now());
        assert_eq!(other.grad_norm, Some(0.25));
        for counters in [&mut one, &mut other] {
            see(counters, &rows, 0.7);
            tokio::time::advance(std::time::Duration::from_secs(3)).await;
        }
        let now = Instant::now();
        let (one, other) = (one.training.take(&moment(now)), other.training.take(&moment(now)));
        assert_eq!(one.numbers, other.numbers);
        assert!(one.numbers.contains_key("train/policy_confidence"), "{:?}", one.numbers);
        assert!(one.numbers.contains_key("logps/chosen"), "{:?}", one.numbers);
    }

    #[tokio::test]
    async fn what_cannot_be_read_begins_anew() {
        let mut damaged = record(&[]);
        damaged.counters = b"x".to_vec();
        let mut counters = Counters::of(&damaged, Instant::now());
        assert_eq!(counters.training.take(&moment(Instant::now())).numbers["loss"], json!(0.0));
        // Metrics that were exchanged meanwhile keep what is theirs.
        let one = Counters::of(&record(&["DPOMetric"]), Instant::now());
        let changed =
            AdapterRecord { counters: one.saved(Instant::now()).unwrap(), ..record(&["GRPOMetric", "DPOMetric"]) };
        assert!(Counters::of(&changed, Instant::now()).saved(Instant::now()).is_ok());
    }
}
