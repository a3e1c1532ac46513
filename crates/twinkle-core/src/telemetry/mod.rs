//! What the node tells about itself: every metric, every span, and how they are recorded.
//!
//! [`metrics`] is the one table of all metrics, [`spans`] the one of all spans; `docs/metrics.md` is written from both.
//! Layers and engines record through them without knowing where it goes. Until a server calls
//! [`metric::install`] and [`trace::install`], recording does nothing and costs next to nothing.
//!
//! Labels and attributes are typed: a misspelt one does not compile, and none of them takes an API key.

pub mod carried;
pub mod document;
pub mod labels;
pub mod metric;
pub mod metrics;
pub mod spans;
pub mod tasks;
pub mod trace;
