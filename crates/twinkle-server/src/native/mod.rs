//! Our own routes: what each application tells about itself, and the processor's text work.

mod information;
mod json;
mod processor;

pub(crate) use information::{ApplicationInformation, information, liveness, readiness};
pub(crate) use processor::processor_routes;
