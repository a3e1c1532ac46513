//! The backward pass: hand-written vector-Jacobian products, layer by layer from the last.
//!
//! A base is frozen, so only the gradients of rows and of adapters are formed; a run that trains all weights gets theirs
//! from the same passes ([`full`]). Nothing is recorded by libtorch;
//! norms, activations and rotations are recomputed from what the forward pass kept.

use std::sync::Arc;

use tch::Tensor;
use twinkle_core::{Error, Result};

use crate::forward::{KeptLayer, Tape};
use crate::layers::decoder::Pass;
use crate::layers::full;
use crate::layers::linear::Routing;
use crate::lora::{Adapter, Gradients};
use crate::model::BaseModel;
use crate::pack::{Pack, Span};
use crate::torch::{TorchResult, device_error};

impl BaseModel {
    /// Adds to `gradients`, one per adapter, what a gradient `d_hidden` of the final-normed rows `[T, H]` asks for.
    ///
    /// `pack` and `adapters` are those of the [`BaseModel::forward_training`] that made `tape`. Each sequence adds its
    /// share in the order of the pack, so that the sum of many calls has the bits of one call with all sequences.
    pub fn backward(
        &self,
        tape: Tape,
        d_hidden: Tensor,
        pack: &Pack,
        adapters: &[Arc<Adapter>],
        gradients: &mut [&mut Gradients],
    ) -> Result<()> {
        pack.validate(&self.config, adapters.len())?;
        check_gradients(adapters, gradients)?;
        if d_hidden.size() != tape.last.size() || d_hidden.kind() != self.kind {
            return Err(Error::internal(format!(
                "the gradient of the hidden rows is {:?} {:?}, the pass had {:?} {:?}",
                d_hidden.kind(),
                d_hidden.size(),
                self.kind,
                tape.last.size()
            )));
        }
        let spans = pack.spans();
        let routing = self.training_routing(&spans, adapters);
        tch::no_grad(|| self.run_backward(tape, d_hidden, (&pack.tokens, &spans), &routing, gradients))
            .map_err(device_error)
    }

    fn run_backward(
        &self,
        tape: Tape,
        d_hidden: Tensor,
        (tokens, spans): (&[u32], &[Span]),
        routing: &Routing,
        gradients: &mut [&mut Gradients],
    ) -> TorchResult<()> {
        let Tape { layers, last, rotation, .. } = tape;
        // Below the lowest adapted layer no gradient is wanted.
        let is_adapted = |layer: usize| routing.groups.iter().any(|group| group.adapter.layout().adapts_layer(layer));
        let trains_weights = gradients.iter().any(|gradients| gradients.are_of_weights());
        let Some(lowest) = (0..layers.len()).find(|layer| trains_weights || is_adapted(*layer)) else {
            return Ok(());
        };
        full::norm(&self.final_norm, &last, &d_hidden, routing, gradients)?;
        let mut dx = self.final_norm.backward(&last, &d_hidden)?;
        drop((last, d_hidden));
        let pass = Pass { rotation: &rotation, spans, routing };
        for (index, (layer, tape)) in self.layers.iter().zip(layers).enumerate().rev() {
            if index < lowest {
                break;
            }
            let tape = match tape {
                KeptLayer::Whole(tape) => *tape,
                KeptLayer::Input(input) => layer.forward(input, &pass)?.1,
            };
            dx = layer.backward(tape, dx, &pass, gradients)?;
        }
        if trains_weights {
            full::embedding(self.embedding.tensor(), tokens, &dx, routing, gradients)?;
        }
        Ok(())
    }
}

/// There must be one sum of gradients per adapter, laid out like it.
pub(crate) fn check_gradients(adapters: &[Arc<Adapter>], gradients: &[&mut Gradients]) -> Result<()> {
    let fits = adapters.len() == gradients.len()
        && adapters
            .iter()
            .zip(gradients)
            .all(|(adapter, gradients)| gradients.layout().parameter_count() == adapter.layout().parameter_count());
    if fits { Ok(()) } else { Err(Error::internal("the gradients do not match the adapters of the pass")) }
}
