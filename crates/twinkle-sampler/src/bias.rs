//! Adding to the logits of tokens that a request names. Pure.
//!
//! As in vLLM it comes before everything else that is done to a row.

use std::collections::BTreeSet;
use std::sync::Arc;

use twinkle_core::{Error, Result};

/// Most tokens that one request may name.
const MOST_TOKENS: usize = 1024;
/// Largest size of what is added: that of the `OpenAI` protocol.
const MOST_ADDED: f32 = 100.0;

/// What is added to the logits of tokens; shared by all rows of a request.
#[derive(Clone, Debug, PartialEq)]
pub struct Bias(Arc<[(u32, f32)]>);

impl Bias {
    /// Checks what a request asks for; `None` when it asks for nothing.
    ///
    /// # Errors
    /// `InvalidArgument` that names `logit_bias`.
    pub fn new(wanted: Vec<(u32, f32)>, vocabulary: usize) -> Result<Option<Self>> {
        if wanted.is_empty() {
            return Ok(None);
        }
        if wanted.len() > MOST_TOKENS {
            let text = format!("`logit_bias` names {} tokens, at most {MOST_TOKENS} are allowed", wanted.len());
            return Err(Error::invalid(text));
        }
        let mut named = BTreeSet::new();
        for (token, added) in &wanted {
            if *token as usize >= vocabulary {
                return Err(Error::invalid(format!(
                    "`logit_bias` names token {token}, which is outside the vocabulary of {vocabulary} entries"
                )));
            }
            if !(-MOST_ADDED..=MOST_ADDED).contains(added) {
                return Err(Error::invalid(format!(
                    "`logit_bias` of token {token} is {added}, it must be from -{MOST_ADDED} to {MOST_ADDED}"
                )));
            }
            if !named.insert(*token) {
                return Err(Error::invalid(format!("`logit_bias` names token {token} twice")));
            }
        }
        Ok(Some(Self(wanted.into())))
    }

    /// Adds it to a row of logits `[V]`.
    pub(crate) fn add(&self, logits: &mut [f32]) {
        for (token, added) in self.0.iter() {
            if let Some(logit) = logits.get_mut(*token as usize) {
                *logit += added;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_added_to_the_named_tokens_alone() {
        let bias = Bias::new(vec![(2, -100.0), (0, 0.5)], 3).unwrap().unwrap();
        let mut row = [1.0, 2.0, 3.0];
        bias.add(&mut row);
        assert_eq!(row.map(f32::to_bits), [1.5_f32, 2.0, -97.0].map(f32::to_bits));
        assert_eq!(Bias::new(Vec::new(), 3), Ok(None));
    }

    #[test]
    fn what_cannot_be_added_is_refused_by_name() {
        let refusal = |wanted| Bias::new(wanted, 3).unwrap_err().to_string();
        assert!(refusal(vec![(3, 1.0)]).contains("`logit_bias` names token 3, which is outside"));
        for added in [100.5, f32::NAN, f32::NEG_INFINITY] {
            assert!(refusal(vec![(1, added)]).contains("`logit_bias` of token 1 is "));
        }
        assert!(refusal(vec![(1, 1.0), (1, 2.0)]).contains("twice"));
        assert!(refusal(vec![(1, 1.0); MOST_TOKENS + 1]).contains("at most 1024"));
    }
}
