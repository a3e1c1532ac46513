//! Uploads of checkpoints to a hub, as tasks in the background.
//!
//! | file | job |
//! | --- | --- |
//! | `requests` | `upload_to_hub` and `upload_status/{id}`, below the prefix of a `model` |
//! | `tasks` | the uploads under way and those that ended lately |

mod requests;
mod tasks;
#[cfg(test)]
mod tests;

use super::TwinkleFront;
use crate::route_table::Route;

pub(crate) use tasks::Uploads;

/// The routes, relative to the prefix.
pub(crate) fn routes() -> Vec<Route<TwinkleFront>> {
    vec![Route::post("/upload_to_hub", requests::upload), Route::get("/upload_status/{request}", requests::status)]
}
