//! The targets of a chunk's rows.

use std::collections::HashMap;

use tch::{Device, Tensor};

use crate::torch::TorchResult;

/// What a row's logprobs are asked of.
#[derive(Clone, Copy)]
pub(super) struct Targets<'a> {
    /// Row-major `[rows × width]`.
    pub(super) ids: &'a [u32],
    /// How many each row has.
    pub(super) width: usize,
}

impl Targets<'_> {
    /// int64 `[rows, width]`.
    pub(super) fn tensor(self, device: Device) -> TorchResult<Tensor> {
        let ids: Vec<i64> = self.ids.iter().map(|target| i64::from(*target)).collect();
        Tensor::f_from_slice(&ids)?.f_view([-1, self.width as i64])?.f_to_device(device)
    }

    /// Moves the derivatives of a token that a row names more than once to where it is named first, so that each
    /// column of the logits is written once and no device can add in an order of its own.
    pub(super) fn merge_repeated(self, derivatives: &mut [f32]) {
        if self.width == 1 {
            return;
        }
        let mut places = HashMap::new();
        for (ids, derivatives) in self.ids.chunks(self.width).zip(derivatives.chunks_mut(self.width)) {
            places.clear();
            for (place, id) in ids.iter().enumerate() {
                let first = *places.entry(*id).or_insert(place);
                if first != place {
                    derivatives[first] += std::mem::take(&mut derivatives[place]);
                }
            }
        }
    }

    /// Per row the sum of its derivatives, in order.
    pub(super) fn row_sums(self, derivatives: &[f32]) -> Vec<f32> {
        if self.width == 1 {
            return derivatives.to_vec();
        }
        let sum = |row: &[f32]| row.iter().map(|derivative| f64::from(*derivative)).sum::<f64>() as f32;
        derivatives.chunks(self.width).map(sum).collect()
    }
}
