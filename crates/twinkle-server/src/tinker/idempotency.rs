//! The key under which a client sends one request again when a connection breaks, as the Tinker SDK does.

use http::HeaderMap;
use twinkle_core::error::{Error, Result};

/// Where the key is.
pub(super) const HEADER: &str = "x-idempotency-key";
/// Longest key, in bytes.
const LONGEST: usize = 255;

/// The request's key; an empty one is none.
pub(super) fn key(headers: &HeaderMap) -> Result<Option<String>> {
    let Some(key) = headers.get(HEADER) else { return Ok(None) };
    match key.to_str().map(str::trim) {
        Ok("") => Ok(None),
        Ok(key) if key.len() <= LONGEST => Ok(Some(key.to_owned())),
        _ => Err(Error::invalid(format!("`{HEADER}` is not a text of at most {LONGEST} bytes"))),
    }
}
