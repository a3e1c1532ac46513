//! A sequence as one vector: its last row, of length 1, as embedding models are read.
//!
//! Computed on the host, sequence by sequence, so that no bit depends on what else is in the pack.

use tch::{Kind, Tensor};
use twinkle_core::{Error, Result};

use crate::model::BaseModel;
use crate::pack::Pack;
use crate::torch::{TorchResult, device_error, to_floats};

/// Rows shorter than this are divided by it.
const SHORTEST: f64 = 1e-12;

impl BaseModel {
    /// Of each sequence the last row of `hidden` (`[T, H]`, final-normed) divided by its length: `e = x / ‖x‖`.
    pub fn embeddings(&self, hidden: &Tensor, pack: &Pack) -> Result<Vec<Vec<f32>>> {
        self.check_rows(hidden, pack)?;
        let rows = tch::no_grad(|| last_rows(hidden, pack)).map_err(device_error)?;
        Ok(rows.iter().map(|row| unit(row).0.iter().map(|value| *value as f32).collect()).collect())
    }

    /// The gradient of `hidden`, `[T, H]` in the model's dtype, of a loss with these derivatives by each embedding:
    /// `dx = (g − e (e · g)) / ‖x‖` in each last row, 0 in all others.
    pub fn embeddings_backward(&self, hidden: &Tensor, pack: &Pack, derivatives: &[&[f32]]) -> Result<Tensor> {
        self.check_rows(hidden, pack)?;
        let width = self.config.hidden_size;
        if derivatives.len() != pack.segments.len() || derivatives.iter().any(|own| own.len() != width) {
            return Err(Error::internal("the derivatives do not fit the embeddings"));
        }
        let compute = || -> TorchResult<Tensor> {
            let d_hidden = Tensor::f_zeros(hidden.size(), (self.kind, self.device))?;
            for ((span, row), derivative) in pack.spans().iter().zip(last_rows(hidden, pack)?).zip(derivatives) {
                let (unit, length) = unit(&row);
                let along: f64 = unit.iter().zip(*derivative).map(|(e, g)| e * f64::from(*g)).sum();
                let d_row = unit.iter().zip(*derivative).map(|(e, g)| ((f64::from(*g) - e * along) / length) as f32);
                let d_row = Tensor::f_from_slice(&d_row.collect::<Vec<f32>>())?.f_to_kind(self.kind)?;
                let last = span.rows().end as i64 - 1;
                d_hidden.f_select(0, last)?.f_copy_(&d_row.f_to_device(self.device)?)?;
            }
            Ok(d_hidden)
        };
        tch::no_grad(compute).map_err(device_error)
    }

    fn check_rows(&self, hidden: &Tensor, pack: &Pack) -> Result<()> {
        if hidden.size() == [pack.len() as i64, self.config.hidden_size as i64] {
            return Ok(());
        }
        Err(Error::internal(format!("hidden rows {:?} for {} tokens", hidden.size(), pack.len())))
    }
}

fn last_rows(hidden: &Tensor, pack: &Pack) -> TorchResult<Vec<Vec<f32>>> {
    let last = |end: usize| to_floats(&hidden.f_select(0, end as i64 - 1)?.f_to_kind(Kind::Float)?);
    pack.spans().iter().map(|span| last(span.rows().end)).collect()
}

/// The row divided by its length, and that length.
fn unit(row: &[f32]) -> (Vec<f64>, f64) {
    let square: f64 = row.iter().map(|value| f64::from(*value) * f64::from(*value)).sum();
    let length = square.sqrt().max(SHORTEST);
    (row.iter().map(|value| f64::from(*value) / length).collect(), length)
}
