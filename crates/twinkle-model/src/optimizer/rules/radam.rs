//! `RAdam` (Liu et al. 2020): Adam whose adaptive rate waits until the variance of `v` is known, and is rectified then.

use tch::Tensor;
use twinkle_core::call::RAdam;

use super::{Moment, Rule, add_scaled, advance_moments, decayed, directed};

impl Rule for RAdam {
    fn slots(&self) -> &'static [&'static str] {
        &["exp_avg", "exp_avg_sq"]
    }

    fn update(&self, moment: &Moment, mut w: Tensor, g: Tensor, slots: &[Tensor]) {
        let [m, v] = slots else { return };
        let g = decayed(directed(g, self.maximize), &mut w, moment, self.decoupled_weight_decay);
        let (mut m, mut v) = (m.shallow_clone(), v.shallow_clone());
        advance_moments(&mut m, &mut v, &g, self.betas);
        let ([beta1, beta2], step) = (self.betas, moment.t());
        let bias_correction2 = 1.0 - beta2.powf(step);
        let mut update = m.g_div_scalar(1.0 - beta1.powf(step));
        let _ = update.g_mul_scalar_(moment.lr);
        // The length of the moving average, and what it approaches.
        let rho_inf = 2.0 / (1.0 - beta2) - 1.0;
        let rho = rho_inf - 2.0 * step * beta2.powf(step) / bias_correction2;
        if rho > 5.0 {
            let rectification =
                ((rho - 4.0) * (rho - 2.0) * rho_inf / ((rho_inf - 4.0) * (rho_inf - 2.0) * rho)).sqrt();
            let mut adaptive = v.sqrt();
            let _ = adaptive.g_add_scalar_(self.eps);
            let _ = adaptive.reciprocal_();
            let _ = adaptive.g_mul_scalar_(bias_correction2.sqrt());
            let _ = update.g_mul_(&adaptive);
            let _ = update.g_mul_scalar_(rectification);
        }
        add_scaled(&mut w, &update, -1.0);
    }
}
