//! The ranges of numbers in the YAML.

use std::fmt;

/// A range of numbers.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Limits {
    pub(super) low: f64,
    pub(super) high: f64,
    /// Whether `low` itself is allowed.
    pub(super) low_counts: bool,
}

impl Limits {
    /// 0 and above.
    pub(super) const FROM_ZERO: Self = Self { low: 0.0, high: f64::INFINITY, low_counts: true };
    /// Above 0.
    pub(super) const ABOVE_ZERO: Self = Self { low: 0.0, high: f64::INFINITY, low_counts: false };
    /// A time in seconds; thirty years is longer than any node runs, and no clock overflows.
    pub(super) const SECONDS: Self = Self { low: 0.0, high: 1e9, low_counts: true };
    /// A time in seconds that must pass.
    pub(super) const SOME_SECONDS: Self = Self { low: 0.0, high: 1e9, low_counts: false };
    /// A share of a whole.
    pub(super) const SHARE: Self = Self { low: 0.0, high: 1.0, low_counts: false };

    pub(super) fn contain(self, number: f64) -> bool {
        let is_above = if self.low_counts { number >= self.low } else { number > self.low };
        is_above && number <= self.high
    }
}

impl fmt::Display for Limits {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (self.low_counts, self.high.is_finite()) {
            (true, false) => write!(formatter, "at least {}", self.low),
            (false, false) => write!(formatter, "above {}", self.low),
            (true, true) => write!(formatter, "between {} and {}", self.low, self.high),
            (false, true) => write!(formatter, "above {} and at most {}", self.low, self.high),
        }
    }
}
