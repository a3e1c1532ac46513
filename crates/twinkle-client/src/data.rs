//! Training examples and losses.

use std::collections::BTreeMap;

use twinkle_core::call::{LossSpec, SampledSequence};
use twinkle_core::data::{Datum, TensorData};
use twinkle_core::wire::native::Encoded;

use crate::error::{Error, Result};

/// A loss by name with its numeric settings. A text alone is its name.
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
        Self(LossSpec::named(name))
    }

    /// Adds a setting such as `clip_low_threshold`.
    #[must_use]
    pub fn with(mut self, setting: &str, value: f64) -> Self {
        self.0.config.insert(setting.to_owned(), value);
        self
    }
}

impl From<&str> for Loss {
    fn from(name: &str) -> Self {
        Self::named(name)
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

/// The example that makes a sampled continuation of `prompt` more likely by its `advantage`, or less likely by a negative
/// one: what `importance_sampling`, `ppo` and `cispo` read. The prompt's positions count nothing.
///
/// Errors: an empty prompt, an empty continuation, or not one logprob for each of its tokens.
pub fn policy_datum(prompt: &[u32], sampled: &SampledSequence, advantage: f32) -> Result<Datum> {
    let (answer, logprobs) = (&sampled.tokens, &sampled.logprobs);
    if answer.len() != logprobs.len() {
        let (tokens, given) = (answer.len(), logprobs.len());
        return Err(Error::InvalidArgument(format!("{tokens} sampled tokens with {given} logprobs")));
    }
    let (Some((first, targets)), false) = (prompt.split_first(), answer.is_empty()) else {
        return Err(Error::InvalidArgument("a policy learns from a prompt and what was sampled after it".to_owned()));
    };
    let targets: Vec<u32> = targets.iter().chain(answer).copied().collect();
    let inputs = [first].into_iter().chain(&targets).take(targets.len()).copied().collect();
    let after_prompt = |values: Vec<f32>| TensorData::floats([vec![0.0; prompt.len() - 1], values].concat());
    Ok(Datum {
        tokens: inputs,
        loss_inputs: BTreeMap::from([
            ("target_tokens".to_owned(), TensorData::ints(targets.iter().map(|token| i64::from(*token)).collect())),
            ("logprobs".to_owned(), after_prompt(logprobs.clone())),
            ("advantages".to_owned(), after_prompt(vec![advantage; answer.len()])),
        ]),
    })
}

#[cfg(test)]
mod tests {
    use twinkle_core::call::StopReason;

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

    #[test]
    fn a_sampled_answer_is_learned_from_and_its_prompt_is_not() {
        let sampled = SampledSequence::new(vec![8, 9], vec![-0.5, -1.5], StopReason::Stop);
        let datum = policy_datum(&[5, 6, 7], &sampled, 2.0).unwrap();
        assert_eq!(datum.tokens, [5, 6, 7, 8]);
        assert_eq!(datum.loss_inputs["target_tokens"], TensorData::ints(vec![6, 7, 8, 9]));
        assert_eq!(datum.loss_inputs["logprobs"], TensorData::floats(vec![0.0, 0.0, -0.5, -1.5]));
        assert_eq!(datum.loss_inputs["advantages"], TensorData::floats(vec![0.0, 0.0, 2.0, 2.0]));
    }

    #[test]
    fn a_policy_needs_a_prompt_an_answer_and_its_logprobs() {
        let sampled = |tokens: &[u32], logprobs: &[f32]| {
            SampledSequence::new(tokens.to_vec(), logprobs.to_vec(), StopReason::Length)
        };
        assert!(policy_datum(&[], &sampled(&[1], &[-1.0]), 1.0).is_err());
        assert!(policy_datum(&[1], &sampled(&[], &[]), 1.0).is_err());
        assert!(policy_datum(&[1], &sampled(&[1, 2], &[-1.0]), 1.0).is_err());
    }
}
