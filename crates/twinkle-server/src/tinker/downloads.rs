//! Files by signed links: `GET downloads/{run}/{kind}/{name}/{file}`, without an API key.

use axum::extract::rejection::{PathRejection, QueryRejection};
use axum::extract::{FromRequestParts, OriginalUri, Path, Query, State};
use http::HeaderMap;
use http::request::Parts;
use twinkle_core::error::Error;

use super::Front;
use super::reply::Answer;
use super::session::path;
use crate::downloads::{Base, Link, LinkQuery, answer};
use crate::error_response::ErrorResponse;
use crate::openapi::Extracted;

type Named = std::result::Result<Path<(String, String, String, String)>, PathRejection>;

/// `GET downloads/{run}/{kind}/{name}/{file}`, and `HEAD`.
pub(super) async fn download(
    State(front): State<Front>,
    named: Named,
    query: std::result::Result<Query<LinkQuery>, QueryRejection>,
    headers: HeaderMap,
) -> Answer {
    let (run, kind, name, file) = path(named)?;
    // Whatever is missing, it is not a link of this server.
    let Ok(Query(query)) = query else {
        return Err(Error::not_found("the link is not valid").hint("use it as it was given, to the letter").into());
    };
    let link = Link::parse(&run, &kind, &name, &file, &query)?;
    Ok(answer(&front.context.downloads, &link, &query, &headers).await?)
}

/// How the client reaches this server: what links begin with.
pub(super) struct Reached(pub(super) Base);

impl Extracted for Reached {}

impl FromRequestParts<Front> for Reached {
    type Rejection = ErrorResponse;

    async fn from_request_parts(parts: &mut Parts, front: &Front) -> Result<Self, ErrorResponse> {
        let whole = parts.extensions.get::<OriginalUri>().map_or_else(|| parts.uri.clone(), |uri| uri.0.clone());
        let is_tls = front.context.downloads.is_tls();
        Ok(Self(Base::of(parts, whole.path(), is_tls)?))
    }
}
