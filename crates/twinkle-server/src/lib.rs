//! Import path `server`, the launcher, the protocol fronts and the binary.
//!
//! Read in the order of a request: [`node`] is what every request passes, `routes` decides which front answers,
//! a front turns bytes into calls, [`stack`] is what every call passes, and a component answers.
//! `launcher` builds all of it from the YAML.
#![forbid(unsafe_code)]

pub mod directory;
pub mod error_response;
