//! Named arguments of a call, taken one by one; what nobody asked for is an error.

use std::ops::RangeInclusive;

use serde_json::{Map, Value};
use twinkle_core::error::{Error, Result, suggestion};

/// Named arguments of a call.
///
/// Objects may be given as text of JSON, as the original's client sends them. A text is never taken for something else:
/// where a text is wanted, `"123"` stays one.
#[derive(Debug)]
pub struct Arguments {
    of: String,
    values: Map<String, Value>,
    asked: Vec<&'static str>,
}

impl Arguments {
    /// The arguments of something, whose name is told in errors.
    #[must_use]
    pub fn new(of: impl Into<String>, values: Map<String, Value>) -> Self {
        Self { of: of.into(), values, asked: Vec::new() }
    }

    /// A value of any kind; `None` when it is not there or null.
    pub fn take(&mut self, name: &'static str) -> Option<Value> {
        self.asked.push(name);
        self.values.remove(name).filter(|value| !value.is_null())
    }

    /// A value that must be there.
    pub fn need(&mut self, name: &'static str) -> Result<Value> {
        self.take(name).ok_or_else(|| self.missing(name))
    }

    /// A text.
    pub fn text(&mut self, name: &'static str) -> Result<Option<String>> {
        match self.take(name) {
            None => Ok(None),
            Some(Value::String(text)) => Ok(Some(text)),
            Some(other) => Err(self.wrong(name, "a text", &other)),
        }
    }

    /// A text that must be there.
    pub fn need_text(&mut self, name: &'static str) -> Result<String> {
        self.text(name)?.ok_or_else(|| self.missing(name))
    }

    /// A truth value.
    pub fn flag(&mut self, name: &'static str) -> Result<Option<bool>> {
        match self.take(name).map(decoded) {
            None => Ok(None),
            Some(Value::Bool(flag)) => Ok(Some(flag)),
            Some(other) => Err(self.wrong(name, "true or false", &other)),
        }
    }

    /// A whole number.
    pub fn integer(&mut self, name: &'static str, range: RangeInclusive<i64>) -> Result<Option<i64>> {
        let Some(value) = self.take(name).map(decoded) else { return Ok(None) };
        match value.as_i64() {
            Some(number) if range.contains(&number) => Ok(Some(number)),
            _ => {
                let wanted = format!("a whole number from {} to {}", range.start(), range.end());
                Err(self.wrong(name, &wanted, &value))
            }
        }
    }

    /// A number.
    pub fn number(&mut self, name: &'static str) -> Result<Option<f64>> {
        let Some(value) = self.take(name).map(decoded) else { return Ok(None) };
        value.as_f64().map(Some).ok_or_else(|| self.wrong(name, "a number", &value))
    }

    /// An object, or the text of one.
    pub fn object(&mut self, name: &'static str) -> Result<Option<Map<String, Value>>> {
        match self.take(name).map(decoded) {
            None => Ok(None),
            Some(Value::Object(object)) => Ok(Some(object)),
            Some(other) => Err(self.wrong(name, "an object", &other)),
        }
    }

    /// Texts: one, or a list of them.
    pub fn texts(&mut self, name: &'static str) -> Result<Option<Vec<String>>> {
        let value = match self.take(name) {
            None => return Ok(None),
            Some(Value::String(text)) => match decoded(Value::String(text)) {
                Value::String(text) => return Ok(Some(vec![text])),
                other => other,
            },
            Some(other) => other,
        };
        let texts = value
            .as_array()
            .and_then(|list| list.iter().map(|text| text.as_str().map(str::to_owned)).collect::<Option<Vec<_>>>());
        texts.map(Some).ok_or_else(|| self.wrong(name, "a list of texts", &value))
    }

    /// Takes names whose values change nothing here.
    pub fn without_effect(&mut self, names: &[&'static str]) {
        for name in names {
            let _ = self.take(name);
        }
    }

    /// All that is left, for somebody else to check.
    #[must_use]
    pub fn rest(&mut self) -> Map<String, Value> {
        std::mem::take(&mut self.values)
    }

    /// An error if something is left that nobody asked for.
    pub fn finish(self) -> Result<()> {
        match self.values.keys().next() {
            None => Ok(()),
            Some(name) => Err(Error::invalid(format!("{} has no argument `{name}`", self.of)).hint(suggestion(
                name,
                "arguments",
                &self.asked,
            ))),
        }
    }

    fn missing(&self, name: &str) -> Error {
        Error::invalid(format!("{} needs the argument `{name}`", self.of))
    }

    fn wrong(&self, name: &str, wanted: &str, value: &Value) -> Error {
        let shown: String = value.to_string().chars().take(80).collect();
        Error::invalid(format!("the argument `{name}` of {} is {wanted}, not `{shown}`", self.of))
    }
}

/// A text that is JSON but no text becomes what it says.
pub(crate) fn decoded(value: Value) -> Value {
    let Value::String(text) = &value else { return value };
    match serde_json::from_str(text) {
        Ok(Value::String(_)) | Err(_) => value,
        Ok(other) => other,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn arguments(value: Value) -> Arguments {
        let Value::Object(values) = value else { panic!("an object") };
        Arguments::new("`map`", values)
    }

    #[test]
    fn objects_may_be_texts_and_texts_stay_texts() {
        let mut given = arguments(json!({
            "init": r#"{"a": 1}"#, "name": "123", "nothing": null, "n": "7", "flag": true, "columns": r#"["a","b"]"#
        }));
        assert_eq!(given.object("init").unwrap().unwrap().get("a"), Some(&json!(1)));
        assert_eq!(given.text("name").unwrap().as_deref(), Some("123"));
        assert_eq!(given.text("nothing").unwrap(), None);
        assert_eq!(given.integer("n", 0..=9).unwrap(), Some(7));
        assert_eq!(given.flag("flag").unwrap(), Some(true));
        assert_eq!(given.texts("columns").unwrap().unwrap(), ["a", "b"]);
        given.finish().unwrap();
    }

    #[test]
    fn what_is_wrong_missing_or_unknown_is_named() {
        let mut given = arguments(json!({"n": 12, "num_prco": 1}));
        let told = |result: Result<Option<i64>>| result.unwrap_err().message;
        assert_eq!(
            told(given.integer("n", 0..=9)),
            "the argument `n` of `map` is a whole number from 0 to 9, not `12`"
        );
        assert_eq!(given.need_text("column").unwrap_err().message, "`map` needs the argument `column`");
        given.without_effect(&["num_proc"]);
        let error = given.finish().unwrap_err().to_string();
        assert!(error.starts_with("`map` has no argument `num_prco` (hint: did you mean `num_proc`?"), "{error}");
    }
}
