//! The native routes below the prefix of a `sampler` application.
//!
//! | file | what it is about |
//! | --- | --- |
//! | `settings` | `create`, `set_template`, `add_adapter_to_sampler`, `apply_patch` |
//! | `params` | `sampling_params` |
//! | `prompts` | from conversations and tokens to prompts, and which weights continue them |
//! | `sample` | `sample` |
//! | `answer` | its answer |
//! | `stream` | `sample_stream` |
//!
//! Nothing is kept in memory: a template that was set is a record of its session.

mod answer;
mod params;
mod prompts;
mod sample;
mod settings;
mod stream;

use http::StatusCode;

use super::TwinkleFront;
use crate::openapi::Content;
use crate::route_table::Route;

/// The routes, relative to the prefix.
pub(crate) fn routes() -> Vec<Route<TwinkleFront>> {
    vec![
        Route::post("/create", settings::create).about("Whether the sampler is there.").tells(&["status"]),
        Route::post("/set_template", settings::set_template)
            .about("Which template makes tokens of a session's conversations.")
            .tells(&["status"]),
        Route::post("/add_adapter_to_sampler", settings::add_adapter)
            .about("Checks the name of an adapter, and tells it in full.")
            .tells(&["status", "adapter_name"]),
        Route::post("/apply_patch", settings::apply_patch).about("Says that no Python runs here.").refuses(),
        Route::post("/sample", sample::sample)
            .about("Draws samples; the first generation of clients gets those of all prompts as of one.")
            .answers::<answer::Samples>(),
        Route::post("/sample_stream", stream::sample_stream).about("One sample, piece by piece.").also(
            StatusCode::OK,
            "a line of JSON for each piece",
            Content::Media("application/x-ndjson"),
        ),
    ]
}
