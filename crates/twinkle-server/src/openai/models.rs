//! `GET models` and `GET models/{model}`.

use axum::extract::rejection::PathRejection;
use axum::extract::{Path, State};
use schemars::JsonSchema;
use serde::Serialize;
use twinkle_core::error::Error;

use super::OpenAiFront;
use super::answer::{OpenAiError, Outcome, ok};
use super::front::Tenant;

/// A list, as the protocol writes it.
#[derive(Serialize, JsonSchema)]
#[schemars(rename = "ModelList")]
pub(super) struct List<T> {
    /// `list`.
    object: &'static str,
    /// Its entries.
    data: Vec<T>,
}

/// A model that may be named in a request.
#[derive(Serialize, JsonSchema)]
pub(super) struct Model {
    /// What requests name it by.
    id: String,
    object: &'static str,
    /// Seconds since 1970: when this node started.
    created: i64,
    owned_by: &'static str,
    /// The base model beneath it.
    root: String,
}

impl Model {
    fn new(front: &OpenAiFront, id: &str, root: &str) -> Self {
        Self { id: id.to_owned(), object: "model", created: front.started, owned_by: "twinkle", root: root.to_owned() }
    }
}

/// `GET models`: the base models that can be sampled. A tenant's checkpoints can be named, but are too many to list.
pub(super) async fn list(State(front): State<OpenAiFront>, _: Tenant) -> Outcome {
    let sampled = front.context.directory.models().iter().filter(|model| model.sampler.is_some());
    let data = sampled.map(|model| Model::new(&front, &model.name, &model.name)).collect();
    ok(&List { object: "list", data })
}

/// `GET models/{model}`: whatever a request may name.
pub(super) async fn describe(
    State(front): State<OpenAiFront>,
    Tenant(tenant): Tenant,
    model: Result<Path<String>, PathRejection>,
) -> Outcome {
    let Path(model) = model.map_err(|rejection| {
        OpenAiError::of("model", Error::invalid(format!("the path names no model: {}", rejection.body_text())))
    })?;
    let choice = front.choose(&tenant, &model, None).await?;
    ok(&Model::new(&front, &model, &choice.model.name))
}
