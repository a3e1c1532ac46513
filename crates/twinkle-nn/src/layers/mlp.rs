//! The gated MLP: `down(silu(gate(x)) ⊙ up(x))` (Shazeer 2020).

use tch::{Kind, Tensor};
use twinkle_core::Result;

use super::linear::{Branch, Linear, Routing, Shrunk, backward_branches};
use super::load::LayerFiles;
use super::native;
use crate::lora::{Gradients, Projection};
use crate::torch::TorchResult;

/// Rows handled at once in the element-wise parts, so that they stay in the processor's cache.
const BLOCK: i64 = 64;

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
    /// Loads the three projections `[gate, up, down]`.
    pub(crate) fn load(files: &mut LayerFiles, projections: [Projection; 3], bias: bool) -> Result<Self> {
        let [gate, up, down] = projections;
        Ok(Self { gate: files.linear(gate, bias)?, up: files.linear(up, bias)?, down: files.linear(down, bias)? })
    }

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
        let branches = [
            Branch { linear: &self.gate, dy: &gate, shrunk: &gate_shrunk },
            Branch { linear: &self.up, dy: &up, shrunk: &up_shrunk },
        ];
        backward_branches(x, &branches, routing, gradients)
    }
}

/// `silu(gate) ⊙ up`, both factors rounded to the model's dtype.
pub(crate) fn activate(gate: &Tensor, up: &Tensor) -> TorchResult<Tensor> {
    let mut activated = Tensor::f_empty_like(gate)?;
    if native::is_plain(gate) {
        let (gate, up) = (native::numbers(gate)?, native::numbers(up)?);
        twinkle_kernels::swiglu(gate, up, native::numbers_mut(&mut activated)?);
        return Ok(activated);
    }
    for_blocks(gate.size()[0], |start, rows| {
        let gate = gate.f_narrow(0, start, rows)?;
        let mut silu = sigmoid(&gate)?;
        let _ = silu.f_mul_(&gate)?;
        let silu = silu.f_to_kind(gate.kind())?;
        let _ = silu.f_mul_out(&activated.f_narrow(0, start, rows)?, &up.f_narrow(0, start, rows)?)?;
        Ok(())
    })?;
    Ok(activated)
}

/// Replaces `gate` and `up` by their gradients, given that of `silu(gate) ⊙ up`.
pub(crate) fn differentiate(gate: &Tensor, up: &Tensor, d_activated: &Tensor) -> TorchResult<()> {
    if native::is_plain(gate) {
        let (mut gate, mut up) = (gate.shallow_clone(), up.shallow_clone());
        let (gate, up) = (native::numbers_mut(&mut gate)?, native::numbers_mut(&mut up)?);
        twinkle_kernels::swiglu_backward(gate, up, native::numbers(d_activated)?);
        return Ok(());
    }
    for_blocks(gate.size()[0], |start, rows| {
        let (mut gate, up) = (gate.f_narrow(0, start, rows)?, up.f_narrow(0, start, rows)?);
        let d_activated = d_activated.f_narrow(0, start, rows)?;
        let d_silu = d_activated.f_mul(&up)?;
        let sigmoid = sigmoid(&gate)?;
        let gate32 = gate.f_to_kind(Kind::Float)?;
        let silu = gate32.f_mul(&sigmoid)?;
        let _ = d_activated.f_mul_out(&up, &silu.f_to_kind(up.kind())?)?;
        // silu'(x) = σ(x) (1 + x (1 − σ(x))) = σ(x) (1 + x − silu(x))
        let mut slope = gate32.f_sub(&silu)?;
        let _ = slope.f_add_scalar_(1.0)?;
        let _ = slope.f_mul_(&sigmoid)?;
        let _ = slope.f_mul_(&d_silu)?;
        gate.f_copy_(&slope)
    })
}

/// `1 / (1 + e⁻ˣ)`, fp32.
///
/// Not libtorch's own `silu` or `sigmoid`: they round the numbers at the end of a thread's share, which do not fill a
/// vector register, differently, and then a row's bits would depend on how many rows came before it. `exp` does not.
fn sigmoid(x: &Tensor) -> TorchResult<Tensor> {
    let mut result = x.f_to_kind(Kind::Float)?.f_neg()?;
    let _ = result.f_exp_()?;
    let _ = result.f_add_scalar_(1.0)?;
    let _ = result.f_reciprocal_()?;
    Ok(result)
}

fn for_blocks(rows: i64, mut work: impl FnMut(i64, i64) -> TorchResult<()>) -> TorchResult<()> {
    let mut start = 0;
    while start < rows {
        let count = BLOCK.min(rows - start);
        work(start, count)?;
        start += count;
    }
    Ok(())
}
