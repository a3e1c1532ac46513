//! Whether the node is alive and ready, as a whole and each application in depth.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};

use axum::Json;
use axum::extract::{Path, State};
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use http::StatusCode;
use schemars::JsonSchema;
use serde::Serialize;
use twinkle_core::component::Health;
use twinkle_core::error::{Error, suggestion};

use super::information::ApplicationState;
use crate::error_response::ErrorResponse;
use crate::routes::Mounted;
use crate::{listing, openapi};

/// The applications of a node and whether it is stopping; a cheap handle.
#[derive(Clone, Debug)]
pub(crate) struct NodeHealth {
    applications: Arc<[Mounted]>,
    draining: Arc<AtomicBool>,
    reference: Arc<OnceLock<Bytes>>,
}

/// The node's answer to a readiness probe.
#[derive(Serialize, JsonSchema)]
pub(crate) struct Readiness<'a> {
    /// Whether the node takes work.
    ready: bool,
    /// Whether it is stopping.
    draining: bool,
    /// Every application of the node.
    applications: Vec<ApplicationState<'a>>,
}

/// An application in depth.
#[derive(Serialize, JsonSchema)]
pub(crate) struct Depth<'a> {
    #[serde(flatten)]
    state: ApplicationState<'a>,
    /// What its component is doing.
    #[serde(skip_serializing_if = "serde_json::Value::is_null")]
    #[schemars(default)]
    status: serde_json::Value,
}

// === impl NodeHealth ===

impl NodeHealth {
    /// The health of a node with these applications.
    pub(crate) fn new(applications: Vec<Mounted>) -> Self {
        Self { applications: applications.into(), draining: Arc::default(), reference: Arc::default() }
    }

    /// Every application of the node.
    pub(crate) fn applications(&self) -> &[Mounted] {
        &self.applications
    }

    /// From now on the node is not ready, so that load balancers send nothing more.
    pub(crate) fn begin_draining(&self) {
        self.draining.store(true, Ordering::Relaxed);
    }

    /// What this node answers, as `OpenAPI`. Made when it is first asked for, which takes some milliseconds.
    pub(crate) fn reference(&self) -> Bytes {
        let make = || openapi::document(&listing::of_mounted(&self.applications)).to_string().into();
        self.reference.get_or_init(make).clone()
    }

    fn is_draining(&self) -> bool {
        self.draining.load(Ordering::Relaxed)
    }
}

/// `GET /livez`: the process answers.
pub(crate) async fn liveness() -> Response {
    Json(serde_json::json!({ "status": "ok" })).into_response()
}

/// `GET /readyz`: 200 when every application can work and the node is not stopping, else 503.
pub(crate) async fn readiness(State(node): State<NodeHealth>) -> Response {
    let applications: Vec<ApplicationState<'_>> = node.applications().iter().map(ApplicationState::from).collect();
    let draining = node.is_draining();
    let ready = !draining && applications.iter().all(|application| application.health == Health::Ready);
    (status(ready), Json(Readiness { ready, draining, applications })).into_response()
}

/// `GET /health/{application}`: one application and what its component is doing; 503 when it cannot work.
pub(crate) async fn health(State(node): State<NodeHealth>, Path(name): Path<String>) -> Response {
    let Some(mounted) = node.applications().iter().find(|mounted| mounted.information.name == name) else {
        let names: Vec<&str> = node.applications().iter().map(|mounted| mounted.information.name.as_str()).collect();
        let error = Error::not_found(format!("no application is named `{name}`"));
        return ErrorResponse(error.hint(suggestion(&name, "applications", &names))).into_response();
    };
    let state = ApplicationState::from(mounted);
    let ready = state.health == Health::Ready;
    (status(ready), Json(Depth { state, status: mounted.component.status() })).into_response()
}

const fn status(ready: bool) -> StatusCode {
    if ready { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE }
}
