//! The experts: many small gated MLPs, each of which works on its own range of slots.

use tch::{Kind, TchError, Tensor};
use twinkle_core::Result;
use twinkle_torch::Frozen;

use super::adapters::{AdaptedSlots, SlotShrunk};
use super::dispatch::Dispatch;
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

/// Rows, one per slot, and the matrix `[in, out]` that an expert multiplies them by.
type Term<'a> = (&'a Tensor, fn(&Expert) -> TorchResult<Tensor>);

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
        let adapted = AdaptedSlots::new(self.layer, dispatch, routing, x.device())?;
        let x = dispatch.gather(x)?;
        let gate = self.multiply(&[(&x, |expert| expert.gate.tensor().f_tr())], dispatch, routing)?;
        let gate_shrunk = adapted.add(self.site(Projection::ExpertGate), &x, &gate, routing)?;
        let up = self.multiply(&[(&x, |expert| expert.up.tensor().f_tr())], dispatch, routing)?;
        let up_shrunk = adapted.add(self.site(Projection::ExpertUp), &x, &up, routing)?;
        drop(x);
        let activated = activate(&gate, &up)?;
        let y = self.multiply(&[(&activated, |expert| expert.down.tensor().f_tr())], dispatch, routing)?;
        let down_shrunk = adapted.add(self.site(Projection::ExpertDown), &activated, &y, routing)?;
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
        let activated = activate(&gate, &up)?;
        let d_activated =
            self.multiply(&[(d_slots, |expert| Ok(expert.down.tensor().shallow_clone()))], dispatch, routing)?;
        let site = self.site(Projection::ExpertDown);
        adapted.backward(site, &activated, d_slots, &d_activated, &down_shrunk, routing, gradients)?;
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
        let dx = self.multiply(
            &[
                (&gate, |expert| Ok(expert.gate.tensor().shallow_clone())),
                (&up, |expert| Ok(expert.up.tensor().shallow_clone())),
            ],
            dispatch,
            routing,
        )?;
        let x = dispatch.gather(x)?;
        let site = self.site(Projection::ExpertGate);
        adapted.backward(site, &x, &gate, &dx, &gate_shrunk, routing, gradients)?;
        let site = self.site(Projection::ExpertUp);
        adapted.backward(site, &x, &up, &dx, &up_shrunk, routing, gradients)?;
        Ok((dx, shares))
    }

    /// Every expert's slots times its matrix `[in, out]`, summed over the terms, `[S, out]`.
    fn multiply(&self, terms: &[Term], dispatch: &Dispatch, routing: &Routing) -> TorchResult<Tensor> {
        let mut parts = Vec::with_capacity(terms.len() * dispatch.ranges.len());
        for range in &dispatch.ranges {
            let rows = range.start as usize..(range.start + range.length) as usize;
            for (x, matrix) in terms {
                let (left, right) = (range.of(x)?, matrix(&self.experts[range.expert])?);
                parts.push(LowRank { rows: rows.clone(), left, right });
            }
        }
        let rows = dispatch.row_of.len() as i64;
        let Some((first, columns)) = parts.first().map(|part| (&part.left, part.right.size()[1])) else {
            return Err(TchError::Torch("no row has an expert".to_owned()));
        };
        if native::multiplies(first) {
            return native::sum_of_parts(rows, columns, &parts);
        }
        let y = Tensor::f_empty([rows, columns], (first.kind(), first.device()))?;
        let tile = Some(routing.tile.min(EXPERT_TILE));
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

    fn site(&self, projection: Projection) -> Site {
        Site::Layer(self.layer, projection)
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
}
