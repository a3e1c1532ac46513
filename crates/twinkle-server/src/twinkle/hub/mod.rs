//! Checkpoints that go to a hub, as tasks in the background, and adapters that come from one.
//!
//! | file | job |
//! | --- | --- |
//! | `adapters` | adapters that runs load |
//! | `requests` | `upload_to_hub` and `upload_status/{id}`, below the prefix of a `model` |
//! | `tasks` | the uploads under way, and how those of the last day ended |

mod adapters;
mod requests;
mod tasks;
#[cfg(test)]
mod tests;

use super::TwinkleFront;
use crate::route_table::Route;

pub(crate) use adapters::{Adapters, Brought};
pub(crate) use tasks::Uploads;

/// The routes, relative to the prefix.
pub(crate) fn routes() -> Vec<Route<TwinkleFront>> {
    vec![
        Route::post("/upload_to_hub", requests::upload)
            .about("Begins to send a checkpoint to a hub.")
            .tells(&["request_id"]),
        Route::get("/upload_status/{request}", requests::status).about("How an upload is doing.").tells(&[
            "request_id",
            "status",
            "error",
            "code",
            "progress",
        ]),
    ]
}
