//! Low-rank adapters on experts. A factor is either each expert's own or one for all experts.
//!
//! On processors with AVX512-BF16 the adapters of all experts and all sequences join the experts' own products
//! ([`together`]). Elsewhere libtorch multiplies group by group and expert by expert ([`apart`]). Both ways a row's
//! products see that row only, or those of its group, and gradients are summed group by group.

mod apart;
mod together;

use tch::Tensor;

use self::apart::SlotsApart;
use self::together::SlotsTogether;
use super::dispatch::Dispatch;
use super::pieces::{Piece, pieces_of};
use crate::layers::linear::{Group, Routing};
use crate::layers::native;
use crate::lora::{Projection, Site};
use crate::torch::TorchResult;

/// The slots that have adapters.
#[derive(Debug)]
pub(super) enum AdaptedSlots {
    Together(SlotsTogether),
    Apart(SlotsApart),
}

/// What the adapters of one projection computed, `s · A x`: a tensor with a row per slot for each of [`SlotsTogether`]'s
/// runs or [`SlotsApart`]'s groups that has an adapter there.
pub(super) type SlotShrunk = Vec<Option<Tensor>>;

impl AdaptedSlots {
    /// Those of the rows `x` of decoder layer `layer`.
    pub(super) fn new(layer: usize, dispatch: &Dispatch, routing: &Routing, x: &Tensor) -> TorchResult<Self> {
        let is_adapted = |group: &Group| {
            let layout = group.adapter.layout();
            [Projection::ExpertGate, Projection::ExpertUp, Projection::ExpertDown]
                .into_iter()
                .any(|projection| layout.module_at(Site::Layer(layer, projection)).is_some())
        };
        let adapted: Vec<bool> = routing.groups.iter().map(is_adapted).collect();
        let mut pieces: Vec<Vec<Piece>> =
            if adapted.contains(&true) { pieces_of(dispatch, routing)? } else { vec![Vec::new(); adapted.len()] };
        for (pieces, is_adapted) in pieces.iter_mut().zip(adapted) {
            if !is_adapted {
                pieces.clear();
            }
        }
        Ok(if native::multiplies(x) {
            Self::Together(SlotsTogether::new(&pieces, routing))
        } else {
            Self::Apart(SlotsApart::new(&pieces, x.device())?)
        })
    }
}

/// An expert's part of a factor `[experts or 1, …]`.
fn part(factor: &Tensor, expert: usize) -> TorchResult<Tensor> {
    factor.f_select(0, if factor.size()[0] == 1 { 0 } else { expert as i64 })
}
