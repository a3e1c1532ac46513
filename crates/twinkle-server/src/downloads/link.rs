//! A link: what it names, until when, and the signature of both.

use std::time::Duration;

use http::header::HOST;
use http::request::Parts;
use http::uri::{Authority, Scheme};
use http::{HeaderMap, HeaderName};
use jiff::Timestamp;
use schemars::JsonSchema;
use serde::Deserialize;
use twinkle_core::call::CheckpointRecord;
use twinkle_core::error::{Error, ErrorCode, Result};
use twinkle_core::ids::{CheckpointKind, CheckpointPath, RunId};

use super::SigningKey;

/// How long a link can be used.
const LIFETIME: Duration = Duration::from_hours(1);

/// The segment before the parts of a link.
const SEGMENT: &str = "downloads";

/// Told apart from anything else that is ever signed with the key.
const PURPOSE: &[u8] = b"twinkle download 1";

const X_FORWARDED_HOST: HeaderName = HeaderName::from_static("x-forwarded-host");
const X_FORWARDED_PROTO: HeaderName = HeaderName::from_static("x-forwarded-proto");

/// Whether a path has the form of a link: `…/downloads/<run>/<kind>/<name>/<file>`.
pub(crate) fn is_link(path: &str) -> bool {
    path.rsplit('/').nth(4) == Some(SEGMENT)
}

/// How the client that asks for links reaches this node: scheme, host and the prefix of the application.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Base(String);

impl Base {
    /// The base of a request that came to `whole` and was routed to `below`, the rest after the prefix.
    ///
    /// A proxy in front says in `X-Forwarded-Host` and `X-Forwarded-Proto` how it was called. A client that makes
    /// them up only gets links that lead itself astray.
    pub(crate) fn of(parts: &Parts, whole: &str, is_tls: bool) -> Result<Self> {
        let forwarded = |name: &HeaderName| first(&parts.headers, name);
        let host = forwarded(&X_FORWARDED_HOST)
            .or_else(|| first(&parts.headers, &HOST))
            .or_else(|| parts.uri.authority().map(Authority::as_str))
            .filter(|host| host.parse::<Authority>().is_ok_and(|host| !host.as_str().contains('@')))
            .ok_or_else(|| Error::invalid("the request names no host").hint("send a `Host` header"))?;
        let scheme = match forwarded(&X_FORWARDED_PROTO) {
            Some(scheme) if scheme.eq_ignore_ascii_case("https") => "https",
            Some(scheme) if scheme.eq_ignore_ascii_case("http") => "http",
            _ if is_tls || parts.uri.scheme() == Some(&Scheme::HTTPS) => "https",
            _ => "http",
        };
        let prefix = whole.strip_suffix(parts.uri.path()).unwrap_or_default();
        Ok(Self(format!("{scheme}://{host}{prefix}")))
    }
}

/// The first value of a header that may be a list.
fn first<'a>(headers: &'a HeaderMap, name: &HeaderName) -> Option<&'a str> {
    let value = headers.get(name)?.to_str().ok()?;
    value.split(',').map(str::trim).next().filter(|value| !value.is_empty())
}

/// A file of one checkpoint, as it was saved at one moment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Link {
    /// The checkpoint.
    pub(super) path: CheckpointPath,
    /// The file, or the archive's name.
    pub(super) file: String,
    /// When the checkpoint was saved, in nanoseconds since 1970.
    saved_at: i64,
}

/// What a link says behind its `?`.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
pub(crate) struct LinkQuery {
    /// When the checkpoint was saved, in nanoseconds since 1970.
    saved: i64,
    /// When the link ends, in seconds since 1970.
    expires: i64,
    /// Over all of the link, in hexadecimal digits.
    signature: String,
}

/// A link and when it expires.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct ExpiringUrl {
    pub(crate) url: String,
    pub(crate) expires: Timestamp,
}

impl Link {
    pub(super) fn new(record: &CheckpointRecord, file: &str) -> Self {
        Self { path: record.path.clone(), file: file.to_owned(), saved_at: saved_at(record) }
    }

    /// The link with these parts of a path.
    pub(crate) fn parse(run: &str, kind: &str, name: &str, file: &str, query: &LinkQuery) -> Result<Self> {
        let kind = CheckpointKind::of_segment(kind).ok_or_else(not_valid)?;
        let path = CheckpointPath::new(RunId::new(run), kind, name).map_err(|_| not_valid())?;
        Ok(Self { path, file: file.to_owned(), saved_at: query.saved })
    }

    /// The URL of this link, from now on.
    pub(super) fn sign(&self, key: &SigningKey, Base(base): &Base) -> ExpiringUrl {
        let now = Timestamp::now().as_second();
        let expires = now.saturating_add(i64::try_from(LIFETIME.as_secs()).unwrap_or(i64::MAX));
        let signature = hex::encode(key.sign(&self.fields(expires).each_ref().map(Vec::as_slice)));
        let CheckpointPath { run, kind, name } = &self.path;
        let (kind, file, saved) = (kind.segment(), &self.file, self.saved_at);
        let query = format!("saved={saved}&expires={expires}&signature={signature}");
        let url = format!("{base}/{SEGMENT}/{run}/{kind}/{name}/{file}?{query}");
        ExpiringUrl { url, expires: Timestamp::from_second(expires).unwrap_or(Timestamp::MAX) }
    }

    /// Refuses unless the signature is right and the link has not expired.
    pub(super) fn verify(&self, key: &SigningKey, query: &LinkQuery) -> Result<()> {
        let signature = hex::decode(&query.signature).unwrap_or_default();
        if !key.is_signature(&self.fields(query.expires).each_ref().map(Vec::as_slice), &signature) {
            return Err(not_valid());
        }
        if query.expires <= Timestamp::now().as_second() {
            return Err(Error::new(ErrorCode::Gone, "the link has expired").hint("ask for a new link"));
        }
        Ok(())
    }

    /// Whether this is the checkpoint that the link was made for.
    pub(super) fn is_of(&self, record: &CheckpointRecord) -> bool {
        record.path == self.path && saved_at(record) == self.saved_at
    }

    fn fields(&self, expires: i64) -> [Vec<u8>; 5] {
        [
            PURPOSE.to_vec(),
            self.path.to_string().into_bytes(),
            self.file.clone().into_bytes(),
            self.saved_at.to_le_bytes().to_vec(),
            expires.to_le_bytes().to_vec(),
        ]
    }
}

fn saved_at(record: &CheckpointRecord) -> i64 {
    i64::try_from(record.created_at.as_nanosecond()).unwrap_or(i64::MAX)
}

/// One answer for whatever is wrong with a link: it tells nothing of what is there.
fn not_valid() -> Error {
    Error::not_found("the link is not valid").hint("use it as it was given, to the letter")
}
