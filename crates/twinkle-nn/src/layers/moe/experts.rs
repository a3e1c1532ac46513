//! The experts: many small gated MLPs, each of which works on its own range of slots.

use tch::{Kind, TchError, Tensor};
use twinkle_core::Result;
use twinkle_torch::Frozen;

use super::adapters::{AdaptedSlots, SlotShrunk};
use super::dispatch::Dispatch;
use super::trained::TrainedSlots;
use crate::config::MoeConfig;
use crate::layers::linear::{Routing, multiply_rows};
use crate::layers::load::LayerFiles;
use crate::layers::mlp::{activate, differentiate};
use crate::layers::native::{self, LowRank};
use crate::lora::{Gradients, Projection, Site};
use crate::torch::{TorchResult, device_error};

/// Rows per tile of an expert's products: an expert has few rows, and those that fill up the last tile are wasted.
const EXPERT_TILE: i64 = 64;

/// The experts of a layer.
#[derive(Debug)]
pub(super) struct Experts {
    experts: Vec<Expert>,
    /// Which layer, to find the adapters.
    layer: usize,
}

/// The weights of one expert.
#[derive(Debug)]
struct Expert {
    /// `[I_m, H]`.
    gate: Frozen,
    /// `[I_m, H]`.
    up: Frozen,
    /// `[H, I_m]`.
    down: Frozen,
}

/// Rows, one per slot, that every expert multiplies by one of its matrices.
struct Term<'a> {
    rows: &'a Tensor,
    projection: Projection,
    /// Whether by `Wᵀ`, as on the way forward.
    is_turned: bool,
}

/// One of several linear maps of the same rows, on the way back.
#[derive(Clone, Copy)]
struct Branch<'a> {
    projection: Projection,
    /// The gradient of its output.
    dy: &'a Tensor,
    /// What its adapters computed on the way forward.
    shrunk: &'a SlotShrunk,
}

/// What all products of a pass share.
struct SlotPass<'a> {
    dispatch: &'a Dispatch,
    routing: &'a Routing<'a>,
    adapted: &'a AdaptedSlots,
}

/// What backward needs of [`Experts::forward`].
#[derive(Debug)]
pub(super) struct ExpertsTape {
    /// `gate(x)` and `up(x)`, `[S, I_m]`.
    gate: Tensor,
    up: Tensor,
    adapted: AdaptedSlots,
    gate_shrunk: SlotShrunk,
    up_shrunk: SlotShrunk,
    down_shrunk: SlotShrunk,
}

impl Experts {
    /// Loads either layout of the files: one tensor per expert, or one for all of them with the gate's rows before the
    /// up projection's. Both are used where they lie.
    pub(super) fn load(files: &mut LayerFiles, moe: &MoeConfig) -> Result<Self> {
        let (hidden, wide) = (files.config.hidden_size, moe.intermediate_size);
        let mut experts = Vec::with_capacity(moe.expert_count);
        if files.has("mlp.experts.gate_up_proj") {
            let gate_up = files.take("mlp.experts.gate_up_proj", &[moe.expert_count, 2 * wide, hidden])?;
            let down = files.take("mlp.experts.down_proj", &[moe.expert_count, hidden, wide])?;
            for expert in 0..moe.expert_count as i64 {
                experts.push(Expert::of_fused(&gate_up, &down, expert, wide as i64).map_err(device_error)?);
            }
        } else {
            for expert in 0..moe.expert_count {
                let mut take = |name: &str, shape: [usize; 2]| {
                    files.take(&format!("mlp.experts.{expert}.{name}_proj.weight"), &shape)
                };
                experts.push(Expert {
                    gate: take("gate", [wide, hidden])?,
                    up: take("up", [wide, hidden])?,
                    down: take("down", [hidden, wide])?,
                });
            }
        }
        Ok(Self { experts, layer: files.index })
    }

