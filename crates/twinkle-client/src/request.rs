//! A request, to be sent as often as needed.

use std::time::Duration;

use bytes::Bytes;
use reqwest::Method;
use serde::Serialize;
use twinkle_core::wire::tinker::PROTOBUF;

use crate::error::{Error, Result};

/// How long one attempt may take unless said otherwise.
const ATTEMPT_LIMIT: Duration = Duration::from_mins(1);
/// Which of zstd's levels: training requests are mostly token ids, which higher ones hardly make smaller.
const ZSTD_LEVEL: i32 = 3;

/// One request. Every retry sends the same bytes.
#[derive(Clone, Debug)]
pub(crate) struct Request {
    pub(crate) method: Method,
    /// Below the base URL, with the leading slash.
    pub(crate) path: String,
    pub(crate) content_type: Option<&'static str>,
    pub(crate) content_encoding: Option<&'static str>,
    pub(crate) body: Bytes,
    pub(crate) accept: Option<&'static str>,
    /// A further header.
    pub(crate) header: Option<(&'static str, &'static str)>,
    pub(crate) limit: Duration,
}

impl Request {
    pub(crate) fn get(path: impl Into<String>) -> Self {
        Self {
            method: Method::GET,
            path: path.into(),
            content_type: None,
            content_encoding: None,
            body: Bytes::new(),
            accept: None,
            header: None,
            limit: ATTEMPT_LIMIT,
        }
    }

    pub(crate) fn delete(path: impl Into<String>) -> Self {
        Self { method: Method::DELETE, ..Self::get(path) }
    }

    /// The same request by PUT.
    pub(crate) fn put(self) -> Self {
        Self { method: Method::PUT, ..self }
    }

    pub(crate) fn json(path: impl Into<String>, body: &impl Serialize) -> Result<Self> {
        let body = serde_json::to_vec(body).map_err(|error| Error::InvalidArgument(error.to_string()))?;
        let content_type = Some("application/json");
        Ok(Self { method: Method::POST, content_type, body: body.into(), ..Self::get(path) })
    }

    pub(crate) fn protobuf(path: impl Into<String>, message: &impl prost::Message) -> Self {
        let body = message.encode_to_vec().into();
        Self { method: Method::POST, content_type: Some(PROTOBUF), body, ..Self::get(path) }
    }

    /// The same request with its body as one zstd frame.
    pub(crate) fn compressed(self) -> Result<Self> {
        let body = zstd::bulk::compress(&self.body, ZSTD_LEVEL)
            .map_err(|error| Error::InvalidArgument(format!("the request cannot be compressed: {error}")))?;
        Ok(Self { body: body.into(), content_encoding: Some("zstd"), ..self })
    }

    pub(crate) fn accepting(self, media_type: &'static str) -> Self {
        Self { accept: Some(media_type), ..self }
    }

    pub(crate) fn with_header(self, name: &'static str, value: &'static str) -> Self {
        Self { header: Some((name, value)), ..self }
    }

    pub(crate) fn within(self, limit: Duration) -> Self {
        Self { limit, ..self }
    }

    pub(crate) fn path(&self) -> &str {
        &self.path
    }
}
