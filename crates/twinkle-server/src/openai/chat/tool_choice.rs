//! Which tools an assistant may call, and which it must.
//!
//! A call is forced by ending the prompt with its beginning, in the format of the model's own chat template. What cannot be
//! kept is refused: nothing constrains what a model writes afterwards.

use serde_json::Value;
use twinkle_core::error::{Error, Result, suggestion};
use twinkle_processor::CallFormat;

use super::super::answer::OpenAiError;

/// What to do where a call cannot be forced.
pub(super) const FORCE_HINT: &str = "send `tool_choice: \"auto\"` and say in the conversation which tool is wanted";

/// Whether and how an assistant calls tools.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum ToolUse {
    /// It calls none, and knows of none.
    Never,
    /// It may call any, or none.
    Free,
    /// It begins with a call of this one.
    Forced(String),
}

impl ToolUse {
    /// Reads `tool_choice` beside `tools`.
    pub(super) fn read(tools: &[Value], choice: Option<&Value>) -> Result<Self, OpenAiError> {
        let names = names(tools)?;
        let refuse = |error: Error| OpenAiError::of("tool_choice", error);
        let Some(choice) = choice else {
            return Ok(if names.is_empty() { Self::Never } else { Self::Free });
        };
        match choice.as_str() {
            Some("none") => return Ok(Self::Never),
            Some("auto") => return Ok(if names.is_empty() { Self::Never } else { Self::Free }),
            Some("required") => {
                return match names[..] {
                    [] => Err(refuse(Error::invalid("`tool_choice` is `required`, but there are no `tools`"))),
                    [only] => Ok(Self::Forced(only.to_owned())),
                    _ => Err(refuse(
                        Error::unsupported(format!(
                            "`tool_choice` is `required` with {} tools: that one of them is called cannot be enforced",
                            names.len()
                        ))
                        .hint("name the tool, `{\"type\": \"function\", \"function\": {\"name\": ..}}`, or offer one only"),
                    )),
                };
            }
            Some(_) | None => {}
        }
        let function = choice.pointer("/function/name").and_then(Value::as_str);
        let Some(name) = function.filter(|_| choice.get("type").and_then(Value::as_str) == Some("function")) else {
            let text = "`tool_choice` must be `none`, `auto`, `required` or a function by its name";
            let hint = "a function is `{\"type\": \"function\", \"function\": {\"name\": ..}}`";
            return Err(refuse(Error::invalid(text).hint(hint)));
        };
        if !names.contains(&name) {
            let error = Error::invalid(format!("`tool_choice` names `{name}`, which is not among `tools`"));
            return Err(refuse(error.hint(suggestion(name, "tools", &names))));
        }
        Ok(Self::Forced(name.to_owned()))
    }

    /// Whether tools are offered.
    pub(super) const fn may_call(&self) -> bool {
        !matches!(self, Self::Never)
    }

    /// The tool that is called in any case.
    pub(super) fn forced(self) -> Option<String> {
        match self {
            Self::Forced(name) => Some(name),
            Self::Never | Self::Free => None,
        }
    }

    /// Whether the model may think before it answers: not before a call that is forced.
    pub(super) fn may_think(&self, wanted: Option<bool>) -> Result<bool, OpenAiError> {
        if matches!(self, Self::Forced(_)) {
            if wanted == Some(true) {
                let text =
                    "`tool_choice` forces a call, which leaves no room for the thought that `enable_thinking` asks for";
                return Err(OpenAiError::of("tool_choice", Error::unsupported(text).hint(FORCE_HINT)));
            }
            return Ok(false);
        }
        Ok(wanted.unwrap_or(true))
    }

    /// The text that ends a choice whose first call is its only one.
    pub(super) fn end_of_only_call(
        &self,
        parallel: Option<bool>,
        format: CallFormat,
    ) -> Result<Option<&'static str>, OpenAiError> {
        if parallel != Some(false) || !self.may_call() {
            return Ok(None);
        }
        let Some(end) = format.end_of_call() else {
            let text =
                "`parallel_tool_calls` cannot be `false`: nothing marks the end of a call in this model's format";
            let error = Error::unsupported(text).hint("leave it out, and take the first call of each answer");
            return Err(OpenAiError::of("parallel_tool_calls", error));
        };
        Ok(Some(end))
    }
}

