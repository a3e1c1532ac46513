//! `args` of an application with `import_path: server`.

use serde::Serialize;

use super::section::Section;
use super::tree::{Node, Value};

/// Sessions, runs and checkpoints, and the protocol fronts.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct ServerArgs {
    /// Seconds after which an unused record is dropped.
    pub expiration_timeout: f64,
    /// Seconds between two sweeps.
    pub cleanup_interval: f64,
    /// Most live runs of one tenant over all models.
    pub per_token_model_limit: u32,
    /// Seconds between two readings of the gauges of sessions, models and futures.
    pub metrics_update_interval: f64,
    /// Public model names clients may ask for; `None` is every model application's.
    pub supported_models: Option<Vec<String>>,
}

impl Default for ServerArgs {
    fn default() -> Self {
        Self {
            expiration_timeout: 86_400.0,
            cleanup_interval: 3600.0,
            per_token_model_limit: 30,
            metrics_update_interval: 15.0,
            supported_models: None,
        }
    }
}

impl ServerArgs {
    pub(super) fn read(mut args: Section<'_>) -> Self {
        let mut server = Self { supported_models: read_supported_models(&mut args), ..Self::default() };
        if let Some(mut section) = args.section("server_config") {
            if let Some(seconds) = section.number("expiration_timeout", 0.0) {
                server.expiration_timeout = seconds.value;
            }
            if let Some(seconds) = section.number("cleanup_interval", 0.0) {
                server.cleanup_interval = seconds.value;
            }
            if let Some(limit) = section.integer("per_token_model_limit", 1..) {
                server.per_token_model_limit = limit.value;
            }
            let inner = read_supported_models(&mut section);
            server.supported_models = server.supported_models.or(inner);
            if let Some(seconds) = section.number("metrics_update_interval", 0.0) {
                server.metrics_update_interval = seconds.value;
            }
            section.inert("actor_name", "everything runs in one process");
            section.finish();
        }
        args.inert("http_options", "components call each other inside the process");
        args.inert("route_prefix", "the application's own `route_prefix` is used");
        args.finish();
        server
    }
}

/// A list of names, each a text or `{model_name: text}`.
fn read_supported_models(section: &mut Section<'_>) -> Option<Vec<String>> {
    section.node("supported_models")?;
    let mut names = Vec::new();
    for (index, node) in section.list("supported_models").iter().enumerate() {
        match node {
            Node { value: Value::Text(name), .. } => names.push(name.clone()),
            Node { value: Value::Mapping(_), .. } => {
                let Some(mut item) = section.item("supported_models", index, node) else { continue };
                names.extend(item.required_text("model_name").map(|name| name.value));
                item.finish();
            }
            Node { place, value } => {
                let message = format!("a supported model must be a text, got {}", value.describe());
                section.report().problem(*place, message);
            }
        }
    }
    Some(names)
}
