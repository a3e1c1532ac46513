//! The gated MLP: `down(silu(gate(x)) ⊙ up(x))` (Shazeer 2020).

use tch::Tensor;

use super::linear::{Linear, Routing, Shrunk};
use crate::lora::Gradients;
use crate::torch::TorchResult;

/// Below this many elements libtorch does not split an element-wise call between threads.
const UNSPLIT: i64 = 32_767;
/// libtorch's element-wise loops take whole vectors, at most this many elements at once.
const VECTORS: i64 = 64;

/// The three linear maps of an MLP.
#[derive(Debug)]
pub(crate) struct Mlp {
    pub(crate) gate: Linear,
    pub(crate) up: Linear,
    pub(crate) down: Linear,
}

/// What backward needs of [`Mlp::forward`].
#[derive(Debug)]
pub(crate) struct MlpTape {
    /// `gate(x)`, `[T, I]`.
    gate: Tensor,
    /// `up(x)`, `[T, I]`.
    up: Tensor,
    gate_shrunk: Shrunk,
    up_shrunk: Shrunk,
    down_shrunk: Shrunk,
}

impl Mlp {
    /// The output for normed rows `x`, `[T, H]`.
    pub(crate) fn forward(&self, x: &Tensor, routing: &Routing) -> TorchResult<(Tensor, MlpTape)> {
        let (gate, gate_shrunk) = self.gate.forward(x, routing)?;
        let (up, up_shrunk) = self.up.forward(x, routing)?;
        let activated = activate(&gate, &up)?;
        let (y, down_shrunk) = self.down.forward(&activated, routing)?;
        Ok((y, MlpTape { gate, up, gate_shrunk, up_shrunk, down_shrunk }))
    }

    /// The gradient of `x`, given that of the output.
    pub(crate) fn backward(
        &self,
        x: &Tensor,
        dy: &Tensor,
        tape: MlpTape,
        routing: &Routing,
        gradients: &mut [&mut Gradients],
    ) -> TorchResult<Tensor> {
        let MlpTape { gate, up, gate_shrunk, up_shrunk, down_shrunk } = tape;
        let activated = activate(&gate, &up)?;
        let d_activated = self.down.backward(&activated, dy, &down_shrunk, routing, gradients)?;
        drop(activated);
        differentiate(&gate, &up, &d_activated)?;
        drop(d_activated);
        // `gate` and `up` now hold their own gradients.
        let mut dx = self.gate.backward(x, &gate, &gate_shrunk, routing, gradients)?;
        drop(gate);
        let _ = dx.f_add_(&self.up.backward(x, &up, &up_shrunk, routing, gradients)?)?;
        Ok(dx)
    }
}

/// `silu(gate) ⊙ up`, both factors rounded to the model's dtype.
fn activate(gate: &Tensor, up: &Tensor) -> TorchResult<Tensor> {
    let activated = Tensor::f_empty_like(gate)?;
    for_blocks(gate, |start, rows| {
        let mut target = activated.f_narrow(0, start, rows)?;
        let _ = gate.f_narrow(0, start, rows)?.f_silu_out(&target)?;
        let _ = target.f_mul_(&up.f_narrow(0, start, rows)?)?;
        Ok(())
    })?;
    Ok(activated)
}

/// Replaces `gate` and `up` by their gradients, given that of `silu(gate) ⊙ up`.
fn differentiate(gate: &Tensor, up: &Tensor, d_activated: &Tensor) -> TorchResult<()> {
    for_blocks(gate, |start, rows| {
        let (mut gate, up) = (gate.f_narrow(0, start, rows)?, up.f_narrow(0, start, rows)?);
        let d_activated = d_activated.f_narrow(0, start, rows)?;
        let d_silu = d_activated.f_mul(&up)?;
        let silu = gate.f_silu()?;
        let _ = d_activated.f_mul_out(&up, &silu)?;
        let d_gate = gate.f_silu_backward(&d_silu)?;
        gate.f_copy_(&d_gate)
    })
}

/// Blocks that stay in the processor's cache and in which every row gets the same bits.
///
/// What is left of a call, or of a thread's share of it, after the whole vectors is computed one by one, and `silu` rounds
/// differently there. So no call is large enough to be shared, and rows that do not end with a vector come one by one.
fn for_blocks(x: &Tensor, mut work: impl FnMut(i64, i64) -> TorchResult<()>) -> TorchResult<()> {
    let (rows, width) = (x.size()[0], x.size()[1]);
    let block = if width % VECTORS == 0 { (UNSPLIT / width).max(1) } else { 1 };
    let mut start = 0;
    while start < rows {
        let count = block.min(rows - start);
        work(start, count)?;
        start += count;
    }
    Ok(())
}
