//! Import path `model`: training runs over one frozen base model.
//!
//! A call travels [`component`] → [`engine`] → [`schedule`] → `operations` → [`backend`] → [`run`]; a run's step goes
//! through [`batch`] (what was sent, checked and packed), [`losses`] (one small page each), [`step`] (forward, loss,
//! backward) and [`optimizer`]. [`files`] is how a run looks on disk, as a checkpoint or a snapshot; [`residents`] says
//! which runs are in memory; [`failure`] what becomes of a run when the device fails.
#![forbid(unsafe_code)]

pub mod backend;
pub mod batch;
pub mod component;
pub mod engine;
pub mod failure;
pub mod files;
pub mod losses;
pub(crate) mod operations;
pub mod optimizer;
pub(crate) mod pass;
pub mod residents;
pub mod run;
pub mod schedule;
pub(crate) mod snapshot;
pub mod step;

pub use component::{ModelComponent, ModelContext};
