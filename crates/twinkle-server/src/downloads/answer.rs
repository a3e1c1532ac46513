//! Whole files and parts of them: `Range`, `If-Range` and `If-None-Match` (RFC 9110).

use axum::body::Body;
use axum::response::Response;
use http::header::{
    ACCEPT_RANGES, CACHE_CONTROL, CONTENT_DISPOSITION, CONTENT_LENGTH, CONTENT_RANGE, CONTENT_TYPE, ETAG,
    IF_NONE_MATCH, IF_RANGE, RANGE,
};
use http::{HeaderMap, HeaderValue, StatusCode};
use twinkle_core::error::{Error, Result};

use super::content::Content;

/// What is asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Part {
    Whole,
    /// `length` bytes from `start` on; at least one.
    Some {
        start: u64,
        length: u64,
    },
    /// Nothing of the content is in the range.
    Outside,
}

/// Answers with the content, or the part of it that is asked for.
pub(crate) fn respond(content: Content, headers: &HeaderMap) -> impl Future<Output = Result<Response>> {
    let total = content.length();
    let is_known = headers.get_all(IF_NONE_MATCH).iter().any(|known| names(known, &content.etag));
    let part = part(headers, &content.etag, total);
    async move {
        if is_known {
            return Ok(empty(StatusCode::NOT_MODIFIED, &content.etag));
        }
        match part {
            Part::Whole => send(content, StatusCode::OK, 0, total).await,
            Part::Some { start, length } => {
                let range = content_range(&format!("bytes {start}-{}/{total}", start + length - 1))?;
                let mut response = send(content, StatusCode::PARTIAL_CONTENT, start, length).await?;
                response.headers_mut().insert(CONTENT_RANGE, range);
                Ok(response)
            }
            Part::Outside => {
                let mut response = empty(StatusCode::RANGE_NOT_SATISFIABLE, &content.etag);
                response.headers_mut().insert(CONTENT_RANGE, content_range(&format!("bytes */{total}"))?);
                response.headers_mut().insert(CONTENT_LENGTH, HeaderValue::from(0));
                Ok(response)
            }
        }
    }
}

async fn send(content: Content, status: StatusCode, start: u64, length: u64) -> Result<Response> {
    let mut response = empty(status, &content.etag);
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static(content.media_type));
    headers.insert(CONTENT_LENGTH, HeaderValue::from(length));
    if let Ok(disposition) = HeaderValue::try_from(format!("attachment; filename=\"{}\"", content.name)) {
        headers.insert(CONTENT_DISPOSITION, disposition);
    }
    *response.body_mut() = content.body(start, length).await?;
    Ok(response)
}

fn empty(status: StatusCode, etag: &HeaderValue) -> Response {
    let mut response = Response::new(Body::empty());
    *response.status_mut() = status;
    let headers = response.headers_mut();
    headers.insert(ETAG, etag.clone());
    headers.insert(ACCEPT_RANGES, HeaderValue::from_static("bytes"));
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("private"));
    response
}

fn content_range(text: &str) -> Result<HeaderValue> {
    HeaderValue::try_from(text).map_err(|error| Error::internal(format!("a range could not be told: {error}")))
}

/// The part that the headers ask for. What cannot be understood is ignored, as the standard wants it.
fn part(headers: &HeaderMap, etag: &HeaderValue, total: u64) -> Part {
    let Some(range) = headers.get(RANGE).and_then(|range| range.to_str().ok()) else { return Part::Whole };
    // A download is only resumed if the content is still the one it began with; dates are never sent, so none matches.
    if headers.get(IF_RANGE).is_some_and(|condition| condition != etag) {
        return Part::Whole;
    }
    // Several ranges at once are answered with the whole.
    let Some((first, last)) = range.trim().strip_prefix("bytes=").and_then(|range| range.trim().split_once('-')) else {
        return Part::Whole;
    };
    match (number(first), number(last)) {
        (Some(start), last) if last.is_some() || range.ends_with('-') => {
            let last = last.unwrap_or(u64::MAX);
            if last < start {
                return Part::Whole;
            }
            if start >= total {
                return Part::Outside;
            }
            Part::Some { start, length: last.min(total - 1) - start + 1 }
        }
        (None, Some(0)) if first.is_empty() => Part::Outside,
        (None, Some(length)) if first.is_empty() && total > 0 => {
            let length = length.min(total);
            Part::Some { start: total - length, length }
        }
        _ => Part::Whole,
    }
}

/// Digits only: `parse` would also take a sign.
fn number(text: &str) -> Option<u64> {
    text.bytes().all(|byte| byte.is_ascii_digit()).then(|| text.parse().ok()).flatten()
}

/// Whether a list of tags has this one, or any.
fn names(list: &HeaderValue, etag: &HeaderValue) -> bool {
    let (Ok(list), Ok(etag)) = (list.to_str(), etag.to_str()) else { return false };
    list.split(',').map(str::trim).any(|tag| tag == "*" || tag.strip_prefix("W/").unwrap_or(tag) == etag)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn asked(range: &str, if_range: Option<&str>) -> Part {
        let mut headers = HeaderMap::new();
        headers.insert(RANGE, range.parse().unwrap());
        if let Some(condition) = if_range {
            headers.insert(IF_RANGE, condition.parse().unwrap());
        }
        part(&headers, &HeaderValue::from_static("\"a\""), 10)
    }

    #[test]
    fn ranges_are_cut_to_what_is_there() {
        assert_eq!(asked("bytes=0-0", None), Part::Some { start: 0, length: 1 });
        assert_eq!(asked("bytes=4-", None), Part::Some { start: 4, length: 6 });
        assert_eq!(asked("bytes=4-99", None), Part::Some { start: 4, length: 6 });
        assert_eq!(asked("bytes=-3", None), Part::Some { start: 7, length: 3 });
        assert_eq!(asked("bytes=-99", None), Part::Some { start: 0, length: 10 });
        assert_eq!(asked("bytes=10-", None), Part::Outside);
        assert_eq!(asked("bytes=-0", None), Part::Outside);
    }

    #[test]
    fn what_is_no_range_is_ignored() {
        for range in ["bytes=5-4", "bytes=a-b", "lines=1-2", "bytes=1-2,4-5", "bytes=-", "bytes=+1-3", "bytes"] {
            assert_eq!(asked(range, None), Part::Whole, "{range}");
        }
        assert_eq!(asked("bytes=18446744073709551616-", None), Part::Whole);
    }

    #[test]
    fn a_download_is_resumed_only_of_the_same_content() {
        assert_eq!(asked("bytes=4-", Some("\"a\"")), Part::Some { start: 4, length: 6 });
        assert_eq!(asked("bytes=4-", Some("\"b\"")), Part::Whole);
        assert_eq!(asked("bytes=4-", Some("W/\"a\"")), Part::Whole);
        assert_eq!(asked("bytes=4-", Some("Sat, 21 Nov 2026 11:00:00 GMT")), Part::Whole);
    }
}