    /// Each slot's output, `[S, H]`, not weighted yet.
    pub(super) fn forward(
        &self,
        x: &Tensor,
        dispatch: &Dispatch,
        routing: &Routing,
    ) -> TorchResult<(Tensor, ExpertsTape)> {
        let adapted = AdaptedSlots::new(self.layer, dispatch, routing, x)?;
        let x = dispatch.gather(x)?;
        let pass = SlotPass { dispatch, routing, adapted: &adapted };
        let (gate, gate_shrunk) = self.project(Projection::ExpertGate, &x, &pass)?;
        let (up, up_shrunk) = self.project(Projection::ExpertUp, &x, &pass)?;
        drop(x);
        let activated = activate(&gate, &up)?;
        let (y, down_shrunk) = self.project(Projection::ExpertDown, &activated, &pass)?;
        Ok((y, ExpertsTape { gate, up, adapted, gate_shrunk, up_shrunk, down_shrunk }))
    }

    /// The gradient of each slot's input, `[S, H]`, given `d_slots`, that of its output, the slot's weight included;
    /// and per slot the product of its weight and its weight's gradient, fp32 `[S]`.
    pub(super) fn backward(
        &self,
        x: &Tensor,
        d_slots: &Tensor,
        tape: ExpertsTape,
        dispatch: &Dispatch,
        routing: &Routing,
        gradients: &mut [&mut Gradients],
    ) -> TorchResult<(Tensor, Tensor)> {
        let ExpertsTape { gate, up, adapted, gate_shrunk, up_shrunk, down_shrunk } = tape;
        let pass = SlotPass { dispatch, routing, adapted: &adapted };
        let trained = TrainedSlots::new(dispatch, routing, gradients)?;
        let activated = activate(&gate, &up)?;
        let down = Branch { projection: Projection::ExpertDown, dy: d_slots, shrunk: &down_shrunk };
        self.train(&trained, &[down], &activated, gradients)?;
        let d_activated = self.project_backward(&[down], &activated, &pass, gradients)?;
        // The output is linear in `activated`, so with y = D a and dy = w g: w · ⟨g, y⟩ = ⟨dy, D a⟩ = ⟨Dᵀ dy, a⟩.
        let shares = activated.f_to_kind(Kind::Float)?.f_mul(&d_activated.f_to_kind(Kind::Float)?)?.f_sum_dim_intlist(
            -1_i64,
            false,
            Kind::Float,
        )?;
        drop(activated);
        differentiate(&gate, &up, &d_activated)?;
        drop(d_activated);
        // `gate` and `up` now hold their own gradients.
        let x = dispatch.gather(x)?;
        let branches = [
            Branch { projection: Projection::ExpertGate, dy: &gate, shrunk: &gate_shrunk },
            Branch { projection: Projection::ExpertUp, dy: &up, shrunk: &up_shrunk },
        ];
        self.train(&trained, &branches, &x, gradients)?;
        Ok((self.project_backward(&branches, &x, &pass, gradients)?, shares))
    }

    /// One of the experts' linear maps with its adapters, one row per slot.
    fn project(&self, projection: Projection, x: &Tensor, pass: &SlotPass) -> TorchResult<(Tensor, SlotShrunk)> {
        let site = Site::Layer(self.layer, projection);
        let term = Term { rows: x, projection, is_turned: true };
        match pass.adapted {
            AdaptedSlots::Together(slots) => {
                let (low, shrunk) = slots.shrink(site, x, pass.routing)?;
                Ok((self.multiply(&[term], low, pass)?, shrunk))
            }
            AdaptedSlots::Apart(slots) => {
                let y = self.multiply(&[term], Vec::new(), pass)?;
                let shrunk = slots.add(site, x, &y, pass.routing)?;
                Ok((y, shrunk))
            }
        }
    }

