//! The tables as a page: `docs/metrics.md`.

use std::fmt::Write as _;

use super::metric::{Metric, Scope};
use super::metrics::METRICS;
use super::spans::{Attribute, BUSINESS_TRACER, SPANS};

/// A metric's name at `GET /metrics`.
#[must_use]
pub fn prometheus_name(metric: &dyn Metric) -> String {
    metric.description().name.replace('.', "_")
}

/// The whole page, in Markdown.
#[must_use]
pub fn page() -> String {
    let mut page = String::from(
        "# Metrics and spans\n\n\
         Written from the tables in `twinkle-core::telemetry`; a test compares. How to receive them: \
         [observability.md](observability.md).\n\n\
         Metrics are served at `GET /metrics` with `_` for every `.`, and exported by OTLP under the names below when \
         `telemetry.enabled` is set. Histograms get `_bucket`, `_sum` and `_count` from Prometheus.\n\n\
         Labels: `deployment` is `Gateway`, `Model`, `Sampler` or `Processor`; `method` is the route with its \
         placeholders; `status` is an HTTP status, or `completed`, `failed` or `timeout`; `task_type` is the operation; \
         `base_model` is the public name.\n",
    );
    for scope in [Scope::Server, Scope::Resource] {
        let _ = write!(
            page,
            "\n## Meter `{}`\n\n| Metric | Kind | Unit | Labels | Meaning | Appears |\n| --- | --- | --- | --- | --- | --- |\n",
            scope.name()
        );
        for metric in METRICS.iter().filter(|metric| metric.description().scope == scope) {
            let about = metric.description();
            let labels = metric.labels().iter().map(|label| format!("`{label}`")).collect::<Vec<_>>().join(", ");
            let appears = if about.appears.is_empty() { "always" } else { about.appears };
            let _ = writeln!(
                page,
                "| `{}` | {} | `{}` | {labels} | {} | {appears} |",
                about.name,
                metric.kind(),
                about.unit,
                about.text.trim(),
            );
        }
    }
    let _ = write!(
        page,
        "\n## Spans\n\nEvery request is a server span `<METHOD> <route>` of tracer `twinkle.server.<Component>`, in the \
         client's trace if it sends `traceparent`. Below it, tracer `{BUSINESS_TRACER}`:\n\n| Span | Covers |\n| --- | --- |\n"
    );
    for span in SPANS {
        let _ = writeln!(page, "| `{}` | {} |", span.name, span.text.trim());
    }
    page += "\n| Attribute | Meaning |\n| --- | --- |\n";
    for attribute in Attribute::ALL {
        let _ = writeln!(page, "| `{}` | {} |", attribute.key(), attribute.text().trim());
    }
    page
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;
    use crate::docs::assert_written;

    #[test]
    fn the_documentation_says_what_the_tables_say() {
        assert_written("metrics.md", &page());
    }

    #[test]
    fn every_name_is_there_once_and_keeps_to_the_rules_of_both_systems() {
        let names: BTreeSet<String> = METRICS.iter().map(|metric| prometheus_name(*metric)).collect();
        assert_eq!(names.len(), METRICS.len(), "two metrics have one name");
        for metric in METRICS {
            let about = metric.description();
            assert!(about.name.starts_with("twinkle."), "{}", about.name);
            let ends_as_a_total = about.name.split('.').next_back() == Some("total");
            assert_eq!(metric.kind() == "counter", ends_as_a_total, "{}", about.name);
            assert_eq!(about.unit == "s", about.name.ends_with("_seconds"), "{}", about.name);
            assert!(about.unit != "By" || about.name.contains("_bytes"), "{}", about.name);
            assert!(about.text.trim().ends_with('.'), "{}", about.name);
        }
    }

    #[test]
    fn upstreams_names_are_all_there() {
        let ours: BTreeSet<&str> = METRICS.iter().map(|metric| metric.description().name).collect();
        for name in [
            "twinkle.http.requests.total",
            "twinkle.tasks.total",
            "twinkle.rate_limit.rejections.total",
            "twinkle.http.request.duration_seconds",
            "twinkle.task.execution_seconds",
            "twinkle.task.wait_seconds",
            "twinkle.queue.depth",
            "twinkle.rate_limiter.active_tokens",
            "twinkle.sessions.active",
            "twinkle.models.active",
            "twinkle.sampling_sessions.active",
            "twinkle.futures.active",
            "twinkle.system.cpu.utilization",
            "twinkle.system.memory.usage_bytes",
            "twinkle.process.memory.usage_bytes",
            "twinkle.gpu.utilization",
            "twinkle.gpu.memory.usage_bytes",
        ] {
            assert!(ours.contains(name), "{name}");
        }
    }
}
