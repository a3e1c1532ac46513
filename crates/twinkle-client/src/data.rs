//! Training examples and losses.

use std::collections::BTreeMap;

use twinkle_core::call::LossSpec;
use twinkle_core::data::{Datum, TensorData};
use twinkle_core::wire::native::Encoded;

use crate::error::{Error, Result};

/// A loss by name with its numeric settings.
#[derive(Clone, Debug, PartialEq)]
pub struct Loss(pub(crate) LossSpec);

impl Loss {
    /// `-Σ weight · logprob(target)`; needs the input `target_tokens`, and `weights` of the same shape unless all are 1. Both
    /// may be `[positions, candidates]`: then every cell is a target of its own, as in distillation.
    #[must_use]
    pub fn cross_entropy() -> Self {
        Self::named("cross_entropy")
    }

    /// `-Σ ratio · advantage` with `ratio = exp(logprob(target) - logprobs)` (REINFORCE corrected for the sampler's policy);
    /// needs the inputs `target_tokens`, `logprobs` (of the sampler) and `advantages`.
    #[must_use]
    pub fn importance_sampling() -> Self {
        Self::named("importance_sampling")
    }

    /// PPO's clipped ratio (Schulman et al. 2017): `-Σ min(ratio · advantage, clip(ratio) · advantage)`; the same inputs as
    /// [`Self::importance_sampling`]. `clip_low_threshold` (0.8) and `clip_high_threshold` (1.2) are bounds of the ratio.
    #[must_use]
    pub fn ppo() -> Self {
        Self::named("ppo")
    }

    /// REINFORCE with a clipped ratio as a constant weight (`MiniMax` 2025); inputs and settings as [`Self::ppo`].
    #[must_use]
    pub fn cispo() -> Self {
        Self::named("cispo")
    }

    /// `-Σ (logprob · advantage - ½ β (logprob - logprobs)²)` (Richemond et al. 2024); inputs as [`Self::ppo`].
    #[must_use]
    pub fn dro(beta: f64) -> Self {
        Self::named("dro").with("beta", beta)
    }

    /// PPO over the ratio of a whole sequence (Zheng et al. 2025); inputs as [`Self::ppo`] and `sequence_ratio_mask`, which
    /// says with anything but 0 which positions make up the sequence.
    #[must_use]
    pub fn gspo() -> Self {
        Self::named("gspo")
    }

    /// Any loss of the server.
    #[must_use]
    pub fn named(name: &str) -> Self {
        Self(LossSpec { name: name.to_owned(), config: BTreeMap::new(), graph: None })
    }

    /// Adds a setting such as `clip_low_threshold`.
    #[must_use]
    pub fn with(mut self, setting: &str, value: f64) -> Self {
        self.0.config.insert(setting.to_owned(), value);
        self
    }
}

/// The example that teaches a model to say what the assistant says in `encoded`: position `i` predicts token `i + 1`, and
/// counts where an assistant wrote that token.
///
/// Errors: fewer than two tokens, or a mask of another length.
pub fn supervised_datum(encoded: &Encoded) -> Result<Datum> {
    let (tokens, mask) = (&encoded.tokens, &encoded.assistant_mask);
    if tokens.len() != mask.len() {
        return Err(Error::InvalidArgument(format!("{} tokens with a mask of {}", tokens.len(), mask.len())));
    }
    let (Some((_, inputs)), Some((_, targets)), Some((_, weights))) =
        (tokens.split_last(), tokens.split_first(), mask.split_first())
    else {
        return Err(Error::InvalidArgument("there is no token to learn from".to_owned()));
    };
    if inputs.is_empty() {
        return Err(Error::InvalidArgument("one token alone has nothing to predict".to_owned()));
    }
    Ok(Datum {
        tokens: inputs.to_vec(),
        loss_inputs: BTreeMap::from([
            ("target_tokens".to_owned(), TensorData::ints(targets.iter().map(|token| i64::from(*token)).collect())),
            ("weights".to_owned(), TensorData::floats(weights.iter().map(|weight| f32::from(*weight)).collect())),
        ]),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_position_predicts_the_next_token_and_the_mask_moves_along() {
        let datum = supervised_datum(&Encoded { tokens: vec![1, 2, 3], assistant_mask: vec![0, 0, 1] }).unwrap();
        assert_eq!(datum.tokens, [1, 2]);
        assert_eq!(datum.loss_inputs["target_tokens"], TensorData::ints(vec![2, 3]));
        assert_eq!(datum.loss_inputs["weights"], TensorData::floats(vec![0.0, 1.0]));
    }

    #[test]
    fn examples_without_anything_to_predict_are_refused() {
        for (tokens, mask) in [(vec![], vec![]), (vec![1], vec![1]), (vec![1, 2], vec![1])] {
            assert!(supervised_datum(&Encoded { tokens, assistant_mask: mask }).is_err());
        }
    }
}
