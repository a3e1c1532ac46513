//! Import path `model`: training runs over one frozen base model.
//!
//! A call travels [`component`] → [`engine`] → [`schedule`] → `operations` → [`backend`] → [`run`]. What needs rows of the
//! network goes through [`batch`] (what was sent, checked), [`step`] (an operation on its way through passes), [`pass`]
//! (rows of several runs at once), [`losses`] (one small page each) and, run by run, [`optimizer`]. [`files`] is how a run
//! looks on disk, as a checkpoint or a snapshot; [`residents`] says which runs are in memory; [`undo`] takes an operation
//! back; [`failure`] is what becomes of a run when the device fails; [`rehearsal`] holds what [`memory`] plans against what
//! is taken.
#![forbid(unsafe_code)]

pub mod accumulation;
pub mod backend;
pub mod batch;
pub mod component;
pub(crate) mod describe;
pub mod engine;
pub mod failure;
pub mod files;
pub(crate) mod full;
mod import;
pub mod losses;
pub mod memory;
pub(crate) mod operations;
pub mod optimizer;
pub mod pass;
pub mod rehearsal;
pub mod residents;
pub mod run;
pub mod schedule;
pub(crate) mod snapshot;
pub mod step;
pub mod undo;

pub use component::{ModelComponent, ModelContext};
pub use import::{Imported, import};
