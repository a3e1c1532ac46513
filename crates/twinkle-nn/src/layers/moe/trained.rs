//! The gradients of experts' own weights, where a run trains all weights.

use tch::Tensor;

use super::dispatch::Dispatch;
use super::pieces::{Piece, pieces_of};
use crate::layers::linear::{Routing, accumulate_product};
use crate::lora::Gradients;
use crate::torch::TorchResult;

/// The slots of every sequence whose run trains all weights.
#[derive(Debug)]
pub(super) struct TrainedSlots {
    /// The run's number in the pass, and the slots of one sequence, in the order of the pass.
    sequences: Vec<(usize, Vec<Piece>)>,
}

impl TrainedSlots {
    pub(super) fn new(dispatch: &Dispatch, routing: &Routing, gradients: &[&mut Gradients]) -> TorchResult<Self> {
        let is_trained = |index: usize| gradients.get(index).is_some_and(|sums| sums.are_of_weights());
        if !routing.groups.iter().any(|group| is_trained(group.index)) {
            return Ok(Self { sequences: Vec::new() });
        }
        let indices = routing.groups.iter().map(|group| group.index);
        let sequences = indices.zip(pieces_of(dispatch, routing)?).filter(|(index, _)| is_trained(*index));
        Ok(Self { sequences: sequences.collect() })
    }

    /// Adds the gradients of one matrix `[out, in]` of every expert, given the slots' inputs and the gradients of their
    /// outputs: each sequence's by itself, so that their sum does not depend on how sequences are cut into passes.
    pub(super) fn add<'w>(
        &self,
        matrix: impl Fn(usize) -> &'w Tensor,
        (x, dy): (&Tensor, &Tensor),
        gradients: &[&mut Gradients],
    ) -> TorchResult<()> {
        for (index, pieces) in &self.sequences {
            let Some(sums) = gradients.get(*index) else { continue };
            for Piece { expert, slots } in pieces {
                let Some(mut sum) = sums.weight(matrix(*expert))? else { continue };
                let own = |rows: &Tensor| rows.f_narrow(0, slots.start as i64, slots.len() as i64);
                accumulate_product(&mut sum, &own(dy)?, &own(x)?)?;
            }
        }
        Ok(())
    }
}
