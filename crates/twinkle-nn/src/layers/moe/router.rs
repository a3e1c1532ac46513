//! The router: which experts a row is given to, and how much each counts.

use std::ops::Range;

use tch::{Kind, Tensor};
use twinkle_core::Result;
use twinkle_torch::Frozen;

use crate::config::MoeConfig;
use crate::layers::full;
use crate::layers::linear::{Routing, accumulate_product, multiply_rows};
use crate::layers::load::LayerFiles;
use crate::lora::Gradients;
use crate::torch::{TorchResult, to_floats};

/// A softmax over all experts, of which the `k` largest count.
#[derive(Debug)]
pub(super) struct Router {
    /// `[E, H]`.
    weight: Frozen,
    experts: usize,
    top_k: usize,
    /// Whether the weights of a row's experts are divided by their sum.
    renormalises: bool,
}

/// The experts of each row.
#[derive(Debug)]
pub(crate) struct Choice {
    /// `[T, k]`, ascending in each row.
    pub(super) experts: Vec<usize>,
    /// What each counts, `[T, k]`, before it is rounded to the model's dtype.
    pub(super) weights: Vec<f32>,
    /// The probabilities of all experts, `[T, E]`.
    probabilities: Vec<f32>,
    /// `E`.
    expert_count: usize,
    /// `k`.
    pub(super) top_k: usize,
}

impl Choice {
    /// How many of the rows `rows` each expert was given, `[E]`.
    pub(crate) fn load(&self, rows: &Range<usize>) -> Vec<u64> {
        let mut counts = vec![0; self.expert_count];
        let chosen = self.experts.get(rows.start * self.top_k..rows.end * self.top_k).unwrap_or_default();
        for expert in chosen {
            counts[*expert] += 1;
        }
        counts
    }
}

impl Router {
    pub(super) fn load(files: &mut LayerFiles, moe: &MoeConfig) -> Result<Self> {
        Ok(Self {
            weight: files.take("mlp.gate.weight", &[moe.expert_count, files.config.hidden_size])?,
            experts: moe.expert_count,
            top_k: moe.experts_per_token,
            renormalises: moe.norm_topk_prob,
        })
    }

    /// The experts of the rows of `x`, `[T, H]`. Logits in the model's dtype, probabilities in fp32; of equally likely
    /// experts the first counts.
    pub(super) fn forward(&self, x: &Tensor, routing: &Routing) -> TorchResult<Choice> {
        let logits = multiply_rows(x, &self.weight.tensor().f_tr()?, None, Some(routing.tile))?;
        let probabilities = to_floats(&logits.f_softmax(-1, Kind::Float)?)?;
        let rows = probabilities.len() / self.experts;
        let mut choice = Choice {
            experts: Vec::with_capacity(rows * self.top_k),
            weights: Vec::with_capacity(rows * self.top_k),
            probabilities,
            expert_count: self.experts,
            top_k: self.top_k,
        };
        let mut order: Vec<usize> = Vec::with_capacity(self.experts);
        for row in choice.probabilities.chunks_exact(self.experts) {
            order.clear();
            order.extend(0..self.experts);
            let likelier = |a: &usize, b: &usize| row[*b].total_cmp(&row[*a]).then(a.cmp(b));
            if self.top_k < self.experts {
                order.select_nth_unstable_by(self.top_k - 1, likelier);
                order.truncate(self.top_k);
            }
            // The sum runs from the likeliest down, as it does in transformers.
            order.sort_unstable_by(likelier);
            let sum: f32 = if self.renormalises { order.iter().map(|expert| row[*expert]).sum() } else { 1.0 };
            order.sort_unstable();
            choice.weights.extend(order.iter().map(|expert| row[*expert] / sum));
            choice.experts.extend_from_slice(&order);
        }
        Ok(choice)
    }

    /// The gradient of the rows `x`, `[T, H]`, given `shares`, `[T, k]`: for each expert of a row the product of its weight
    /// and its weight's gradient.
    ///
    /// With `s` the shares and `p` the probabilities the gradient of a logit is `s_i − p_i Σ s`. If the weights are
    /// renormalised they are a softmax of their own over the row's experts, and the other logits have no gradient.
    pub(super) fn backward(
        &self,
        choice: &Choice,
        shares: &[f32],
        x: &Tensor,
        routing: &Routing,
        gradients: &[&mut Gradients],
    ) -> TorchResult<Tensor> {
        let mut d_logits = vec![0.0_f32; choice.probabilities.len()];
        let rows = d_logits.chunks_exact_mut(self.experts).zip(choice.probabilities.chunks_exact(self.experts));
        let chosen = choice.experts.chunks_exact(self.top_k).zip(choice.weights.chunks_exact(self.top_k));
        for (((d_logits, probabilities), (experts, weights)), shares) in
            rows.zip(chosen).zip(shares.chunks_exact(self.top_k))
        {
            let sum: f32 = shares.iter().sum();
            if !self.renormalises {
                for (d_logit, probability) in d_logits.iter_mut().zip(probabilities) {
                    *d_logit = -probability * sum;
                }
            }
            for ((expert, weight), share) in experts.iter().zip(weights).zip(shares) {
                d_logits[*expert] += if self.renormalises { share - weight * sum } else { *share };
            }
        }
        let weight = self.weight.tensor();
        let d_logits = Tensor::f_from_slice(&d_logits)?
            .f_view([-1, self.experts as i64])?
            .f_to_device(weight.device())?
            .f_to_kind(x.kind())?;
        full::each(routing, gradients, |rows, sums| {
            let Some(mut sum) = sums.weight(weight)? else { return Ok(()) };
            accumulate_product(&mut sum, &rows.of(&d_logits)?, &rows.of(x)?)
        })?;
        multiply_rows(&d_logits, weight, None, Some(routing.tile))
    }
}
