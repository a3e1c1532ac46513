//! The settings of one loss, read with the names and defaults of its class.

use twinkle_core::call::LossSpec;
use twinkle_core::error::suggestion;
use twinkle_core::{Error, Result};

/// A label that marks what is not to be learned; whoever made the mask has read it already.
const IGNORE_INDEX: &str = "ignore_index";

/// Settings whose names are known and whose numbers are finite.
pub(super) struct Settings<'a> {
    loss: &'static str,
    spec: &'a LossSpec,
}

impl<'a> Settings<'a> {
    pub(super) fn checked(loss: &'static str, known: &[&str], spec: &'a LossSpec) -> Result<Self> {
        for name in spec.config.keys().chain(spec.options.keys()) {
            if name == IGNORE_INDEX || known.contains(&name.as_str()) {
                continue;
            }
            let error = Error::invalid(format!("loss `{loss}` has no setting `{name}`"));
            return Err(match known {
                [] => error.hint("it has no settings"),
                known => error.hint(suggestion(name, "settings", known)),
            });
        }
        if let Some((name, value)) = spec.config.iter().find(|(_, value)| !value.is_finite()) {
            return Err(Error::invalid(format!("setting `{name}` of loss `{loss}` is {value}, not a finite number")));
        }
        Ok(Self { loss, spec })
    }

    /// A number, or that it was not given.
    pub(super) fn given(&self, name: &str) -> Result<Option<f64>> {
        if let Some(word) = self.spec.options.get(name) {
            return Err(self.wrong(name, &format!("`{word}`"), "a number"));
        }
        Ok(self.spec.config.get(name).copied())
    }

    pub(super) fn number(&self, name: &str, default: f64) -> Result<f64> {
        Ok(self.given(name)?.unwrap_or(default))
    }

    /// A number of at least 0.
    pub(super) fn amount(&self, name: &str, default: f64) -> Result<f64> {
        self.within(name, default, "a number of at least 0", |value| value >= 0.0)
    }

    /// A number above 0.
    pub(super) fn positive(&self, name: &str, default: f64) -> Result<f64> {
        self.within(name, default, "a number above 0", |value| value > 0.0)
    }

    /// A number from 0 to 1.
    pub(super) fn share(&self, name: &str, default: f64) -> Result<f64> {
        self.within(name, default, "a number from 0 to 1", |value| (0.0..=1.0).contains(&value))
    }

    /// A whole number of at least 1.
    pub(super) fn count(&self, name: &str, default: f64) -> Result<f64> {
        self.within(name, default, "a whole number of at least 1", |value| value >= 1.0 && value.fract() == 0.0)
    }

    /// Yes or no.
    pub(super) fn flag(&self, name: &str, default: bool) -> Result<bool> {
        let value = self.within(name, f64::from(u8::from(default)), "true or false", |value| {
            value == 0.0 || (value - 1.0).abs() < f64::EPSILON
        })?;
        Ok(value != 0.0)
    }

    /// One of these words.
    pub(super) fn word(&self, name: &str, default: &'static str, known: &[&'static str]) -> Result<&'static str> {
        if let Some(number) = self.spec.config.get(name) {
            return Err(self.wrong(name, &format!("`{number}`"), "a word"));
        }
        let Some(word) = self.spec.options.get(name) else { return Ok(default) };
        known.iter().find(|candidate| *candidate == word).copied().ok_or_else(|| {
            Error::invalid(format!("setting `{name}` of loss `{}` is `{word}`", self.loss))
                .hint(suggestion(word, "values", known))
        })
    }

    fn within(&self, name: &str, default: f64, kind: &str, is_right: impl Fn(f64) -> bool) -> Result<f64> {
        let value = self.number(name, default)?;
        if is_right(value) {
            return Ok(value);
        }
        Err(self.wrong(name, &format!("`{value}`"), kind))
    }

    fn wrong(&self, name: &str, value: &str, kind: &str) -> Error {
        Error::invalid(format!("setting `{name}` of loss `{}` is {value}, but must be {kind}", self.loss))
    }
}
