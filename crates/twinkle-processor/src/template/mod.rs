//! Chat templates: the Jinja text that turns a conversation into a model's prompt.
//!
//! The environment is that of HF transformers' `apply_chat_template`: `trim_blocks` and `lstrip_blocks`, loop
//! controls, Python's string methods, `raise_exception`, `strftime_now`, and a `tojson` that neither escapes HTML nor
//! sorts keys.

mod functions;
mod generation;

use std::collections::BTreeMap;
use std::path::Path;

use minijinja::syntax::SyntaxConfig;
use minijinja::value::{Serde, Value};
use minijinja::{AutoEscape, Environment, ErrorKind};
use minijinja_contrib::pycompat::unknown_method_callback;
use twinkle_core::call::ChatMessage;
use twinkle_core::error::{Error, Result};

use self::functions::{TOOL_TAIL_ALLOWED, raise_exception, strftime_now, to_json, to_text, write_out};
use self::generation::{GENERATION_FILTER, MARKS_WANTED, generation, unmark, with_generation_filters};
use crate::files::{read_json_object, read_text_if_present};
use crate::tool_calls::CallFormat;

pub(crate) use self::generation::{GENERATION_MARKS, Marked};

/// Steps one rendering may take; a template for a thousand turns takes some ten thousand.
const FUEL: u64 = 10_000_000;

/// The name of the only template in each environment.
const NAME: &str = "chat_template";

/// The special tokens a template may mention, as `tokenizer_config.json` calls them.
const SPECIAL_TOKENS: [&str; 7] =
    ["bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token"];

/// A compiled chat template.
#[derive(Debug)]
pub struct ChatTemplate {
    environment: Environment<'static>,
    special_tokens: BTreeMap<&'static str, String>,
    marks_generation: bool,
    call_format: CallFormat,
}

/// What a template is given.
#[derive(Clone, Debug)]
#[expect(clippy::struct_field_names, reason = "transformers calls it `add_generation_prompt`")]
pub(crate) struct Prompt<'a> {
    /// The turns.
    pub(crate) messages: &'a [Value],
    /// Descriptions of tools, or none.
    pub(crate) tools: Value,
    /// Whether to end with the header of an assistant's turn.
    pub(crate) add_generation_prompt: bool,
    /// Whether the model may think first; `None` leaves it to the template.
    pub(crate) enable_thinking: Option<bool>,
    /// Whether the conversation may hold tools' answers and no question.
    pub(crate) allows_tool_tail: bool,
}

impl ChatTemplate {
    /// The template of a model folder: `chat_template.jinja`, else `chat_template` in `tokenizer_config.json`, which
    /// is a text or a list of named texts; `None` when the model has none.
    pub fn load(folder: &Path) -> Result<Option<Self>> {
        let config_path = folder.join("tokenizer_config.json");
        let config = read_json_object(&config_path)?;
        let older_names = read_json_object(&folder.join("special_tokens_map.json"))?;
        let mut special_tokens = BTreeMap::new();
        for name in SPECIAL_TOKENS {
            let token = config.get(name).and_then(token_text).or_else(|| older_names.get(name).and_then(token_text));
            special_tokens.extend(token.map(|token| (name, token)));
        }
        let template_path = folder.join("chat_template.jinja");
        if let Some(source) = read_text_if_present(&template_path)? {
            return Self::compile(&source, special_tokens, &template_path.display().to_string()).map(Some);
        }
        let origin = config_path.display().to_string();
        match config.get("chat_template") {
            None | Some(serde_json::Value::Null) => Ok(None),
            Some(written) => Self::compile(default_of(written, &origin)?, special_tokens, &origin).map(Some),
        }
    }

    /// Compiles `source`; `origin` is the file's name for messages.
    pub fn compile(source: &str, special_tokens: BTreeMap<&'static str, String>, origin: &str) -> Result<Self> {
        let mut environment = Environment::new();
        let syntax = SyntaxConfig::builder()
            .trim_blocks(true)
            .lstrip_blocks(true)
            .build()
            .map_err(|error| Error::internal(format!("Jinja's own syntax is refused: {error}")))?;
        environment.set_syntax(syntax);
        environment.set_auto_escape_callback(|_| AutoEscape::None);
        environment.set_unknown_method_callback(unknown_method_callback);
        environment.set_fuel(Some(FUEL));
        environment.set_formatter(write_out);
        environment.add_filter("string", to_text);
        environment.add_filter("tojson", to_json);
        environment.add_filter(GENERATION_FILTER, generation);
        environment.add_function("raise_exception", raise_exception);
        environment.add_function("strftime_now", strftime_now);
        let call_format = CallFormat::of_template(source);
        let (source, marks_generation) = with_generation_filters(source);
        environment.add_template_owned(NAME, source).map_err(|error| {
            Error::invalid(format!("the chat template in `{origin}` cannot be used: {}", describe(&error)))
        })?;
        Ok(Self { environment, special_tokens, marks_generation, call_format })
    }

