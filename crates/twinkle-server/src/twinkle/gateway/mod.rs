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

use http::StatusCode;

use super::TwinkleFront;
use crate::openapi::Content;
use crate::route_table::Route;

/// The routes, relative to the prefix.
pub(crate) fn routes() -> Vec<Route<TwinkleFront>> {
    let mut routes = vec![
        Route::get("/healthz", health::gateway).about("Whether the server answers.").tells(&["status"]),
        Route::get("/healthz/deep", health::deep)
            .about("Whether every model that clients may ask for can work.")
            .tells(&["healthy", "models"])
            .also(StatusCode::SERVICE_UNAVAILABLE, "one cannot", Content::Fields(&["healthy", "models"])),
        Route::get("/get_server_capabilities", health::capabilities)
            .about("The base models on offer.")
            .tells(&["supported_models"]),
        Route::get("/capacity_info", capacity::capacity)
            .about("How many adapters are in memory at once, and how many there are.")
            .tells(&["max_loras", "used_loras", "free_loras"]),
        Route::get("/status", capacity::status)
            .about("How much of the node is in use.")
            .tells(&["resources", "cleanup"]),
        Route::post("/create_session", sessions::create)
            .about("Opens a session, to which adapters and objects belong.")
            .tells(&["session_id"]),
        Route::post("/session_heartbeat", sessions::heartbeat).about("Keeps a session open.").tells(&[]),
    ];
    routes.extend(directory_routes());
    routes
}

/// The routes of the directory of runs and checkpoints. Where a server is configured to speak Twinkle as in the first
/// generation, they stand in place of the Tinker protocol's.
pub(crate) fn directory_routes() -> Vec<Route<TwinkleFront>> {
    vec![
        Route::get("/training_runs", runs::list)
            .about("The tenant's runs, the newest first.")
            .tells(&["training_runs", "cursor"]),
        Route::get("/training_runs/{run}", runs::read).about("A run.").tells(&[
            "training_run_id",
            "base_model",
            "model_owner",
            "is_lora",
            "lora_rank",
            "last_request_time",
            "last_checkpoint",
            "last_sampler_checkpoint",
            "user_metadata",
        ]),
        Route::get("/training_runs/{run}/checkpoints", checkpoints::list)
            .about("The checkpoints of a run, the oldest first.")
            .tells(&["checkpoints", "cursor"]),
        Route::delete("/training_runs/{run}/checkpoints/{name}", checkpoints::half_an_id)
            .about("Says that an id has two parts.")
            .refuses(),
        Route::delete("/training_runs/{run}/checkpoints/{kind}/{name}", checkpoints::delete)
            .about("Deletes a checkpoint.")
            .tells(&["success", "message"]),
        Route::get("/checkpoint_path/{run}/{name}", checkpoints::half_an_id)
            .about("Says that an id has two parts.")
            .refuses(),
        Route::get("/checkpoint_path/{run}/{kind}/{name}", checkpoints::place)
            .about("The folder of a checkpoint of one's own.")
            .tells(&["path", "twinkle_path"]),
        Route::post("/weights_info", checkpoints::info).about("What a checkpoint is of.").tells(&[
            "training_run_id",
            "base_model",
            "model_owner",
            "is_lora",
            "lora_rank",
        ]),
    ]
}

/// What a `model` and a `sampler` answer alike.
pub(crate) fn component_routes() -> Vec<Route<TwinkleFront>> {
    let told = &["healthy", "detail"];
    vec![
        Route::get("/healthz", health::component).about("Whether the component can work.").tells(told).also(
            StatusCode::SERVICE_UNAVAILABLE,
            "it cannot",
            Content::Fields(told),
        ),
        Route::post("/heartbeat", sessions::component_heartbeat)
            .about("Keeps a session open, of clients of the first generation.")
            .tells(&["status"]),
    ]
}
