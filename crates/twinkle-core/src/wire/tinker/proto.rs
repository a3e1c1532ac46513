//! The protobuf messages, generated from `tinker_public.proto` beside this file.
#![expect(clippy::pedantic, reason = "generated code")]

include!(concat!(env!("OUT_DIR"), "/tinker_public.rs"));
