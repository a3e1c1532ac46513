//! The Tinker protocol.
//!
//! [`json`] holds the bodies of the JSON routes, [`proto`] the protobuf messages. The same training
//! request exists in both: SDKs up to 0.24 send JSON, later ones protobuf, optionally compressed with
//! zstd; [`bounds`] looks at these before they are decoded. [`tensor`], [`training`], [`sampling`] and [`scores`] turn
//! either into the node's vocabulary and back.

pub mod bounds;
pub mod json;
pub mod proto;
pub mod sampling;
pub mod scores;
pub mod tensor;
pub mod training;

/// The media type of protobuf bodies, in `Content-Type` and `Accept`.
pub const PROTOBUF: &str = "application/x-protobuf";
