//! When a sequence ends: end-of-sequence tokens, stop tokens, stop texts. Pure.
//!
//! The token that ends a sequence, and the tokens that completed a stop text, stay in the answer: clients parse them.

use std::collections::VecDeque;
use std::sync::Arc;

use tokenizers::Tokenizer;
use twinkle_core::call::Stop;
use twinkle_core::{Error, Result};

use crate::params::check_tokens;

/// Most stop texts or tokens in a request.
const MOST_STOPS: usize = 64;
/// Longest stop text, in bytes.
const LONGEST_STOP: usize = 1024;
/// An unfinished UTF-8 character has at most four bytes, hence four tokens; longer runs are broken text.
const MOST_HELD_TOKENS: usize = 4;
/// How many finished tokens are decoded again with the next one, so that decoders which join words see their left side.
const CONTEXT_TOKENS: usize = 4;

/// When a sequence ends. The default never ends one.
#[derive(Clone, Debug, Default)]
pub struct StopRule {
    /// Ascending.
    tokens: Arc<[u32]>,
    texts: Option<StopTexts>,
}

#[derive(Clone, Debug)]
struct StopTexts {
    texts: Arc<[String]>,
    tokenizer: Arc<Tokenizer>,
}

impl StopRule {
    /// Reads a request's rule. End-of-sequence tokens `eos` stop too, unless the rule is [`Stop::Never`].
    ///
    /// # Errors
    /// `InvalidArgument` for empty, too many or too long texts and ids outside the vocabulary; `Unsupported` for texts
    /// when the model has no tokenizer.
    pub fn read(stop: &Stop, eos: &[u32], vocabulary: usize, tokenizer: Option<&Arc<Tokenizer>>) -> Result<Self> {
        let mut tokens = eos.to_vec();
        let mut texts = None;
        match stop {
            Stop::EndOfSequence => {}
            Stop::Never => tokens.clear(),
            Stop::Tokens(given) => {
                check_count(given.len(), "tokens")?;
                check_tokens("`stop`", given, vocabulary)?;
                tokens.extend(given);
            }
            Stop::Strings(given) => {
                check_count(given.len(), "texts")?;
                check_texts(given)?;
                let Some(tokenizer) = tokenizer else {
                    return Err(Error::unsupported(
                        "stop texts need a tokenizer, and the model's folder has no `tokenizer.json`",
                    )
                    .hint("send stop tokens instead"));
                };
                texts = Some(StopTexts { texts: given.clone().into(), tokenizer: Arc::clone(tokenizer) });
            }
        }
        tokens.sort_unstable();
        tokens.dedup();
        Ok(Self { tokens: tokens.into(), texts })
    }

    /// A fresh watch over one sequence.
    #[must_use]
    pub fn watch(&self) -> StopWatch {
        StopWatch { rule: self.clone(), pending: VecDeque::new(), context: 0, tail: String::new() }
    }
}

fn check_count(count: usize, what: &str) -> Result<()> {
    if count > MOST_STOPS {
        return Err(Error::invalid(format!("`stop` has {count} {what}, at most {MOST_STOPS} are allowed")));
    }
    Ok(())
}

fn check_texts(texts: &[String]) -> Result<()> {
    for text in texts {
        if text.is_empty() {
            return Err(Error::invalid("`stop` holds an empty text").hint("an empty list means: never stop"));
        }
        if text.len() > LONGEST_STOP {
            return Err(Error::invalid(format!(
                "`stop` holds a text of {} bytes, at most {LONGEST_STOP} are allowed",
                text.len()
            )));
        }
    }
    Ok(())
}

/// Watches the tokens of one sequence. Its memory is bounded by the longest stop text.
#[derive(Clone, Debug)]
pub struct StopWatch {
    rule: StopRule,
    /// The tokens that are decoded together with the next one: `context` finished ones, then unfinished ones.
    pending: VecDeque<u32>,
    context: usize,
    /// The end of the text, one byte shorter than the longest stop text at most.
    tail: String,
}

impl StopWatch {
    /// Takes the next token; whether the sequence ends with it.
    pub fn ends_with(&mut self, token: u32) -> bool {
        if self.rule.tokens.binary_search(&token).is_ok() {
            return true;
        }
        let Some(stop) = self.rule.texts.clone() else { return false };
        let Some(text) = self.detokenize(token, &stop.tokenizer) else { return false };
        self.tail.push_str(&text);
        if stop.texts.iter().any(|stop| self.tail.contains(stop.as_str())) {
            return true;
        }
        let longest = stop.texts.iter().map(String::len).max().unwrap_or(0);
        let surplus = (self.tail.len() + 1).saturating_sub(longest);
        self.tail.drain(..self.tail.ceil_char_boundary(surplus));
        false
    }

