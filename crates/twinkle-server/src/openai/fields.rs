//! Which fields of a request are served, which ask for nothing, and which are refused by name.

use serde::de::DeserializeOwned;
use serde_json::{Map, Value};
use twinkle_core::error::{Error, Result, suggestion};

use super::answer::OpenAiError;
use super::settings::Settings;

/// What a route does with each field of its requests. `null` is the same as leaving a field out.
pub(super) struct Fields {
    /// Fields that do what the protocol says.
    pub(super) served: &'static [&'static str],
    /// Fields that change nothing about the answer: accepted with any value.
    pub(super) harmless: &'static [&'static str],
    /// Fields of the protocol that are not served: accepted with the value that asks for nothing.
    pub(super) refused: &'static [Refused],
}

/// A field of the protocol that is not served.
pub(super) struct Refused {
    /// Its name.
    pub(super) name: &'static str,
    /// Whether a value asks for nothing.
    pub(super) is_neutral: fn(&Value) -> bool,
    /// What to do instead.
    pub(super) hint: &'static str,
}

impl Fields {
    /// Reads a request whose every field does something, or is known to do nothing.
    pub(super) fn read<T: DeserializeOwned>(&self, body: &[u8]) -> Result<T, OpenAiError> {
        let mut fields: Map<String, Value> = serde_json::from_slice(body)
            .map_err(|error| Error::invalid(format!("the request body is not a JSON object: {error}")))?;
        fields.retain(|name, value| !value.is_null() && !self.harmless.contains(&name.as_str()));
        for refused in self.refused {
            let Some(value) = fields.remove(refused.name) else { continue };
            if !(refused.is_neutral)(&value) {
                let error = Error::unsupported(format!("`{}` is not supported", refused.name)).hint(refused.hint);
                return Err(OpenAiError::of(refused.name, error));
            }
        }
        if let Some(unknown) = fields.keys().find(|name| !self.served.contains(&name.as_str())) {
            let error = Error::invalid(format!("unknown field `{unknown}`"));
            return Err(OpenAiError::of(unknown, error.hint(suggestion(unknown, "fields", self.served))));
        }
        // What requests share is read once more as a part of them, where the names of its fields are lost.
        let shared = |name: &str| Some((name.to_owned(), fields.get(name)?.clone()));
        let settings: Map<String, Value> = Settings::NAMES.into_iter().filter_map(shared).collect();
        let misfit = |error: serde_path_to_error::Error<serde_json::Error>| {
            let path = error.path().to_string();
            let path = if matches!(path.as_str(), "." | "?") { "" } else { path.as_str() };
            let reason = error.inner().to_string();
            // A missing field is told of the object it is missing in.
            if let Some(name) = reason.strip_prefix("missing field `").and_then(|rest| rest.strip_suffix('`')) {
                let field = if path.is_empty() { name.to_owned() } else { format!("{path}.{name}") };
                return OpenAiError::of(&field, Error::invalid(format!("`{field}` is missing")));
            }
            if path.is_empty() {
                return Error::invalid(format!("the request body is not right: {reason}")).into();
            }
            OpenAiError::of(path, Error::invalid(format!("`{path}` is not right: {reason}")))
        };
        serde_path_to_error::deserialize::<_, Settings>(Value::Object(settings)).map_err(misfit)?;
        serde_path_to_error::deserialize(Value::Object(fields)).map_err(misfit)
    }

    /// An error of what is behind this front, with the field it names.
    pub(super) fn tell(&self, error: Error) -> OpenAiError {
        let named = error.message.split('`').nth(1).filter(|name| self.served.contains(name)).map(str::to_owned);
        match named {
            Some(field) => OpenAiError::of(&field, error),
            None => error.into(),
        }
    }
}

/// Asks for nothing when it is false, empty or zero.
pub(super) fn is_nothing(value: &Value) -> bool {
    match value {
        Value::Null => true,
        Value::Bool(wanted) => !wanted,
        Value::Number(number) => number.as_f64() == Some(0.0),
        Value::String(text) => text.is_empty(),
        Value::Array(items) => items.is_empty(),
        Value::Object(fields) => fields.is_empty(),
    }
}

#[cfg(test)]
mod tests {
    use serde::Deserialize;

    use super::*;

    const FIELDS: Fields = Fields {
        served: &["model", "count", "inner", "deep"],
        harmless: &["user"],
        refused: &[Refused { name: "bias", is_neutral: is_nothing, hint: "leave it out" }],
    };

    #[derive(Debug, Deserialize)]
    struct Request {
        model: String,
        count: Option<u32>,
        #[serde(default)]
        inner: Vec<Vec<u32>>,
        #[serde(default)]
        deep: Vec<Deep>,
    }

    #[derive(Debug, Deserialize)]
    struct Deep {
        role: String,
    }

    fn refusal(body: &str) -> Value {
        let error = FIELDS.read::<Request>(body.as_bytes()).unwrap_err();
        serde_json::from_slice::<Value>(&error.body()).unwrap()["error"].take()
    }

    #[test]
    fn what_asks_for_nothing_is_accepted() {
        let body = r#"{"model": "m", "user": {"any": 1}, "bias": {}, "count": null}"#;
        let request: Request = FIELDS.read(body.as_bytes()).unwrap();
        assert_eq!((request.model.as_str(), request.count, request.inner.len()), ("m", None, 0));
        assert!(request.deep.iter().all(|deep| deep.role.is_empty()));
    }

    #[test]
    fn every_refusal_names_its_field() {
        for (body, param, text) in [
            (r#"{"model": "m", "bias": {"5": 1}}"#, "bias", "`bias` is not supported (hint: leave it out)"),
            (r#"{"model": "m", "coumt": 1}"#, "coumt", "unknown field `coumt` (hint: did you mean `count`?"),
            (r#"{"count": 1}"#, "model", "`model` is missing"),
            (r#"{"model": "m", "deep": [{"role": "r"}, {}]}"#, "deep[1].role", "`deep[1].role` is missing"),
            (r#"{"model": "m", "count": -1}"#, "count", "`count` is not right: "),
            (r#"{"model": "m", "inner": [[1], ["x"]]}"#, "inner[1][0]", "`inner[1][0]` is not right: "),
        ] {
            let refusal = refusal(body);
            assert_eq!(refusal["param"], param, "{refusal}");
            assert!(refusal["message"].as_str().unwrap().starts_with(text), "{refusal}");
        }
        for body in ["", "[]", "{", "7"] {
            assert!(refusal(body)["message"].as_str().unwrap().contains("not a JSON object"), "{body}");
        }
    }

    #[test]
    fn an_error_from_behind_names_the_field_when_it_is_one() {
        let told =
            |message: &str| serde_json::from_slice::<Value>(&FIELDS.tell(Error::invalid(message)).body()).unwrap();
        assert_eq!(told("`count` is 0")["error"]["param"], "count");
        assert_eq!(told("token 3 is `9`")["error"]["param"], Value::Null);
    }
}
