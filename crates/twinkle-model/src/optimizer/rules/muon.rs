//! `Muon` (Jordan 2024): momentum, made orthogonal by a quintic Newton-Schulz iteration in bf16.
//!
//! `b ← b + (1 − μ)(g − b)`; `U = g + μ (b − g)` with Nesterov, else `b`; `w ← w (1 − η λ) − η f(shape) NS(U)`.
//! A stack of matrices is made orthogonal matrix by matrix.

use tch::{Kind, Tensor};
use twinkle_core::call::{Muon, MuonRate};
use twinkle_core::{Error, Result};

use super::{Grain, Moment, Rule, add_scaled};
use crate::optimizer::shape::ParameterShape;

impl Rule for Muon {
    fn slots(&self) -> &'static [&'static str] {
        &["momentum_buffer"]
    }

    fn grain(&self) -> Grain {
        Grain::Matrices
    }

    fn accepts(&self, shapes: &[ParameterShape]) -> Result<()> {
        if shapes.iter().all(|shape| shape.dimensions.len() > 1) {
            return Ok(());
        }
        Err(Error::invalid("`Muon` trains matrices only, but the run also trains norms or biases")
            .hint("use `AdamW` where all weights are trained"))
    }

    fn update(&self, moment: &Moment, w: Tensor, g: Tensor, slots: &[Tensor]) {
        let [buffer] = slots else { return };
        let flat = |tensor: &Tensor| {
            let size = tensor.size();
            let matrix = [-1, size[size.len() - 2], size[size.len() - 1]];
            tensor.view(matrix.as_slice())
        };
        let (w, g, buffer) = (flat(&w), flat(&g), flat(buffer));
        for number in 0..w.size()[0] {
            update_matrix(self, moment, w.get(number), &g.get(number), buffer.get(number));
        }
    }
}

fn update_matrix(muon: &Muon, moment: &Moment, mut w: Tensor, g: &Tensor, mut buffer: Tensor) {
    let _ = buffer.lerp_(g, 1.0 - muon.momentum);
    let update = if muon.nesterov { g.lerp(&buffer, muon.momentum) } else { buffer };
    let update = orthogonal(muon, &update);
    let (rows, columns) = (w.size()[0] as f64, w.size()[1] as f64);
    let ratio = match muon.adjust_lr_fn.unwrap_or(MuonRate::Original) {
        MuonRate::Original => (rows / columns).max(1.0).sqrt(),
        MuonRate::MatchRmsAdamw => 0.2 * rows.max(columns).sqrt(),
    };
    let _ = w.g_mul_scalar_(1.0 - moment.lr * moment.weight_decay);
    add_scaled(&mut w, &update, -moment.lr * ratio);
}

/// Nearly the orthogonal matrix closest to `matrix`, up to a factor, fp32.
fn orthogonal(muon: &Muon, matrix: &Tensor) -> Tensor {
    let is_tall = matrix.size()[0] > matrix.size()[1];
    let turned = |matrix: Tensor| if is_tall { matrix.tr() } else { matrix };
    let mut x = turned(matrix.to_kind(Kind::BFloat16));
    x = x.g_div(&x.norm().clamp_min(muon.eps));
    let [a, b, c] = muon.ns_coefficients;
    for _ in 0..muon.ns_steps {
        let gram = x.mm(&x.tr());
        let polynomial = combined(&gram, b, &gram, &gram, c);
        x = combined(&x, a, &polynomial, &x, 1.0);
    }
    turned(x).to_kind(Kind::Float)
}

/// `beta · x + alpha · left · right` of bf16 matrices, rounded once as `addmm` does.
fn combined(x: &Tensor, beta: f64, left: &Tensor, right: &Tensor, alpha: f64) -> Tensor {
    let mut sum = left.to_kind(Kind::Float).mm(&right.to_kind(Kind::Float));
    let _ = sum.g_mul_scalar_(alpha);
    let _ = sum.g_add_(&x.to_kind(Kind::Float).g_mul_scalar(beta));
    sum.to_kind(Kind::BFloat16)
}
