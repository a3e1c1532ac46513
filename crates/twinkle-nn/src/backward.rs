//! The backward pass: hand-written vector-Jacobian products, layer by layer from the last.
//!
//! The base is frozen, so only the gradients of rows and of adapters are formed. Nothing is recorded by libtorch;
//! norms, activations and rotations are recomputed from what the forward pass kept.

use std::sync::Arc;

use tch::Tensor;
use twinkle_core::{Error, Result};

use crate::forward::{AttentionTape, LayerTape, Tape};
use crate::layers::attention::Saved;
use crate::layers::linear::Routing;
use crate::lora::{Adapter, Gradients};
use crate::model::{BaseModel, DecoderLayer};
use crate::pack::{Pack, Span};
use crate::rope::Rotation;
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
        tch::no_grad(|| self.run_backward(tape, d_hidden, &spans, &routing, gradients)).map_err(device_error)
    }

    fn run_backward(
        &self,
        tape: Tape,
        d_hidden: Tensor,
        spans: &[Span],
        routing: &Routing,
        gradients: &mut [&mut Gradients],
    ) -> TorchResult<()> {
        let Tape { layers, last, rotation } = tape;
        // Below the lowest adapted layer no gradient is wanted.
        let is_adapted = |layer: usize| {
            routing.groups.iter().any(|group| {
                let layout = group.adapter.layout();
                crate::lora::Projection::ALL
                    .iter()
                    .any(|projection| layout.module_at(crate::lora::Site::Layer(layer, *projection)).is_some())
            })
        };
        let Some(lowest) = (0..layers.len()).find(|layer| is_adapted(*layer)) else {
            return Ok(());
        };
        let mut dx = self.final_norm.backward(&last, &d_hidden)?;
        drop((last, d_hidden));
        for (index, (layer, tape)) in self.layers.iter().zip(layers).enumerate().rev() {
            if index < lowest {
                break;
            }
            let pass = Pass { rotation: &rotation, spans, routing };
            dx = layer.backward(tape, dx, &pass, gradients)?;
        }
        Ok(())
    }
}

/// What all layers of one backward pass share.
struct Pass<'a> {
    rotation: &'a Rotation,
    spans: &'a [Span],
    routing: &'a Routing<'a>,
}

impl DecoderLayer {
    /// The gradient of the layer's input; `dy`'s memory is reused for it.
    fn backward(
        &self,
        tape: LayerTape,
        dy: Tensor,
        pass: &Pass,
        gradients: &mut [&mut Gradients],
    ) -> TorchResult<Tensor> {
        let LayerTape { input, middle, attention, mlp } = tape;
        // y = middle + mlp(norm(middle)): the gradient passes by and through.
        let normed = self.post_norm.forward(&middle)?;
        let d_normed = self.mlp.backward(&normed, &dy, mlp, pass.routing, gradients)?;
        self.post_norm.backward_into(&middle, &d_normed, &dy)?;
        drop((normed, d_normed, middle));

        let normed = self.input_norm.forward(&input)?;
        let d_normed = self.attention_backward(&normed, &dy, attention, pass, gradients)?;
        self.input_norm.backward_into(&input, &d_normed, &dy)?;
        Ok(dy)
    }

    fn attention_backward(
        &self,
        normed: &Tensor,
        dy: &Tensor,
        tape: AttentionTape,
        pass: &Pass,
        gradients: &mut [&mut Gradients],
    ) -> TorchResult<Tensor> {
        let AttentionTape { unnormed, q, k, v, out, lse, shrunk } = tape;
        let d_out = self.output.backward(&out, dy, &shrunk.output, pass.routing, gradients)?;
        let (dq, dk, dv) = (Tensor::f_empty_like(&q)?, Tensor::f_empty_like(&k)?, Tensor::f_empty_like(&v)?);
        for (span, lse) in pass.spans.iter().zip(&lse) {
            let rows = |tensor: &Tensor| tensor.f_narrow(0, span.start as i64, span.length as i64);
            let saved = Saved { q: &rows(&q)?, k: &rows(&k)?, v: &rows(&v)?, out: &rows(&out)?, lse: lse.as_ref() };
            self.heads.causal_backward(&saved, &rows(&d_out)?, (&rows(&dq)?, &rows(&dk)?, &rows(&dv)?))?;
        }
        drop((q, k, v, out, d_out));

        let (mut dq, mut dk) = (pass.rotation.undo(&dq)?, pass.rotation.undo(&dk)?);
        if let (Some((query_norm, key_norm)), Some((q, k))) = (&self.head_norms, unnormed) {
            dq = query_norm.backward(&q, &dq)?;
            dk = key_norm.backward(&k, &dk)?;
        }
        let rows = normed.size()[0];
        let flat = |tensor: &Tensor| tensor.f_view([rows, -1]);
        let mut dx = self.query.backward(normed, &flat(&dq)?, &shrunk.query, pass.routing, gradients)?;
        let _ = dx.f_add_(&self.key.backward(normed, &flat(&dk)?, &shrunk.key, pass.routing, gradients)?)?;
        let _ = dx.f_add_(&self.value.backward(normed, &flat(&dv)?, &shrunk.value, pass.routing, gradients)?)?;
        Ok(dx)
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
