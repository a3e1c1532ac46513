//! `NAdam` (Dozat 2016): Adam whose momentum `μₜ = β₁ (1 − 0.96^(t ψ) / 2)` looks one step ahead.

use tch::Tensor;
use twinkle_core::call::NAdam;

use super::{Moment, Rule, add_quotient, advance_moments, decayed, directed};

fn mu(nadam: &NAdam, t: f64) -> f64 {
    nadam.betas[0] * (1.0 - 0.5 * 0.96_f64.powf(t * nadam.momentum_decay))
}

impl Rule for NAdam {
    fn slots(&self) -> &'static [&'static str] {
        &["exp_avg", "exp_avg_sq"]
    }

    fn momentum_product(&self, t: u64, before: f32) -> f32 {
        // torch keeps it in fp32.
        before * mu(self, t as f64) as f32
    }

    fn update(&self, moment: &Moment, mut w: Tensor, g: Tensor, slots: &[Tensor]) {
        let [m, v] = slots else { return };
        let g = decayed(directed(g, self.maximize), &mut w, moment, self.decoupled_weight_decay);
        let (mut m, mut v) = (m.shallow_clone(), v.shallow_clone());
        advance_moments(&mut m, &mut v, &g, self.betas);
        let (mu, mu_next) = (mu(self, moment.t()), mu(self, moment.t() + 1.0));
        let mu_product = f64::from(moment.mu_product);
        let mut denominator = v.g_div_scalar(1.0 - self.betas[1].powf(moment.t())).sqrt();
        let _ = denominator.g_add_scalar_(self.eps);
        add_quotient(&mut w, &g, &denominator, -moment.lr * (1.0 - mu) / (1.0 - mu_product));
        add_quotient(&mut w, &m, &denominator, (-moment.lr * mu_next) / (1.0 - mu_product * mu_next));
    }
}
