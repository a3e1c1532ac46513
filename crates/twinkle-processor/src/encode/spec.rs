//! Which template a tenant wants, and its settings.

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use twinkle_core::error::{Error, Result, suggestion};

/// The classes a client may name.
const CLASSES: [&str; 2] = ["Template", "Qwen3_5Template"];
/// Parts of the names of models whose conversations follow [`TemplateClass::Qwen3_5`].
const QWEN3_5_MODELS: [&str; 3] = ["Qwen3.5", "Qwen3.6", "Qwen3.8"];
/// The settings that mean something here.
const SETTINGS: [&str; 5] =
    ["use_chat_template", "max_length", "truncation_strategy", "default_system", "enable_thinking"];
/// Settings that say how Python loads a tokenizer. The model is the server's own, and its files hold no code.
const OF_PYTHON: [&str; 7] =
    ["model_id", "trust_remote_code", "use_fast", "revision", "padding_side", "cache_dir", "local_files_only"];
/// How many tokens an example may have unless the client says otherwise.
const MAX_LENGTH: usize = 8192;

/// How conversations become tokens.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct TemplateSpec {
    /// The rules beside the model's chat template.
    pub class: TemplateClass,
    /// Whether the model's chat template is used; without it an input is one user's text, all of it learned.
    pub use_chat_template: bool,
    /// Most tokens of an example; `None` for any number.
    pub max_length: Option<usize>,
    /// What happens to a longer one.
    pub truncation: Truncation,
    /// Put before a conversation that begins with the user.
    pub default_system: Option<String>,
    /// Whether the model may think before it answers, for chat templates that know this.
    pub enable_thinking: bool,
}

/// Rules beside the model's chat template.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum TemplateClass {
    /// None.
    Template,
    /// A conversation may hold tools' answers although no user asked anything.
    #[serde(rename = "Qwen3_5Template")]
    Qwen3_5,
}

/// What happens to an example of more than `max_length` tokens.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Truncation {
    /// An error.
    Raise,
    /// Its first tokens are cut off.
    Left,
    /// Its last tokens are cut off.
    Right,
    /// It becomes several examples.
    Split,
    /// It is left out.
    Delete,
}

impl Default for TemplateSpec {
    fn default() -> Self {
        Self {
            class: TemplateClass::Template,
            use_chat_template: true,
            max_length: Some(MAX_LENGTH),
            truncation: Truncation::Raise,
            default_system: None,
            enable_thinking: true,
        }
    }
}

impl TemplateSpec {
    /// What is used for a model when nobody says otherwise.
    #[must_use]
    pub fn for_model(name: &str) -> Self {
        let is_newer_qwen = QWEN3_5_MODELS.iter().any(|part| name.contains(part));
        let class = if is_newer_qwen { TemplateClass::Qwen3_5 } else { TemplateClass::Template };
        Self { class, ..Self::default() }
    }

    /// The template of this class with these constructor arguments.
    ///
    /// [`twinkle_core::ErrorCode::InvalidArgument`] for a class or a setting that is not known and for a value that
    /// does not fit; [`twinkle_core::ErrorCode::Unsupported`] for code from a hub and for `DeepseekV4Template`.
    pub fn named(class: &str, settings: &Map<String, Value>) -> Result<Self> {
        let class = class_named(class)?;
        let mut spec = Self { class, ..Self::default() };
        for (name, value) in settings {
            spec.set(name, value)?;
        }
        Ok(spec)
    }

    fn set(&mut self, name: &str, value: &Value) -> Result<()> {
        match name {
            "use_chat_template" => self.use_chat_template = flag(name, value)?,
            "enable_thinking" => self.enable_thinking = flag(name, value)?,
            "max_length" => self.max_length = max_length(value)?,
            "truncation_strategy" => self.truncation = truncation(value)?,
            "default_system" => self.default_system = text(name, value)?,
            python if OF_PYTHON.contains(&python) => {}
            unknown => {
                return Err(Error::invalid(format!("`{unknown}` is not a setting of a template"))
                    .hint(suggestion(unknown, "settings", &SETTINGS)));
            }
        }
        Ok(())
    }
}

fn class_named(class: &str) -> Result<TemplateClass> {
    // A client may send a class with its module.
    match class.rsplit('.').next().unwrap_or(class) {
        _ if class.contains("://") => {
            Err(Error::unsupported(format!("`{class}` is a plugin: it is Python code, which this server does not run"))
                .hint(suggestion("", "templates", &CLASSES)))
        }
        "Template" => Ok(TemplateClass::Template),
        "Qwen3_5Template" => Ok(TemplateClass::Qwen3_5),
        "DeepseekV4Template" => Err(Error::unsupported(
            "`DeepseekV4Template` is not served: its models come with Python code in place of a chat template",
        )
        .hint("use `Template` with a model that has a `chat_template.jinja`")),
        _ => Err(Error::invalid(format!("unknown template class `{class}`")).hint(suggestion(
            class,
            "templates",
            &CLASSES,
        ))),
    }
}

