//! How much one request may hold, so that one request cannot fill the memory or keep a core for minutes.

use twinkle_core::call::ChatMessage;
use twinkle_core::data::TokenIds;
use twinkle_core::error::{Error, ErrorCode, Result};
use twinkle_core::wire::twinkle::{Message, Trajectory};

/// Conversations, texts or sequences of one request.
const MOST_INPUTS: usize = 4096;
/// Turns of one conversation: each assistant turn is rendered once more to find its tokens.
const MOST_TURNS: usize = 1024;
/// Bytes of text of one request.
const MOST_TEXT: usize = 16 << 20;
/// Bytes that all renderings of one conversation may have together.
pub(crate) const MOST_RENDERED: usize = 64 << 20;
/// Tokens of one request to decode.
const MOST_TOKENS: usize = 4 << 20;

/// Checks the conversations of one request.
pub(crate) fn check_conversations(conversations: &[Vec<ChatMessage>]) -> Result<()> {
    at_most("conversations", conversations.len(), MOST_INPUTS)?;
    let turns = conversations.iter().map(Vec::len).max().unwrap_or(0);
    at_most("turns in a conversation", turns, MOST_TURNS)?;
    let text = conversations.iter().flatten().map(|message| message.role.len() + message.content.len()).sum();
    at_most("bytes of text", text, MOST_TEXT)
}

/// Checks the number of inputs of one request.
pub(crate) fn check_inputs(count: usize) -> Result<()> {
    at_most("inputs", count, MOST_INPUTS)
}

/// Checks one conversation with its tools.
pub(crate) fn check_trajectory(trajectory: &Trajectory) -> Result<()> {
    at_most("turns in a conversation", trajectory.messages.len(), MOST_TURNS)?;
    at_most("bytes of text", trajectory.messages.iter().map(Message::text_len).sum(), MOST_TEXT)
}

/// Checks the texts of one request.
pub(crate) fn check_texts(texts: &[String]) -> Result<()> {
    at_most("texts", texts.len(), MOST_INPUTS)?;
    at_most("bytes of text", texts.iter().map(String::len).sum(), MOST_TEXT)
}

/// Checks the token sequences of one request.
pub(crate) fn check_sequences(sequences: &[TokenIds]) -> Result<()> {
    at_most("sequences", sequences.len(), MOST_INPUTS)?;
    at_most("tokens", sequences.iter().map(Vec::len).sum(), MOST_TOKENS)
}

fn at_most(what: &str, count: usize, limit: usize) -> Result<()> {
    if count <= limit {
        return Ok(());
    }
    Err(Error::new(ErrorCode::TooLarge, format!("{count} {what} are over the limit of {limit} in one request"))
        .hint("send several smaller requests"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_limit_lets_its_last_value_through_and_names_what_is_too_much() {
        assert_eq!(check_texts(&vec![String::new(); MOST_INPUTS]), Ok(()));
        let error = check_texts(&vec![String::new(); MOST_INPUTS + 1]).unwrap_err();
        assert_eq!(error.code, ErrorCode::TooLarge);
        assert_eq!(error.message, "4097 texts are over the limit of 4096 in one request");
        assert_eq!(check_texts(&["x".repeat(MOST_TEXT)]), Ok(()));
        assert!(check_texts(&["x".repeat(MOST_TEXT), "y".to_owned()]).is_err());

        let turns = |count| Trajectory::new(vec![Message::new("user", ""); count]);
        assert_eq!(check_trajectory(&turns(MOST_TURNS)), Ok(()));
        assert!(check_trajectory(&turns(MOST_TURNS + 1)).is_err());
        assert!(check_trajectory(&Trajectory::new(vec![Message::new("user", "x".repeat(MOST_TEXT))])).is_err());

        let turn = ChatMessage { role: "user".to_owned(), content: String::new() };
        assert_eq!(check_conversations(&[vec![turn.clone(); MOST_TURNS]]), Ok(()));
        assert!(check_conversations(&[vec![turn; MOST_TURNS + 1]]).is_err());
        assert!(check_sequences(&[vec![0; MOST_TOKENS], vec![0]]).is_err());
    }
}
