//! Adapters on experts with our own kernels: one grouped product shrinks the rows of all experts that share an adapter,
//! and what expands them joins the sums of the experts' own product. A row is one chain of additions there, so no bit of
//! it depends on which rows came with it; nothing is gathered, because the slots of a sequence at an expert follow each
//! other.

use std::ops::Range;

use tch::Tensor;
use twinkle_kernels::{Layout, Segment};

use super::super::pieces::Piece;
use super::{SlotShrunk, part};
use crate::layers::linear::Routing;
use crate::layers::native::{self, LowRank};
use crate::lora::{Gradients, Site};
use crate::torch::TorchResult;

/// The slots of each run of groups that share an adapter.
#[derive(Debug)]
pub(in crate::layers::moe) struct SlotsTogether {
    runs: Vec<RunSlots>,
}

/// The slots of the rows of one adapter. They are numbered anew, ascending and without those of others.
#[derive(Debug, Default, PartialEq)]
struct RunSlots {
    /// Those of each expert, ascending.
    blocks: Vec<Block>,
    /// Those of each sequence at each expert, sequence by sequence.
    segments: Vec<Block>,
    /// How many there are.
    count: usize,
}

/// Slots of one expert, one after the other.
#[derive(Clone, Debug, PartialEq)]
struct Block {
    expert: usize,
    slots: Range<usize>,
    /// The first one's number among those of the adapter.
    own: usize,
}

impl Block {
    fn own(&self) -> Range<usize> {
        self.own..self.own + self.slots.len()
    }
}

impl SlotsTogether {
    pub(super) fn new(pieces: &[Vec<Piece>], routing: &Routing) -> Self {
        let runs = routing.runs().map(|run| RunSlots::new(&pieces[run.places()]));
        Self { runs: runs.collect() }
    }

    /// Every run's `s · A x`, and what it adds to the output of the experts' product, one row per slot as in `x`.
    pub(in crate::layers::moe) fn shrink(
        &self,
        site: Site,
        x: &Tensor,
        routing: &Routing,
    ) -> TorchResult<(Vec<LowRank>, SlotShrunk)> {
        let (mut low, mut shrunk) = (Vec::new(), Vec::with_capacity(self.runs.len()));
        for (run, slots) in routing.runs().zip(&self.runs) {
            let pair = run.adapter().at(site).filter(|_| slots.count > 0);
            let Some(pair) = pair else {
                shrunk.push(None);
                continue;
            };
            let own = slots.product(x, |expert| part(pair.a.tensor(), expert)?.f_tr(), pair.scale)?;
            slots.add_to(&mut low, &own, |expert| part(pair.b.tensor(), expert)?.f_tr())?;
            shrunk.push(Some(own));
        }
        Ok((low, shrunk))
    }

    /// Adds the gradients of `A` and `B` to those of each run's adapter, given the input `x` and the gradient of the
    /// output; returns what the adapters add to the gradient of `x`.
    pub(in crate::layers::moe) fn backward(
        &self,
        site: Site,
        (x, dy): (&Tensor, &Tensor),
        shrunk: &SlotShrunk,
        routing: &Routing,
        gradients: &mut [&mut Gradients],
    ) -> TorchResult<Vec<LowRank>> {
        let mut low = Vec::new();
        for ((run, slots), shrunk) in routing.runs().zip(&self.runs).zip(shrunk) {
            let (Some(shrunk), Some(pair)) = (shrunk, run.adapter().at(site)) else { continue };
            let Some(module) = run.adapter().layout().module_at(site) else { continue };
            let d_shrunk = slots.product(dy, |expert| part(pair.b.tensor(), expert), pair.scale)?;
            let (mut da, mut db) = gradients[run.index()].module(module)?;
            native::accumulate_outers(&slots.sums_of(&da), (&d_shrunk, x), Layout::NarrowByWide, &mut da)?;
            native::accumulate_outers(&slots.sums_of(&db), (shrunk, dy), Layout::WideByNarrow, &mut db)?;
            slots.add_to(&mut low, &d_shrunk, |expert| part(pair.a.tensor(), expert))?;
        }
        Ok(low)
    }
}

