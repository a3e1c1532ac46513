//! The body of `POST chat/completions`.

use schemars::JsonSchema;
use serde::Deserialize;
use serde_json::Value;
use twinkle_core::error::{Error, Result};
use twinkle_core::wire::twinkle::{Message, Trajectory};
use twinkle_processor::{CallFormat, OfferedTools};

use super::super::answer::OpenAiError;
use super::super::events::StreamOptions;
use super::super::fields::{Fields, Refused, is_nothing};
use super::super::settings::Settings;
use super::tool_choice::ToolUse;

/// What becomes of each field.
pub(super) const FIELDS: Fields = Fields {
    served: &[
        "model",
        "messages",
        "tools",
        "tool_choice",
        "parallel_tool_calls",
        "n",
        "max_tokens",
        "max_completion_tokens",
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
        "top_logprobs",
        "stream",
        "stream_options",
        "adapter_uri",
        "chat_template_kwargs",
        "separate_reasoning",
    ],
    harmless: &[
        "user",
        "metadata",
        "store",
        "service_tier",
        "safety_identifier",
        "prompt_cache_key",
        "prompt_cache_retention",
    ],
    refused: &[
        Refused { name: "response_format", is_neutral: is_text, hint: "say in the conversation what form is wanted" },
        Refused { name: "functions", is_neutral: is_nothing, hint: "send `tools`" },
        Refused { name: "function_call", is_neutral: is_nothing, hint: "send `tools`" },
        Refused { name: "modalities", is_neutral: is_text_only, hint: "this server answers with text" },
        Refused { name: "audio", is_neutral: is_nothing, hint: "this server answers with text" },
        Refused { name: "prediction", is_neutral: is_nothing, hint: "leave it out: it changes no answer" },
        Refused { name: "web_search_options", is_neutral: is_nothing, hint: "leave it out" },
        Refused { name: "verbosity", is_neutral: is_nothing, hint: "say in the conversation how much is wanted" },
        Refused {
            name: "reasoning_effort",
            is_neutral: is_nothing,
            hint: "send `chat_template_kwargs: {\"enable_thinking\": false}` for no thinking at all",
        },
    ],
};

/// A chat to be continued.
#[derive(Debug, Deserialize, JsonSchema)]
pub(crate) struct ChatRequest {
    /// A base model, a checkpoint, a run or a sampling session.
    pub(super) model: String,
    /// The conversation, the oldest turn first.
    messages: Vec<Message>,
    /// What the assistant may call.
    #[serde(default)]
    tools: Vec<Value>,
    /// Whether it calls something.
    tool_choice: Option<Value>,
    parallel_tool_calls: Option<bool>,
    #[serde(flatten)]
    settings: Settings,
    /// The newer name of `max_tokens`.
    max_completion_tokens: Option<u32>,
    /// Whether the logprob of every new token is wanted.
    pub(super) logprobs: Option<bool>,
    /// How many of the likeliest tokens are wanted beside each.
    top_logprobs: Option<u32>,
    /// Whether the answer comes in pieces.
    pub(super) stream: Option<bool>,
    /// How a stream ends.
    stream_options: Option<StreamOptions>,
    /// Weights to use in place of the model's.
    pub(super) adapter_uri: Option<String>,
    /// Settings of the model's chat template.
    #[serde(default)]
    chat_template_kwargs: TemplateSettings,
    /// Whether thoughts are told apart from what is said: yes, if nothing is said.
    pub(super) separate_reasoning: Option<bool>,
}

/// Settings of the model's chat template.
#[derive(Clone, Copy, Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct TemplateSettings {
    /// Whether the model may think before it answers, for templates that know this.
    enable_thinking: Option<bool>,
}

impl ChatRequest {
    /// How tokens are drawn.
    pub(super) fn settings(&self) -> Result<Settings, OpenAiError> {
        let wants_logprobs = self.logprobs.unwrap_or(false);
        if self.top_logprobs.is_some_and(|count| count > 0) && !wants_logprobs {
            let error = Error::invalid("`top_logprobs` needs `logprobs`").hint("send `logprobs: true` too");
            return Err(OpenAiError::of("top_logprobs", error));
        }
        Ok(Settings {
            max_tokens: self.max_completion_tokens.or(self.settings.max_tokens),
            top_logprobs: self.top_logprobs.unwrap_or(0),
            ..self.settings.clone()
        })
    }

    /// Whether the last event of a stream tells how many tokens there were.
    pub(super) fn includes_usage(&self) -> Result<bool, OpenAiError> {
        StreamOptions::includes_usage(self.stream_options, self.stream)
    }

    /// Whether and how the assistant calls tools.
    pub(super) fn tool_use(&self) -> Result<ToolUse, OpenAiError> {
        ToolUse::read(&self.tools, self.tool_choice.as_ref())
    }

    /// Whether the model may think before it answers.
    pub(super) fn may_think(&self, tool_use: &ToolUse) -> Result<bool, OpenAiError> {
        tool_use.may_think(self.chat_template_kwargs.enable_thinking)
    }