fn flag(name: &str, value: &Value) -> Result<bool> {
    value.as_bool().ok_or_else(|| misfit(name, value, "true or false"))
}

fn text(name: &str, value: &Value) -> Result<Option<String>> {
    match value {
        Value::Null => Ok(None),
        Value::String(text) => Ok(Some(text.clone()).filter(|text| !text.is_empty())),
        _ => Err(misfit(name, value, "a text or null")),
    }
}

fn max_length(value: &Value) -> Result<Option<usize>> {
    if value.is_null() {
        return Ok(None);
    }
    let length = value.as_u64().and_then(|length| usize::try_from(length).ok());
    // Zero is "no limit" in Python, where it counts as false.
    length
        .map(|length| Some(length).filter(|length| *length > 0))
        .ok_or_else(|| misfit("max_length", value, "a number of tokens, or null for any number"))
}

fn truncation(value: &Value) -> Result<Truncation> {
    const KNOWN: [&str; 5] = ["raise", "left", "right", "split", "delete"];
    match value.as_str() {
        Some("raise") => Ok(Truncation::Raise),
        Some("left") => Ok(Truncation::Left),
        Some("right") => Ok(Truncation::Right),
        Some("split") => Ok(Truncation::Split),
        Some("delete") => Ok(Truncation::Delete),
        other => Err(Error::invalid(format!("`truncation_strategy` is `{}`", other.unwrap_or(&value.to_string())))
            .hint(suggestion(other.unwrap_or_default(), "strategies", &KNOWN))),
    }
}

fn misfit(name: &str, value: &Value, wanted: &str) -> Error {
    Error::invalid(format!("`{name}` is `{value}`, it must be {wanted}"))
}

#[cfg(test)]
mod tests {
    use serde_json::json;
    use twinkle_core::error::ErrorCode;

    use super::*;

    fn named(class: &str, settings: Value) -> Result<TemplateSpec> {
        let Value::Object(settings) = settings else { panic!("not an object") };
        TemplateSpec::named(class, &settings)
    }

    #[test]
    fn settings_have_pythons_defaults() {
        let spec = named("Template", json!({"model_id": "Qwen/X"})).unwrap();
        assert_eq!(spec, TemplateSpec::default());
        assert_eq!((spec.max_length, spec.truncation, spec.enable_thinking), (Some(8192), Truncation::Raise, true));
        let spec = named(
            "Qwen3_5Template",
            json!({"max_length": 0, "truncation_strategy": "split", "default_system": "s", "enable_thinking": false,
                   "use_chat_template": false, "trust_remote_code": true}),
        );
        let expected = TemplateSpec {
            class: TemplateClass::Qwen3_5,
            use_chat_template: false,
            max_length: None,
            truncation: Truncation::Split,
            default_system: Some("s".to_owned()),
            enable_thinking: false,
        };
        assert_eq!(spec.unwrap(), expected);
    }

    #[test]
    fn a_mistake_is_named_with_what_is_known() {
        let error = named("Templat", json!({})).unwrap_err();
        assert_eq!(error.message, "unknown template class `Templat`");
        assert!(error.hint.unwrap().starts_with("did you mean `Template`? known templates: "));
        let error = named("Template", json!({"max_lenght": 7})).unwrap_err();
        assert!(error.hint.unwrap().starts_with("did you mean `max_length`?"));
        let error = named("Template", json!({"truncation_strategy": "rigth"})).unwrap_err();
        assert!(error.hint.unwrap().starts_with("did you mean `right`?"));
        for settings in [json!({"max_length": -1}), json!({"max_length": "8"}), json!({"enable_thinking": 1})] {
            assert_eq!(named("Template", settings).unwrap_err().code, ErrorCode::InvalidArgument);
        }
    }

    #[test]
    fn code_is_refused_with_the_reason() {
        let error = named("ms://org/template", json!({})).unwrap_err();
        assert_eq!(error.code, ErrorCode::Unsupported);
        assert!(error.message.contains("Python code"));
        assert_eq!(named("DeepseekV4Template", json!({})).unwrap_err().code, ErrorCode::Unsupported);
    }

    #[test]
    fn newer_qwens_have_their_own_class() {
        assert_eq!(TemplateSpec::for_model("Qwen/Qwen3.6-4B").class, TemplateClass::Qwen3_5);
        assert_eq!(TemplateSpec::for_model("Qwen/Qwen3-4B").class, TemplateClass::Template);
    }
}
