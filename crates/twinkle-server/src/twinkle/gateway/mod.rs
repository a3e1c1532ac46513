//! The native routes below the prefix of a `server` application.
//!
//! | file | routes |
//! | --- | --- |
//! | `sessions` | `create_session`, `session_heartbeat` |
//! | `health` | `healthz`, `healthz/deep`, `get_server_capabilities`, and of every component `healthz` and `heartbeat` |
//! | `capacity` | `capacity_info`, `status` |
//! | `runs` | `training_runs`, `training_runs/{run}` |
//! | `checkpoints` | `training_runs/{run}/checkpoints…`, `checkpoint_path/…`, `weights_info` |

mod capacity;
pub(crate) mod checkpoints;
mod health;
mod runs;
mod sessions;

use super::TwinkleFront;
use crate::route_table::Route;

/// The routes, relative to the prefix.
pub(crate) fn routes() -> Vec<Route<TwinkleFront>> {
    let mut routes = vec![
        Route::get("/healthz", health::gateway),
        Route::get("/healthz/deep", health::deep),
        Route::get("/get_server_capabilities", health::capabilities),
        Route::get("/capacity_info", capacity::capacity),
        Route::get("/status", capacity::status),
        Route::post("/create_session", sessions::create),
        Route::post("/session_heartbeat", sessions::heartbeat),
    ];
    routes.extend(directory_routes());
    routes
}

/// The routes of the directory of runs and checkpoints. Where a server is configured to speak Twinkle as in the first
/// generation, they stand in place of the Tinker protocol's.
pub(crate) fn directory_routes() -> Vec<Route<TwinkleFront>> {
    vec![
        Route::get("/training_runs", runs::list),
        Route::get("/training_runs/{run}", runs::read),
        Route::get("/training_runs/{run}/checkpoints", checkpoints::list),
        Route::delete("/training_runs/{run}/checkpoints/{name}", checkpoints::half_an_id),
        Route::delete("/training_runs/{run}/checkpoints/{kind}/{name}", checkpoints::delete),
        Route::get("/checkpoint_path/{run}/{name}", checkpoints::half_an_id),
        Route::get("/checkpoint_path/{run}/{kind}/{name}", checkpoints::place),
        Route::post("/weights_info", checkpoints::info),
    ]
}

/// What a `model` and a `sampler` answer alike.
pub(crate) fn component_routes() -> Vec<Route<TwinkleFront>> {
    vec![Route::get("/healthz", health::component), Route::post("/heartbeat", sessions::component_heartbeat)]
}
