//! The `OpenAI` front: models, chat completions and completions, for every client that speaks that protocol.
//!
//! The same routes are at `/v1` of the node and below the prefix of the `server` application, as Twinkle has them.
//!
//! | file | job |
//! | --- | --- |
//! | `choice` | which weights a `model` names |
//! | `fields` | which fields of a request are served, ignored or refused |
//! | `settings` | how tokens are drawn |
//! | `writer` | from drawn tokens to text, up to a stop text |
//! | `speech` | from an assistant's text to what it says, thinks and calls |
//! | `token_text` | tokens beside their logprobs |
//! | `chat`, `completions` | one route each: its request, its answer, its stream |
//! | `events` | server-sent events |
//!
//! **How requests fail.** As `{"error": {"message", "type", "param", "code"}}`, also where a layer of the node refuses
//! them (`error_form`). A stream that has begun ends with one such event.

mod answer;
mod chat;
mod choice;
mod completions;
mod error_form;
mod events;
mod fields;
mod front;
mod models;
mod settings;
mod speech;
mod token_text;
mod writer;

use axum::Router;
use axum::extract::DefaultBodyLimit;
use http::StatusCode;
use schemars::{Schema, SchemaGenerator};

pub(crate) use answer::is_openai_path;
pub(crate) use error_form::ErrorFormLayer;
pub(crate) use front::OpenAiFront;

use crate::openapi::Content;
use crate::route_table::{Route, router_of};

/// Where clients of this protocol look for it unless they are told otherwise.
pub(crate) const ROOT: &str = "/v1";

/// The routes at the node's root, all of them below [`ROOT`].
pub(crate) fn root_routes() -> Vec<Route<OpenAiFront>> {
    vec![
        list_of_models(Route::get("/v1/models", models::list)),
        Route::get("/v1/models/{*model}", models::describe).about("What a `model` names.").answers::<models::Model>(),
        chat(Route::post("/v1/chat/completions", chat::create)),
        completion(Route::post("/v1/completions", completions::create)),
    ]
}

/// The routes below the prefix of a `server`. No single model is described there: what is below `/models` may be another
/// application's.
pub(crate) fn routes() -> Vec<Route<OpenAiFront>> {
    vec![
        list_of_models(Route::get("/models", models::list)),
        chat(Route::post("/chat/completions", chat::create)),
        completion(Route::post("/completions", completions::create)),
    ]
}

fn list_of_models(route: Route<OpenAiFront>) -> Route<OpenAiFront> {
    route.about("The base models that can be sampled.").answers::<models::List<models::Model>>()
}

fn chat(route: Route<OpenAiFront>) -> Route<OpenAiFront> {
    streamed(route.about("Continues a conversation.").takes::<chat::ChatRequest>().answers::<chat::Completion>())
}

fn completion(route: Route<OpenAiFront>) -> Route<OpenAiFront> {
    let route = route.about("Continues prompts.").takes::<completions::CompletionRequest>();
    streamed(route.answers::<completions::Completion>())
}

/// The same in pieces.
fn streamed(route: Route<OpenAiFront>) -> Route<OpenAiFront> {
    route.also(StatusCode::OK, "done", Content::Media("text/event-stream"))
}

/// How an error of this front is written.
pub(crate) fn error_schema(generator: &mut SchemaGenerator) -> Schema {
    generator.subschema_for::<answer::ErrorBody<'_>>()
}

/// What answers the routes at the node's root.
pub(crate) fn root_router(front: &OpenAiFront) -> Router {
    router_of(root_routes()).layer(DefaultBodyLimit::disable()).with_state(front.clone())
}

/// What answers the routes below a prefix.
pub(crate) fn router(front: &OpenAiFront) -> Router {
    router_of(routes()).layer(DefaultBodyLimit::disable()).with_state(front.clone())
}
