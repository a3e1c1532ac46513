//! Adapters on experts through libtorch: the slots of a group of rows (a sequence in training) are brought together and
//! multiplied apart from all others, so that a group's products, and its share of the gradients, see its own rows only,
//! whichever experts they went to.

use tch::{Device, Tensor};

use super::super::dispatch::{ExpertRange, indices};
use super::super::pieces::Piece;
use super::{SlotShrunk, part};
use crate::layers::linear::{Routing, accumulate_product, add_product, multiply_rows};
use crate::lora::{Gradients, Site};
use crate::torch::TorchResult;

/// Per group of the routing its slots, if its adapter has anything on the experts of this layer.
#[derive(Debug)]
pub(in crate::layers::moe) struct SlotsApart {
    groups: Vec<Option<GroupSlots>>,
}

/// The slots of one group, in the order of their experts.
#[derive(Debug)]
struct GroupSlots {
    /// Their numbers, int64 `[n]`.
    slots: Tensor,
    /// Where those of each expert are among them.
    ranges: Vec<ExpertRange>,
}

impl SlotsApart {
    pub(super) fn new(pieces: &[Vec<Piece>], device: Device) -> TorchResult<Self> {
        let group = |pieces: &Vec<Piece>| {
            if pieces.is_empty() { Ok(None) } else { GroupSlots::new(pieces, device).map(Some) }
        };
        Ok(Self { groups: pieces.iter().map(group).collect::<TorchResult<_>>()? })
    }

    /// Adds every group's `s · B A x` to `y`, one row per slot; `x` likewise.
    pub(in crate::layers::moe) fn add(
        &self,
        site: Site,
        x: &Tensor,
        y: &Tensor,
        routing: &Routing,
    ) -> TorchResult<SlotShrunk> {
        let tile = routing.adapter_tile;
        let mut shrunk = Vec::with_capacity(self.groups.len());
        for (group, slots) in routing.groups.iter().zip(&self.groups) {
            let (Some(slots), Some(pair)) = (slots, group.adapter.at(site)) else {
                shrunk.push(None);
                continue;
            };
            let (a, b) = (pair.a.tensor(), pair.b.tensor());
            let own_x = x.f_index_select(0, &slots.slots)?;
            let own_y = y.f_index_select(0, &slots.slots)?;
            let own = Tensor::f_empty([own_x.size()[0], a.size()[1]], (x.kind(), x.device()))?;
            for range in slots.runs(a) {
                let factor = part(a, range.expert)?.f_tr()?;
                range.of(&own)?.f_copy_(&multiply_rows(&range.of(&own_x)?, &factor, None, tile)?)?;
            }
            let own = own.shallow_clone().f_mul_scalar_(pair.scale)?;
            for range in slots.runs(b) {
                let factor = part(b, range.expert)?.f_tr()?;
                add_product(&mut range.of(&own_y)?, &range.of(&own)?, &factor, tile)?;
            }
            let _ = y.shallow_clone().f_index_copy_(0, &slots.slots, &own_y)?;
            shrunk.push(Some(own));
        }
        Ok(shrunk)
    }

    /// Adds to `dx` what the adapters say of the gradient of `x`, given that of the output, and the gradients of `A`
    /// and `B` to those of each group's adapter.
    #[expect(clippy::too_many_arguments, reason = "the gradient of a product needs all of its parts")]
    pub(in crate::layers::moe) fn backward(
        &self,
        site: Site,
        x: &Tensor,
        dy: &Tensor,
        dx: &Tensor,
        shrunk: &SlotShrunk,
        routing: &Routing,
        gradients: &mut [&mut Gradients],
    ) -> TorchResult<()> {
        for ((group, slots), shrunk) in routing.groups.iter().zip(&self.groups).zip(shrunk) {
            let (Some(slots), Some(shrunk)) = (slots, shrunk) else { continue };
            let (Some(pair), Some(module)) = (group.adapter.at(site), group.adapter.layout().module_at(site)) else {
                continue;
            };
            let (a, b) = (pair.a.tensor(), pair.b.tensor());
            let (own_x, own_dy) = (x.f_index_select(0, &slots.slots)?, dy.f_index_select(0, &slots.slots)?);
            let d_shrunk = Tensor::f_empty_like(shrunk)?;
            for range in slots.runs(b) {
                let _ = range.of(&own_dy)?.f_mm_out(&range.of(&d_shrunk)?, &part(b, range.expert)?)?;
            }
            let d_shrunk = d_shrunk.shallow_clone().f_mul_scalar_(pair.scale)?;
            let sum = dx.f_index_select(0, &slots.slots)?;
            for range in slots.runs(a) {
                let _ = range.of(&sum)?.f_addmm_(&range.of(&d_shrunk)?, &part(a, range.expert)?)?;
            }
            let _ = dx.shallow_clone().f_index_copy_(0, &slots.slots, &sum)?;

            let (da, db) = gradients[group.index].module(module)?;
            for range in slots.runs(a) {
                accumulate_product(&mut part(&da, range.expert)?, &range.of(&d_shrunk)?, &range.of(&own_x)?)?;
            }
            for range in slots.runs(b) {
                accumulate_product(&mut part(&db, range.expert)?, &range.of(&own_dy)?, &range.of(shrunk)?)?;
            }
        }
        Ok(())
    }
}

impl GroupSlots {
    fn new(pieces: &[Piece], device: Device) -> TorchResult<Self> {
        let (mut slots, mut ranges): (Vec<usize>, Vec<ExpertRange>) = (Vec::new(), Vec::new());
        for Piece { expert, slots: own } in pieces {
            let (start, length) = (slots.len() as i64, own.len() as i64);
            match ranges.last_mut() {
                Some(range) if range.expert == *expert => range.length += length,
                _ => ranges.push(ExpertRange { expert: *expert, start, length }),
            }
            slots.extend(own.clone());
        }
        Ok(Self { slots: indices(&slots, device)?, ranges })
    }

    /// The ranges of slots that `factor`, `[groups, …]`, is applied to at once, with the place of their part in it:
    /// each expert's, or all slots where all experts share one.
    fn runs(&self, factor: &Tensor) -> Vec<ExpertRange> {
        if factor.size()[0] == 1 {
            vec![ExpertRange { expert: 0, start: 0, length: self.slots.size()[0] }]
        } else {
            self.ranges.clone()
        }
    }
}
