//! Metrics that do not depend on how a batch was cut into requests.

use std::collections::BTreeMap;

/// Sums over targets, by name.
///
/// A client adds the `:sum` metrics of its requests, so any split of a batch gives the same numbers; a mean of means would
/// not. A metric that some request lacks is dropped by the SDK, so every datum tells all of them, zeros too.
#[derive(Clone, Debug, Default)]
pub struct Tally(BTreeMap<&'static str, f64>);

impl Tally {
    /// Adds to the metric `name:sum`. What overflows counts as the largest float: JSON has no infinities.
    pub fn add(&mut self, name: &'static str, value: f64) {
        let largest = f64::from(f32::MAX);
        *self.0.entry(name).or_insert(0.0) += value.clamp(-largest, largest);
    }

    /// The metrics as they go to the client.
    pub(crate) fn into_metrics(self) -> impl Iterator<Item = (String, f64)> {
        self.0.into_iter().map(|(name, value)| (format!("{name}:sum"), value))
    }
}
