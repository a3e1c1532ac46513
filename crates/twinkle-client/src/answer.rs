//! What a server said, whatever its status.

use bytes::Bytes;
use reqwest::header::{CONTENT_TYPE, HeaderMap, HeaderName, LOCATION};
use serde::de::DeserializeOwned;
use serde_json::Value;
use twinkle_core::wire::tinker::PROTOBUF;

use crate::error::{Error, Result};

/// Longest error text that is shown.
const MESSAGE_LIMIT: usize = 2000;

/// An answer of any status.
#[derive(Clone, Debug)]
pub(crate) struct Answer {
    pub(crate) status: u16,
    pub(crate) headers: HeaderMap,
    pub(crate) body: Bytes,
}

impl Answer {
    pub(crate) fn is_success(&self) -> bool {
        (200..300).contains(&self.status)
    }

    /// Whether it says where else to look.
    pub(crate) fn is_elsewhere(&self) -> bool {
        matches!(self.status, 302 | 307) && self.header(LOCATION).is_some()
    }

    pub(crate) fn is_protobuf(&self) -> bool {
        self.header(CONTENT_TYPE).is_some_and(|value| value.contains(PROTOBUF))
    }

    /// A header's text.
    pub(crate) fn header(&self, name: HeaderName) -> Option<&str> {
        self.headers.get(name)?.to_str().ok()
    }

    /// The JSON body.
    pub(crate) fn decode<T: DeserializeOwned>(&self, path: &str) -> Result<T> {
        serde_json::from_slice(&self.body).map_err(|error| Error::malformed(path, &error))
    }

    /// The refusal as an error, in the server's words.
    pub(crate) fn rejection(&self) -> Error {
        let message = words(&self.body).chars().take(MESSAGE_LIMIT).collect();
        Error::Rejected { status: self.status, message }
    }
}

/// What a refusal says: `detail`, or `error` (a text, or an object with a `message`), or the whole body.
fn words(body: &[u8]) -> String {
    let said = serde_json::from_slice::<Value>(body).ok().and_then(|body| {
        let places = [&body["detail"], &body["error"]["message"], &body["error"]];
        places.into_iter().find_map(Value::as_str).map(str::to_owned)
    });
    said.unwrap_or_else(|| String::from_utf8_lossy(body).into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_refusal_is_shown_in_the_servers_words() {
        for (body, expected) in [
            (r#"{"detail":"no such run"}"#, "no such run"),
            (r#"{"error":"too long","category":"user"}"#, "too long"),
            (r#"{"error":{"message":"unknown model","code":404}}"#, "unknown model"),
            ("<html>bad gateway</html>", "<html>bad gateway</html>"),
            (r#"{"detail":[1]}"#, r#"{"detail":[1]}"#),
        ] {
            assert_eq!(words(body.as_bytes()), expected);
        }
    }
}
