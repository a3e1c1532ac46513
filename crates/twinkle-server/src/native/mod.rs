//! Our own routes: the probes, what each application tells about itself, and the processor's text work.

mod information;
mod json;
mod probes;
mod processor;

pub(crate) use information::{ApplicationInformation, ApplicationState, information};
pub(crate) use probes::{Depth, NodeHealth, Readiness, health, liveness, readiness};
pub(crate) use processor::{processor_router, processor_routes};
