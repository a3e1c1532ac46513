//! Whole-node tests: a real server process, real clients, real files.
#![forbid(unsafe_code)]

mod client;
mod client_cookbook;
mod cookbook;
mod crash;
mod custom_loss;
mod disk_full;
mod examples;
mod futures;
mod keys;
mod kit;
mod learning;
mod lifecycle;
mod limits;
mod load;
mod native;
mod openai;
mod order;
mod python_package;
mod sdk;
mod stores;
mod telemetry;
mod tenancy;
mod twinkle_sampler;
mod weights;

use twinkle_tests::{Node, NodeOptions};

/// A server for one golden fixture model.
async fn fixture_node(variant: &str) -> Node {
    Node::start(NodeOptions::fixture(env!("CARGO_BIN_EXE_node"), variant)).await.expect("the server starts")
}
