//! From tokens that come one by one to text that only grows.

use std::sync::Arc;

use twinkle_processor::ModelTokenizer;

/// Tokens without a finished character that are waited with; a character has at most four bytes, broken text has no end.
const MOST_HELD: usize = 16;

/// Turns the tokens of one sample into text. All pieces together are the text of all tokens together.
///
/// Some decoders look at the token before, so the last finished tokens are decoded once more with the new ones.
#[derive(Clone, Debug)]
pub(crate) struct Detokenizer {
    tokenizer: Arc<ModelTokenizer>,
    skip_special_tokens: bool,
    /// Whether special tokens that open and close calls of tools have text all the same.
    has_calls: bool,
    /// The tokens that are decoded together: `context` finished ones, then unfinished ones.
    tokens: Vec<u32>,
    context: usize,
}

impl Detokenizer {
    /// Of a sample without tokens; with or without the text of special ones.
    pub(crate) fn new(tokenizer: Arc<ModelTokenizer>, skip_special_tokens: bool) -> Self {
        Self { tokenizer, skip_special_tokens, has_calls: false, tokens: Vec::new(), context: 0 }
    }

    /// Of a sample without tokens, without the text of special ones but those that open and close calls of tools.
    pub(crate) fn with_calls(tokenizer: Arc<ModelTokenizer>) -> Self {
        Self { has_calls: true, ..Self::new(tokenizer, true) }
    }

    /// The text that `token` finishes; empty while a character is incomplete.
    pub(crate) fn push(&mut self, token: u32) -> String {
        if let Some(mark) = self.tokenizer.call_mark(token).filter(|_| self.has_calls) {
            let before = self.finish();
            self.tokens.clear();
            self.context = 0;
            return before + mark;
        }
        self.tokens.push(token);
        let is_patient = self.tokens.len() - self.context < MOST_HELD;
        self.advance(is_patient)
    }

    /// The text of what is incomplete, at the end.
    pub(crate) fn finish(&mut self) -> String {
        self.advance(false)
    }

    fn advance(&mut self, is_patient: bool) -> String {
        let before = self.decode(self.tokens.get(..self.context).unwrap_or_default());
        let after = self.decode(&self.tokens);
        let is_unfinished = after.ends_with(char::REPLACEMENT_CHARACTER) || after.len() <= before.len();
        if is_patient && is_unfinished {
            return String::new();
        }
        let text = after.get(before.len()..).unwrap_or_default().to_owned();
        self.tokens.drain(..self.context);
        self.context = self.tokens.len();
        text
    }

    /// A failed decode concerns ids the tokenizer does not know, for example the padding rows of a model's head.
    fn decode(&self, tokens: &[u32]) -> String {
        self.tokenizer.decode(tokens, self.skip_special_tokens).unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use proptest::prelude::*;

    use super::*;

    fn tokenizer(variant: &str) -> Arc<ModelTokenizer> {
        let fixtures = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/golden/fixtures");
        Arc::new(ModelTokenizer::load(&fixtures.join(variant)).unwrap())
    }

    fn pieces(tokenizer: &Arc<ModelTokenizer>, tokens: &[u32], skip_special_tokens: bool) -> Vec<String> {
        let mut detokenizer = Detokenizer::new(Arc::clone(tokenizer), skip_special_tokens);
        let mut pieces: Vec<String> = tokens.iter().map(|token| detokenizer.push(*token)).collect();
        pieces.push(detokenizer.finish());
        pieces
    }

    #[test]
    fn a_character_comes_with_its_last_byte_and_not_before() {
        let tokenizer = tokenizer("qwen2");
        let tokens = tokenizer.encode("ab 你好, 🚀!").unwrap();
        let pieces = pieces(&tokenizer, &tokens, true);
        assert_eq!(pieces.concat(), "ab 你好, 🚀!");
        assert!(pieces.iter().all(|piece| !piece.contains(char::REPLACEMENT_CHARACTER)), "{pieces:?}");
    }

    #[test]
    fn broken_bytes_are_given_up_after_a_while_and_at_the_end() {
        let tokenizer = tokenizer("qwen2");
        let first_byte = tokenizer.encode("好").unwrap()[0];
        let pieces = pieces(&tokenizer, &[first_byte; 40], true);
        assert!(pieces.iter().filter(|piece| !piece.is_empty()).count() >= 2, "{pieces:?}");
    }

    #[test]
    fn special_tokens_have_text_only_when_they_are_wanted() {
        let tokenizer = tokenizer("qwen2");
        let mut tokens = tokenizer.encode("a").unwrap();
        let special = (0..tokenizer.vocabulary_size() as u32).find(|token| tokenizer.is_special(*token)).unwrap();
        tokens.push(special);
        tokens.extend(tokenizer.encode("b").unwrap());
        assert_eq!(pieces(&tokenizer, &tokens, true).concat(), "ab");
        assert_eq!(pieces(&tokenizer, &tokens, false).concat(), tokenizer.decode(&tokens, false).unwrap());
    }

    #[test]
    fn the_mark_of_a_call_has_text_where_calls_are_read() {
        let folder = tempfile::tempdir().unwrap();
        let fixture = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/golden/fixtures/qwen2/tokenizer.json");
        let mut file: serde_json::Value = serde_json::from_slice(&std::fs::read(fixture).unwrap()).unwrap();
        let mark = u32::try_from(tokenizer("qwen2").vocabulary_size()).unwrap();
        let added = file["added_tokens"].as_array_mut().unwrap();
        let mut token = added[0].clone();
        (token["id"], token["content"], token["special"]) = (mark.into(), "[TOOL_CALLS]".into(), true.into());
        added.push(token);
        std::fs::write(folder.path().join("tokenizer.json"), file.to_string()).unwrap();
        std::fs::write(folder.path().join("chat_template.jinja"), "{{ '[TOOL_CALLS]' }}").unwrap();
        let tokenizer = Arc::new(ModelTokenizer::load(folder.path()).unwrap());
        let mut tokens = tokenizer.encode("a好").unwrap();
        // A character that the mark breaks off.
        tokens.pop();
        tokens.push(mark);
        tokens.extend(tokenizer.encode(" b").unwrap());
        let mut detokenizer = Detokenizer::with_calls(Arc::clone(&tokenizer));
        let mut text: String = tokens.iter().map(|token| detokenizer.push(*token)).collect();
        text.push_str(&detokenizer.finish());
        let broken = text.strip_prefix('a').and_then(|text| text.strip_suffix("[TOOL_CALLS] b")).expect(&text);
        assert!(broken.chars().all(|letter| letter == char::REPLACEMENT_CHARACTER) && !broken.is_empty(), "{text}");
        assert!(!pieces(&tokenizer, &tokens, true).concat().contains("TOOL_CALLS"));
    }

    proptest! {
        #[test]
        fn the_pieces_are_the_text(text in "\\PC{0,40}") {
            for variant in ["qwen2", "llama3"] {
                let tokenizer = tokenizer(variant);
                let tokens = tokenizer.encode(&text).unwrap();
                prop_assert_eq!(pieces(&tokenizer, &tokens, true).concat(), tokenizer.decode(&tokens, true).unwrap());
            }
        }
    }
}
