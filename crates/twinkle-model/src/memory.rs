//! What an application may take beside its weights, and what a pass makes of it.

use tch::Device;
use tracing::debug;
use twinkle_core::{ByteSize, Error, ErrorCode, Result};
use twinkle_nn::memory::machine::MachineMemory;
use twinkle_nn::{BaseModel, CostModel, PassShape, Recompute};

use crate::pass::{Participant, Way};

/// Most bytes for each kind of thing that grows with use.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MemoryLimits {
    /// Runs in memory, all together.
    pub runs: u64,
    /// What one pass keeps and works with.
    pub pass: u64,
}

impl MemoryLimits {
    /// No limit.
    pub const NONE: Self = Self { runs: u64::MAX, pass: u64::MAX };

    /// One half for runs, one for a pass.
    #[must_use]
    pub const fn divide(total: u64) -> Self {
        Self { runs: total / 2, pass: total - total / 2 }
    }

    /// For one run of so many bytes: its passes get the rest, and it may grow into that by another optimizer.
    #[must_use]
    pub const fn for_one_run(total: u64, run: u64) -> Self {
        Self { runs: total, pass: total.saturating_sub(run) }
    }
}

/// How a pass goes: as few layers are computed twice as its memory allows. Copies of gradients that take operations back
/// have `taken` of it.
///
/// Errors: `ResourceExhausted` when it would not fit even with all of them, before anything is allocated.
pub(crate) fn plan_pass(
    base: &BaseModel,
    limits: MemoryLimits,
    participants: &[Participant<'_>],
    backward: bool,
    taken: u64,
) -> Result<Way> {
    let cost = base.cost();
    let shape = shape(participants, backward);
    let least = |_| cost.recompute_within(shape, limits.pass);
    // The copies are there whatever the pass does: what would fit without them goes with as little as it can.
    let within = cost.recompute_within(shape, limits.pass.saturating_sub(taken)).or_else(least);
    let within = within.map_err(|least| too_large(shape, least, limits))?;
    if !backward {
        return Ok(Way::Forward);
    }
    let recompute = match free_for(base, cost.pass_bytes(shape, within)) {
        // Whoever else has taken the memory meanwhile: then slower, and no bit changes.
        Some(free) => cost.recompute_within(shape, free).unwrap_or(most(&cost)),
        None => within,
    };
    if recompute.layers > 0 {
        debug!(rows = shape.rows, layers = recompute.layers, "layers of this pass are computed twice");
    }
    Ok(Way::Back(recompute))
}

fn shape(participants: &[Participant<'_>], backward: bool) -> PassShape {
    let lengths = || {
        let shares = participants.iter().flat_map(|participant| &participant.shares);
        shares.flat_map(|share| share.examples).map(|example| example.tokens.len())
    };
    let modules = participants.iter().flat_map(|participant| participant.run.layout.modules());
    PassShape {
        rows: lengths().sum(),
        longest: lengths().max().unwrap_or(0),
        sequences: lengths().count(),
        rank: modules.map(|module| module.rank).max().unwrap_or(0),
        backward,
        full: participants.iter().any(|participant| participant.run.lora.full),
    }
}

/// Every layer but the last, which is needed first.
fn most(cost: &CostModel) -> Recompute {
    Recompute { layers: cost.config().layer_count.saturating_sub(1) }
}

/// What the machine has left, where that is less than a pass needs, the model computes in its memory and the system tells.
fn free_for(base: &BaseModel, needed: u64) -> Option<u64> {
    if base.device() != Device::Cpu {
        return None;
    }
    let is_short = |memory: &MachineMemory| memory.available < needed;
    MachineMemory::now().filter(is_short)?;
    // Earlier passes have left blocks in this process that the system takes for used.
    MachineMemory::with_freed_blocks_back().filter(is_short).map(|memory| memory.available)
}

fn too_large(shape: PassShape, least: u64, limits: MemoryLimits) -> Error {
    let layers = if shape.backward { " even with every layer computed twice" } else { "" };
    let message = format!(
        "a pass over {} tokens, the longest sequence of {}, needs {} of memory{layers}, and may take {}",
        shape.rows,
        shape.longest,
        ByteSize(least),
        ByteSize(limits.pass)
    );
    Error::new(ErrorCode::ResourceExhausted, message)
        .hint("send shorter sequences, or give the application a larger `memory_limit`")
}
