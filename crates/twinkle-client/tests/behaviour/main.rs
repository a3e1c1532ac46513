//! How the client behaves towards a server that refuses, stalls and forgets. The server here is a script of answers; what a
//! real one does is tested in the whole-node tests.
#![forbid(unsafe_code)]

mod chat;
mod connecting;
mod files;
mod retries;
mod sampling;
mod script;
mod training;
#[cfg(feature = "blocking")]
mod waiting;
