//! The mixture-of-experts MLP (Shazeer et al. 2017): a router gives each row to a few of many small MLPs.
//!
//! `y = Σ p_e · expert_e(x)` over the `k` likeliest experts, in ascending order of the experts and in fp32, plus
//! `sigmoid(x · g) · shared(x)` where there is an expert for every row.

mod adapters;
mod dispatch;
mod expert_load;
mod experts;
mod pieces;
mod router;
mod trained;

use std::sync::Arc;

use tch::{Kind, Tensor};
use twinkle_core::{Error, Result};
use twinkle_torch::Frozen;

use self::dispatch::Dispatch;
pub use self::expert_load::ExpertLoad;
use self::experts::{Experts, ExpertsTape};
pub(crate) use self::router::Choice;
use self::router::Router;
use super::delta::functions::sigmoid;
use super::full;
use super::linear::{Routing, accumulate_product};
use super::load::LayerFiles;
use super::mlp::{Mlp, MlpTape};
use crate::lora::{Gradients, Projection};
use crate::torch::{TorchResult, to_floats};

/// Router, experts, and the shared expert if there is one.
#[derive(Debug)]
pub(crate) struct SparseMlp {
    router: Router,
    experts: Experts,
    shared: Option<SharedExpert>,
}

/// The expert of every row, behind a gate.
#[derive(Debug)]
struct SharedExpert {
    mlp: Mlp,
    /// `[1, H]`.
    gate: Frozen,
}

/// What backward needs of [`SparseMlp::forward`].
#[derive(Debug)]
pub(crate) struct SparseMlpTape {
    choice: Arc<Choice>,
    dispatch: Dispatch,
    experts: ExpertsTape,
    shared: Option<SharedTape>,
}

#[derive(Debug)]
struct SharedTape {
    mlp: MlpTape,
    /// The shared expert's output before the gate, `[T, H]`.
    ungated: Tensor,
    /// The gate, fp32 `[T, 1]`, before it is rounded.
    gate: Tensor,
}

impl SparseMlp {
    pub(crate) fn load(files: &mut LayerFiles) -> Result<Self> {
        let Some(moe) = files.config.moe.clone() else {
            return Err(Error::internal("a layer has experts and the model has none"));
        };
        let shared = if moe.shared_intermediate_size.is_some() {
            let projections = [Projection::SharedGate, Projection::SharedUp, Projection::SharedDown];
            let gate = files.take("mlp.shared_expert_gate.weight", &[1, files.config.hidden_size])?;
            Some(SharedExpert { mlp: Mlp::load(files, projections, false)?, gate })
        } else {
            None
        };
        Ok(Self { router: Router::load(files, &moe)?, experts: Experts::load(files, &moe)?, shared })
    }

    /// The output for normed rows `x`, `[T, H]`.
    pub(crate) fn forward(&self, x: &Tensor, routing: &Routing) -> TorchResult<(Tensor, SparseMlpTape)> {
        let choice = Arc::new(self.router.forward(x, routing)?);
        let dispatch = Dispatch::new(&choice, x.kind(), x.device())?;
        let (slots, experts) = self.experts.forward(x, &dispatch, routing)?;
        let Some(shared) = &self.shared else {
            let y = dispatch.sum(&slots, true, &[])?;
            return Ok((y, SparseMlpTape { choice, dispatch, experts, shared: None }));
        };
        let (gated, tape) = shared.forward(x, routing)?;
        let y = dispatch.sum(&slots, true, &[&gated])?;
        Ok((y, SparseMlpTape { choice, dispatch, experts, shared: Some(tape) }))
    }

    /// The gradient of `x`, given that of the output.
    pub(crate) fn backward(
        &self,
        x: &Tensor,
        dy: &Tensor,
        tape: SparseMlpTape,
        routing: &Routing,
        gradients: &mut [&mut Gradients],
    ) -> TorchResult<Tensor> {
        let SparseMlpTape { choice, dispatch, experts, shared } = tape;
        let d_outputs = dispatch.gather_weighted(dy)?;
        let (d_inputs, products) = self.experts.backward(x, &d_outputs, experts, &dispatch, routing, gradients)?;
        drop(d_outputs);
        let by_slot = to_floats(&products)?;
        let products: Vec<f32> = dispatch.slots_of.iter().map(|slot| by_slot[*slot]).collect();
        let from_router = self.router.backward(&choice, &products, x, routing, gradients)?;
        let from_shared = match (&self.shared, shared) {
            (Some(shared), Some(tape)) => Some(shared.backward(x, dy, tape, routing, gradients)?),
            _ => None,
        };
        let extra: Vec<&Tensor> = std::iter::once(&from_router).chain(&from_shared).collect();
        dispatch.sum(&d_inputs, false, &extra)
    }
}

impl SparseMlpTape {
    /// The experts of each row.
    pub(crate) fn choice(&self) -> &Arc<Choice> {
        &self.choice
    }
}

impl SharedExpert {
    fn forward(&self, x: &Tensor, routing: &Routing) -> TorchResult<(Tensor, SharedTape)> {
        let (ungated, mlp) = self.mlp.forward(x, routing)?;
        // One number per row: a sum, not a product of matrices whose bits would depend on the number of rows.
        let logits = self.gate_of(x)?.f_sum_dim_intlist(-1_i64, true, Kind::Float)?.f_to_kind(x.kind())?;
        let gate = sigmoid(&logits)?;
        let gated = ungated.f_mul(&gate.f_to_kind(x.kind())?)?;
        Ok((gated, SharedTape { mlp, ungated, gate }))
    }

    fn backward(
        &self,
        x: &Tensor,
        dy: &Tensor,
        tape: SharedTape,
        routing: &Routing,
        gradients: &mut [&mut Gradients],
    ) -> TorchResult<Tensor> {
        let SharedTape { mlp, ungated, gate } = tape;
        let d_ungated = dy.f_mul(&gate.f_to_kind(dy.kind())?)?;
        let dx = self.mlp.backward(x, &d_ungated, mlp, routing, gradients)?;
        let d_gate = dy.f_to_kind(Kind::Float)?.f_mul(&ungated.f_to_kind(Kind::Float)?)?.f_sum_dim_intlist(
            -1_i64,
            true,
            Kind::Float,
        )?;
        // σ'(z) = σ(z) (1 − σ(z))
        let slope = gate.f_mul(&gate.f_neg()?.f_add_scalar(1.0)?)?;
        let d_logits = d_gate.f_mul(&slope)?;
        full::each(routing, gradients, |rows, sums| {
            let Some(mut sum) = sums.weight(self.gate.tensor())? else { return Ok(()) };
            accumulate_product(&mut sum, &rows.of(&d_logits)?, &rows.of(x)?)
        })?;
        let through_gate = self.gate.tensor().f_to_kind(Kind::Float)?.f_mul(&d_logits)?.f_to_kind(dx.kind())?;
        dx.shallow_clone().f_add_(&through_gate)
    }

    /// `x ⊙ g`, fp32 `[T, H]`.
    fn gate_of(&self, x: &Tensor) -> TorchResult<Tensor> {
        x.f_to_kind(Kind::Float)?.f_mul(&self.gate.tensor().f_to_kind(Kind::Float)?)
    }
}
