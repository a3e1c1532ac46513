//! The body of `POST chat/completions`.

use serde::Deserialize;
use serde_json::Value;
use twinkle_core::error::{Error, Result};
use twinkle_core::wire::twinkle::{Message, Trajectory};

use super::super::answer::OpenAiError;
use super::super::events::StreamOptions;
use super::super::fields::{Fields, Refused, is_nothing};
use super::super::settings::{Settings, StopTexts};

/// What becomes of each field.
pub(super) const FIELDS: Fields = Fields {
    served: &[
        "model",
        "messages",
        "tools",
        "tool_choice",
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
        Refused { name: "logit_bias", is_neutral: is_nothing, hint: "leave it out" },
        Refused { name: "parallel_tool_calls", is_neutral: is_true, hint: "take the first call of each answer" },
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
#[derive(Debug, Deserialize)]
pub(super) struct ChatRequest {
    pub(super) model: String,
    messages: Vec<Message>,
    #[serde(default)]
    tools: Vec<Value>,
    tool_choice: Option<Value>,
    n: Option<u32>,
    max_tokens: Option<u32>,
    max_completion_tokens: Option<u32>,
    temperature: Option<f32>,
    top_p: Option<f32>,
    top_k: Option<i64>,
    seed: Option<i64>,
    stop: Option<StopTexts>,
    ignore_eos: Option<bool>,
    frequency_penalty: Option<f32>,
    presence_penalty: Option<f32>,
    repetition_penalty: Option<f32>,
    pub(super) logprobs: Option<bool>,
    top_logprobs: Option<u32>,
    pub(super) stream: Option<bool>,
    stream_options: Option<StreamOptions>,
    pub(super) adapter_uri: Option<String>,
    #[serde(default)]
    chat_template_kwargs: TemplateSettings,
    pub(super) separate_reasoning: Option<bool>,
}

/// Settings of the model's chat template.
#[derive(Clone, Copy, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct TemplateSettings {
    /// Whether the model may think before it answers, for templates that know this.
    pub(super) enable_thinking: Option<bool>,
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
            n: self.n,
            max_tokens: self.max_completion_tokens.or(self.max_tokens),
            temperature: self.temperature,
            top_p: self.top_p,
            top_k: self.top_k,
            seed: self.seed,
            stop: self.stop.clone(),
            ignore_eos: self.ignore_eos,
            frequency_penalty: self.frequency_penalty,
            presence_penalty: self.presence_penalty,
            repetition_penalty: self.repetition_penalty,
            top_logprobs: self.top_logprobs.unwrap_or(0),
        })
    }

    /// Whether the last event of a stream tells how many tokens there were.
    pub(super) fn includes_usage(&self) -> Result<bool, OpenAiError> {
        StreamOptions::includes_usage(self.stream_options, self.stream)
    }

    /// Settings of the model's chat template.
    pub(super) fn template_settings(&self) -> TemplateSettings {
        self.chat_template_kwargs
    }

    /// Whether the assistant may call tools.
    pub(super) fn calls_tools(&self) -> Result<bool, OpenAiError> {
        for (index, tool) in self.tools.iter().enumerate() {
            let is_function = tool.get("type").and_then(Value::as_str) == Some("function");
            let is_named = tool.pointer("/function/name").and_then(Value::as_str).is_some();
            if !is_function || !is_named {
                let text = format!("`tools[{index}]` is not a function with a name");
                let hint = "a tool is `{\"type\": \"function\", \"function\": {\"name\": …}}`";
                return Err(OpenAiError::of("tools", Error::invalid(text).hint(hint)));
            }
        }
        match self.tool_choice.as_ref().map(|choice| choice.as_str().unwrap_or_default()) {
            None | Some("auto") => Ok(!self.tools.is_empty()),
            Some("none") => Ok(false),
            Some(_) => {
                let error = Error::unsupported("`tool_choice` may be `auto` or `none`: a call cannot be forced");
                Err(OpenAiError::of("tool_choice", error.hint("say in the conversation which tool is wanted")))
            }
        }
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

fn is_true(value: &Value) -> bool {
    value == &Value::Bool(true)
}

#[cfg(test)]
mod tests {
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
            json!({"logit_bias": {"5": 1}}),
            json!({"parallel_tool_calls": false}),
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
            let calls = request.calls_tools().map_err(|error| text(&error))?;
            Ok::<_, String>(
                request.into_trajectory(calls).map_err(|error| text(&error))?.tools.map(|tools| tools.len()),
            )
        };
        assert_eq!(offered(json!({})), Ok(None));
        assert_eq!(offered(json!({"tools": [tool]})), Ok(Some(1)));
        assert_eq!(offered(json!({"tools": [tool], "tool_choice": "auto"})), Ok(Some(1)));
        assert_eq!(offered(json!({"tools": [tool], "tool_choice": "none"})), Ok(None));
        for forced in [json!("required"), json!({"type": "function", "function": {"name": "f"}})] {
            assert!(offered(json!({"tools": [tool], "tool_choice": forced})).unwrap_err().contains("forced"));
        }
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