    /// The text that ends a choice whose first call is its only one.
    pub(super) fn end_of_only_call(
        &self,
        tool_use: &ToolUse,
        format: CallFormat,
    ) -> Result<Option<&'static str>, OpenAiError> {
        tool_use.end_of_only_call(self.parallel_tool_calls, format)
    }

    /// What is known of the tools' parameters.
    pub(super) fn offered(&self) -> OfferedTools {
        OfferedTools::new(&self.tools)
    }

    /// The conversation, with its tools if they may be called.
    pub(super) fn into_trajectory(self, calls: bool) -> Result<Trajectory, OpenAiError> {
        if self.messages.is_empty() {
            return Err(OpenAiError::of("messages", Error::invalid("`messages` is empty")));
        }
        let mut messages = self.messages;
        for message in &mut messages {
            // The protocol's newer word for it, which no template knows.
            if message.role == "developer" {
                "system".clone_into(&mut message.role);
            }
        }
        Ok(Trajectory { tools: calls.then_some(self.tools), ..Trajectory::new(messages) })
    }
}

fn is_text(format: &Value) -> bool {
    format.get("type").and_then(Value::as_str) == Some("text")
}

fn is_text_only(modalities: &Value) -> bool {
    modalities.as_array().is_some_and(|kinds| kinds.iter().all(|kind| kind == "text"))
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use serde_json::json;

    use super::*;

    fn read(changes: Value) -> Result<ChatRequest, String> {
        let mut body = json!({"model": "m", "messages": [{"role": "user", "content": "hi"}]});
        let Value::Object(changes) = changes else { panic!("not an object") };
        body.as_object_mut().unwrap().extend(changes);
        FIELDS.read(body.to_string().as_bytes()).map_err(|error| text(&error))
    }

    fn text(error: &OpenAiError) -> String {
        String::from_utf8(error.body().to_vec()).unwrap()
    }

    #[test]
    fn what_the_reference_says_is_what_is_served() {
        let schema = schemars::schema_for!(ChatRequest).to_value();
        let said: BTreeSet<&str> = schema["properties"].as_object().unwrap().keys().map(String::as_str).collect();
        assert_eq!(said, FIELDS.served.iter().copied().collect());
    }

    #[test]
    fn the_newer_name_of_a_limit_wins() {
        let limit = |changes| read(changes).unwrap().settings().unwrap().max_tokens;
        assert_eq!(limit(json!({"max_tokens": 5})), Some(5));
        assert_eq!(limit(json!({"max_tokens": 5, "max_completion_tokens": 7})), Some(7));
        assert_eq!(limit(json!({})), None);
    }

    #[test]
    fn what_changes_nothing_is_accepted_and_what_would_is_refused() {
        let neutral = json!({"user": "u", "metadata": {}, "store": true, "response_format": {"type": "text"},
            "logit_bias": {}, "parallel_tool_calls": true, "modalities": ["text"], "service_tier": "auto",
            "reasoning_effort": null});
        assert!(read(neutral).is_ok());
        for refused in [
            json!({"response_format": {"type": "json_object"}}),
            json!({"functions": [{"name": "f"}]}),
            json!({"reasoning_effort": "low"}),
        ] {
            let name = refused.as_object().unwrap().keys().next().unwrap().clone();
            let error = read(refused).unwrap_err();
            assert!(error.contains(&format!("`{name}` is not supported")), "{error}");
        }
    }

    #[test]
    fn tools_are_offered_unless_none_is_to_be_called() {
        let tool = json!({"type": "function", "function": {"name": "f", "parameters": {}}});
        let offered = |changes| {
            let request = read(changes).unwrap();
            let may_call = request.tool_use().map_err(|error| text(&error))?.may_call();
            let trajectory = request.into_trajectory(may_call).map_err(|error| text(&error))?;
            Ok::<_, String>(trajectory.tools.map(|tools| tools.len()))
        };
        assert_eq!(offered(json!({})), Ok(None));
        assert_eq!(offered(json!({"tools": [tool]})), Ok(Some(1)));
        assert_eq!(offered(json!({"tools": [tool], "tool_choice": "none"})), Ok(None));
        assert!(offered(json!({"tools": [{"type": "function"}]})).unwrap_err().contains("tools[0]"));
    }

    #[test]
    fn a_developer_is_the_system() {
        let request = read(json!({"messages": [{"role": "developer", "content": "be brief"}]})).unwrap();
        assert_eq!(request.into_trajectory(false).unwrap().messages[0].role, "system");
        assert!(read(json!({"messages": []})).unwrap().into_trajectory(false).is_err());
    }

    #[test]
    fn neighbours_of_tokens_need_logprobs() {
        assert!(read(json!({"top_logprobs": 2})).unwrap().settings().is_err());
        assert_eq!(read(json!({"top_logprobs": 2, "logprobs": true})).unwrap().settings().unwrap().top_logprobs, 2);
        assert!(
            read(json!({"chat_template_kwargs": {"thinking": true}})).unwrap_err().contains("chat_template_kwargs")
        );
    }
}
