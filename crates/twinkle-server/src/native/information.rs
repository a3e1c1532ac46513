//! What each application is.

use axum::Json;
use axum::extract::State;
use axum::response::{IntoResponse, Response};
use schemars::JsonSchema;
use serde::Serialize;
use twinkle_core::component::{ComponentKind, Health};

use crate::routes::Mounted;

/// One application as its `GET {route_prefix}` shows it.
#[derive(Clone, Debug, Serialize, JsonSchema)]
pub(crate) struct ApplicationInformation {
    /// Its name in the YAML.
    pub(crate) name: String,
    /// Its import path.
    #[schemars(with = "String")]
    pub(crate) import_path: ComponentKind,
    /// Where it is mounted.
    pub(crate) route_prefix: String,
    /// The public name of its base model, if it has one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) base_model: Option<String>,
    /// What its component says it can do.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) capabilities: Option<serde_json::Value>,
}

/// An application and whether it can work.
#[derive(Serialize, JsonSchema)]
pub(crate) struct ApplicationState<'a> {
    #[serde(flatten)]
    application: &'a ApplicationInformation,
    /// Whether it can work.
    #[schemars(with = "serde_json::Value")]
    pub(super) health: Health,
}

impl<'a> From<&'a Mounted> for ApplicationState<'a> {
    fn from(mounted: &'a Mounted) -> Self {
        Self { application: &mounted.information, health: mounted.component.health() }
    }
}

/// `GET {route_prefix}`: what this application is and whether it can work.
pub(crate) async fn information(State(application): State<Mounted>) -> Response {
    Json(ApplicationState::from(&application)).into_response()
}
