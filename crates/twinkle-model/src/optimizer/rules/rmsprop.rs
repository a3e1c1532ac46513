//! `RMSprop` (Hinton 2012): `s ← α s + (1 − α) g²`; `w ← w − η g / (√s + ε)`. Centered (Graves 2013) the root is of
//! `s − ḡ²`; with momentum `b ← μ b + g / (√s + ε)` and `w ← w − η b`.

use tch::Tensor;
use twinkle_core::call::RmsProp;

use super::{Moment, Rule, add_quotient, add_scaled, add_square, directed, penalised};

impl Rule for RmsProp {
    fn slots(&self) -> &'static [&'static str] {
        match (self.centered, self.momentum > 0.0) {
            (false, false) => &["square_avg"],
            (true, false) => &["square_avg", "grad_avg"],
            (false, true) => &["square_avg", "momentum_buffer"],
            (true, true) => &["square_avg", "grad_avg", "momentum_buffer"],
        }
    }

    fn update(&self, moment: &Moment, mut w: Tensor, g: Tensor, slots: &[Tensor]) {
        let [squares, rest @ ..] = slots else { return };
        let g = penalised(directed(g, self.maximize), &w, moment.weight_decay);
        let mut squares = squares.shallow_clone();
        let _ = squares.g_mul_scalar_(self.alpha);
        add_square(&mut squares, &g, 1.0 - self.alpha);
        let mut deviation = match rest {
            [mean, ..] if self.centered => {
                let mut mean = mean.shallow_clone();
                let _ = mean.lerp_(&g, 1.0 - self.alpha);
                let mut variance = squares.copy();
                add_square(&mut variance, &mean, -1.0);
                variance.sqrt()
            }
            _ => squares.sqrt(),
        };
        let _ = deviation.g_add_scalar_(self.eps);
        match rest.last() {
            Some(buffer) if self.momentum > 0.0 => {
                let mut buffer = buffer.shallow_clone();
                let _ = buffer.g_mul_scalar_(self.momentum);
                add_quotient(&mut buffer, &g, &deviation, 1.0);
                add_scaled(&mut w, &buffer, -moment.lr);
            }
            _ => add_quotient(&mut w, &g, &deviation, -moment.lr),
        }
    }
}
