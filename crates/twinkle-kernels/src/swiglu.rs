//! The gated activation `silu(gate) ⊙ up` (Shazeer 2020) of bf16 rows.

use half::bf16;

use crate::features::multiversion;
use crate::numbers::{narrow, rounded, sigmoid, wide};
use crate::pool::{self, Shared};

/// Numbers that one task handles.
const SHARE: usize = 1 << 14;
/// What a number costs, in multiply-adds.
const COST: usize = 32;

/// `y = silu(gate) ⊙ up`, `silu(gate)` rounded before the product.
///
/// # Panics
/// If the slices differ in length.
pub fn swiglu(gate: &[bf16], up: &[bf16], y: &mut [bf16]) {
    assert!(gate.len() == up.len() && gate.len() == y.len(), "gate, up and result differ in length");
    let target = Shared::new(y);
    pool::for_each(gate.len().div_ceil(SHARE), gate.len() * COST, |task| {
        let place = task * SHARE..((task + 1) * SHARE).min(gate.len());
        // SAFETY: every task has a part of its own.
        forward_part(&gate[place.clone()], &up[place.clone()], unsafe { target.part(place) });
    });
}

/// Replaces `gate` and `up` by their gradients, given `dy`, that of [`swiglu`]'s result.
///
/// # Panics
/// If the slices differ in length.
pub fn swiglu_backward(gate: &mut [bf16], up: &mut [bf16], dy: &[bf16]) {
    assert!(gate.len() == up.len() && gate.len() == dy.len(), "gate, up and gradient differ in length");
    let (gate, up) = (Shared::new(gate), Shared::new(up));
    pool::for_each(dy.len().div_ceil(SHARE), dy.len() * COST, |task| {
        let place = task * SHARE..((task + 1) * SHARE).min(dy.len());
        // SAFETY: every task has a part of its own.
        let (gate, up) = unsafe { (gate.part(place.clone()), up.part(place.clone())) };
        backward_part(gate, up, &dy[place]);
    });
}

multiversion! {
    fn forward_part(gate: &[bf16], up: &[bf16], y: &mut [bf16]) {
        for ((y, gate), up) in y.iter_mut().zip(gate).zip(up) {
            let gate = wide(*gate);
            *y = narrow(rounded(sigmoid(gate) * gate) * wide(*up));
        }
    }

    fn backward_part(gate: &mut [bf16], up: &mut [bf16], dy: &[bf16]) {
        for ((gate, up), dy) in gate.iter_mut().zip(up).zip(dy) {
            let (x, dy) = (wide(*gate), wide(*dy));
            let sigmoid = sigmoid(x);
            let silu = x * sigmoid;
            let d_silu = rounded(dy * wide(*up));
            // silu'(x) = σ(x) (1 + x (1 − σ(x))) = σ(x) (1 + x − silu(x))
            *gate = narrow((x - silu + 1.0) * sigmoid * d_silu);
            *up = narrow(dy * rounded(silu));
        }
    }
}
