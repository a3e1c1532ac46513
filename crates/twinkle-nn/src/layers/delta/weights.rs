//! The gradients of the weights between the projections and the memory, where a run trains all weights: of one sequence,
//! complete before they are added to the run's, so that their bits do not depend on which sequences share a pass.

use tch::{Device, Kind, Tensor};

use super::features::FeatureMap;
use crate::lora::Gradients;
use crate::torch::TorchResult;

/// Those of one sequence, fp32.
#[derive(Debug)]
pub(super) struct WeightSums {
    /// Of the convolution, the oldest row's first, `[K, channels]`.
    pub(super) taps: Tensor,
    /// Of `A_log`, `[n_v]`.
    pub(super) a_log: Tensor,
    /// `[n_v]`.
    pub(super) dt_bias: Tensor,
}

impl WeightSums {
    /// Nothing yet.
    pub(super) fn zeros(map: &FeatureMap, device: Device) -> TorchResult<Self> {
        let zeros = |size: &[i64]| Tensor::f_zeros(size, (Kind::Float, device));
        let heads = [map.shape.value_heads()];
        Ok(Self {
            taps: zeros(&[map.convolution.reach() + 1, map.shape.channels()])?,
            a_log: zeros(&heads)?,
            dt_bias: zeros(&heads)?,
        })
    }

    /// Adds them to the run's.
    pub(super) fn add_to(&self, map: &FeatureMap, sums: &Gradients) -> TorchResult<()> {
        // The files have the convolution as `[channels, 1, K]`.
        let taps = self.taps.f_tr()?.f_unsqueeze(1)?;
        let (a_log, dt_bias) = map.gates.weights();
        for (weight, own) in [(map.convolution.weight(), &taps), (a_log, &self.a_log), (dt_bias, &self.dt_bias)] {
            if let Some(mut sum) = sums.weight(weight)? {
                let _ = sum.f_add_(own)?;
            }
        }
        Ok(())
    }
}
