//! What chat templates may call besides Jinja's own: the functions and filters that transformers gives them.

use minijinja::value::{Kwargs, Value, ValueKind};
use minijinja::{ErrorKind, Output, State, escape_formatter};

use crate::python_json;

/// Tells `raise_exception` to let a conversation through that ends with a tool's answer.
pub(super) const TOOL_TAIL_ALLOWED: &str = "twinkle_allows_tool_tail";
/// How Qwen's templates refuse a conversation in which no user asks anything.
const NO_USER_QUERY: &str = "No user query found in messages.";

pub(super) fn raise_exception(state: &State, message: String) -> Result<Value, minijinja::Error> {
    if message == NO_USER_QUERY && state.lookup(TOOL_TAIL_ALLOWED).is_some_and(|allowed| allowed.is_true()) {
        return Ok(Value::from(""));
    }
    Err(minijinja::Error::new(ErrorKind::InvalidOperation, message))
}

#[expect(clippy::needless_pass_by_value, reason = "minijinja hands a function its own arguments")]
pub(super) fn strftime_now(format: String) -> Result<String, minijinja::Error> {
    let now = jiff::Zoned::now();
    jiff::fmt::strtime::format(format.as_str(), &now)
        .map_err(|error| minijinja::Error::new(ErrorKind::InvalidOperation, format!("strftime_now: {error}")))
}

/// Writes a value into the text.
pub(super) fn write_out(
    text: &mut Output<'_>,
    state: &mut State<'_, '_>,
    value: &Value,
) -> Result<(), minijinja::Error> {
    match float_text(value) {
        Some(float) => text.write_str(&float).map_err(minijinja::Error::from),
        None => escape_formatter(text, state, value),
    }
}

/// `str(value)`
pub(super) fn to_text(value: &Value) -> Value {
    match (value.kind(), float_text(value)) {
        (ValueKind::String, _) => value.clone(),
        (_, Some(float)) => Value::from(float),
        _ => Value::from(value.to_string()),
    }
}

/// A float as Python writes it; everything else minijinja writes as Python does.
fn float_text(value: &Value) -> Option<String> {
    let is_float = value.is_number() && !value.is_integer();
    let number = is_float.then(|| f64::try_from(value.clone()).ok())??;
    number.is_finite().then(|| python_json::float(number))
}

#[expect(clippy::needless_pass_by_value, reason = "minijinja hands a filter its own arguments")]
pub(super) fn to_json(value: Value, options: Kwargs) -> Result<String, minijinja::Error> {
    let indent: Option<usize> = options.get("indent")?;
    // Given by some templates; both say what is done anyway.
    let _: Option<bool> = options.get("ensure_ascii")?;
    let _: Option<bool> = options.get("sort_keys")?;
    options.assert_all_used()?;
    python_json::dumps(&value, indent)
        .map_err(|error| minijinja::Error::new(ErrorKind::BadSerialization, format!("tojson: {error}")))
}
