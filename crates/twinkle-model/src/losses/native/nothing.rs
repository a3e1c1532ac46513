//! `NoLoss`: nothing, for a forward that is asked for logprobs, logits, entropies or embeddings only.

use crate::losses::{Inputs, Loss, PerToken, Scope, TokenLoss};

/// The loss.
pub(super) struct Nothing;

impl Loss for Nothing {
    fn inputs(&self) -> Inputs<'_> {
        Inputs::Columns(&[])
    }

    fn scope(&self) -> Scope<'_> {
        Scope::Token(self)
    }

    fn takes_candidates(&self) -> bool {
        true
    }

    fn needs_targets(&self) -> bool {
        false
    }

    fn known_inputs(&self) -> &'static [&'static str] {
        super::INPUTS
    }
}

impl PerToken for Nothing {
    fn token(&self, _: f32, _: &[f32]) -> TokenLoss {
        TokenLoss::MASKED
    }
}
