//! `Adafactor` (Shazeer & Stern 2018): a matrix's second moments as the product of one per row and one per column.
//!
//! `ρ = min(η, 1 / √t)`, `α = max(ε₂, ‖w‖ / √n) ρ`, `V` decays by `1 − t^γ`; `U = g / √V`;
//! `w ← w (1 − η λ) − α U / max(1, ‖U‖ / (√n d))`.

use tch::{Kind, Tensor};
use twinkle_core::call::Adafactor;

use super::{Grain, Moment, Rule, add_scaled, directed};

/// A matrix has the first two, a vector the last.
const SLOTS: &[&str] = &["row_var", "col_var", "variance"];

impl Rule for Adafactor {
    fn slots(&self) -> &'static [&'static str] {
        SLOTS
    }

    fn slot_shape(&self, slot: usize, dimensions: &[i64]) -> Vec<i64> {
        let mut shape = dimensions.to_vec();
        match (slot, shape.as_mut_slice()) {
            (0, [.., _, columns]) => *columns = 1,
            (1, [.., rows, _]) => *rows = 1,
            (2, [_]) => {}
            _ => return vec![0],
        }
        shape
    }

    fn grain(&self) -> Grain {
        Grain::Matrices
    }

    fn update(&self, moment: &Moment, mut w: Tensor, g: Tensor, slots: &[Tensor]) {
        let [rows, columns, variance] = slots else { return };
        let g = directed(g, self.maximize);
        let (of_squares, of_parameters) = self.eps;
        let of_squares = of_squares.unwrap_or(f64::from(f32::EPSILON));
        let one_minus_beta2 = moment.t().powf(self.beta2_decay);
        let count = w.numel() as f64;
        let relative = moment.lr.min(1.0 / moment.t().sqrt());
        let alpha = of_parameters.max(norm(&w) / count.sqrt()) * relative;
        if moment.weight_decay != 0.0 {
            let _ = w.g_mul_scalar_(1.0 - moment.lr * moment.weight_decay);
        }
        let mut estimate = if g.dim() > 1 {
            let (mut rows, mut columns) = (rows.shallow_clone(), columns.shallow_clone());
            let squares = g.square();
            let _ = rows.lerp_(&squares.mean_dim(-1, true, Kind::Float), one_minus_beta2);
            let _ = columns.lerp_(&squares.mean_dim(-2, true, Kind::Float), one_minus_beta2);
            let mean = rows.mean_dim(-2, true, Kind::Float).clamp_min(of_squares);
            let mut estimate = rows.matmul(&columns);
            let _ = estimate.g_div_(&mean);
            estimate
        } else {
            let mut variance = variance.shallow_clone();
            let _ = variance.lerp_(&g.square(), one_minus_beta2);
            variance.copy()
        };
        let _ = estimate.clamp_min_(of_squares * of_squares);
        let mut update = estimate.rsqrt();
        let _ = update.g_mul_(&g);
        let excess = (norm(&update) / (count.sqrt() * self.d)).max(1.0);
        add_scaled(&mut w, &update, -alpha / excess);
    }
}

/// Euclid's norm of all numbers.
fn norm(x: &Tensor) -> f64 {
    x.square().sum(Kind::Double).double_value(&[]).sqrt()
}
