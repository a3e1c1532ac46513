//! `AdamW` (Loshchilov & Hutter 2019), `Adam` (Kingma & Ba 2015) and both with `amsgrad` (Reddi et al. 2018).
//!
//! `m ← β₁ m + (1 − β₁) g`; `v ← β₂ v + (1 − β₂) g²`; `w ← w − η / (1 − β₁ᵗ) · m / (√v / √(1 − β₂ᵗ) + ε)`;
//! with `amsgrad` the largest `v` so far in place of `v`.

use tch::Tensor;
use twinkle_core::call::{Adam, AdamW};

use super::{Moment, Rule, add_quotient, advance_moments, decayed, directed};

const PLAIN: &[&str] = &["exp_avg", "exp_avg_sq"];
const AMSGRAD: &[&str] = &["exp_avg", "exp_avg_sq", "max_exp_avg_sq"];

impl Rule for AdamW {
    fn slots(&self) -> &'static [&'static str] {
        if self.amsgrad { AMSGRAD } else { PLAIN }
    }

    fn update(&self, moment: &Moment, mut w: Tensor, g: Tensor, slots: &[Tensor]) {
        let g = decayed(directed(g, self.maximize), &mut w, moment, true);
        descend(self.betas, self.eps, moment, w, &g, slots);
    }
}

impl Rule for Adam {
    fn slots(&self) -> &'static [&'static str] {
        if self.amsgrad { AMSGRAD } else { PLAIN }
    }

    fn update(&self, moment: &Moment, mut w: Tensor, g: Tensor, slots: &[Tensor]) {
        let g = decayed(directed(g, self.maximize), &mut w, moment, self.decoupled_weight_decay);
        descend(self.betas, self.eps, moment, w, &g, slots);
    }
}

fn descend(betas: [f64; 2], eps: f64, moment: &Moment, mut w: Tensor, g: &Tensor, slots: &[Tensor]) {
    let [m, v, rest @ ..] = slots else { return };
    let (mut m, mut v) = (m.shallow_clone(), v.shallow_clone());
    advance_moments(&mut m, &mut v, g, betas);
    if let [largest] = rest {
        v = largest.maximum_out(&largest.shallow_clone(), &v);
    }
    let bias_correction1 = 1.0 - betas[0].powf(moment.t());
    let bias_correction2 = 1.0 - betas[1].powf(moment.t());
    let mut denominator = v.sqrt();
    let _ = denominator.g_div_scalar_(bias_correction2.sqrt());
    let _ = denominator.g_add_scalar_(eps);
    add_quotient(&mut w, &m, &denominator, -moment.lr / bias_correction1);
}
