//! The native routes below the prefix of a `model` application: adapters and what trains them.
//!
//! | file | routes |
//! | --- | --- |
//! | `adapters` | `add_adapter_to_model` |
//! | `settings` | `set_loss`, `set_template`, `set_processor`, `set_optimizer`, `set_lr_scheduler`, `add_metric`, `apply_patch` |
//! | `forward` | `forward`, `forward_only`, `forward_backward`, `calculate_loss`, `backward` |
//! | `optimize` | `clip_grad_norm`, `step`, `zero_grad`, `lr_step`, `clip_grad_and_step` |
//! | `checkpoints` | `save`, `load`, `resume_from_checkpoint` |
//! | `inspect` | `calculate_metric`, `get_train_configs`, `get_state_dict` |
//!
//! A request becomes one operation of the adapter's run, which the journal makes durable before it is done: `rows` takes
//! padding off and packed texts apart, `align` brings numbers per example to numbers per position, `data` makes of both what
//! the engine computes a loss from, `work` waits for the outcome and `output` shows it. `metrics` counts what was seen.

mod adapters;
mod align;
mod arguments;
mod checkpoints;
mod data;
mod distillation;
mod forward;
mod inspect;
mod kept;
mod lora;
mod losses;
mod metrics;
mod optimize;
mod output;
mod rows;
mod settings;
mod work;

use serde_json::json;

pub(crate) use self::adapters::State;
use super::{Answer, TwinkleFront, ok};
use crate::route_table::Route;

/// The routes, relative to the prefix.
pub(crate) fn routes() -> Vec<Route<TwinkleFront>> {
    vec![
        Route::post("/create", create),
        Route::post("/add_adapter_to_model", adapters::add),
        Route::post("/set_loss", settings::loss),
        Route::post("/set_template", settings::template),
        Route::post("/set_processor", settings::processor),
        Route::post("/set_optimizer", settings::optimizer),
        Route::post("/set_lr_scheduler", settings::scheduler),
        Route::post("/add_metric", settings::metric),
        Route::post("/apply_patch", settings::patch),
        Route::post("/forward", forward::forward),
        Route::post("/forward_only", forward::forward_only),
        Route::post("/forward_backward", forward::forward_backward),
        Route::post("/calculate_loss", forward::calculate_loss),
        Route::post("/backward", forward::backward),
        Route::post("/clip_grad_norm", optimize::clip_grad_norm),
        Route::post("/step", optimize::step),
        Route::post("/zero_grad", optimize::zero_grad),
        Route::post("/lr_step", optimize::lr_step),
        Route::post("/clip_grad_and_step", optimize::clip_grad_and_step),
        Route::post("/save", checkpoints::save),
        Route::post("/load", checkpoints::load),
        Route::post("/resume_from_checkpoint", checkpoints::resume),
        Route::post("/calculate_metric", inspect::calculate_metric),
        Route::post("/get_train_configs", inspect::get_train_configs),
        Route::post("/get_state_dict", inspect::get_state_dict),
    ]
}

/// `POST create`: whether the model is there.
async fn create(axum::extract::State(front): axum::extract::State<TwinkleFront>) -> Answer {
    front.model()?;
    ok(&json!({ "status": "ok" }))
}
