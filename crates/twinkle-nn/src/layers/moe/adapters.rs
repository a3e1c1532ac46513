//! Low-rank adapters on experts.
//!
//! A factor is either each expert's own or one for all experts. The slots of a group of rows (a sequence in training)
//! are brought together and multiplied apart from all others, so that a group's products, and its share of the
//! gradients, see its own rows only, and gradients are summed group by group, whichever experts the rows went to.

use tch::{Device, Tensor};

use super::dispatch::{Dispatch, ExpertRange, indices};
use crate::layers::linear::{Routing, Rows, accumulate_product, add_product, multiply_rows};
use crate::lora::{Gradients, Projection, Site};
use crate::torch::TorchResult;

/// Per group of the routing its slots, if its adapter has anything on the experts of this layer.
#[derive(Debug)]
pub(super) struct AdaptedSlots {
    groups: Vec<Option<GroupSlots>>,
}

/// What the adapters of one projection computed: per group `s · A x`, one row per slot of the group.
pub(super) type SlotShrunk = Vec<Option<Tensor>>;

/// The slots of one group, in the order of their experts.
#[derive(Debug)]
struct GroupSlots {
    /// Their numbers, int64 `[n]`.
    slots: Tensor,
    /// Where those of each expert are among them.
    ranges: Vec<ExpertRange>,
}

impl AdaptedSlots {
    pub(super) fn new(layer: usize, dispatch: &Dispatch, routing: &Routing, device: Device) -> TorchResult<Self> {
        let rows = dispatch.slots_of.len().checked_div(dispatch.top_k).unwrap_or(0);
        let groups = routing
            .groups
            .iter()
            .map(|group| {
                let layout = group.adapter.layout();
                let is_adapted = [Projection::ExpertGate, Projection::ExpertUp, Projection::ExpertDown]
                    .into_iter()
                    .any(|projection| layout.module_at(Site::Layer(layer, projection)).is_some());
                if !is_adapted {
                    return Ok(None);
                }
                let mut is_member = vec![false; rows];
                for row in row_numbers(&group.rows)? {
                    is_member[row] = true;
                }
                GroupSlots::new(dispatch, &is_member, device).map(Some)
            })
            .collect::<TorchResult<_>>()?;
        Ok(Self { groups })
    }

    /// Adds every group's `s · B A x` to `y`, one row per slot; `x` likewise.
    pub(super) fn add(&self, site: Site, x: &Tensor, y: &Tensor, routing: &Routing) -> TorchResult<SlotShrunk> {
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
                let factor = a.f_select(0, range.expert as i64)?.f_tr()?;
                range.of(&own)?.f_copy_(&multiply_rows(&range.of(&own_x)?, &factor, None, tile)?)?;
            }
            let own = own.shallow_clone().f_mul_scalar_(pair.scale)?;
            for range in slots.runs(b) {
                let factor = b.f_select(0, range.expert as i64)?.f_tr()?;
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
    pub(super) fn backward(
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
                let _ = range.of(&own_dy)?.f_mm_out(&range.of(&d_shrunk)?, &b.f_select(0, range.expert as i64)?)?;
            }
            let d_shrunk = d_shrunk.shallow_clone().f_mul_scalar_(pair.scale)?;
            let sum = dx.f_index_select(0, &slots.slots)?;
            for range in slots.runs(a) {
                let _ = range.of(&sum)?.f_addmm_(&range.of(&d_shrunk)?, &a.f_select(0, range.expert as i64)?)?;
            }
            let _ = dx.shallow_clone().f_index_copy_(0, &slots.slots, &sum)?;

            let (da, db) = gradients[group.index].module(module)?;
            for range in slots.runs(a) {
                let mut da = da.f_select(0, range.expert as i64)?;
                accumulate_product(&mut da, &range.of(&d_shrunk)?, &range.of(&own_x)?)?;
            }
            for range in slots.runs(b) {
                let mut db = db.f_select(0, range.expert as i64)?;
                accumulate_product(&mut db, &range.of(&own_dy)?, &range.of(shrunk)?)?;
            }
        }
        Ok(())
    }
}

impl GroupSlots {
    fn new(dispatch: &Dispatch, is_member: &[bool], device: Device) -> TorchResult<Self> {
        let (mut slots, mut ranges) = (Vec::new(), Vec::new());
        for range in &dispatch.ranges {
            let start = slots.len();
            let all = range.start as usize..(range.start + range.length) as usize;
            slots.extend(all.filter(|slot| is_member[dispatch.row_of[*slot]]));
            if slots.len() > start {
                let length = (slots.len() - start) as i64;
                ranges.push(ExpertRange { expert: range.expert, start: start as i64, length });
            }
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

fn row_numbers(rows: &Rows) -> TorchResult<Vec<usize>> {
    match rows {
        Rows::Range { start, length } => Ok((*start as usize..(start + length) as usize).collect()),
        Rows::List(list) => {
            let numbers: Vec<i64> = Vec::try_from(list)?;
            Ok(numbers.into_iter().map(|number| number as usize).collect())
        }
    }
}
