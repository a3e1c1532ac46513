//! The body of `POST completions`.

use schemars::JsonSchema;
use serde::Deserialize;
use twinkle_core::error::Error;

use super::super::answer::OpenAiError;
use super::super::events::StreamOptions;
use super::super::fields::{Fields, Refused, is_nothing};
use super::super::settings::Settings;

/// Most prompts of one request.
const MOST_PROMPTS: usize = 256;
/// New tokens of a choice when the request does not say: the protocol's default.
const DEFAULT_TOKENS: u32 = 16;

/// What becomes of each field.
pub(super) const FIELDS: Fields = Fields {
    served: &[
        "model",
        "prompt",
        "n",
        "best_of",
        "max_tokens",
        "temperature",
        "top_p",
        "top_k",
        "seed",
        "stop",
        "ignore_eos",
        "frequency_penalty",
        "presence_penalty",
        "repetition_penalty",
        "logit_bias",
        "logprobs",
        "echo",
        "stream",
        "stream_options",
        "adapter_uri",
        "add_special_tokens",
    ],
    harmless: &["user"],
    refused: &[Refused {
        name: "suffix",
        is_neutral: is_nothing,
        hint: "write the gap into the prompt as the model knows it",
    }],
};

/// Prompts to be continued.
#[derive(Debug, Deserialize, JsonSchema)]
pub(crate) struct CompletionRequest {
    /// A base model, a checkpoint, a run or a sampling session.
    pub(super) model: String,
    /// What is to be continued.
    prompt: Prompts,
    #[serde(flatten)]
    settings: Settings,
    /// As many as `n`.
    best_of: Option<u32>,
    /// How many of the likeliest tokens are wanted beside each; the logprobs of the tokens themselves come with any number.
    logprobs: Option<u32>,
    /// Whether the prompt is repeated before its continuation.
    echo: Option<bool>,
    /// Whether the answer comes in pieces.
    pub(super) stream: Option<bool>,
    /// How a stream ends.
    stream_options: Option<StreamOptions>,
    /// Weights to use in place of the model's.
    pub(super) adapter_uri: Option<String>,
    /// Whether the tokenizer's special tokens are put around texts: yes, if nothing is said.
    pub(super) add_special_tokens: Option<bool>,
}

/// One prompt or several, as texts or as tokens.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(untagged, expecting = "a text, a list of texts, a list of tokens or a list of lists of tokens is expected")]
enum Prompts {
    Text(String),
    Tokens(Vec<u32>),
    Texts(Vec<String>),
    TokenLists(Vec<Vec<u32>>),
}

/// One prompt.
#[derive(Debug)]
pub(super) enum Prompt {
    Text(String),
    Tokens(Vec<u32>),
}

/// What is wanted beside new tokens.
#[derive(Clone, Debug)]
pub(super) struct Wishes {
    /// Whether the prompt is repeated before its continuation.
    pub(super) echo: bool,
    /// Logprobs, and how many of the likeliest tokens beside each.
    pub(super) logprobs: Option<u32>,
    /// Texts that end a choice.
    pub(super) stops: Vec<String>,
}

impl Wishes {
    /// Whether the prompt's own tokens are scored.
    pub(super) fn scores_prompt(&self) -> bool {
        self.echo && self.logprobs.is_some()
    }

    /// How many of the likeliest tokens are told.
    pub(super) fn top(&self) -> u32 {
        self.logprobs.unwrap_or(0)
    }
}

impl CompletionRequest {
    /// How tokens are drawn.
    pub(super) fn settings(&self) -> Result<Settings, OpenAiError> {
        let n = self.settings.n.unwrap_or(1);
        if self.best_of.is_some_and(|best| best != n) {
            let error = Error::unsupported("`best_of` other than `n` is not supported");
            return Err(OpenAiError::of("best_of", error.hint("ask for `n` choices with logprobs and take the best")));
        }
        Ok(Settings {
            max_tokens: Some(self.settings.max_tokens.unwrap_or(DEFAULT_TOKENS)),
            top_logprobs: self.logprobs.unwrap_or(0),
            ..self.settings.clone()
        })
    }

    /// What is wanted beside new tokens.
    pub(super) fn wishes(&self) -> Result<Wishes, OpenAiError> {
        let wishes =
            Wishes { echo: self.echo.unwrap_or(false), logprobs: self.logprobs, stops: self.settings()?.stop_texts() };
        if wishes.scores_prompt() && self.stream.unwrap_or(false) {
            let error = Error::unsupported("`echo` with `logprobs` cannot be streamed");
            return Err(OpenAiError::of("echo", error.hint("leave out `stream`")));
        }
        if self.settings.max_tokens == Some(0) && !wishes.echo {
            let error = Error::invalid("`max_tokens` is 0").hint("ask for at least one token, or for `echo`");
            return Err(OpenAiError::of("max_tokens", error));
        }
        Ok(wishes)
    }