/// The names of tools, which are functions.
fn names(tools: &[Value]) -> Result<Vec<&str>, OpenAiError> {
    let mut names = Vec::with_capacity(tools.len());
    for (index, tool) in tools.iter().enumerate() {
        let name = tool.pointer("/function/name").and_then(Value::as_str).filter(|name| !name.is_empty());
        let Some(name) = name.filter(|_| tool.get("type").and_then(Value::as_str) == Some("function")) else {
            let text = format!("`tools[{index}]` is not a function with a name");
            let hint = "a tool is `{\"type\": \"function\", \"function\": {\"name\": …}}`";
            return Err(OpenAiError::of("tools", Error::invalid(text).hint(hint)));
        };
        names.push(name);
    }
    Ok(names)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn read(names: &[&str], choice: impl Into<Option<Value>>) -> Result<ToolUse, String> {
        let tool = |name: &&str| json!({"type": "function", "function": {"name": name}});
        let tools: Vec<Value> = names.iter().map(tool).collect();
        ToolUse::read(&tools, choice.into().as_ref()).map_err(|error| text(&error))
    }

    fn text(error: &OpenAiError) -> String {
        String::from_utf8(error.body().to_vec()).unwrap()
    }

    fn named(name: &str) -> Value {
        json!({"type": "function", "function": {"name": name}})
    }

    #[test]
    fn tools_may_be_called_unless_none_is_to_be() {
        assert_eq!(read(&[], None), Ok(ToolUse::Never));
        assert_eq!(read(&["f"], None), Ok(ToolUse::Free));
        assert_eq!(read(&["f"], Some(json!("auto"))), Ok(ToolUse::Free));
        assert_eq!(read(&[], Some(json!("auto"))), Ok(ToolUse::Never));
        assert_eq!(read(&["f"], Some(json!("none"))), Ok(ToolUse::Never));
    }

    #[test]
    fn a_call_is_forced_where_it_is_known_of_what() {
        let forced = Ok(ToolUse::Forced("f".to_owned()));
        assert_eq!(read(&["f", "g"], named("f")), forced);
        assert_eq!(read(&["f"], Some(json!("required"))), forced);
        for (names, choice, expected) in [
            (&["f", "g"][..], json!("required"), "cannot be enforced"),
            (&[], json!("required"), "there are no `tools`"),
            (&["find", "g"], named("fimd"), "did you mean `find`"),
            (&["f"], json!("any"), "must be `none`, `auto`, `required`"),
            (&["f"], json!({"type": "custom"}), "a function by its name"),
        ] {
            let error = read(names, choice).unwrap_err();
            assert!(error.contains(expected) && error.contains("\"param\":\"tool_choice\""), "{error}");
        }
    }

    #[test]
    fn a_tool_is_a_function_with_a_name() {
        for tool in [json!({"type": "function"}), json!({"type": "x", "function": {"name": "f"}}), json!("f")] {
            assert!(text(&ToolUse::read(&[tool], None).unwrap_err()).contains("tools[0]"));
        }
    }

    #[test]
    fn nothing_is_thought_before_a_forced_call() {
        let forced = ToolUse::Forced("f".to_owned());
        assert!(!forced.may_think(None).unwrap() && !forced.may_think(Some(false)).unwrap());
        assert!(text(&forced.may_think(Some(true)).unwrap_err()).contains("enable_thinking"));
        assert!(ToolUse::Free.may_think(None).unwrap() && !ToolUse::Free.may_think(Some(false)).unwrap());
    }

    #[test]
    fn one_call_only_needs_a_format_that_marks_its_end() {
        let end = |parallel, format| ToolUse::Free.end_of_only_call(parallel, format).map_err(|error| text(&error));
        assert_eq!(end(None, CallFormat::Bare), Ok(None));
        assert_eq!(end(Some(true), CallFormat::Bare), Ok(None));
        assert_eq!(end(Some(false), CallFormat::Functions), Ok(Some("</tool_call>")));
        assert!(end(Some(false), CallFormat::Listed).unwrap_err().contains("parallel_tool_calls"));
        assert_eq!(ToolUse::Never.end_of_only_call(Some(false), CallFormat::Listed).unwrap(), None);
    }
}
