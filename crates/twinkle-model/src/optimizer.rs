//! `AdamW` (Loshchilov & Hutter 2019) with the arithmetic of `torch.optim.AdamW`, over one flat vector.
//!
//! All tensors are fp32 `[P]`. Per step, with `t` counted from 1:
//! `g ← g · min(1, c / (‖g‖₂ + 1e-6))` if `c > 0`; `θ ← θ (1 − η λ)`; `m ← β₁ m + (1 − β₁) g`;
//! `v ← β₂ v + (1 − β₂) g²`; `θ ← θ − η / (1 − β₁ᵗ) · m / (√v / √(1 − β₂ᵗ) + ε)`.

use tch::{Kind, Tensor};
use twinkle_core::call::AdamParams;
use twinkle_core::{Error, Result};

/// First and second moments and the step count of one run.
#[derive(Debug)]
pub struct AdamState {
    /// First moment, fp32 `[P]`.
    pub exp_avg: Tensor,
    /// Second moment, fp32 `[P]`.
    pub exp_avg_sq: Tensor,
    /// Steps taken.
    pub steps: u64,
}

impl AdamState {
    /// A fresh optimizer for these parameters.
    #[must_use]
    pub fn fresh(parameters: &Tensor) -> Self {
        Self { exp_avg: parameters.zeros_like(), exp_avg_sq: parameters.zeros_like(), steps: 0 }
    }

    /// One step over `parameters`, consuming `gradients` (its values are scaled in place).
    ///
    /// Returns the global gradient norm before clipping. On an error nothing has changed.
    pub fn step(&mut self, parameters: &mut Tensor, gradients: &mut Tensor, adam: &AdamParams) -> Result<f64> {
        let norm = gradient_norm(gradients);
        if !norm.is_finite() {
            return Err(Error::invalid("the accumulated gradient is not finite; the step was not taken")
                .hint("lower the learning rate or check weights and advantages; the gradients are still accumulated"));
        }
        if adam.grad_clip_norm > 0.0 {
            let factor = adam.grad_clip_norm / (norm + 1e-6);
            if factor < 1.0 {
                let _ = gradients.g_mul_scalar_(factor);
            }
        }
        self.steps += 1;
        let exponent = self.steps as f64;
        let bias_correction1 = 1.0 - adam.beta1.powf(exponent);
        let bias_correction2 = 1.0 - adam.beta2.powf(exponent);

        if adam.weight_decay > 0.0 {
            let _ = parameters.g_mul_scalar_(1.0 - adam.learning_rate * adam.weight_decay);
        }
        let _ = self.exp_avg.lerp_(gradients, 1.0 - adam.beta1);
        let mut squares = gradients.square();
        let _ = squares.g_mul_scalar_(1.0 - adam.beta2);
        let _ = self.exp_avg_sq.g_mul_scalar_(adam.beta2);
        let _ = self.exp_avg_sq.g_add_(&squares);

        let mut denominator = self.exp_avg_sq.sqrt();
        let _ = denominator.g_div_scalar_(bias_correction2.sqrt());
        let _ = denominator.g_add_scalar_(adam.eps);
        let mut update = self.exp_avg.g_div(&denominator);
        let _ = update.g_mul_scalar_(adam.learning_rate / bias_correction1);
        let _ = parameters.g_sub_(&update);
        Ok(norm)
    }
}

/// The Euclidean norm, summed in fp64.
fn gradient_norm(gradients: &Tensor) -> f64 {
    gradients.square().sum(Kind::Double).double_value(&[]).sqrt()
}

/// Checks the settings of a step.
pub fn validate(adam: &AdamParams) -> Result<()> {
    let check = |name: &str, value: f64, allowed: bool, range: &str| {
        if allowed && value.is_finite() {
            return Ok(());
        }
        Err(Error::invalid(format!("`{name}` is {value}, but must be {range}")))
    };
    check("learning_rate", adam.learning_rate, adam.learning_rate >= 0.0, "a finite number of at least 0")?;
    check("beta1", adam.beta1, (0.0..1.0).contains(&adam.beta1), "in [0, 1)")?;
    check("beta2", adam.beta2, (0.0..1.0).contains(&adam.beta2), "in [0, 1)")?;
    check("eps", adam.eps, adam.eps > 0.0, "a finite number above 0")?;
    check("weight_decay", adam.weight_decay, adam.weight_decay >= 0.0, "a finite number of at least 0")?;
    check(
        "grad_clip_norm",
        adam.grad_clip_norm,
        adam.grad_clip_norm >= 0.0,
        "a finite number of at least 0 (0 turns clipping off)",
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_first_step_moves_against_the_sign_of_the_gradient_by_the_learning_rate() {
        let mut parameters = Tensor::from_slice(&[1.0_f32, 1.0, 1.0]);
        let mut gradients = Tensor::from_slice(&[0.5_f32, -3.0, 0.0]);
        let mut adam = AdamState::fresh(&parameters);
        let settings = AdamParams { learning_rate: 0.1, ..AdamParams::default() };
        let norm = adam.step(&mut parameters, &mut gradients, &settings).unwrap();
        assert!((norm - 9.25_f64.sqrt()).abs() < 1e-9);
        let moved = Vec::<f32>::try_from(&parameters).unwrap();
        for (value, expected) in moved.iter().zip([0.9, 1.1, 1.0]) {
            assert!((value - expected).abs() < 1e-6, "{moved:?}");
        }
    }

    #[test]
    fn a_step_without_gradients_on_fresh_state_moves_nothing() {
        let mut parameters = Tensor::from_slice(&[1.0_f32, -2.0]);
        let mut gradients = Tensor::zeros_like(&parameters);
        let mut adam = AdamState::fresh(&parameters);
        adam.step(&mut parameters, &mut gradients, &AdamParams::default()).unwrap();
        assert_eq!(Vec::<f32>::try_from(&parameters).unwrap(), [1.0, -2.0]);
        assert_eq!(adam.steps, 1);
    }

    #[test]
    fn a_gradient_that_is_not_finite_changes_nothing() {
        let mut parameters = Tensor::from_slice(&[1.0_f32]);
        let mut gradients = Tensor::from_slice(&[f32::NAN]);
        let mut adam = AdamState::fresh(&parameters);
        assert!(adam.step(&mut parameters, &mut gradients, &AdamParams::default()).is_err());
        assert_eq!(Vec::<f32>::try_from(&parameters).unwrap(), [1.0]);
        assert_eq!(adam.steps, 0);
    }

    #[test]
    fn settings_out_of_range_are_named() {
        let error = validate(&AdamParams { learning_rate: f64::NAN, ..AdamParams::default() }).unwrap_err();
        assert!(error.to_string().contains("`learning_rate` is NaN"), "{error}");
        assert!(validate(&AdamParams { beta2: 1.0, ..AdamParams::default() }).is_err());
        assert!(validate(&AdamParams { learning_rate: 0.0, ..AdamParams::default() }).is_ok());
    }
}
