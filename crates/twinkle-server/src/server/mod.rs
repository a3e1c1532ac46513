//! What the `server` component does, one resource a file.

pub(crate) mod checkpoints;
pub(crate) mod copies;
pub(crate) mod heartbeats;
pub(crate) mod runs;
pub(crate) mod sampling_sessions;
pub(crate) mod session_search;
pub(crate) mod sessions;

#[cfg(test)]
mod tests;
