//! What a Twinkle client sets for an adapter, beside what its run itself keeps.

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::ids::{RunId, SessionId, TenantId};

/// A client's adapter: a name in its session for a run, and how the run's data and losses are made from requests.
///
/// Optimizer, schedule and accumulation are state of the run; here is only what they were called, to be shown.
#[derive(Clone, Debug, PartialEq)]
pub struct AdapterRecord {
    /// The session it belongs to.
    pub session: SessionId,
    /// The client's name for it, alone in its session.
    pub name: String,
    /// Its owner.
    pub tenant: TenantId,
    /// The run that it stands for now. One that was made again after its run had ended stands for another.
    pub run: RunId,
    /// What was set.
    pub settings: AdapterSettings,
    /// What the metrics of this run have counted since its client last asked, in the form of whoever counts; empty: nothing.
    pub counters: Vec<u8>,
}

/// What the metrics of an adapter's run have counted.
#[derive(Clone, Debug, PartialEq)]
pub struct AdapterCounters {
    /// The adapter's session.
    pub session: SessionId,
    /// Its name in the session.
    pub name: String,
    /// Its owner.
    pub tenant: TenantId,
    /// The run that they are of.
    pub run: RunId,
    /// The counters, in the form of whoever counts.
    pub counters: Vec<u8>,
}

/// What was set for an adapter. The store keeps these: fields may be added, never renamed.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct AdapterSettings {
    /// What it was made with, as one text: asked for again with the same, the live one is answered.
    pub made_with: String,
    /// Its loss; `None`: cross-entropy as a sum.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub loss: Option<NamedClass>,
    /// Its chat template; `None`: the model's own with the usual settings.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub template: Option<NamedClass>,
    /// How its inputs are batched; `None`: as usual.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub processor: Option<NamedClass>,
    /// Its metrics besides those that every adapter has.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub metrics: Vec<MetricSetting>,
    /// Its optimizer; `None`: it was given none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub optimizer: Option<NamedClass>,
    /// Its schedule; `None`: it was given none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub scheduler: Option<NamedClass>,
}

/// A class by its name and the keyword arguments of its constructor.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct NamedClass {
    /// `CrossEntropyLoss`, …
    pub class: String,
    /// What its constructor was given.
    #[serde(default)]
    pub settings: Map<String, Value>,
}

/// A metric that was added to an adapter.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct MetricSetting {
    /// Which.
    pub metric: NamedClass,
    /// Whether it is for training (`true`), for evaluation (`false`), or for both.
    #[serde(default)]
    pub training: Option<bool>,
}