    /// The gradient of the slots' rows `x` that these linear maps have read; adds those of their adapters.
    fn project_backward(
        &self,
        branches: &[Branch],
        x: &Tensor,
        pass: &SlotPass,
        gradients: &mut [&mut Gradients],
    ) -> TorchResult<Tensor> {
        let terms: Vec<Term> = branches
            .iter()
            .map(|branch| Term { rows: branch.dy, projection: branch.projection, is_turned: false })
            .collect();
        match pass.adapted {
            AdaptedSlots::Together(slots) => {
                let mut low = Vec::new();
                for Branch { projection, dy, shrunk } in branches {
                    let site = Site::Layer(self.layer, *projection);
                    low.extend(slots.backward(site, (x, *dy), shrunk, pass.routing, gradients)?);
                }
                self.multiply(&terms, low, pass)
            }
            AdaptedSlots::Apart(slots) => {
                let dx = self.multiply(&terms, Vec::new(), pass)?;
                for Branch { projection, dy, shrunk } in branches {
                    let site = Site::Layer(self.layer, *projection);
                    slots.backward(site, x, dy, &dx, shrunk, pass.routing, gradients)?;
                }
                Ok(dx)
            }
        }
    }

    /// Adds the gradients of the experts' own weights where a run trains them.
    fn train(
        &self,
        trained: &TrainedSlots,
        branches: &[Branch],
        x: &Tensor,
        gradients: &[&mut Gradients],
    ) -> TorchResult<()> {
        for Branch { projection, dy, .. } in branches {
            trained.add(|expert| self.experts[expert].matrix(*projection), (x, *dy), gradients)?;
        }
        Ok(())
    }

    /// Every expert's slots times its matrix, summed over the terms and the low-rank summands, `[S, out]`. Only our own
    /// kernels take such summands.
    fn multiply(&self, terms: &[Term], low: Vec<LowRank>, pass: &SlotPass) -> TorchResult<Tensor> {
        let mut parts = Vec::with_capacity(terms.len() * pass.dispatch.ranges.len() + low.len());
        for range in &pass.dispatch.ranges {
            for Term { rows, projection, is_turned } in terms {
                let matrix = self.experts[range.expert].matrix(*projection);
                let right = if *is_turned { matrix.f_tr()? } else { matrix.shallow_clone() };
                parts.push(LowRank { rows: range.slots(), left: range.of(rows)?, right });
            }
        }
        let rows = pass.dispatch.row_of.len() as i64;
        let Some((first, columns)) = parts.first().map(|part| (&part.left, part.right.size()[1])) else {
            return Err(TchError::Torch("no row has an expert".to_owned()));
        };
        if native::multiplies(first) {
            parts.extend(low);
            return native::sum_of_parts(rows, &parts, None);
        }
        let y = Tensor::f_empty([rows, columns], (first.kind(), first.device()))?;
        let tile = Some(pass.routing.tile.min(EXPERT_TILE));
        for terms in parts.chunks(terms.len()) {
            for (place, part) in terms.iter().enumerate() {
                let product = multiply_rows(&part.left, &part.right, None, tile)?;
                let mut own = y.f_narrow(0, part.rows.start as i64, part.rows.len() as i64)?;
                if place == 0 {
                    own.f_copy_(&product)?;
                } else {
                    let _ = own.f_add_(&product)?;
                }
            }
        }
        Ok(y)
    }
}

impl Expert {
    fn of_fused(gate_up: &Frozen, down: &Frozen, expert: i64, wide: i64) -> TorchResult<Self> {
        let gate_up = gate_up.tensor().f_select(0, expert)?;
        Ok(Self {
            gate: Frozen::new(gate_up.f_narrow(0, 0, wide)?),
            up: Frozen::new(gate_up.f_narrow(0, wide, wide)?),
            down: Frozen::new(down.tensor().f_select(0, expert)?),
        })
    }

    /// The weight of one of the experts' projections, `[out, in]`.
    fn matrix(&self, projection: Projection) -> &Tensor {
        match projection {
            Projection::ExpertGate => self.gate.tensor(),
            Projection::ExpertUp => self.up.tensor(),
            _ => self.down.tensor(),
        }
    }
}
