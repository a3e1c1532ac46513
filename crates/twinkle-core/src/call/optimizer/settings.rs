//! The settings of every optimizer.

use serde::{Deserialize, Serialize};

/// Settings of one optimizer: public fields with defaults, of which the journal keeps every one.
macro_rules! settings {
    ($(#[$doc:meta])* $name:ident { $($(#[$field_doc:meta])* $field:ident: $kind:ty = $default:expr,)* }) => {
        $(#[$doc])*
        #[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
        #[serde(default, deny_unknown_fields)]
        pub struct $name {
            $($(#[$field_doc])* pub $field: $kind,)*
        }

        impl Default for $name {
            fn default() -> Self {
                Self { $($field: $default,)* }
            }
        }
    };
}

settings! {
    /// `AdamW` (Loshchilov & Hutter 2019): decoupled weight decay.
    AdamW {
        /// Learning rate.
        lr: f64 = 1e-3,
        /// Decay of the two moments.
        betas: [f64; 2] = [0.9, 0.999],
        /// Added to the denominator.
        eps: f64 = 1e-8,
        /// Decoupled weight decay.
        weight_decay: f64 = 1e-2,
        /// The largest second moment so far in place of the present one (Reddi et al. 2018).
        amsgrad: bool = false,
        /// Ascent instead of descent.
        maximize: bool = false,
    }
}

settings! {
    /// `Adam` (Kingma & Ba 2015): weight decay is added to the gradient unless it is decoupled.
    Adam {
        /// Learning rate.
        lr: f64 = 1e-3,
        /// Decay of the two moments.
        betas: [f64; 2] = [0.9, 0.999],
        /// Added to the denominator.
        eps: f64 = 1e-8,
        /// Weight decay.
        weight_decay: f64 = 0.0,
        /// The largest second moment so far in place of the present one (Reddi et al. 2018).
        amsgrad: bool = false,
        /// Ascent instead of descent.
        maximize: bool = false,
        /// Weight decay as in `AdamW`.
        decoupled_weight_decay: bool = false,
    }
}

settings! {
    /// `SGD`, with Polyak's or Nesterov's momentum (Sutskever et al. 2013).
    Sgd {
        /// Learning rate.
        lr: f64 = 1e-3,
        /// Momentum; 0 is none.
        momentum: f64 = 0.0,
        /// What the gradient is damped by when it joins the momentum.
        dampening: f64 = 0.0,
        /// L2 penalty.
        weight_decay: f64 = 0.0,
        /// Nesterov's momentum.
        nesterov: bool = false,
        /// Ascent instead of descent.
        maximize: bool = false,
    }
}

settings! {
    /// `Adamax` (Kingma & Ba 2015): Adam with the infinity norm.
    Adamax {
        /// Learning rate.
        lr: f64 = 2e-3,
        /// Decay of the first moment and of the norm.
        betas: [f64; 2] = [0.9, 0.999],
        /// Added to the gradient's size.
        eps: f64 = 1e-8,
        /// L2 penalty.
        weight_decay: f64 = 0.0,
        /// Ascent instead of descent.
        maximize: bool = false,
    }
}

settings! {
    /// `NAdam` (Dozat 2016): Adam with Nesterov's momentum.
    NAdam {
        /// Learning rate.
        lr: f64 = 2e-3,
        /// Decay of the two moments.
        betas: [f64; 2] = [0.9, 0.999],
        /// Added to the denominator.
        eps: f64 = 1e-8,
        /// Weight decay.
        weight_decay: f64 = 0.0,
        /// How fast the momentum approaches its final value.
        momentum_decay: f64 = 4e-3,
        /// Weight decay as in `AdamW`.
        decoupled_weight_decay: bool = false,
        /// Ascent instead of descent.
        maximize: bool = false,
    }
}

settings! {
    /// `RAdam` (Liu et al. 2020): Adam with a rectified variance.
    RAdam {
        /// Learning rate.
        lr: f64 = 1e-3,
        /// Decay of the two moments.
        betas: [f64; 2] = [0.9, 0.999],
        /// Added to the denominator.
        eps: f64 = 1e-8,
        /// Weight decay.
        weight_decay: f64 = 0.0,
        /// Weight decay as in `AdamW`.
        decoupled_weight_decay: bool = false,
        /// Ascent instead of descent.
        maximize: bool = false,
    }
}

settings! {
    /// `Adagrad` (Duchi et al. 2011).
    Adagrad {
        /// Learning rate.
        lr: f64 = 1e-2,
        /// How fast the learning rate falls.
        lr_decay: f64 = 0.0,
        /// L2 penalty.
        weight_decay: f64 = 0.0,
        /// Where the sum of squares starts.
        initial_accumulator_value: f64 = 0.0,
        /// Added to the denominator.
        eps: f64 = 1e-10,
        /// Ascent instead of descent.
        maximize: bool = false,
    }
}

settings! {
    /// `Adadelta` (Zeiler 2012).
    Adadelta {
        /// What the update is multiplied by.
        lr: f64 = 1.0,
        /// Decay of both averages.
        rho: f64 = 0.9,
        /// Added under both roots.
        eps: f64 = 1e-6,
        /// L2 penalty.
        weight_decay: f64 = 0.0,
        /// Ascent instead of descent.
        maximize: bool = false,
    }
}

settings! {
    /// `RMSprop` (Hinton 2012), centered as in Graves 2013.
    RmsProp {
        /// Learning rate.
        lr: f64 = 1e-2,
        /// Decay of the average of squares.
        alpha: f64 = 0.99,
        /// Added to the denominator.
        eps: f64 = 1e-8,
        /// L2 penalty.
        weight_decay: f64 = 0.0,
        /// Momentum; 0 is none.
        momentum: f64 = 0.0,
        /// Divides by the deviation instead of the root mean square.
        centered: bool = false,
        /// Ascent instead of descent.
        maximize: bool = false,
    }
}

settings! {
    /// `Adafactor` (Shazeer & Stern 2018): a matrix's second moments by row and by column.
    Adafactor {
        /// Largest relative step.
        lr: f64 = 1e-2,
        /// The exponent of the second moment's decay.
        beta2_decay: f64 = -0.8,
        /// Floors of the second moment (`null`: the number format's epsilon) and of a parameter's size.
        eps: (Option<f64>, f64) = (None, 1e-3),
        /// Largest root mean square of an update.
        d: f64 = 1.0,
        /// Decoupled weight decay.
        weight_decay: f64 = 0.0,
        /// Ascent instead of descent.
        maximize: bool = false,
    }
}

settings! {
    /// `Muon` (Jordan 2024): momentum made orthogonal by Newton-Schulz iterations in bf16. Only for matrices.
    Muon {
        /// Learning rate.
        lr: f64 = 1e-3,
        /// Decoupled weight decay.
        weight_decay: f64 = 0.1,
        /// Momentum.
        momentum: f64 = 0.95,
        /// Nesterov's momentum.
        nesterov: bool = true,
        /// The quintic's coefficients.
        ns_coefficients: [f64; 3] = [3.4445, -4.7750, 2.0315],
        /// Floor of the norm that is divided by.
        eps: f64 = 1e-7,
        /// Iterations.
        ns_steps: u32 = 5,
        /// How a matrix's shape changes its learning rate; `null` is `original`.
        adjust_lr_fn: Option<MuonRate> = None,
    }
}

/// How `Muon` adapts the learning rate to a matrix of `rows × columns`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum MuonRate {
    /// Times `√max(1, rows / columns)` (Jordan 2024).
    Original,
    /// Times `0.2 √max(rows, columns)`, which makes updates as large as `AdamW`'s (Liu et al. 2025).
    MatchRmsAdamw,
}
