//! Tokens as the protocol writes them beside their logprobs: a text, and its bytes.

use std::fmt::Write;

use twinkle_processor::ModelTokenizer;

/// Marks a space in vocabularies of `SentencePiece`.
const SPACE_MARK: char = '\u{2581}';

/// A token by itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct TokenText {
    /// Its text; `bytes:\xe4\xbd` for a part of a character.
    pub(super) text: String,
    /// Its bytes; those of consecutive tokens are those of the text.
    pub(super) bytes: Vec<u8>,
}

/// The text of one token. An id beyond the tokenizer's vocabulary has none.
pub(super) fn token_text(tokenizer: &ModelTokenizer, token: u32) -> TokenText {
    let text = tokenizer.decode(&[token], false).unwrap_or_default();
    let piece = tokenizer.piece(token).unwrap_or_default();
    if text.contains(char::REPLACEMENT_CHARACTER)
        && let Some(bytes) = bytes_of(&piece)
    {
        let mut text = "bytes:".to_owned();
        for byte in &bytes {
            // Writing to a string cannot fail.
            let _ = write!(text, "\\x{byte:02x}");
        }
        return TokenText { text, bytes };
    }
    // A decoder leaves out the space before the first word.
    let text = if piece.starts_with(SPACE_MARK) { piece.replace(SPACE_MARK, " ") } else { text };
    TokenText { bytes: text.clone().into_bytes(), text }
}

/// The bytes behind an entry of a vocabulary of bytes: `<0xE4>`, or one letter a byte as GPT-2 writes them.
fn bytes_of(piece: &str) -> Option<Vec<u8>> {
    if let Some(digits) = piece.strip_prefix("<0x").and_then(|rest| rest.strip_suffix('>')) {
        return u8::from_str_radix(digits, 16).ok().map(|byte| vec![byte]);
    }
    let bytes: Option<Vec<u8>> = piece.chars().map(byte_of).collect();
    bytes.filter(|bytes| !bytes.is_empty())
}

/// The byte that GPT-2's vocabulary writes as this letter: printable ones as themselves, the others from U+0100 on.
fn byte_of(letter: char) -> Option<u8> {
    let is_printable = |byte: u8| matches!(byte, b'!'..=b'~' | 0xA1..=0xAC | 0xAE..=0xFF);
    let code = u32::from(letter);
    if let Ok(byte) = u8::try_from(code) {
        return is_printable(byte).then_some(byte);
    }
    let place = usize::try_from(code.checked_sub(0x100)?).ok()?;
    (0..=u8::MAX).filter(|byte| !is_printable(*byte)).nth(place)
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    fn tokenizer(variant: &str) -> ModelTokenizer {
        let fixtures = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/golden/fixtures");
        ModelTokenizer::load(&fixtures.join(variant)).unwrap()
    }

    #[test]
    fn the_bytes_of_all_tokens_are_those_of_the_text() {
        for variant in ["qwen2", "llama3", "smollm3"] {
            let tokenizer = tokenizer(variant);
            let text = "Some text, 你好 🚀\n\tend";
            let tokens = tokenizer.encode(text).unwrap();
            let bytes: Vec<u8> = tokens.iter().flat_map(|token| token_text(&tokenizer, *token).bytes).collect();
            assert_eq!(String::from_utf8(bytes).unwrap(), text, "{variant}");
        }
    }

    #[test]
    fn a_part_of_a_character_is_written_as_its_bytes() {
        let tokenizer = tokenizer("qwen2");
        let first = tokenizer.encode("好").unwrap()[0];
        let part = token_text(&tokenizer, first);
        assert!(part.text.starts_with("bytes:\\xe5"), "{part:?}");
        assert_eq!(part.bytes[0], 0xE5);
    }

    #[test]
    fn every_byte_has_its_letter() {
        assert_eq!(bytes_of("Ġa").unwrap(), b" a");
        assert_eq!(bytes_of("Ċ").unwrap(), b"\n");
        assert_eq!(bytes_of("<0xE4>").unwrap(), [0xE4]);
        assert_eq!(bytes_of("ÿ").unwrap(), [0xFF]);
        assert_eq!(bytes_of("你"), None);
        assert_eq!(bytes_of(""), None);
    }

    #[test]
    fn an_id_without_an_entry_has_no_text() {
        assert_eq!(token_text(&tokenizer("qwen2"), 9_999_999), TokenText { text: String::new(), bytes: Vec::new() });
    }
}
