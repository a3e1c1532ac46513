//! `SGD`: `b ← μ b + (1 − δ) g`, the first `b` is `g`; `w ← w − η b`, or with Nesterov `w ← w − η (g + μ b)`.

use tch::Tensor;
use twinkle_core::call::Sgd;

use super::{Moment, Rule, add_scaled, directed, penalised};

impl Rule for Sgd {
    fn slots(&self) -> &'static [&'static str] {
        if self.momentum == 0.0 { &[] } else { &["momentum_buffer"] }
    }

    fn update(&self, moment: &Moment, mut w: Tensor, g: Tensor, slots: &[Tensor]) {
        let mut g = penalised(directed(g, self.maximize), &w, moment.weight_decay);
        if let ([buffer], true) = (slots, self.momentum != 0.0) {
            let mut buffer = buffer.shallow_clone();
            if moment.step == 1 {
                buffer.copy_(&g);
            } else {
                let _ = buffer.g_mul_scalar_(self.momentum);
                add_scaled(&mut buffer, &g, 1.0 - self.dampening);
            }
            g = if self.nesterov { g.g_add(&buffer.g_mul_scalar(self.momentum)) } else { buffer };
        }
        add_scaled(&mut w, &g, -moment.lr);
    }
}
