//! `Adagrad` (Duchi et al. 2011): `s ← s + g²`; `w ← w − η / (1 + (t − 1) γ) · g / (√s + ε)`.

use tch::Tensor;
use twinkle_core::call::Adagrad;

use super::{Moment, Rule, add_quotient, add_square, directed, penalised};

impl Rule for Adagrad {
    fn slots(&self) -> &'static [&'static str] {
        &["sum"]
    }

    fn initial_value(&self) -> f64 {
        self.initial_accumulator_value
    }

    fn update(&self, moment: &Moment, mut w: Tensor, g: Tensor, slots: &[Tensor]) {
        let [sum] = slots else { return };
        let g = penalised(directed(g, self.maximize), &w, moment.weight_decay);
        let mut sum = sum.shallow_clone();
        add_square(&mut sum, &g, 1.0);
        let mut deviation = sum.sqrt();
        let _ = deviation.g_add_scalar_(self.eps);
        add_quotient(&mut w, &g, &deviation, -moment.lr / (1.0 + (moment.t() - 1.0) * self.lr_decay));
    }
}
