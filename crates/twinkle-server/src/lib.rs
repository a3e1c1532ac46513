//! Import path `server`, the launcher, the protocol fronts and the binary.
//!
//! Read in the order of a request: [`node`] is what every request passes, `routes` decides which front answers,
//! a front turns bytes into calls, [`stack`] is what every call passes, and a component answers.
//! [`launcher`] builds all of it from the YAML.
#![forbid(unsafe_code)]

pub mod cli;
pub mod directory;
pub mod downloads;
#[cfg(test)]
mod error_page;
pub mod error_response;
pub mod front;
pub mod keys;
pub mod launcher;
mod listing;
pub mod logging;
mod native;
pub mod node;
mod openai;
mod openapi;
mod openmp;
mod route_table;
mod routes;
mod run_files;
mod server;
pub mod server_component;
pub mod stack;
mod streaming;
pub mod telemetry;
mod tinker;
mod twinkle;

pub use launcher::{LaunchError, LaunchOptions, RunningServer, TwinkleServer, launch_server};