    /// Whether the last event of a stream tells how many tokens there were.
    pub(super) fn includes_usage(&self) -> Result<bool, OpenAiError> {
        StreamOptions::includes_usage(self.stream_options, self.stream)
    }

    /// The prompts, in order.
    pub(super) fn into_prompts(self) -> Result<Vec<Prompt>, OpenAiError> {
        let prompts: Vec<Prompt> = match self.prompt {
            Prompts::Text(text) => vec![Prompt::Text(text)],
            Prompts::Tokens(tokens) => vec![Prompt::Tokens(tokens)],
            Prompts::Texts(texts) => texts.into_iter().map(Prompt::Text).collect(),
            Prompts::TokenLists(lists) => lists.into_iter().map(Prompt::Tokens).collect(),
        };
        if prompts.len() > MOST_PROMPTS {
            let text = format!("`prompt` holds {} prompts, at most {MOST_PROMPTS} are allowed", prompts.len());
            return Err(OpenAiError::of("prompt", Error::invalid(text)));
        }
        let is_empty = |prompt: &Prompt| match prompt {
            Prompt::Text(text) => text.is_empty(),
            Prompt::Tokens(tokens) => tokens.is_empty(),
        };
        if prompts.is_empty() || prompts.iter().any(is_empty) {
            return Err(OpenAiError::of("prompt", Error::invalid("`prompt` is empty").hint("send at least one token")));
        }
        Ok(prompts)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use serde_json::{Value, json};

    use super::*;

    fn read(changes: Value) -> Result<CompletionRequest, String> {
        let mut body = json!({"model": "m", "prompt": "hi"});
        let Value::Object(changes) = changes else { panic!("not an object") };
        body.as_object_mut().unwrap().extend(changes);
        FIELDS.read(body.to_string().as_bytes()).map_err(|error| text(&error))
    }

    fn text(error: &OpenAiError) -> String {
        String::from_utf8(error.body().to_vec()).unwrap()
    }

    #[test]
    fn what_the_reference_says_is_what_is_served() {
        let schema = schemars::schema_for!(CompletionRequest).to_value();
        let said: BTreeSet<&str> = schema["properties"].as_object().unwrap().keys().map(String::as_str).collect();
        assert_eq!(said, FIELDS.served.iter().copied().collect());
    }

    #[test]
    fn a_prompt_is_a_text_tokens_or_several_of_them() {
        let count = |prompt| {
            read(json!({"prompt": prompt})).and_then(|request| request.into_prompts().map_err(|error| text(&error)))
        };
        assert_eq!(count(json!("a")).unwrap().len(), 1);
        assert_eq!(count(json!([1, 2])).unwrap().len(), 1);
        assert_eq!(count(json!(["a", "b"])).unwrap().len(), 2);
        assert_eq!(count(json!([[1], [2, 3]])).unwrap().len(), 2);
        for empty in [json!(""), json!([]), json!(["a", ""]), json!([[1], []])] {
            assert!(count(empty).unwrap_err().contains("is empty"));
        }
        assert!(count(json!(vec!["a"; MOST_PROMPTS + 1])).unwrap_err().contains("at most"));
        assert!(count(json!([-1])).unwrap_err().contains("a list of tokens"));
    }

    #[test]
    fn sixteen_tokens_are_the_default() {
        assert_eq!(read(json!({})).unwrap().settings().unwrap().max_tokens, Some(16));
        assert_eq!(read(json!({"max_tokens": 3})).unwrap().settings().unwrap().max_tokens, Some(3));
    }

    #[test]
    fn what_cannot_be_done_is_refused_by_name() {
        let refusal = |changes| {
            let request = read(changes)?;
            request.settings().map_err(|error| text(&error))?;
            request.wishes().map_err(|error| text(&error)).map(|_| ())
        };
        assert_eq!(refusal(json!({"best_of": 1, "suffix": ""})), Ok(()));
        assert!(refusal(json!({"best_of": 2})).unwrap_err().contains("best_of"));
        assert!(refusal(json!({"suffix": "x"})).unwrap_err().contains("suffix"));
        assert!(refusal(json!({"max_tokens": 0})).unwrap_err().contains("max_tokens"));
        assert_eq!(refusal(json!({"max_tokens": 0, "echo": true})), Ok(()));
        assert!(refusal(json!({"echo": true, "logprobs": 1, "stream": true})).unwrap_err().contains("streamed"));
    }
}
