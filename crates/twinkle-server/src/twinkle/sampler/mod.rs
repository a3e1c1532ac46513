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

use super::TwinkleFront;
use crate::route_table::Route;

/// The routes, relative to the prefix.
pub(crate) fn routes() -> Vec<Route<TwinkleFront>> {
    vec![
        Route::post("/create", settings::create),
        Route::post("/set_template", settings::set_template),
        Route::post("/add_adapter_to_sampler", settings::add_adapter),
        Route::post("/apply_patch", settings::apply_patch),
        Route::post("/sample", sample::sample),
        Route::post("/sample_stream", stream::sample_stream),
    ]
}
