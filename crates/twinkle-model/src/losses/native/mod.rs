//! The losses of Twinkle's own protocol, by the names of its classes.
//!
//! They read labels as `target_tokens` (0 where nothing is to be learned) and a `mask` of 0 and 1 over them; `docs/losses.md`
//! has the formulas. A mean divides by numbers that are known before the first pass: [`Loss::prepare`] turns the mask into
//! each position's weight, so that a loss of single tokens still takes one way through the network.
//!
//! | Losses | Inputs besides `target_tokens` and `mask` | Scope |
//! | --- | --- | --- |
//! | [`cross_entropy`] | | token |
//! | [`policy`], [`gspo`] | `old_logps`, `ref_logps`, `advantages`, all optional | token; row with `entropy_coef`; sequence |
//! | [`preference`] | `ref_logps` (DPO), optional; chosen and rejected in turn | group of two |
//! | [`distillation`] | `target_tokens` and `teacher_logprobs` `[T, K]`, `candidate_mask` `[T, K]`, optional | row |
//! | [`squared_error`] | `target_tokens` and `target_logits` `[T]` or `[T, K]` | row |
//! | [`contrastive`] | one `label` per datum and nothing else | embeddings |
//! | [`nothing`] | `target_tokens` optional too: a forward whose loss nobody asks for | token |
//!
//! Inputs have one number per target. Where there are several candidates, an input with one number per position counts for
//! all of them. A known input that a loss does not read is left alone, as a client sends the same keywords to all losses.
//! A reference that is known by sequence only (`ref_chosen_logps`) is a `ref_logps` whose sum over the mask it is.

mod columns;
mod contrastive;
mod cross_entropy;
pub mod distillation;
mod gspo;
mod nothing;
mod policy;
mod preference;
mod settings;
mod squared_error;

use twinkle_core::call::LossSpec;
use twinkle_core::error::suggestion;
use twinkle_core::{Error, Result};

use super::Loss;
use settings::Settings;

/// The name of the loss that is nothing: for a forward that is asked for logprobs, logits or embeddings only.
pub const NO_LOSS: &str = "NoLoss";

/// How a loss is found by name and built from its settings.
struct Entry {
    name: &'static str,
    settings: &'static [&'static str],
    build: fn(&Settings) -> Result<Box<dyn Loss>>,
}

const fn entry(
    name: &'static str,
    settings: &'static [&'static str],
    build: fn(&Settings) -> Result<Box<dyn Loss>>,
) -> Entry {
    Entry { name, settings, build }
}

const LOSSES: &[Entry] = &[
    entry("CrossEntropyLoss", &["reduction", "dft"], cross_entropy::build),
    entry("ChunkedCrossEntropyLoss", &["chunk_size", "reduction", "dft"], cross_entropy::build_chunked),
    entry("LigerFusedLinearCrossEntropyLoss", &["reduction", "label_smoothing", "softcap"], cross_entropy::build_fused),
    entry("GRPOLoss", policy::SETTINGS, policy::grpo),
    entry("PPOLoss", &["epsilon", "epsilon_high", "beta", "entropy_coef", "loss_agg_mode"], policy::ppo),
    entry("GSPOLoss", policy::SETTINGS, gspo::build),
    entry("SAPOLoss", &["epsilon", "epsilon_high", "beta", "entropy_coef", "tau_pos", "tau_neg"], policy::sapo),
    entry("CISPOLoss", &["epsilon", "epsilon_high", "beta", "entropy_coef", "num_items_in_batch"], policy::cispo),
    entry("BNPOLoss", policy::SETTINGS, policy::bnpo),
    entry("DRGRPOLoss", &["epsilon", "epsilon_high", "beta", "entropy_coef", "max_completion_length"], policy::drgrpo),
    entry("DPOLoss", &["beta", "label_smoothing", "loss_type", "reference_free", "sft_weight"], preference::dpo),
    entry("SimPOLoss", &["beta", "gamma"], preference::simpo),
    entry("CPOLoss", &["beta", "bc_coef"], preference::cpo),
    entry("ORPOLoss", &["lambda_orpo"], preference::orpo),
    entry("GKDLoss", &["beta", "temperature", "chunk_size"], distillation::build),
    entry("MSELoss", &[], |_| Ok(Box::new(squared_error::SquaredError))),
    entry("InfonceLoss", contrastive::SETTINGS, contrastive::build),
    entry(NO_LOSS, &[], |_| Ok(Box::new(nothing::Nothing))),
];

/// Every input that some of these losses reads.
const INPUTS: &[&str] = &[
    "target_tokens",
    "mask",
    "old_logps",
    "ref_logps",
    "advantages",
    "teacher_logprobs",
    "candidate_mask",
    "target_logits",
    "label",
];

/// The names that a client may set, [`NO_LOSS`] not among them.
#[must_use]
pub fn names() -> Vec<&'static str> {
    LOSSES.iter().map(|entry| entry.name).filter(|name| *name != NO_LOSS).collect()
}

/// Whether a loss of this name is one of these rather than one of Tinker's: all of them end in `Loss`.
#[must_use]
pub fn is_native(name: &str) -> bool {
    name.ends_with("Loss")
}

/// Finds and builds the loss; an unknown name or setting is an error that names the nearest right one.
pub fn build(spec: &LossSpec) -> Result<Box<dyn Loss>> {
    if spec.name == "PPOValueLoss" {
        return Err(Error::unsupported(
            "loss `PPOValueLoss` needs a model with a value head, and the models here predict tokens only",
        )
        .hint("train the critic elsewhere and send its advantages to `PPOLoss`"));
    }
    let Some(entry) = LOSSES.iter().find(|entry| entry.name == spec.name) else {
        return Err(Error::invalid(format!("unknown loss `{}`", spec.name)).hint(suggestion(
            &spec.name,
            "losses",
            &names(),
        )));
    };
    (entry.build)(&Settings::checked(entry.name, entry.settings, spec)?)
}

#[cfg(test)]
mod reference_tests;
#[cfg(test)]
mod tests;
