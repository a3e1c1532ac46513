//! `{% generation %}`: the part of a turn that an assistant writes, by the template's own marks.

use std::ops::Range;

use minijinja::State;

/// Where `{% generation %}` begins and ends in a marked rendering: code points that no text may hold.
pub(crate) const GENERATION_MARKS: [char; 2] = ['\u{FDD0}', '\u{FDD1}'];
/// Tells the filter of a generation block to mark its text.
pub(super) const MARKS_WANTED: &str = "twinkle_marks_generation";
/// The name under which templates see [`generation`].
pub(super) const GENERATION_FILTER: &str = "twinkle_generation";

/// A conversation as text, and what of it an assistant wrote by the template's own marks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Marked {
    /// The text.
    pub(crate) text: String,
    /// In bytes of it, in order.
    pub(crate) generated: Vec<Range<usize>>,
}

/// `{% generation %}` marks what an assistant writes. The tag becomes a filter block that can mark its text; replacing
/// only the word keeps the template's white space control. The second answer is whether there was such a tag.
pub(super) fn with_generation_filters(source: &str) -> (String, bool) {
    let mut kept = String::with_capacity(source.len());
    let mut is_marked = false;
    let mut rest = source;
    while let Some(start) = rest.find("{%") {
        let (before, tag) = rest.split_at(start + 2);
        kept.push_str(before);
        let sign = tag.len() - tag.trim_start_matches(['-', '+']).len();
        let (sign, tag) = tag.split_at(sign);
        let space = tag.len() - tag.trim_start().len();
        let (space, tag) = tag.split_at(space);
        kept.push_str(sign);
        kept.push_str(space);
        let word = tag.find(|letter: char| !letter.is_alphanumeric() && letter != '_').unwrap_or(tag.len());
        let (word, tail) = tag.split_at(word);
        match word {
            "generation" => {
                is_marked = true;
                kept.push_str("filter ");
                kept.push_str(GENERATION_FILTER);
            }
            "endgeneration" => kept.push_str("endfilter"),
            other => kept.push_str(other),
        }
        rest = tail;
    }
    kept.push_str(rest);
    (kept, is_marked)
}

/// The text of a generation block, marked where the rendering asks for marks.
pub(super) fn generation(state: &State, text: &str) -> String {
    let [open, close] = GENERATION_MARKS;
    if state.lookup(MARKS_WANTED).is_some_and(|wanted| wanted.is_true()) {
        return format!("{open}{text}{close}");
    }
    text.to_owned()
}

/// Takes the marks out of a rendering.
pub(super) fn unmark(marked: &str) -> Marked {
    let [open, close] = GENERATION_MARKS;
    let mut text = String::with_capacity(marked.len());
    let mut generated = Vec::new();
    let mut start = None;
    for letter in marked.chars() {
        if letter == open {
            start = Some(text.len());
        } else if letter == close {
            generated.extend(start.take().map(|start| start..text.len()));
        } else {
            text.push(letter);
        }
    }
    Marked { text, generated }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_word_of_a_tag_is_replaced() {
        let (source, is_marked) =
            with_generation_filters("a {%- generation -%} b {% endgeneration %}{% if generation %}");
        assert_eq!(source, "a {%- filter twinkle_generation -%} b {% endfilter %}{% if generation %}");
        assert!(is_marked && !with_generation_filters("{% if a %}{% endif %}").1);
    }

    #[test]
    fn marks_become_bytes_of_the_text_without_them() {
        let marked = unmark("a\u{FDD0}ä\u{FDD1}b\u{FDD0}\u{FDD1}");
        assert_eq!(marked, Marked { text: "aäb".to_owned(), generated: vec![1..3, 4..4] });
    }
}
