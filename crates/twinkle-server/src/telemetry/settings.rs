//! Where telemetry goes: the YAML's `telemetry`, and the environment where the YAML is silent.

use std::collections::BTreeMap;
use std::time::Duration;

use twinkle_core::config::TelemetryConfig;
use twinkle_core::error::{Error, Result};

/// Where telemetry goes. `/metrics` is served whatever it says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settings {
    /// Where it is sent, if anywhere.
    pub destination: Destination,
    /// `service.name` of everything exported.
    pub service_name: String,
    /// The time between two exports of metrics.
    pub interval: Duration,
    /// Attributes of everything exported.
    pub resource_attributes: BTreeMap<String, String>,
}

/// Where telemetry is sent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Destination {
    /// Nowhere; Prometheus may fetch it.
    Nowhere,
    /// To stderr, for people who look into the node.
    Console,
    /// To a collector that speaks OTLP over gRPC at this address.
    Collector(String),
}

impl Settings {
    /// What `config` and the environment say.
    pub fn new(config: &TelemetryConfig) -> Result<Self> {
        Self::from_parts(config, |name| std::env::var(name).ok().filter(|value| !value.is_empty()))
    }

    /// A value of the YAML wins over the environment; one that is the default counts as not given.
    fn from_parts(config: &TelemetryConfig, variable: impl Fn(&str) -> Option<String>) -> Result<Self> {
        let standard = TelemetryConfig::default();
        let or_variables = |given: &str, default: &str, names: &[&str]| {
            let silent = given == default;
            silent.then(|| names.iter().find_map(|name| variable(name))).flatten().unwrap_or_else(|| given.to_owned())
        };
        let enabled = config.enabled || variable("TWINKLE_TELEMETRY_ENABLED").is_some_and(|value| is_yes(&value));
        let switched_off = variable("OTEL_SDK_DISABLED").is_some_and(|value| value.eq_ignore_ascii_case("true"));
        let debug = config.debug || variable("TWINKLE_TELEMETRY_DEBUG").is_some_and(|value| is_yes(&value));
        let destination = match (enabled && !switched_off, debug) {
            (false, _) => Destination::Nowhere,
            (true, true) => Destination::Console,
            (true, false) => {
                let names = ["TWINKLE_TELEMETRY_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT"];
                Destination::Collector(checked_endpoint(or_variables(
                    &config.otlp_endpoint,
                    &standard.otlp_endpoint,
                    &names,
                ))?)
            }
        };
        let names = ["TWINKLE_TELEMETRY_SERVICE", "OTEL_SERVICE_NAME"];
        let service_name = or_variables(&config.service_name, &standard.service_name, &names);
        let names = ["TWINKLE_TELEMETRY_INTERVAL", "OTEL_METRIC_EXPORT_INTERVAL"];
        let interval =
            or_variables(&config.export_interval_ms.to_string(), &standard.export_interval_ms.to_string(), &names);
        let milliseconds = interval.trim().parse::<u64>().ok().filter(|interval| *interval > 0).ok_or_else(|| {
            Error::invalid(format!("the telemetry export interval `{interval}` is not a number of milliseconds"))
        })?;
        Ok(Self {
            destination,
            service_name,
            interval: Duration::from_millis(milliseconds),
            resource_attributes: config.resource_attributes.clone(),
        })
    }
}

fn is_yes(value: &str) -> bool {
    matches!(value.trim().to_ascii_lowercase().as_str(), "1" | "true" | "yes" | "on")
}

/// `http://host:port`; an address without a scheme gets one.
fn checked_endpoint(endpoint: String) -> Result<String> {
    let endpoint = if endpoint.contains("://") { endpoint } else { format!("http://{endpoint}") };
    if endpoint.starts_with("https://") {
        return Err(Error::unsupported(format!("telemetry is not sent over TLS, as `{endpoint}` asks"))
            .hint("run a collector on this machine, and let it send on over TLS"));
    }
    let named = endpoint.strip_prefix("http://").is_some_and(|rest| !rest.is_empty());
    if named && endpoint.parse::<http::Uri>().is_ok_and(|uri| uri.host().is_some()) {
        return Ok(endpoint);
    }
    Err(Error::invalid(format!("`{endpoint}` is not the address of a collector"))
        .hint("`telemetry.otlp_endpoint` looks like `http://localhost:4317`"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn settings(config: &TelemetryConfig, environment: &[(&str, &str)]) -> Result<Settings> {
        Settings::from_parts(config, |name| {
            environment.iter().find(|(key, _)| *key == name).map(|(_, value)| (*value).to_owned())
        })
    }

    fn on() -> TelemetryConfig {
        TelemetryConfig { enabled: true, ..TelemetryConfig::default() }
    }

    #[test]
    fn the_yaml_wins_over_the_environment_which_wins_over_the_default() {
        let environment = [
            ("OTEL_EXPORTER_OTLP_ENDPOINT", "http://otel:1"),
            ("OTEL_SERVICE_NAME", "from-otel"),
            ("OTEL_METRIC_EXPORT_INTERVAL", "5000"),
        ];
        let silent = settings(&on(), &environment).unwrap();
        assert_eq!(silent.destination, Destination::Collector("http://otel:1".to_owned()));
        assert_eq!((silent.service_name.as_str(), silent.interval), ("from-otel", Duration::from_secs(5)));

        let mut ours = environment.to_vec();
        ours.push(("TWINKLE_TELEMETRY_ENDPOINT", "collector:4317"));
        let before = settings(&on(), &ours).unwrap();
        assert_eq!(before.destination, Destination::Collector("http://collector:4317".to_owned()));

        let spoken = TelemetryConfig {
            otlp_endpoint: "http://yaml:1".to_owned(),
            service_name: "from-yaml".to_owned(),
            export_interval_ms: 100,
            ..on()
        };
        let spoken = settings(&spoken, &ours).unwrap();
        assert_eq!(spoken.destination, Destination::Collector("http://yaml:1".to_owned()));
        assert_eq!((spoken.service_name.as_str(), spoken.interval), ("from-yaml", Duration::from_millis(100)));
    }

    #[test]
    fn nothing_is_sent_unless_it_is_asked_for() {
        let destination =
            |config: &TelemetryConfig, environment: &[(&str, &str)]| settings(config, environment).unwrap().destination;
        assert_eq!(destination(&TelemetryConfig::default(), &[]), Destination::Nowhere);
        assert_eq!(destination(&on(), &[("OTEL_SDK_DISABLED", "true")]), Destination::Nowhere);
        let asked = [("TWINKLE_TELEMETRY_ENABLED", "1"), ("TWINKLE_TELEMETRY_DEBUG", "1")];
        assert_eq!(destination(&TelemetryConfig::default(), &asked), Destination::Console);
    }

    #[test]
    fn what_cannot_be_reached_is_refused_at_the_start() {
        for endpoint in ["https://collector:4317", "ftp://a", "http://", "http://a b"] {
            let config = TelemetryConfig { otlp_endpoint: endpoint.to_owned(), ..on() };
            let error = settings(&config, &[]).unwrap_err();
            assert!(error.hint.is_some(), "{endpoint}: {error}");
        }
        assert!(settings(&on(), &[("TWINKLE_TELEMETRY_INTERVAL", "soon")]).is_err());
    }
}