    /// The text that `token` finishes, if it does not end inside a character.
    fn detokenize(&mut self, token: u32, tokenizer: &Tokenizer) -> Option<String> {
        self.pending.push_back(token);
        let ids: Vec<u32> = self.pending.iter().copied().collect();
        let (context, _) = ids.split_at_checked(self.context)?;
        // A failed decode concerns ids the tokenizer does not know, for example the padding rows of the head.
        let before = tokenizer.decode(context, false).unwrap_or_default();
        let after = tokenizer.decode(&ids, false).unwrap_or_default();
        let is_unfinished = after.ends_with(char::REPLACEMENT_CHARACTER);
        if is_unfinished && ids.len() - self.context < MOST_HELD_TOKENS {
            return None;
        }
        // A decoder may rewrite the end of a broken text, so only what both have in common is old.
        let common: usize =
            before.chars().zip(after.chars()).take_while(|(old, new)| old == new).map(|(old, _)| old.len_utf8()).sum();
        let text = after.get(common..).unwrap_or_default().to_owned();
        while self.pending.len() > CONTEXT_TOKENS {
            self.pending.pop_front();
        }
        self.context = self.pending.len();
        Some(text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tokenizer() -> Arc<Tokenizer> {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../../tests/golden/fixtures/qwen2/tokenizer.json");
        Arc::new(Tokenizer::from_file(path).unwrap())
    }

    fn rule(stop: &Stop) -> Result<StopRule> {
        StopRule::read(stop, &[300, 302], 336, Some(&tokenizer()))
    }

    fn end(stop: &Stop, tokens: &[u32]) -> Option<usize> {
        let mut watch = rule(stop).unwrap().watch();
        tokens.iter().position(|token| watch.ends_with(*token))
    }

    fn encode(text: &str) -> Vec<u32> {
        tokenizer().encode(text, false).unwrap().get_ids().to_vec()
    }

    #[test]
    fn end_of_sequence_stops_unless_nothing_may() {
        assert_eq!(end(&Stop::EndOfSequence, &[5, 302, 7]), Some(1));
        assert_eq!(end(&Stop::Tokens(vec![9]), &[5, 300, 9]), Some(1));
        assert_eq!(end(&Stop::Tokens(vec![9]), &[5, 9, 300]), Some(1));
        assert_eq!(end(&Stop::Strings(vec!["x".into()]), &[5, 300]), Some(1));
        assert_eq!(end(&Stop::Never, &[5, 300, 302]), None);
    }

    #[test]
    fn a_text_is_found_across_tokens() {
        let tokens = encode("one two three STOP four");
        let stop = Stop::Strings(vec!["e STO".into()]);
        let last = end(&stop, &tokens).unwrap();
        let kept = tokenizer().decode(&tokens[..=last], false).unwrap();
        assert!(kept.contains("e STO"), "{kept}");
        let shorter = tokenizer().decode(&tokens[..last], false).unwrap();
        assert!(!shorter.contains("e STO"), "{shorter}");
    }

    #[test]
    fn a_character_split_over_tokens_is_found_when_it_is_complete() {
        let tokens = encode("ab 你好 cd");
        let stop = Stop::Strings(vec!["你".into()]);
        let last = end(&stop, &tokens).unwrap();
        assert!(tokenizer().decode(&tokens[..=last], false).unwrap().contains('你'));
        assert!(!tokenizer().decode(&tokens[..last], false).unwrap().contains('你'));
    }

    #[test]
    fn special_tokens_and_ids_without_text_do_not_break_the_text() {
        let mut tokens = encode("stop");
        tokens.insert(1, 330);
        tokens.insert(0, 301);
        assert!(end(&Stop::Strings(vec!["st".into()]), &tokens).is_some());
    }

    #[test]
    fn broken_text_neither_hides_a_stop_nor_grows() {
        let mut tokens = vec![encode("好")[0]; 200];
        tokens.extend(encode(" end"));
        let mut watch = rule(&Stop::Strings(vec!["end".into()])).unwrap().watch();
        let mut stopped = false;
        for token in tokens {
            stopped |= watch.ends_with(token);
            assert!(watch.pending.len() <= CONTEXT_TOKENS + MOST_HELD_TOKENS && watch.tail.len() <= 12);
        }
        assert!(stopped);
    }

    #[test]
    fn impossible_rules_are_refused() {
        assert!(rule(&Stop::Strings(vec![String::new()])).is_err());
        assert!(rule(&Stop::Strings(vec!["x".repeat(2000)])).is_err());
        assert!(rule(&Stop::Tokens(vec![336])).is_err());
        assert!(rule(&Stop::Tokens(vec![1; 65])).is_err());
        let error = StopRule::read(&Stop::Strings(vec!["x".into()]), &[], 336, None).unwrap_err();
        assert_eq!(error.code, twinkle_core::ErrorCode::Unsupported);
    }
}
