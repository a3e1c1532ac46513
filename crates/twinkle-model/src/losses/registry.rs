//! The losses by name, and their settings.

use std::collections::BTreeMap;

use twinkle_core::call::LossSpec;
use twinkle_core::error::suggestion;
use twinkle_core::{Error, Result};

use super::policy::{BOUNDS, ClipRange};
use super::{Loss, cispo, cross_entropy, custom, dro, gspo, importance_sampling, native, ppo};

/// How a loss is found by name and built from its settings.
struct Entry {
    name: &'static str,
    /// The settings it has; others are mistakes.
    settings: &'static [&'static str],
    build: fn(&Settings) -> Result<Box<dyn Loss>>,
}

const LOSSES: &[Entry] = &[
    Entry { name: "cross_entropy", settings: &[], build: |_| Ok(Box::new(cross_entropy::CrossEntropy)) },
    Entry {
        name: "importance_sampling",
        settings: &[],
        build: |_| Ok(Box::new(importance_sampling::ImportanceSampling)),
    },
    Entry { name: "ppo", settings: &BOUNDS, build: ppo::build },
    Entry { name: "cispo", settings: &BOUNDS, build: cispo::build },
    Entry { name: "dro", settings: &["beta"], build: dro::build },
    Entry { name: "gspo", settings: &BOUNDS, build: gspo::build },
];

/// Every input some loss reads. A datum may carry inputs of another loss; a name outside this list is a mistake.
pub const KNOWN_INPUTS: &[&str] = &[
    "target_tokens",
    "weights",
    "advantages",
    "logprobs",
    "clip_low_threshold",
    "clip_high_threshold",
    "sequence_ratio_mask",
];

/// The names of all losses.
#[must_use]
pub fn names() -> Vec<&'static str> {
    LOSSES.iter().map(|entry| entry.name).chain([custom::NAME]).collect()
}

/// Finds and builds the loss; an unknown name or setting is an error that names the nearest right one.
pub fn build(spec: &LossSpec) -> Result<Box<dyn Loss>> {
    if spec.name == "stable_reinforce" {
        return Err(Error::unsupported(
            "loss `stable_reinforce` is not supported: its formula has not been published, so it cannot be computed",
        )
        .hint(format!("the losses are {}", quoted(&names()))));
    }
    if spec.name == custom::NAME {
        return custom::build(spec);
    }
    if native::is_native(&spec.name) {
        return native::build(spec);
    }
    let Some(entry) = LOSSES.iter().find(|entry| entry.name == spec.name) else { return Err(unknown(&spec.name)) };
    for (setting, value) in &spec.config {
        if !entry.settings.contains(&setting.as_str()) {
            let error = Error::invalid(format!("loss `{}` has no setting `{setting}`", entry.name));
            return Err(match entry.settings {
                [] => error.hint("it has no settings"),
                known => error.hint(suggestion(setting, "settings", known)),
            });
        }
        if !value.is_finite() {
            return Err(Error::invalid(format!("setting `{setting}` of loss `{}` is not a finite number", entry.name)));
        }
    }
    if let Some(option) = spec.options.keys().next() {
        return Err(Error::invalid(format!("loss `{}` has no setting `{option}` that is a word", entry.name)));
    }
    (entry.build)(&Settings { loss: entry.name, values: &spec.config })
}

/// Refuses a loss of Twinkle's own protocol, which is none of Tinker's.
pub fn check_is_tinkers(spec: &LossSpec) -> Result<()> {
    if native::is_native(&spec.name) { Err(unknown(&spec.name)) } else { Ok(()) }
}

fn unknown(name: &str) -> Error {
    Error::invalid(format!("unknown loss `{name}`")).hint(suggestion(name, "losses", &names()))
}

fn quoted(names: &[&str]) -> String {
    names.iter().map(|name| format!("`{name}`")).collect::<Vec<_>>().join(", ")
}

/// The numeric settings of one loss, already known to have known names and finite values.
pub(super) struct Settings<'a> {
    loss: &'static str,
    values: &'a BTreeMap<String, f64>,
}

impl Settings<'_> {
    pub(super) fn get(&self, name: &str, default: f32) -> f32 {
        self.values.get(name).map_or(default, |value| *value as f32)
    }

    /// Lower and upper bound of the probability ratio.
    pub(super) fn clip_range(&self, default_low: f32, default_high: f32) -> Result<ClipRange> {
        let [low, high] = BOUNDS;
        let range = ClipRange { low: self.get(low, default_low), high: self.get(high, default_high) };
        range.checked(&format!("loss `{}`", self.loss))
    }
}
