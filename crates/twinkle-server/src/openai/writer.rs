//! From the tokens of one choice to its text, up to the first stop text.

use std::sync::Arc;

use twinkle_processor::{ModelTokenizer, unfinished};

use crate::streaming::Detokenizer;

/// Writes one choice. All pieces together are its text, without the stop text that ended it.
#[derive(Clone, Debug)]
pub(super) struct Writer {
    detokenizer: Detokenizer,
    cutter: Cutter,
}

impl Writer {
    /// Of a choice without tokens, which one of these texts ends.
    pub(super) fn new(tokenizer: &Arc<ModelTokenizer>, stops: Vec<String>) -> Self {
        Self::of(Detokenizer::new(Arc::clone(tokenizer), true), stops)
    }

    /// Of a choice that may call tools: the special tokens that open and close calls are text too.
    pub(super) fn with_calls(tokenizer: &Arc<ModelTokenizer>, stops: Vec<String>) -> Self {
        Self::of(Detokenizer::with_calls(Arc::clone(tokenizer)), stops)
    }

    fn of(detokenizer: Detokenizer, stops: Vec<String>) -> Self {
        Self { detokenizer, cutter: Cutter { stops, held: String::new(), is_cut: false } }
    }

    /// The text that is certain after this token.
    pub(super) fn push(&mut self, token: u32) -> String {
        let piece = self.detokenizer.push(token);
        self.cutter.push(&piece)
    }

    /// The text that was held back, at the end.
    pub(super) fn finish(&mut self) -> String {
        let piece = self.detokenizer.finish();
        let mut text = self.cutter.push(&piece);
        text.push_str(&self.cutter.finish());
        text
    }
}

/// Ends a text before the first stop text, and holds back what may become one.
#[derive(Clone, Debug)]
struct Cutter {
    stops: Vec<String>,
    held: String,
    is_cut: bool,
}

impl Cutter {
    fn push(&mut self, piece: &str) -> String {
        if self.is_cut {
            return String::new();
        }
        self.held.push_str(piece);
        if let Some(end) = self.stops.iter().filter_map(|stop| self.held.find(stop.as_str())).min() {
            self.is_cut = true;
            self.held.truncate(end);
            return std::mem::take(&mut self.held);
        }
        let certain = self.held.len() - unfinished(&self.held, self.stops.iter().map(String::as_str));
        self.held.drain(..certain).collect()
    }

    fn finish(&mut self) -> String {
        std::mem::take(&mut self.held)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn pieces(stops: &[&str], pieces: &[&str]) -> Vec<String> {
        let stops = stops.iter().map(|stop| (*stop).to_owned()).collect();
        let mut cutter = Cutter { stops, held: String::new(), is_cut: false };
        let mut written: Vec<String> = pieces.iter().map(|piece| cutter.push(piece)).collect();
        written.push(cutter.finish());
        written
    }

    #[test]
    fn what_may_become_a_stop_text_is_held_back_until_it_is_certain() {
        assert_eq!(pieces(&["STOP"], &["one S", "TO", "re ", "STO", "P two"]), ["one ", "", "STOre ", "", "", ""]);
        assert_eq!(pieces(&["STOP"], &["one ST"]), ["one ", "ST"]);
        assert_eq!(pieces(&[], &["one ST"]), ["one ST", ""]);
    }

    #[test]
    fn the_first_of_several_stop_texts_ends_the_text() {
        assert_eq!(pieces(&["b", "ab"], &["xxab", "yy"]), ["xx", "", ""]);
        assert_eq!(pieces(&["好了"], &["你好", "了吗"]).concat(), "你");
    }

    proptest! {
        #[test]
        fn however_it_is_cut_into_pieces_the_text_ends_before_the_first_stop_text(
            text in "[abc好]{0,24}", stop in "[abc好]{1,4}", every in 1_usize..5,
        ) {
            let letters: Vec<char> = text.chars().collect();
            let parts: Vec<String> = letters.chunks(every).map(|part| part.iter().collect()).collect();
            let parts: Vec<&str> = parts.iter().map(String::as_str).collect();
            let expected = text.find(&stop).map_or(text.as_str(), |end| &text[..end]);
            prop_assert_eq!(pieces(&[&stop], &parts).concat(), expected);
        }
    }
}
