//! A model's tokenizer together with its chat template.

use std::collections::HashSet;
use std::fmt;
use std::path::Path;

use tokenizers::{Encoding, Tokenizer};
use tracing::warn;
use twinkle_core::call::{ChatMessage, EncodedText};
use twinkle_core::data::TokenIds;
use twinkle_core::error::{Error, Result};
use twinkle_core::wire::twinkle::{IGNORED_LABEL, Message};

use crate::files::read_if_present;
use crate::rounds::{Rounds, inside, to_end_of_turn};
use crate::template::ChatTemplate;
use crate::tool_calls::CallFormat;

/// A model's tokenizer together with its chat template. Immutable: share it behind an `Arc`.
pub struct ModelTokenizer {
    tokenizer: Tokenizer,
    special: HashSet<u32>,
    /// The error is kept for those who ask for it: plain text needs no template.
    template: Result<Option<ChatTemplate>>,
    /// Special tokens that are text all the same, because a call is not seen without them.
    marks: Vec<(u32, &'static str)>,
}

impl ModelTokenizer {
    /// Loads `tokenizer.json` and the chat template of a model folder. Blocking.
    pub fn load(folder: &Path) -> Result<Self> {
        let path = folder.join("tokenizer.json");
        let Some(bytes) = read_if_present(&path)? else {
            return Err(Error::not_found(format!("`{}` has no `tokenizer.json`", folder.display()))
                .hint("save the model's tokenizer in its fast form"));
        };
        let unusable =
            |error: tokenizers::Error| Error::invalid(format!("`{}` cannot be used: {error}", path.display()));
        let mut tokenizer = Tokenizer::from_bytes(bytes).map_err(unusable)?;
        // A file may carry the settings of a training run: whole texts are wanted here, without padding.
        tokenizer.with_truncation(None).map_err(unusable)?;
        tokenizer.with_padding(None);
        let added = tokenizer.get_added_tokens_decoder();
        let special = added.iter().filter(|(_, token)| token.special).map(|(id, _)| *id).collect();
        let template = ChatTemplate::load(folder);
        if let Err(error) = &template {
            warn!(folder = %folder.display(), %error, "conversations cannot be encoded");
        }
        let mut loaded = Self { tokenizer, special, template, marks: Vec::new() };
        let mark = |mark: &'static str| Some((loaded.tokenizer.token_to_id(mark)?, mark));
        let marks = loaded.call_format().marks().iter().copied().filter_map(mark);
        loaded.marks = marks.filter(|(token, _)| loaded.is_special(*token)).collect();
        Ok(loaded)
    }

    /// Number of token ids it knows, with added tokens.
    #[must_use]
    pub fn vocabulary_size(&self) -> usize {
        self.tokenizer.get_vocab_size(true)
    }

    /// Whether a token is special: it marks a turn or a text, and is not text itself.
    #[must_use]
    pub fn is_special(&self, token: u32) -> bool {
        self.special.contains(&token)
    }

    /// A token as its vocabulary writes it, which need not be text.
    #[must_use]
    pub fn piece(&self, token: u32) -> Option<String> {
        self.tokenizer.id_to_token(token)
    }

    /// The tokens of a text; nothing is put before or behind it.
    pub fn encode(&self, text: &str) -> Result<TokenIds> {
        Ok(self.encoding(text)?.get_ids().to_vec())
    }

    /// The tokens of a text as the model's authors feed plain text: with the special tokens that they put around it.
    pub fn encode_with_specials(&self, text: &str) -> Result<TokenIds> {
        let encoding = self.tokenizer.encode(text, true);
        let encoding = encoding.map_err(|error| Error::invalid(format!("the text cannot be tokenized: {error}")))?;
        Ok(encoding.get_ids().to_vec())
    }

    /// The text of tokens. Ids beyond the tokenizer's vocabulary, which a model's head may have, have no text.
    pub fn decode(&self, tokens: &[u32], skip_special_tokens: bool) -> Result<String> {
        self.tokenizer
            .decode(tokens, skip_special_tokens)
            .map_err(|error| Error::invalid(format!("the tokens cannot be decoded: {error}")))
    }

