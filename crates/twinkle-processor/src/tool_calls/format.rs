//! How a model writes calls of tools: known from its own chat template, never from its name.

use serde_json::Value;

/// A model's way to write calls.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum CallFormat {
    /// `<tool_call>{"name": .., "arguments": {..}}</tool_call>`: Hermes, Qwen2.5, Qwen3, `SmolLM3`, and templates that
    /// say nothing of calls.
    #[default]
    Tagged,
    /// `<tool_call><function=name><parameter=key>value</parameter></function></tool_call>`: Qwen3-Coder, Qwen3.5. The outer
    /// tag may be missing, and JSON inside it is read too.
    Functions,
    /// The whole turn is `{"name": .., "parameters": {..}}`, or stands behind `<|python_tag|>`: Llama 3.
    Bare,
    /// `[TOOL_CALLS] [{"name": .., "arguments": {..}}]`: Mistral.
    Listed,
}

/// Opens a call of Hermes and Qwen.
pub(super) const TAG: &str = "<tool_call>";
/// Closes it.
pub(super) const TAG_END: &str = "</tool_call>";
/// Opens a function of Qwen3-Coder.
pub(super) const FUNCTION: &str = "<function=";
/// Opens Llama's code and calls.
pub(super) const PYTHON: &str = "<|python_tag|>";
/// Opens Mistral's list.
pub(super) const LIST: &str = "[TOOL_CALLS]";

impl CallFormat {
    /// The format of the models that this chat template is for.
    #[must_use]
    pub fn of_template(source: &str) -> Self {
        // Quotes may be escaped in a template's own texts.
        let source = source.replace('\\', "");
        let has = |mark: &str| source.contains(mark);
        if has(LIST) {
            return Self::Listed;
        }
        if has(FUNCTION) && has("<parameter=") {
            return Self::Functions;
        }
        if !has(TAG) && (has(PYTHON) || has("\"parameters\":")) {
            return Self::Bare;
        }
        Self::Tagged
    }

    /// What begins a call anywhere in a text.
    pub(super) const fn openings(self) -> &'static [&'static str] {
        match self {
            Self::Tagged => &[TAG],
            Self::Functions => &[TAG, FUNCTION],
            Self::Bare => &[PYTHON],
            Self::Listed => &[LIST],
        }
    }

    /// Tokens that are needed to see a call, also where special tokens have no text.
    pub(crate) const fn marks(self) -> &'static [&'static str] {
        match self {
            Self::Tagged | Self::Functions => &[TAG, TAG_END],
            Self::Bare => &[PYTHON],
            Self::Listed => &[LIST],
        }
    }

    /// The text behind every single call, where there is one.
    #[must_use]
    pub const fn end_of_call(self) -> Option<&'static str> {
        match self {
            Self::Tagged | Self::Functions => Some(TAG_END),
            Self::Bare | Self::Listed => None,
        }
    }

    /// What a turn begins with that calls this function, up to its arguments: a model that is to go on from here calls it.
    #[must_use]
    pub fn beginning_of_call(self, name: &str) -> String {
        let quoted = Value::from(name);
        match self {
            // Without the space before the arguments, which most vocabularies join with the brace behind it.
            Self::Tagged => format!("{TAG}\n{{\"name\": {quoted}, \"arguments\":"),
            Self::Functions => format!("{TAG}\n{FUNCTION}{name}>\n"),
            Self::Bare => format!("{{\"name\": {quoted}, \"parameters\":"),
            Self::Listed => format!("{LIST} [{{\"name\": {quoted}, \"arguments\":"),
        }
    }

    /// How many letters and digits the id of a call has, where the chat template insists on a number.
    #[must_use]
    pub const fn id_length(self) -> Option<usize> {
        match self {
            Self::Listed => Some(9),
            Self::Tagged | Self::Functions | Self::Bare => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    #[test]
    fn the_template_tells_the_format() {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/chat");
        for (name, expected) in [
            ("qwen2_5", CallFormat::Tagged),
            ("qwen3", CallFormat::Tagged),
            ("qwen3_5", CallFormat::Functions),
            ("llama3_1", CallFormat::Bare),
            ("mistral", CallFormat::Listed),
            ("smollm2", CallFormat::Tagged),
            ("smollm3", CallFormat::Tagged),
        ] {
            let source = std::fs::read_to_string(folder.join(format!("{name}.jinja"))).unwrap();
            assert_eq!(CallFormat::of_template(&source), expected, "{name}");
        }
        assert_eq!(CallFormat::of_template(r#"{{ "{\"name\": x, \"parameters\": y}" }}"#), CallFormat::Bare);
        assert_eq!(CallFormat::of_template("{{ '<|python_tag|>' }}"), CallFormat::Bare);
    }
}
