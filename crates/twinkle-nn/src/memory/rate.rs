//! How fast this processor is at what a model does most: products with matrices.

use std::time::Duration;

use tch::{Device, Kind, TchError, Tensor};
use twinkle_core::{Error, Result};

use super::{CostModel, Recompute};
use crate::layers::native::{self, Ending};

/// Rows of the products that are timed: a pass of a few sequences.
const ROWS: i64 = 512;
/// How long products are timed for each number format.
const PATIENCE: Duration = Duration::from_millis(400);

/// What training is assumed to reach of the speed of its matrix products alone; a small model may stay far below it.
pub const SHARE_OF_PRODUCTS: f64 = 0.6;

/// What the processor does in one number format.
#[derive(Clone, Copy, Debug)]
pub struct Rate {
    /// The format.
    pub kind: Kind,
    /// Floating-point operations per second in matrix products of many rows.
    pub products: f64,
    /// Bytes per second of weights in products of one row.
    pub bandwidth: f64,
}

impl Rate {
    /// Times products of the sizes that a model multiplies, in what multiplies them in training; takes about a second.
    pub fn measure(kind: Kind, cost: &CostModel) -> Result<Self> {
        tch::no_grad(|| Self::time(kind, cost))
            .map_err(|error| Error::internal(format!("products could not be timed: {error}")))
    }

    fn time(kind: Kind, cost: &CostModel) -> Result<Self, TchError> {
        let hidden = cost.config().hidden_size as i64;
        let wide = (cost.config().intermediate_size as i64).max(2 * hidden);
        let random = |rows, columns| Tensor::f_randn([rows, columns], (Kind::Float, Device::Cpu))?.f_to_kind(kind);
        let (rows, weight) = (random(ROWS, hidden)?, random(wide, hidden)?);
        let products = repeat(|| product(&rows, &weight).map(drop))?;
        // Many matrices in turn, so that none stays in the processor's cache.
        let size = hidden * wide * kind.elt_size_in_bytes() as i64;
        let count = ((256 << 20) / size).max(2);
        let weights = (0..count).map(|_| random(wide, hidden)).collect::<Result<Vec<_>, _>>()?;
        let row = rows.f_narrow(0, 0, 1)?;
        let mut next = weights.iter().cycle();
        let single = repeat(|| next.next().map_or(Ok(()), |weight| product(&row, weight).map(drop)))?;
        let operations = 2.0 * ROWS as f64 * hidden as f64 * wide as f64;
        Ok(Self { kind, products: operations / products.as_secs_f64(), bandwidth: size as f64 / single.as_secs_f64() })
    }

    /// Tokens per second of training, on average over sequences of `length` tokens, were nothing but products computed.
    #[must_use]
    pub fn training_of_products_alone(&self, cost: &CostModel, length: usize) -> f64 {
        self.products / cost.training_operations(length, Recompute::NOTHING).total()
    }

    /// Tokens per second of training as they are expected.
    #[must_use]
    pub fn training(&self, cost: &CostModel, length: usize) -> f64 {
        self.training_of_products_alone(cost, length) * SHARE_OF_PRODUCTS
    }

    /// Tokens per second of one decoded sequence alone, for which every weight is read once for each token.
    #[must_use]
    pub fn decoding_alone(&self, cost: &CostModel) -> f64 {
        self.bandwidth / cost.weight_bytes() as f64
    }
}

/// `x · weightᵀ`, as the layers compute it.
fn product(x: &Tensor, weight: &Tensor) -> Result<Tensor, TchError> {
    let matrix = weight.f_tr()?;
    if native::multiplies(x) {
        return native::product(&[(x, &matrix)], &[], Ending::default());
    }
    x.f_mm(&matrix)
}

/// The shortest of the times that `work` takes, within the patience.
#[expect(clippy::disallowed_types, reason = "real time is what is measured")]
fn repeat(mut work: impl FnMut() -> Result<(), TchError>) -> Result<Duration, TchError> {
    let mut best = Duration::MAX;
    // The first one also wakes threads up.
    work()?;
    let began = std::time::Instant::now();
    while best == Duration::MAX || began.elapsed() < PATIENCE {
        let start = std::time::Instant::now();
        work()?;
        best = best.min(start.elapsed());
    }
    Ok(best)
}
