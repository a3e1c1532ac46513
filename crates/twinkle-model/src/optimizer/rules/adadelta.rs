//! `Adadelta` (Zeiler 2012): `s ← ρ s + (1 − ρ) g²`; `Δ = √(d + ε) / √(s + ε) · g`; `d ← ρ d + (1 − ρ) Δ²`; `w ← w − η Δ`.

use tch::Tensor;
use twinkle_core::call::Adadelta;

use super::{Moment, Rule, add_scaled, add_square, directed, penalised};

impl Rule for Adadelta {
    fn slots(&self) -> &'static [&'static str] {
        &["square_avg", "acc_delta"]
    }

    fn update(&self, moment: &Moment, mut w: Tensor, g: Tensor, slots: &[Tensor]) {
        let [squares, deltas] = slots else { return };
        let g = penalised(directed(g, self.maximize), &w, moment.weight_decay);
        let (mut squares, mut deltas) = (squares.shallow_clone(), deltas.shallow_clone());
        let _ = squares.g_mul_scalar_(self.rho);
        add_square(&mut squares, &g, 1.0 - self.rho);
        let deviation = squares.g_add_scalar(self.eps).sqrt();
        let mut delta = deltas.g_add_scalar(self.eps).sqrt();
        let _ = delta.g_div_(&deviation);
        let _ = delta.g_mul_(&g);
        let _ = deltas.g_mul_scalar_(self.rho);
        add_square(&mut deltas, &delta, 1.0 - self.rho);
        add_scaled(&mut w, &delta, -moment.lr);
    }
}
