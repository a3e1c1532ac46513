//! `args` of an application with `import_path: server`.

use serde::Serialize;

use super::limits::Limits;
use super::model_source::Hub;
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
    /// Hubs that tenants may upload checkpoints to; `None` is what `TWINKLE_HUB_UPLOADS` says.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub hub_uploads: Option<Vec<Hub>>,
}

impl Default for ServerArgs {
    fn default() -> Self {
        Self {
            expiration_timeout: 86_400.0,
            cleanup_interval: 3600.0,
            per_token_model_limit: 30,
            metrics_update_interval: 15.0,
            supported_models: None,
            hub_uploads: None,
        }
    }
}

impl ServerArgs {
    pub(super) fn read(mut args: Section<'_>) -> Self {
        let mut server = Self::default();
        let listed = read_supported_models(&mut args);
        server.supported_models.clone_from(&listed);
        if let Some(mut section) = args.section("server_config") {
            let times = [
                ("expiration_timeout", &mut server.expiration_timeout),
                ("cleanup_interval", &mut server.cleanup_interval),
                ("metrics_update_interval", &mut server.metrics_update_interval),
            ];
            for (key, seconds) in times {
                section.set_number(key, Limits::SOME_SECONDS, seconds);
            }
            if let Some(limit) = section.integer("per_token_model_limit", 1..) {
                server.per_token_model_limit = limit.value;
            }
            server.hub_uploads = section.choices("hub_uploads");
            let inner = read_supported_models(&mut section);
            if let (Some(outer), Some(inner), Some(node)) = (&listed, &inner, section.node("supported_models"))
                && outer != inner
            {
                let message = format!("`supported_models`{} contradicts the one in `args`", section.suffix());
                section.report().problem_with_hint(node.place, message, "keep one of them");
            }
            server.supported_models = listed.or(inner);
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
                let message = format!("a model in `supported_models` must be a text, got {}", value.describe());
                section.report().problem(*place, message);
            }
        }
    }
    Some(names)
}
