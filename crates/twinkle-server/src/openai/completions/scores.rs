//! Logprobs as completions have them: four lists, one entry per token.

use schemars::JsonSchema;
use serde::Serialize;
use serde_json::{Map, Value};
use twinkle_core::call::{DrawnToken, SampleOutcome};
use twinkle_processor::ModelTokenizer;

use super::super::token_text::token_text;

/// Tokens with their logprobs, in order.
#[derive(Clone, Debug, Default)]
pub(super) struct Scores {
    lists: Lists,
    /// Letters before the next token.
    offset: usize,
}

/// As the protocol writes them.
#[derive(Clone, Debug, Default, PartialEq, Serialize, JsonSchema)]
#[schemars(rename = "CompletionLogprobs")]
pub(super) struct Lists {
    tokens: Vec<String>,
    /// `null` for a prompt's first token, of which nothing is known.
    token_logprobs: Vec<Option<f32>>,
    /// The token's own and its likeliest neighbours; `null` when none were asked for.
    top_logprobs: Option<Vec<Option<Map<String, Value>>>>,
    /// Where each token begins, in letters from the beginning of the choice's text.
    text_offset: Vec<usize>,
}

impl Scores {
    /// Scores that begin after so many letters.
    pub(super) fn after(offset: usize) -> Self {
        Self { offset, ..Self::default() }
    }

    /// Letters before the next token.
    pub(super) fn offset(&self) -> usize {
        self.offset
    }

    /// Adds the tokens of a prompt that was scored.
    pub(super) fn add_prompt(&mut self, tokenizer: &ModelTokenizer, prompt: &[u32], outcome: &SampleOutcome) {
        let logprobs = outcome.prompt_logprobs.as_deref().unwrap_or_default();
        let rows = outcome.topk_prompt_logprobs.as_ref().map(|top| top.rows.as_slice()).unwrap_or_default();
        for (place, token) in prompt.iter().enumerate() {
            let likeliest = rows.get(place).map(Vec::as_slice).unwrap_or_default();
            self.put(tokenizer, *token, logprobs.get(place).copied().flatten(), likeliest);
        }
    }

    /// Adds a new token.
    pub(super) fn add(&mut self, tokenizer: &ModelTokenizer, drawn: &DrawnToken) {
        self.put(tokenizer, drawn.token, Some(drawn.logprob), &drawn.likeliest);
    }

    /// As the protocol writes them, with neighbours if any were asked for.
    pub(super) fn told(self, top: u32) -> Lists {
        Lists { top_logprobs: self.lists.top_logprobs.filter(|_| top > 0), ..self.lists }
    }

    fn put(&mut self, tokenizer: &ModelTokenizer, token: u32, logprob: Option<f32>, likeliest: &[(u32, f32)]) {
        let text = token_text(tokenizer, token).text;
        let own = logprob.map(|logprob| {
            let mut top = Map::new();
            for (token, logprob) in likeliest {
                // Two tokens may have the same text: the likelier one comes first and stays.
                top.entry(token_text(tokenizer, *token).text).or_insert_with(|| Value::from(*logprob));
            }
            top.entry(text.clone()).or_insert_with(|| Value::from(logprob));
            top
        });
        let Lists { tokens, token_logprobs, top_logprobs, text_offset } = &mut self.lists;
        text_offset.push(self.offset);
        self.offset += text.chars().count();
        tokens.push(text);
        token_logprobs.push(logprob);
        top_logprobs.get_or_insert_default().push(own);
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use twinkle_core::call::TopLogprobs;

    use super::*;

    #[test]
    fn a_scored_prompt_comes_first_and_its_first_token_is_unknown() {
        let fixture = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/golden/fixtures/qwen2");
        let tokenizer = ModelTokenizer::load(&fixture).unwrap();
        let prompt = tokenizer.encode("ab cd").unwrap();
        let known = prompt.len() - 1;
        let outcome = SampleOutcome {
            prompt_logprobs: Some([None].into_iter().chain(vec![Some(-0.5); known]).collect()),
            topk_prompt_logprobs: Some(TopLogprobs {
                k: 1,
                rows: [vec![]].into_iter().chain(vec![vec![(prompt[0], -0.25)]; known]).collect(),
            }),
            ..SampleOutcome::default()
        };
        let mut scores = Scores::default();
        scores.add_prompt(&tokenizer, &prompt, &outcome);
        let drawn = DrawnToken { sample: 0, place: 0, token: prompt[0], logprob: -1.0, likeliest: vec![], ends: None };
        scores.add(&tokenizer, &drawn);
        let lists = scores.clone().told(1);
        assert_eq!(lists.token_logprobs[0], None);
        assert_eq!(lists.token_logprobs.last(), Some(&Some(-1.0)));
        let top = lists.top_logprobs.unwrap();
        assert_eq!((top.len(), &top[0]), (prompt.len() + 1, &None));
        assert!(top[1].as_ref().unwrap().contains_key(&lists.tokens[1]), "the token's own is among them");
        assert_eq!(lists.text_offset[0], 0);
        assert_eq!(lists.text_offset.last(), Some(&"ab cd".len()));
        assert_eq!(scores.told(0).top_logprobs, None);
    }
}
