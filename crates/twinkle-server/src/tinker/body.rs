//! Request bodies: read whole, unpacked within a bound, and parsed off the async runtime when large.

use std::io::Read;

use axum::body::Body;
use axum::extract::{FromRequest, Request};
use bytes::Bytes;
use http::header::{CONTENT_ENCODING, CONTENT_TYPE};
use http_body_util::{BodyExt, LengthLimitError, Limited};
use serde::de::DeserializeOwned;
use tokio::sync::Semaphore;
use twinkle_core::error::{Error, ErrorCode, Result};
use twinkle_core::wire::tinker::PROTOBUF;

use crate::error_response::ErrorResponse;
use crate::node::{MAX_BODY_BYTES, MAX_DECOMPRESSED_BYTES};
use crate::openapi::{Body as RequestBody, Extracted, Operation};

/// Above this many bytes a body is parsed on a blocking thread: it would hold up the async runtime.
const HEAVY_BYTES: usize = 256 << 10;

/// How many heavy bodies are parsed at the same time; bounds the memory it takes.
static HEAVY_PARSERS: Semaphore = Semaphore::const_new(4);

/// Largest back reference a compressed body may need, as a power of two: 16 MiB. Python's zstd stays
/// below that up to level 19.
const MAX_ZSTD_WINDOW_LOG: u32 = 24;

/// A request body, read whole and unpacked.
#[derive(Clone, Debug)]
pub(crate) struct RawBody {
    /// The bytes.
    pub(crate) bytes: Bytes,
    /// Whether they are said to be protobuf, otherwise JSON.
    pub(crate) is_protobuf: bool,
}

/// Of what form it is, the route says.
impl Extracted for RawBody {
    fn note(operation: &mut Operation) {
        operation.body = RequestBody::Unnamed;
    }
}

impl<S: Sync> FromRequest<S> for RawBody {
    type Rejection = ErrorResponse;

    async fn from_request(request: Request, _: &S) -> std::result::Result<Self, ErrorResponse> {
        let (head, body) = request.into_parts();
        let header = |name| head.headers.get(name).and_then(|value| value.to_str().ok());
        let is_protobuf = header(CONTENT_TYPE).is_some_and(|media_type| media_type.contains(PROTOBUF));
        let encoding = header(CONTENT_ENCODING).map_or_else(|| "identity".to_owned(), str::to_ascii_lowercase);
        let bytes = read(body).await?;
        let bytes = match encoding.trim() {
            "identity" => bytes,
            "zstd" => off_runtime(bytes.len(), move || unpack(&bytes)).await??,
            other => {
                let error = Error::unsupported(format!("content encoding `{other}` is not supported"));
                return Err(error.hint("send the body plain or as one zstd frame").into());
            }
        };
        Ok(Self { bytes, is_protobuf })
    }
}

impl RawBody {
    /// Parses JSON.
    pub(crate) async fn json<T: DeserializeOwned + Send + 'static>(&self) -> Result<T> {
        let bytes = self.bytes.clone();
        off_runtime(bytes.len(), move || serde_json::from_slice(&bytes).map_err(|_| misfit::<T>(&bytes))).await?
    }
}

/// Why these bytes are not a `T`, with the field's name. They are parsed again, since keeping track of names is slow.
fn misfit<T: DeserializeOwned>(bytes: &[u8]) -> Error {
    let mut parser = serde_json::Deserializer::from_slice(bytes);
    let (path, reason) = match serde_path_to_error::deserialize::<_, T>(&mut parser) {
        Err(error) => (error.path().to_string(), error.into_inner().to_string()),
        Ok(_) => (".".to_owned(), "something follows it".to_owned()),
    };
    let text = match path.as_str() {
        "." | "?" => format!("the request body is not right: {reason}"),
        field => format!("the request body is not right: `{field}`: {reason}"),
    };
    let error = Error::invalid(text);
    if reason.contains("type: null") { error.hint("the Python SDK sends null for a NaN or an infinity") } else { error }
}

/// Runs `work` on a blocking thread when it is about many bytes, in place otherwise.
pub(crate) async fn off_runtime<T: Send + 'static>(
    size: usize,
    work: impl FnOnce() -> T + Send + 'static,
) -> Result<T> {
    if size < HEAVY_BYTES {
        return Ok(work());
    }
    let _permit = HEAVY_PARSERS.acquire().await.map_err(|_| Error::internal("no thread parses bodies any more"))?;
    tokio::task::spawn_blocking(work).await.map_err(|_| Error::internal("parsing a body failed"))
}

/// Reads a body of bounded size. The node stack holds bodies to the same bound; this keeps the front
/// safe by itself.
async fn read(body: Body) -> Result<Bytes> {
    let limit = usize::try_from(MAX_BODY_BYTES).unwrap_or(usize::MAX);
    match Limited::new(body, limit).collect().await {
        Ok(collected) => Ok(collected.to_bytes()),
        Err(error) if is_over_limit(error.as_ref()) => Err(Error::new(
            ErrorCode::TooLarge,
            format!("the request body is over this server's limit of {limit} bytes"),
        )),
        Err(error) => Err(Error::invalid(format!("the request body could not be read: {error}"))),
    }
}

/// Whether a limit, here or in the node stack, is at the bottom of the error.
fn is_over_limit(error: &(dyn std::error::Error + 'static)) -> bool {
    let mut cause = Some(error);
    while let Some(error) = cause {
        if error.is::<LengthLimitError>() {
            return true;
        }
        cause = error.source();
    }
    false
}

/// Unpacks one zstd frame of bounded size.
fn unpack(bytes: &[u8]) -> Result<Bytes> {
    let broken = |error: std::io::Error| Error::invalid(format!("the request body is not a zstd frame: {error}"));
    let mut decoder = zstd::stream::read::Decoder::with_buffer(bytes).map_err(broken)?.single_frame();
    decoder.window_log_max(MAX_ZSTD_WINDOW_LOG).map_err(broken)?;
    let mut unpacked = Vec::new();
    let limit = MAX_DECOMPRESSED_BYTES as u64;
    decoder.by_ref().take(limit + 1).read_to_end(&mut unpacked).map_err(broken)?;
    if unpacked.len() > MAX_DECOMPRESSED_BYTES {
        let message = format!("the request body unpacks to more than this server's limit of {limit} bytes");
        return Err(Error::new(ErrorCode::TooLarge, message));
    }
    if !decoder.finish().is_empty() {
        return Err(Error::invalid("the request body goes on after its zstd frame"));
    }
    Ok(unpacked.into())
}
