//! The native routes below the prefix of a `processor` application.

use super::TwinkleFront;
use crate::route_table::Route;

/// What these routes keep in memory.
#[derive(Default)]
pub(crate) struct State {}

/// The routes, relative to the prefix.
pub(crate) fn routes() -> Vec<Route<TwinkleFront>> {
    Vec::new()
}
