//! From a name and keyword arguments, as Python code has them, to one of a closed list of types.

use serde::de::DeserializeOwned;
use serde_json::{Map, Value};

use crate::error::suggestion;
use crate::{Error, Result};

/// The variant `name` of an externally tagged enum, with these settings.
pub(super) fn named<T: DeserializeOwned>(
    what: &str,
    known: &[&str],
    name: &str,
    settings: Map<String, Value>,
) -> Result<T> {
    if !known.contains(&name) {
        return Err(Error::invalid(format!("there is no {what} `{name}`")).hint(suggestion(
            name,
            &format!("{what}s"),
            known,
        )));
    }
    let tagged = Map::from_iter([(name.to_owned(), Value::Object(settings))]);
    serde_json::from_value(Value::Object(tagged))
        .map_err(|error| Error::invalid(format!("the settings of `{name}` are wrong: {error}")))
}
