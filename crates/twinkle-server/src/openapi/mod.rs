//! The reference of all routes, in the form of `OpenAPI` 3.1: served at `GET /openapi.json`, written to `docs/openapi.json`
//! and, for people, to `docs/routes.md`.
//!
//! | file | job |
//! | --- | --- |
//! | `operation` | what a route says about itself beside its handler |
//! | `extract` | what a handler's arguments say: its body, its query, its headers |
//! | `document` | from the table of routes to the document |
//! | `page` | the two checked-in files, which a test compares |
//!
//! Nothing here is written beside the code: the schemas are those of the types that parse the requests and make the
//! answers, whether a key is needed is asked of the layer that asks for it, and the errors are the table of codes.

mod document;
mod extract;
mod operation;
#[cfg(test)]
mod page;

use axum::extract::State;
use axum::response::{IntoResponse, Response};
use http::header::CONTENT_TYPE;
use twinkle_core::error::Error;

pub(crate) use document::document;
pub(crate) use extract::{Arguments, Extracted};
pub(crate) use operation::{Body, Content, Header, Operation, SchemaOf};

use crate::error_response::ErrorResponse;
use crate::native::NodeHealth;

/// `GET /openapi.json`: what this node answers.
pub(crate) async fn serve(State(node): State<NodeHealth>) -> Result<Response, ErrorResponse> {
    let made = tokio::task::spawn_blocking(move || node.reference()).await;
    let document = made.map_err(|error| Error::internal(format!("the reference of routes was not made: {error}")))?;
    Ok(([(CONTENT_TYPE, "application/json")], document).into_response())
}
