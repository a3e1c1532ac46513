//! Keyword arguments as clients send them: every key of a request that has no meaning of its own.

use serde_json::{Map, Value};
use twinkle_core::error::{Error, Result, suggestion};

/// Keyword arguments that are taken one by one; what is left at the end is a mistake.
#[derive(Clone, Debug)]
pub(super) struct Arguments {
    /// What they are for, for messages.
    what: String,
    values: Map<String, Value>,
    /// Every name that was asked for.
    known: Vec<&'static str>,
}

impl Arguments {
    /// Arguments of `what`. A null is no argument.
    pub(super) fn new(what: impl Into<String>, values: Map<String, Value>) -> Self {
        let values = values.into_iter().filter(|(_, value)| !value.is_null()).collect();
        Self { what: what.into(), values, known: Vec::new() }
    }

    /// Takes an argument of any kind.
    pub(super) fn any(&mut self, name: &'static str) -> Option<Value> {
        self.known.push(name);
        self.values.remove(name)
    }

    /// Takes a finite number.
    pub(super) fn number(&mut self, name: &'static str) -> Result<Option<f64>> {
        self.take(name, "a number", |value| value.as_f64().filter(|number| number.is_finite()))
    }

    /// Takes a whole number of at least 0; `2.0` is one.
    pub(super) fn count(&mut self, name: &'static str) -> Result<Option<u64>> {
        self.take(name, "a whole number of at least 0", |value| {
            let number = value.as_f64().filter(|number| number.fract() == 0.0 && (0.0..=9e15).contains(number))?;
            Some(number as u64)
        })
    }

    /// Takes a yes or no.
    pub(super) fn flag(&mut self, name: &'static str) -> Result<Option<bool>> {
        self.take(name, "true or false", Value::as_bool)
    }

    /// Takes a text.
    pub(super) fn text(&mut self, name: &'static str) -> Result<Option<String>> {
        self.take(name, "a text", |value| value.as_str().map(str::to_owned))
    }

    fn take<T>(&mut self, name: &'static str, kind: &str, read: impl Fn(&Value) -> Option<T>) -> Result<Option<T>> {
        let Some(value) = self.any(name) else { return Ok(None) };
        read(&value).map(Some).ok_or_else(|| {
            let shown: String = value.to_string().chars().take(60).collect();
            Error::invalid(format!("`{name}` of `{}` is `{shown}`, but must be {kind}", self.what))
        })
    }

    /// Refuses what is left.
    pub(super) fn end(self) -> Result<()> {
        let Some(name) = self.values.keys().next() else { return Ok(()) };
        let error = Error::invalid(format!("`{}` has no argument `{name}`", self.what));
        Err(if self.known.is_empty() {
            error.hint("it has none")
        } else {
            error.hint(suggestion(name, "arguments", &self.known))
        })
    }
}

/// The number of passes that one update takes.
pub(super) fn accumulation_steps(arguments: &mut Arguments) -> Result<Option<u64>> {
    match arguments.count("gradient_accumulation_steps")? {
        Some(0) => Err(Error::invalid("`gradient_accumulation_steps` is 0, but must be at least 1")),
        steps => Ok(steps),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn arguments(value: &Value) -> Arguments {
        Arguments::new("step", value.as_object().cloned().unwrap())
    }

    #[test]
    fn what_was_not_asked_for_is_a_mistake() {
        let mut given = arguments(&json!({ "temperature": 0.5, "temprature": 1, "task": null }));
        assert_eq!(given.number("temperature").unwrap(), Some(0.5));
        assert_eq!(given.text("task").unwrap(), None);
        let error = given.end().unwrap_err();
        assert_eq!(error.message, "`step` has no argument `temprature`");
        assert!(error.hint.unwrap().starts_with("did you mean `temperature`?"));
    }

    #[test]
    fn kinds_are_checked() {
        let mut given = arguments(&json!({ "a": "1", "b": 1.5, "c": 2.0, "d": 1, "e": -1 }));
        assert_eq!(given.number("a").unwrap_err().message, "`a` of `step` is `\"1\"`, but must be a number");
        assert!(given.count("b").is_err());
        assert_eq!(given.count("c").unwrap(), Some(2));
        assert!(given.flag("d").is_err());
        assert!(given.count("e").is_err());
    }
}
