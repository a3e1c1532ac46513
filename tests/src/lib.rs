//! What the whole-node tests share: a server process of their own and a bare HTTP client.
#![forbid(unsafe_code)]

mod node;
mod python;
mod tinker_http;

pub use node::{Node, NodeOptions};
pub use python::{SdkVersion, run_script, run_with_first_kit, run_with_kit, run_with_openai, run_with_torch};
pub use tinker_http::TinkerHttp;
