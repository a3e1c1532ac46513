//! `telemetry`: metrics and traces.

use std::collections::BTreeMap;

use serde::Serialize;

use super::section::Section;

/// Metrics and traces.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct TelemetryConfig {
    /// Whether anything is exported.
    pub enabled: bool,
    /// The name under which it is exported.
    pub service_name: String,
    /// Where an OTLP collector listens (gRPC).
    pub otlp_endpoint: String,
    /// Print to the console in place of OTLP.
    pub debug: bool,
    /// Milliseconds between exports.
    pub export_interval_ms: u64,
    /// Attributes of everything exported.
    pub resource_attributes: BTreeMap<String, String>,
}

impl Default for TelemetryConfig {
    fn default() -> Self {
        Self {
            enabled: false,
            service_name: "twinkle-server".to_owned(),
            otlp_endpoint: "http://localhost:4317".to_owned(),
            debug: false,
            export_interval_ms: 30_000,
            resource_attributes: BTreeMap::new(),
        }
    }
}

impl TelemetryConfig {
    pub(super) fn read(section: Option<Section<'_>>) -> Self {
        let mut config = Self::default();
        let Some(mut section) = section else { return config };
        if let Some(enabled) = section.boolean("enabled") {
            config.enabled = enabled.value;
        }
        if let Some(name) = section.filled_text("service_name") {
            config.service_name = name.value;
        }
        if let Some(endpoint) = section.filled_text("otlp_endpoint") {
            config.otlp_endpoint = endpoint.value;
        }
        if let Some(debug) = section.boolean("debug") {
            config.debug = debug.value;
        }
        if let Some(interval) = section.integer("export_interval_ms", 1..) {
            config.export_interval_ms = interval.value;
        }
        config.resource_attributes = section.texts("resource_attributes");
        section.finish();
        config
    }
}
