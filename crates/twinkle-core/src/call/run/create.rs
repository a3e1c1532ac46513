//! How a run begins.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::call::lora::LoraSpec;
use crate::ids::{CheckpointPath, SessionId, TenantId};

/// How a run begins.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct CreateRun {
    /// The session it belongs to, when the run's name does not say so: see [`RunId::session`](crate::ids::RunId::session).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub session: Option<SessionId>,
    /// Backward passes that an update takes, if more than one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub accumulation_steps: Option<u64>,
    /// The base model's public name.
    pub base_model: String,
    /// The adapter's shape. When `from` is given, the checkpoint's own wins and this repeats it.
    pub lora: LoraSpec,
    /// A checkpoint to start from instead of a fresh adapter.
    pub from: Option<StartingPoint>,
    /// The user's notes, returned with the run.
    pub user_metadata: BTreeMap<String, String>,
}

/// A checkpoint to start a run from.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct StartingPoint {
    /// Which; its kind is `weights`.
    pub path: CheckpointPath,
    /// Whether the optimizer continues or starts afresh.
    pub with_optimizer: bool,
    /// Whose checkpoint it is when it is another tenant's, which was public when this was accepted.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub owner: Option<TenantId>,
}
