//! What an operation results in.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::training::{RunState, TrainingProgress};
use super::{Ending, SamplerTarget};
use crate::ids::{CheckpointPath, RunId};

/// The result of a [`RunOperation`](super::RunOperation); stored until the client has had time to fetch it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum RunOutcome {
    /// The run exists.
    Created {
        /// Its name.
        run: RunId,
    },
    /// Loss and logprobs.
    ForwardBackward(ForwardBackwardOutcome),
    /// The optimizer stepped.
    OptimStep {
        /// `grad_norm` (before clipping) and `learning_rate` of the step, and so on.
        metrics: BTreeMap<String, f64>,
    },
    /// The run's optimizer or its schedule is set.
    OptimizerSet {
        /// Its name.
        run: RunId,
    },
    /// A training checkpoint or an export was written.
    Saved {
        /// Where.
        path: CheckpointPath,
    },
    /// The adapter was published for sampling.
    SavedForSampler {
        /// Where.
        target: SamplerTarget,
    },
    /// A checkpoint was loaded.
    Loaded {
        /// The run that loaded it.
        run: RunId,
        /// What it loaded.
        path: CheckpointPath,
        /// How far the training had come that saved it.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        progress: Option<TrainingProgress>,
    },
    /// How the run is.
    Described(Box<RunState>),
    /// The run's memory was freed.
    Unloaded {
        /// Its name.
        run: RunId,
    },
    /// The run was saved and its memory freed.
    Expired {
        /// Its name.
        run: RunId,
        /// Where it can be taken up from.
        path: CheckpointPath,
        /// Why it ended.
        ending: Ending,
    },
    /// The run is on disk.
    Spilled {
        /// Its name.
        run: RunId,
    },
    /// The run was rebuilt from a snapshot.
    Restored {
        /// Its name.
        run: RunId,
    },
}

impl RunOutcome {
    /// Whether the run is over with it.
    #[must_use]
    pub const fn ends_run(&self) -> bool {
        matches!(self, Self::Unloaded { .. } | Self::Expired { .. })
    }
}

/// What a forward or forward-backward returns.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct ForwardBackwardOutcome {
    /// Per datum, the log-probability of each target: the very numbers the loss used.
    pub logprobs: Vec<Logprobs>,
    /// `loss:sum` and others; each key is `name:reduction`.
    pub metrics: BTreeMap<String, f64>,
    /// What the loss counts towards the division of gradients: its tokens where it is a sum over tokens, 0 where it has
    /// divided already.
    #[serde(default)]
    pub num_tokens: f64,
    /// Per datum one entropy (in nats) for each position; empty if not asked for.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub entropies: Vec<Table>,
    /// Per datum `[tokens × vocabulary]`; empty if not asked for.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub logits: Vec<Table>,
    /// Per datum one row of the model's width; empty if not asked for.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub embeddings: Vec<Table>,
}

/// Numbers of one datum in rows of equal width.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Table {
    /// Row-major `[rows × width]`.
    #[serde(with = "crate::data::packed_f32")]
    pub values: Vec<f32>,
    /// Numbers in a row.
    pub width: usize,
}

/// Natural-log probabilities of one datum, in the shape of its `target_tokens`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(from = "StoredLogprobs", into = "StoredLogprobs")]
pub struct Logprobs {
    /// Row-major `[tokens × candidates]`.
    pub values: Vec<f32>,
    /// Second dimension of the targets; `None`: they have one dimension.
    pub candidates: Option<usize>,
}

impl Logprobs {
    /// One per position.
    #[must_use]
    pub const fn flat(values: Vec<f32>) -> Self {
        Self { values, candidates: None }
    }
}

/// One dimension is stored as a byte string, the only form there once was.
#[derive(Serialize, Deserialize)]
#[serde(untagged)]
enum StoredLogprobs {
    Flat(#[serde(with = "crate::data::packed_f32")] Vec<f32>),
    Table {
        #[serde(with = "crate::data::packed_f32")]
        values: Vec<f32>,
        candidates: usize,
    },
}

impl From<StoredLogprobs> for Logprobs {
    fn from(stored: StoredLogprobs) -> Self {
        match stored {
            StoredLogprobs::Flat(values) => Self::flat(values),
            StoredLogprobs::Table { values, candidates } => Self { values, candidates: Some(candidates) },
        }
    }
}

impl From<Logprobs> for StoredLogprobs {
    fn from(Logprobs { values, candidates }: Logprobs) -> Self {
        match candidates {
            None => Self::Flat(values),
            Some(candidates) => Self::Table { values, candidates },
        }
    }
}

#[cfg(all(test, feature = "node"))]
mod tests {
    use super::*;
    use crate::call::{ForwardOptions, ForwardOutputs, LossSpec, RunOperation};

    #[test]
    fn options_and_tables_are_read_again() {
        let outputs = ForwardOutputs { entropies: true, ..ForwardOutputs::default() };
        let options = ForwardOptions { temperature: 0.7, disable_lora: true, outputs, accumulation_steps: Some(2) };
        let operation =
            RunOperation::ForwardBackward { data: vec![], loss: LossSpec::named("a"), backward: false, options };
        let bytes = rmp_serde::to_vec_named(&operation).unwrap();
        assert_eq!(rmp_serde::from_slice::<RunOperation>(&bytes).unwrap(), operation);
        let table = Table { values: vec![1.0, -2.0], width: 2 };
        let outcome = ForwardBackwardOutcome { embeddings: vec![table], num_tokens: 3.0, ..Default::default() };
        let bytes = rmp_serde::to_vec_named(&outcome).unwrap();
        assert_eq!(rmp_serde::from_slice::<ForwardBackwardOutcome>(&bytes).unwrap(), outcome);
    }

    #[test]
    fn stored_logprobs_of_every_shape_are_read_again() {
        let flat = Logprobs::flat(vec![-1.0, -2.5]);
        let table = Logprobs { values: vec![-1.0, -2.0], candidates: Some(2) };
        for logprobs in [flat.clone(), table, Logprobs::flat(vec![])] {
            let bytes = rmp_serde::to_vec_named(&logprobs).unwrap();
            assert_eq!(rmp_serde::from_slice::<Logprobs>(&bytes).unwrap(), logprobs);
        }
        // What was stored before there were candidates: a byte string.
        let bytes: Vec<u8> = flat.values.iter().flat_map(|value| value.to_le_bytes()).collect();
        let stored = rmp_serde::to_vec_named(&serde_bytes::ByteBuf::from(bytes)).unwrap();
        assert_eq!(rmp_serde::from_slice::<Logprobs>(&stored).unwrap(), flat);
    }
}
