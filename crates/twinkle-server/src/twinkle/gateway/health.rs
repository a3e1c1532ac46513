//! Whether the node and its components answer, and what they serve. Nothing here waits for an engine.

use axum::extract::State;
use http::StatusCode;
use serde_json::{Map, Value, json};
use twinkle_core::component::{BoxComponent, Health};

use crate::directory::ServedModel;
use crate::twinkle::answer::json as answer_json;
use crate::twinkle::{Answer, Tenant, TwinkleFront, ok};

/// `GET healthz` of the gateway.
pub(super) async fn gateway() -> Answer {
    ok(&json!({ "status": "ok" }))
}

/// `GET healthz` of a component: 503 when it cannot work.
pub(super) async fn component(State(front): State<TwinkleFront>) -> Answer {
    let (healthy, detail) = state(&front.component.health());
    answer_json(status(healthy), &json!({ "healthy": healthy, "detail": detail }))
}

/// `GET healthz/deep`: every model that clients may ask for; 503 when one cannot work.
pub(super) async fn deep(State(front): State<TwinkleFront>, _: Tenant) -> Answer {
    let mut healthy = true;
    let mut models = Map::new();
    for model in front.context.directory.models() {
        let works = components(model).all(|component| component.health() == Health::Ready);
        healthy &= works;
        models.insert(model.name.clone(), json!({ "healthy": works, "status_code": status(works).as_u16() }));
    }
    answer_json(status(healthy), &json!({ "healthy": healthy, "models": models }))
}

fn components(model: &ServedModel) -> impl Iterator<Item = &BoxComponent> {
    model.trainer.iter().chain(&model.sampler)
}

const fn status(healthy: bool) -> StatusCode {
    if healthy { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE }
}

/// Whether it works, and in words.
fn state(health: &Health) -> (bool, String) {
    match health {
        Health::Ready => (true, "ok".to_owned()),
        Health::Draining => (false, "stopping".to_owned()),
        Health::Recovering(reason) => (false, format!("starting again: {reason}")),
        Health::Failed(reason) => (false, reason.clone()),
    }
}

/// `GET get_server_capabilities`
pub(super) async fn capabilities(State(front): State<TwinkleFront>) -> Answer {
    let models = front.context.directory.models();
    let names: Vec<Value> = models.iter().map(|model| json!({ "model_name": model.name })).collect();
    ok(&json!({ "supported_models": names }))
}