    /// The conversation as text, ending with the header of an assistant's turn if `add_generation_prompt`.
    ///
    /// [`twinkle_core::ErrorCode::InvalidArgument`] when the template refuses the conversation.
    pub fn render(&self, messages: &[ChatMessage], add_generation_prompt: bool) -> Result<String> {
        let messages: Vec<Value> = messages.iter().map(|message| Value::from(Serde(message))).collect();
        let prompt = Prompt {
            messages: &messages,
            tools: Value::from(()),
            add_generation_prompt,
            enable_thinking: None,
            allows_tool_tail: false,
        };
        self.render_prompt(&prompt)
    }

    /// Whether the template marks what an assistant writes.
    pub(crate) const fn marks_generation(&self) -> bool {
        self.marks_generation
    }

    /// How the model writes calls of tools.
    pub(crate) const fn call_format(&self) -> CallFormat {
        self.call_format
    }

    /// The conversation as text.
    pub(crate) fn render_prompt(&self, prompt: &Prompt<'_>) -> Result<String> {
        self.render_with(prompt, false)
    }

    /// The conversation as text with the parts inside `{% generation %}`.
    pub(crate) fn render_marked(&self, prompt: &Prompt<'_>) -> Result<Marked> {
        Ok(unmark(&self.render_with(prompt, true)?))
    }

    fn render_with(&self, prompt: &Prompt<'_>, marks_generation: bool) -> Result<String> {
        // Transformers defines `tools` and `documents` always, so templates ask whether they are none and not whether
        // they are defined.
        let mut context = BTreeMap::from([
            ("messages", Value::from(prompt.messages.to_vec())),
            ("tools", prompt.tools.clone()),
            ("documents", Value::from(())),
            ("add_generation_prompt", Value::from(prompt.add_generation_prompt)),
            (MARKS_WANTED, Value::from(marks_generation)),
            (TOOL_TAIL_ALLOWED, Value::from(prompt.allows_tool_tail)),
        ]);
        context.extend(prompt.enable_thinking.map(|enabled| ("enable_thinking", Value::from(enabled))));
        context.extend(self.special_tokens.iter().map(|(name, token)| (*name, Value::from(token.as_str()))));
        let template = self
            .environment
            .get_template(NAME)
            .map_err(|error| Error::internal(format!("the chat template is gone: {error}")))?;
        template.render(Serde(&context)).map_err(|error| {
            Error::invalid(format!("the model's chat template refuses this conversation: {}", describe(&error)))
        })
    }
}

/// A special token is written as a text, or as an object with its `content`.
fn token_text(value: &serde_json::Value) -> Option<String> {
    value.as_str().or_else(|| value.get("content")?.as_str()).map(str::to_owned)
}

/// The text of `chat_template`, or the one named `default` in a list of named ones.
fn default_of<'a>(written: &'a serde_json::Value, origin: &str) -> Result<&'a str> {
    if let Some(source) = written.as_str() {
        return Ok(source);
    }
    let named = written.as_array().map_or(&[][..], Vec::as_slice);
    let is_default =
        |entry: &&serde_json::Value| entry.get("name").and_then(serde_json::Value::as_str) == Some("default");
    let chosen = named.iter().find(is_default).or(match named {
        [only] => Some(only),
        _ => None,
    });
    chosen.and_then(|entry| entry.get("template")?.as_str()).ok_or_else(|| {
        Error::invalid(format!("`chat_template` in `{origin}` is neither a text nor a list with one named `default`"))
    })
}

