//! What computes: the seam between a run's bookkeeping and the device.

use tch::{Kind, Tensor};
use twinkle_core::call::{AdamParams, OptimizerWork};
use twinkle_core::{Error, Result};
use twinkle_nn::BaseModel;

use crate::pass::{self, Found, Participant, Way};
use crate::run::{Optimized, Run};

/// Computes what changes a run's tensors.
///
/// The same run, input and base model give the same bits, every time and in any company: a lost run is rebuilt by
/// computing again. An error of an optimizer step leaves the run as it was; a panic need not: the engine throws the run
/// away then. A pass changes the gradients of its runs only, which the engine takes back if it fails.
pub trait Backend: Send + Sync + 'static {
    /// Whether the device works. Asked before an engine that follows a lost one takes work.
    fn probe(&self, base: &BaseModel) -> Result<()>;

    /// One pass over data of several runs; on the way back, each run's gradients grow by its own. Per run and share what
    /// was found.
    fn pass(&self, base: &BaseModel, participants: &mut [Participant<'_>], way: Way) -> Result<Vec<Vec<Found>>> {
        pass::compute(base, participants, way)
    }

    /// One step of `AdamW` that consumes the accumulated gradients. Returns the gradient norm before clipping.
    fn optimizer_step(&self, run: &mut Run, settings: &AdamParams) -> Result<f64>;

    /// Works on the accumulated gradients with the run's own optimizer.
    fn optimize(&self, run: &mut Run, work: &OptimizerWork) -> Result<Optimized> {
        run.optimize(work)
    }
}

/// The YAML's `backend: transformers`: one device, libtorch.
#[derive(Clone, Copy, Debug, Default)]
pub struct Transformers;

impl Backend for Transformers {
    fn probe(&self, base: &BaseModel) -> Result<()> {
        let device = base.device();
        let compute = || Tensor::f_ones([64], (Kind::Float, device))?.f_sum(Kind::Float)?.f_double_value(&[]);
        match compute() {
            Ok(64.0) => Ok(()),
            Ok(sum) => Err(Error::internal(format!("the device {device:?} adds 64 ones to {sum}"))),
            Err(error) => Err(Error::internal(format!("the device {device:?} does not work: {error}"))),
        }
    }

    fn optimizer_step(&self, run: &mut Run, settings: &AdamParams) -> Result<f64> {
        run.optimizer_step(settings)
    }
}