impl RunSlots {
    fn new(groups: &[Vec<Piece>]) -> Self {
        let mut pieces: Vec<&Piece> = groups.iter().flatten().collect();
        pieces.sort_by_key(|piece| piece.slots.start);
        let mut slots = Self::default();
        for Piece { expert, slots: own } in pieces {
            match slots.blocks.last_mut() {
                Some(last) if last.expert == *expert && last.slots.end == own.start => last.slots.end = own.end,
                _ => slots.blocks.push(Block { expert: *expert, slots: own.clone(), own: slots.count }),
            }
            slots.count += own.len();
        }
        slots.segments = groups.iter().flatten().map(|piece| slots.renumbered(piece)).collect();
        slots
    }

    fn renumbered(&self, Piece { expert, slots }: &Piece) -> Block {
        let place = self.blocks.partition_point(|block| block.slots.end <= slots.start);
        let own = self.blocks.get(place).map_or(0, |block| block.own + slots.start - block.slots.start);
        Block { expert: *expert, slots: slots.clone(), own }
    }

    /// `scale · x · matrix`, every slot with its expert's matrix.
    fn product(&self, x: &Tensor, matrix: impl Fn(usize) -> TorchResult<Tensor>, scale: f64) -> TorchResult<Tensor> {
        let of_block = |block: &Block| -> TorchResult<LowRank> {
            let left = x.f_narrow(0, block.slots.start as i64, block.slots.len() as i64)?;
            Ok(LowRank { rows: block.own(), left, right: matrix(block.expert)? })
        };
        let parts = self.blocks.iter().map(of_block).collect::<TorchResult<Vec<_>>>()?;
        native::sum_of_parts(self.count as i64, &parts, Some(scale))
    }

    /// Adds `own · matrix` to the summands, every slot with its expert's matrix.
    fn add_to(
        &self,
        low: &mut Vec<LowRank>,
        own: &Tensor,
        matrix: impl Fn(usize) -> TorchResult<Tensor>,
    ) -> TorchResult<()> {
        for block in &self.blocks {
            let left = own.f_narrow(0, block.own as i64, block.slots.len() as i64)?;
            low.push(LowRank { rows: block.slots.clone(), left, right: matrix(block.expert)? });
        }
        Ok(())
    }

    /// Which rows add to the gradient of which part of a factor: narrow rows are the adapter's own, wide ones slots.
    fn sums_of(&self, factor: &Tensor) -> Vec<Segment> {
        let is_shared = factor.size()[0] == 1;
        let segment = |block: &Block| Segment {
            rows: block.own(),
            wide: block.slots.start,
            sum: if is_shared { 0 } else { block.expert },
        };
        self.segments.iter().map(segment).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slots_of_an_adapter_are_numbered_without_those_of_others() {
        let piece = |expert: usize, slots: Range<usize>| Piece { expert, slots };
        // Two sequences of one adapter; slots 2, 3 and 8 are another's.
        let groups = [vec![piece(0, 0..2), piece(3, 6..8)], vec![piece(0, 4..6), piece(3, 9..10)]];
        let slots = RunSlots::new(&groups);
        let block = |expert: usize, slots: Range<usize>, own: usize| Block { expert, slots, own };
        assert_eq!(slots.blocks, [block(0, 0..2, 0), block(0, 4..6, 2), block(3, 6..8, 4), block(3, 9..10, 6)]);
        assert_eq!(slots.segments, [block(0, 0..2, 0), block(3, 6..8, 4), block(0, 4..6, 2), block(3, 9..10, 6)]);
        assert_eq!(slots.count, 7);
        let together = RunSlots::new(&[vec![piece(1, 0..3)], vec![piece(1, 3..5)]]);
        assert_eq!(together.blocks, [block(1, 0..5, 0)]);
        assert_eq!(together.segments, [block(1, 0..3, 0), block(1, 3..5, 3)]);
    }
}
