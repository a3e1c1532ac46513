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
}

/// How a pass goes: as few layers are computed twice as its memory allows.
///
/// Errors: `ResourceExhausted` when it would not fit even with all of them, before anything is allocated.
pub(crate) fn plan_pass(
    base: &BaseModel,
    limits: MemoryLimits,
    participants: &[Participant<'_>],
    backward: bool,
) -> Result<Way> {
    let cost = base.cost();
    let shape = shape(participants, backward);
    let within = cost.recompute_within(shape, limits.pass).map_err(|least| too_large(shape, least, limits))?;
    if !backward {
        return Ok(Way::Forward);
    }
    let recompute = match free_now(base) {
        // Whoever else has taken the memory meanwhile: then slower, and no bit changes.
        Some(free) if free < limits.pass => cost.recompute_within(shape, free).unwrap_or(most(&cost)),
        _ => within,
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
        rank: modules.map(|module| module.rank).max().unwrap_or(0),
        backward,
    }
}

/// Every layer but the last, which is needed first.
fn most(cost: &CostModel) -> Recompute {
    Recompute { layers: cost.config().layer_count.saturating_sub(1) }
}

/// What the machine has left, if the model computes in its memory and the system tells.
fn free_now(base: &BaseModel) -> Option<u64> {
    if base.device() == Device::Cpu { MachineMemory::now().map(|memory| memory.available) } else { None }
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