    /// The text of tokens without special ones, but with those that open and close calls of tools.
    pub fn decode_spoken(&self, tokens: &[u32]) -> Result<String> {
        let mut text = String::new();
        for part in tokens.split_inclusive(|token| self.call_mark(*token).is_some()) {
            text.push_str(&self.decode(part, true)?);
            text.push_str(part.last().and_then(|token| self.call_mark(*token)).unwrap_or_default());
        }
        Ok(text)
    }

    /// The text of a special token that opens or closes a call of a tool.
    #[must_use]
    pub fn call_mark(&self, token: u32) -> Option<&'static str> {
        self.marks.iter().find(|(mark, _)| *mark == token).map(|(_, text)| *text)
    }

    /// How the model writes calls of tools, as its chat template has it.
    #[must_use]
    pub fn call_format(&self) -> CallFormat {
        self.template.as_ref().ok().and_then(Option::as_ref).map(ChatTemplate::call_format).unwrap_or_default()
    }

    /// A conversation as text, through the model's chat template.
    pub fn render(&self, messages: &[ChatMessage], add_generation_prompt: bool) -> Result<String> {
        self.chat_template()?.render(messages, add_generation_prompt)
    }

    /// A conversation as tokens, with 1 in the mask where an assistant wrote the token.
    ///
    /// With `add_generation_prompt` the tokens are a prompt to be continued, and the mask is all 0.
    pub fn encode_chat(&self, messages: &[ChatMessage], add_generation_prompt: bool) -> Result<EncodedText> {
        let template = self.chat_template()?;
        let rendered = template.render(messages, add_generation_prompt)?;
        let encoding = self.encoding(&rendered)?;
        let tokens = encoding.get_ids().to_vec();
        if add_generation_prompt {
            return Ok(EncodedText { assistant_mask: vec![0; tokens.len()], tokens });
        }
        let turns: Vec<Message> =
            messages.iter().map(|message| Message::new(message.role.as_str(), message.content.as_str())).collect();
        let render = |count: usize, prompt: bool| template.render(messages.get(..count).unwrap_or(messages), prompt);
        let token_ends = |text: &str| self.token_ends(text);
        let rounds = Rounds { messages: &turns, full: &rendered, render: &render, token_ends: &token_ends };
        let to_end = |span| to_end_of_turn(&rendered, &span, &encoding, |token| self.is_special(token));
        let written: Vec<_> = rounds.written(|_| true)?.into_iter().map(to_end).collect();
        let mask = inside(&encoding, &written).into_iter().map(|label| u8::from(label != IGNORED_LABEL)).collect();
        Ok(EncodedText { tokens, assistant_mask: mask })
    }

    /// Where in bytes the tokens of a text end, ascending.
    pub(crate) fn token_ends(&self, text: &str) -> Result<Vec<usize>> {
        Ok(self.encoding(text)?.get_offsets().iter().map(|(_, end)| *end).collect())
    }

    pub(crate) fn chat_template(&self) -> Result<&ChatTemplate> {
        match &self.template {
            Ok(Some(template)) => Ok(template),
            Ok(None) => Err(Error::unsupported("the model has no chat template")
                .hint("put a `chat_template.jinja` into its folder, or encode plain text")),
            Err(error) => Err(error.clone()),
        }
    }

    pub(crate) fn encoding(&self, text: &str) -> Result<Encoding> {
        self.tokenizer
            .encode(text, false)
            .map_err(|error| Error::invalid(format!("the text cannot be tokenized: {error}")))
    }
}

impl fmt::Debug for ModelTokenizer {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter
            .debug_struct("ModelTokenizer")
            .field("vocabulary_size", &self.vocabulary_size())
            .field("template", &self.template.as_ref().map(Option::is_some))
            .finish_non_exhaustive()
    }
}