/// The template's own words where it raised an exception, else what went wrong and on which line.
fn describe(error: &minijinja::Error) -> String {
    let what = error.detail().map_or_else(|| error.kind().to_string(), str::to_owned);
    match error.line() {
        Some(line) if error.kind() != ErrorKind::InvalidOperation => format!("{what} (line {line})"),
        _ => what,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn render(source: &str, messages: &[(&str, &str)]) -> Result<String> {
        let messages: Vec<ChatMessage> = messages
            .iter()
            .map(|(role, content)| ChatMessage { role: (*role).to_owned(), content: (*content).to_owned() })
            .collect();
        ChatTemplate::compile(source, BTreeMap::from([("bos_token", "<s>".to_owned())]), "test")?
            .render(&messages, false)
    }

    #[test]
    fn a_template_sees_special_tokens_and_messages_in_order() {
        let source =
            "{{ bos_token }}{% for message in messages %}[{{ message['role'] }}] {{ message.content }}\n{% endfor %}";
        assert_eq!(
            render(source, &[("user", "hi <b>"), ("assistant", "you")]).unwrap(),
            "<s>[user] hi <b>\n[assistant] you\n"
        );
    }

    #[test]
    fn a_refusal_carries_the_templates_own_words() {
        let error = render("{{ raise_exception('roles must alternate') }}", &[]).unwrap_err();
        assert_eq!(error.message, "the model's chat template refuses this conversation: roles must alternate");
    }

    #[test]
    fn a_template_with_a_mistake_names_the_line() {
        let error = render("{% if true %}\n{{ 1 +\n", &[]).unwrap_err();
        assert!(error.message.starts_with("the chat template in `test` cannot be used: "), "{}", error.message);
        assert!(error.message.contains("(line "), "{}", error.message);
    }

    #[test]
    fn an_endless_template_is_stopped() {
        let source = "{% for a in range(9999) %}{% for b in range(9999) %}{{ b }}{% endfor %}{% endfor %}";
        assert!(render(source, &[]).unwrap_err().message.contains("fuel"));
    }

    #[test]
    fn generation_tags_change_nothing_but_the_tag() {
        let source = "a {%- generation -%} b {% endgeneration %} c{% if generation is defined %}!{% endif %}";
        assert_eq!(render(source, &[]).unwrap(), "ab  c");
    }

    #[test]
    fn a_marked_rendering_tells_what_an_assistant_wrote() {
        let source = "{% for m in messages %}[{{ m.role }}]\n{% if m.role == 'assistant' %}{% generation %}{{ m.content }}.\
                      {% endgeneration %}{% else %}{{ m.content }}{% endif %}\n{% endfor %}";
        let template = ChatTemplate::compile(source, BTreeMap::new(), "test").unwrap();
        assert!(template.marks_generation());
        let turn =
            |role: &str, content: &str| Value::from(Serde(BTreeMap::from([("role", role), ("content", content)])));
        let messages = [turn("user", "hi"), turn("assistant", "ä"), turn("user", "?"), turn("assistant", "b")];
        let prompt = Prompt {
            messages: &messages,
            tools: Value::from(()),
            add_generation_prompt: false,
            enable_thinking: Some(true),
            allows_tool_tail: false,
        };
        let marked = template.render_marked(&prompt).unwrap();
        assert_eq!(marked.text, template.render_prompt(&prompt).unwrap());
        let written: Vec<&str> = marked.generated.iter().map(|range| &marked.text[range.clone()]).collect();
        assert_eq!(written, ["ä.", "b."]);
    }

    #[test]
    fn only_an_allowed_tool_tail_gets_past_its_refusal() {
        let source = "{{ raise_exception('No user query found in messages.') }}ok";
        let template = ChatTemplate::compile(source, BTreeMap::new(), "test").unwrap();
        let prompt = |allows_tool_tail| Prompt {
            messages: &[],
            tools: Value::from(()),
            add_generation_prompt: false,
            enable_thinking: None,
            allows_tool_tail,
        };
        assert_eq!(template.render_prompt(&prompt(true)).unwrap(), "ok");
        assert!(template.render_prompt(&prompt(false)).is_err());
    }

    #[test]
    fn the_date_is_todays() {
        let year = jiff::Zoned::now().year().to_string();
        assert!(render("{{ strftime_now('%d %b %Y') }}", &[]).unwrap().contains(&year));
        assert!(render("{{ strftime_now('%!') }}", &[]).is_err());
    }

    #[test]
    fn a_named_list_gives_its_default() {
        let list = serde_json::json!([{"name": "tool_use", "template": "t"}, {"name": "default", "template": "d"}]);
        assert_eq!(default_of(&list, "x").unwrap(), "d");
        assert!(
            default_of(&serde_json::json!([{"name": "a", "template": "t"}, {"name": "b", "template": "t"}]), "x")
                .is_err()
        );
        assert!(default_of(&serde_json::json!(7), "x").is_err());
    }
}
