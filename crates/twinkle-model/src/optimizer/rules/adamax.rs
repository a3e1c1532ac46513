//! `Adamax` (Kingma & Ba 2015): `u ← max(β₂ u, |g| + ε)`; `w ← w − η / (1 − β₁ᵗ) · m / u`.

use tch::Tensor;
use twinkle_core::call::Adamax;

use super::{Moment, Rule, add_quotient, directed, penalised};

impl Rule for Adamax {
    fn slots(&self) -> &'static [&'static str] {
        &["exp_avg", "exp_inf"]
    }

    fn update(&self, moment: &Moment, mut w: Tensor, g: Tensor, slots: &[Tensor]) {
        let [m, u] = slots else { return };
        let g = penalised(directed(g, self.maximize), &w, moment.weight_decay);
        let (mut m, mut u) = (m.shallow_clone(), u.shallow_clone());
        let [beta1, beta2] = self.betas;
        let _ = m.lerp_(&g, 1.0 - beta1);
        let _ = u.g_mul_scalar_(beta2);
        let mut size = g.abs();
        let _ = size.g_add_scalar_(self.eps);
        let larger = u.maximum(&size);
        u.copy_(&larger);
        add_quotient(&mut w, &m, &u, -moment.lr / (1.0 - beta1.powf(moment.t())));
    }
}
