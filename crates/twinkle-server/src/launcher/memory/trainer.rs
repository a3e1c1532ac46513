//! What a `model` application may take: its runs and its passes.

use std::path::PathBuf;

use twinkle_core::ByteSize;
use twinkle_core::config::{Device, TrainMode};
use twinkle_core::error::{Error, ErrorCode, Result};
use twinkle_model::memory::MemoryLimits;
use twinkle_nn::memory::{CostModel, PassShape, Recompute};

use super::device::device_name;

/// Packed rows of one training pass: more than enough to fill a device.
pub(super) const MOST_ROWS: usize = 4_096;
/// A pass is cut no smaller than this to save memory; rather are layers recomputed.
const FEWEST_ROWS: usize = 512;

/// What one `model` application may take.
#[derive(Clone, Debug)]
pub(crate) struct TrainerPlan {
    pub(crate) application: String,
    pub(crate) model: String,
    pub(crate) folder: PathBuf,
    pub(crate) device: Device,
    pub(crate) kind: tch::Kind,
    pub(crate) cost: CostModel,
    /// For runs and the pass; `None`: nobody knows what there is.
    pub(crate) limit: Option<u64>,
    /// Whether `memory_limit` says so.
    pub(crate) limit_is_given: bool,
    pub(crate) limits: MemoryLimits,
    pub(crate) rows_per_pass: usize,
    /// The longest datum that can be trained, at most `max_length`.
    pub(crate) longest: usize,
    /// Most tokens of a datum by the configuration and the model.
    pub(crate) max_length: usize,
    pub(crate) max_loras: usize,
    pub(crate) max_rank: u32,
    /// Whether runs are adapters, or one run trains all weights.
    pub(crate) train_mode: TrainMode,
    /// Bytes of a run of `max_rank` on every module, or of all weights.
    pub(crate) largest_run: u64,
    /// Bytes of the copy of its gradients that takes an operation back.
    pub(crate) undo: u64,
}

impl TrainerPlan {
    /// Derives what the engine goes by from the limit; an application that could not train one token is refused.
    pub(super) fn settle(&mut self) -> Result<()> {
        let Some(limit) = self.limit else { return Ok(()) };
        self.limits = match self.train_mode {
            TrainMode::Full => MemoryLimits::for_one_run(limit, self.largest_run),
            TrainMode::Lora => MemoryLimits::divide(limit),
        };
        let room = self.limits.pass.saturating_sub(self.undo);
        let whole = self.cost.rows_within(room, Recompute::NOTHING, |rows| self.pass(rows, self.max_length));
        let all = self.recompute_most();
        let recomputed = self.cost.rows_within(room, all, |rows| self.pass(rows, usize::MAX));
        self.longest = recomputed.min(self.max_length);
        self.rows_per_pass = whole.max(recomputed.min(FEWEST_ROWS)).min(MOST_ROWS);
        if self.longest > 0 && self.largest_run <= self.limits.runs {
            return Ok(());
        }
        let pass = self.pass_bytes(1, all) + self.undo;
        let (run, rule, least, way_out) = match self.train_mode {
            TrainMode::Lora => {
                let least = 2 * pass.max(self.largest_run);
                (format!("a run of rank {}", self.max_rank), ", and each may take half", least, ", or lower `max_r`")
            }
            TrainMode::Full => ("a run of all weights".to_owned(), "", pass + self.largest_run, ""),
        };
        Err(Error::new(
            ErrorCode::ResourceExhausted,
            format!(
                "application `{}` has {} for runs and passes; {run} takes {} and a pass of one token {}{rule}",
                self.application,
                ByteSize(limit),
                ByteSize(self.largest_run),
                ByteSize(pass)
            ),
        )
        .hint(format!(
            "set `memory_limit` to at least `{}`, free memory on {}{way_out}",
            ByteSize(least + (1 << 20)),
            device_name(self.device)
        )))
    }

    /// Every layer that can be computed twice.
    pub(crate) fn recompute_most(&self) -> Recompute {
        Recompute { layers: self.cost.config().layer_count.saturating_sub(1) }
    }

    pub(crate) fn is_on_cpu(&self) -> bool {
        self.device == Device::Cpu
    }

    /// The precision that gives its dtype.
    pub(crate) fn precision(&self) -> twinkle_nn::Precision {
        match self.kind {
            tch::Kind::BFloat16 => twinkle_nn::Precision::BFloat16,
            _ => twinkle_nn::Precision::Float32,
        }
    }

    /// Bytes of a pass of one sequence of so many rows with the largest rank.
    pub(crate) fn pass_bytes(&self, rows: usize, recompute: Recompute) -> u64 {
        self.cost.pass_bytes(self.pass(rows, rows), recompute)
    }

    /// A pass of so many rows in sequences of at most `longest`, with the largest rank.
    pub(crate) fn pass(&self, rows: usize, longest: usize) -> PassShape {
        let full = self.train_mode == TrainMode::Full;
        let rank = if full { 0 } else { self.max_rank as usize };
        PassShape { full, ..PassShape::training(rows, longest, rank) }
    }
}
