//! What computes: the seam between a run's bookkeeping and the device.

use tch::{Kind, Tensor};
use twinkle_core::call::{AdamParams, ForwardBackwardOutcome};
use twinkle_core::{Error, Result};
use twinkle_nn::BaseModel;

use crate::batch::Example;
use crate::losses::Loss;
use crate::run::Run;
use crate::step;

/// Computes what changes a run's tensors.
///
/// The same run, input and base model give the same bits, every time: a lost run is rebuilt by computing again. An error
/// leaves the run as it was. A panic need not: the engine throws the run away then.
pub trait Backend: Send + Sync + 'static {
    /// Whether the device works. Asked before an engine that follows a lost one takes work.
    fn probe(&self, base: &BaseModel) -> Result<()>;

    /// Loss and logprobs of every example; with `backward`, adds the gradient of their sum to the run's.
    fn forward_backward(
        &self,
        run: &mut Run,
        base: &BaseModel,
        batch: Batch<'_>,
        backward: bool,
    ) -> Result<ForwardBackwardOutcome>;

    /// One optimizer step that consumes the accumulated gradients. Returns the gradient norm before clipping.
    fn optimizer_step(&self, run: &mut Run, settings: &AdamParams) -> Result<f64>;
}

/// The examples of one operation.
#[derive(Clone, Copy)]
pub struct Batch<'a> {
    /// Checked examples, in the order of the data.
    pub examples: &'a [Example],
    /// What is computed of each.
    pub loss: &'a dyn Loss,
    /// Most packed rows in one pass.
    pub rows_per_pass: usize,
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

    fn forward_backward(
        &self,
        run: &mut Run,
        base: &BaseModel,
        batch: Batch<'_>,
        backward: bool,
    ) -> Result<ForwardBackwardOutcome> {
        step::forward_backward(run, base, batch.examples, batch.loss, backward, batch.rows_per_pass)
    }

    fn optimizer_step(&self, run: &mut Run, settings: &AdamParams) -> Result<f64> {
        run.optimizer_step(settings)
    }
}
