//! Where what the node tells about itself goes: Prometheus always, an OpenTelemetry collector when it is asked for.
//!
//! What is recorded is in [`twinkle_core::telemetry`]. This is the other end: `settings` says where things go,
//! `pipeline` builds the exporters, `exposition` answers `GET /metrics`, `counts` and `machine` look now and
//! then at what nobody records by itself, `log_export` takes the log along.
//!
//! Nothing here may harm serving: queues are bounded and drop, exports happen on threads of their own, and a collector
//! that is not there costs one warning a minute.

mod console;
mod counts;
mod exposition;
mod log_export;
mod machine;
mod patient;
mod pipeline;
mod settings;

pub(crate) use counts::{Counted, count_periodically};
pub(crate) use exposition::metrics;
pub(crate) use log_export::exported_lines;
pub(crate) use machine::watch as watch_machine;
pub use pipeline::Telemetry;
pub use settings::{Destination, Settings};
