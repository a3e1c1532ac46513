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
//! the engine computes a loss from, `work` waits for the outcome and `output` shows it. `metrics` counts what was seen, and
//! `counters` keeps it.

mod adapters;
mod align;
mod arguments;
mod checkpoints;
mod counters;
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

/// Most answers have one field.
const RESULT: &[&str] = &["result"];

/// The routes, relative to the prefix.
pub(crate) fn routes() -> Vec<Route<TwinkleFront>> {
    vec![
        Route::post("/create", create).about("Whether the model is there.").tells(&["status"]),
        Route::post("/add_adapter_to_model", adapters::add)
            .about("Makes an adapter, or all weights, to be trained.")
            .tells(&["status", "adapter_name"]),
        Route::post("/set_loss", settings::loss).about("Which loss an adapter is trained with.").tells(RESULT),
        Route::post("/set_template", settings::template)
            .about("Which template makes tokens of conversations.")
            .tells(RESULT),
        Route::post("/set_processor", settings::processor).about("Which class makes batches of inputs.").tells(RESULT),
        Route::post("/set_optimizer", settings::optimizer).about("Which optimizer updates an adapter.").tells(RESULT),
        Route::post("/set_lr_scheduler", settings::scheduler)
            .about("Which schedule its learning rate follows.")
            .tells(RESULT),
        Route::post("/add_metric", settings::metric).about("What is counted of an adapter.").tells(RESULT),
        Route::post("/apply_patch", settings::patch)
            .about("Says that a patch of a Python model has no place here.")
            .refuses(),
        Route::post("/forward", forward::forward)
            .about("A forward pass, after which a loss and gradients may be asked for.")
            .answers::<forward::Answered>(),
        Route::post("/forward_only", forward::forward_only)
            .about("A forward pass, after which a loss may be asked for.")
            .answers::<forward::Answered>(),
        Route::post("/forward_backward", forward::forward_backward)
            .about("A forward pass, its loss, and the gradients, which are added.")
            .answers::<forward::Answered>(),
        Route::post("/calculate_loss", forward::calculate_loss)
            .about("The loss of the last forward pass.")
            .tells(RESULT),
        Route::post("/backward", forward::backward)
            .about("The gradients of the last loss, which are added.")
            .tells(RESULT),
        Route::post("/clip_grad_norm", optimize::clip_grad_norm)
            .about("Scales the gradients down to a norm; tells the norm they had.")
            .tells(&["result", "value"]),
        Route::post("/step", optimize::step).about("Updates the weights.").tells(RESULT),
        Route::post("/zero_grad", optimize::zero_grad).about("Forgets the gradients.").tells(RESULT),
        Route::post("/lr_step", optimize::lr_step).about("One step of the schedule.").tells(RESULT),
        Route::post("/clip_grad_and_step", optimize::clip_grad_and_step)
            .about("Clips, updates, forgets the gradients, and one step of the schedule.")
            .tells(RESULT),
        Route::post("/save", checkpoints::save).about("Saves a checkpoint.").tells(&[
            "twinkle_path",
            "result",
            "checkpoint_dir",
        ]),
        Route::post("/load", checkpoints::load).about("Loads a checkpoint into an adapter.").tells(RESULT),
        Route::post("/resume_from_checkpoint", checkpoints::resume)
            .about("Loads a checkpoint, and tells how far its training had come.")
            .tells(RESULT),
        Route::post("/calculate_metric", inspect::calculate_metric)
            .about("What came together since it was last asked.")
            .tells(&["result", "values"]),
        Route::post("/get_train_configs", inspect::get_train_configs)
            .about("How an adapter is trained, as a text.")
            .tells(RESULT),
        Route::post("/get_state_dict", inspect::get_state_dict)
            .about("The values of an adapter.")
            .answers::<inspect::Tensors>(),
    ]
}

/// `POST create`: whether the model is there.
async fn create(axum::extract::State(front): axum::extract::State<TwinkleFront>) -> Answer {
    front.model()?;
    ok(&json!({ "status": "ok" }))
}
