//! The grammar as a JSON Schema, for editors and for tools that write configurations.

use serde_json::{Map, Value, json};

use super::{ARGS, Effect, Grammar, Key, Kind, Need, ROOT, all};
use crate::config::limits::Limits;

/// A whole number as a text, or an interpolation that becomes one.
pub(in crate::config) const WHOLE_TEXT: &str = r"^\s*[+-]?[0-9]+(\.0*)?\s*$|\$\{";
/// A number as a text, or an interpolation that becomes one.
pub(in crate::config) const NUMBER_TEXT: &str = r"^\s*[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]+)?\s*$|\$\{";
/// A yes or no as a text, or an interpolation that becomes one.
pub(in crate::config) const FLAG_TEXT: &str =
    r"^\s*([Tt][Rr][Uu][Ee]|[Ff][Aa][Ll][Ss][Ee]|[Yy]([Ee][Ss])?|[Nn][Oo]?|[Oo][Nn]|[Oo][Ff][Ff]|[TtFf01])\s*$|\$\{";
/// An interpolation.
pub(in crate::config) const INTERPOLATED: &str = r"\$\{";

/// The JSON Schema (draft 2020-12) of everything a configuration file may say, in every generation.
///
/// It knows what each key takes. The rules between keys, such as a mesh that must fit its devices, are told by
/// [`ServerConfig::load`](crate::config::ServerConfig::load) alone.
#[must_use]
pub fn schema() -> Value {
    let mut root = object(ROOT);
    root.insert("$schema".to_owned(), json!("https://json-schema.org/draft/2020-12/schema"));
    root.insert("title".to_owned(), json!("Twinkle server configuration"));
    let definitions: Map<String, Value> = all()
        .into_iter()
        .filter(|grammar| grammar.name != ROOT.name)
        .map(|grammar| (definition_name(grammar), Value::Object(object(grammar))))
        .collect();
    root.insert("$defs".to_owned(), Value::Object(definitions));
    let mut schema = Value::Object(root);
    schema.sort_all_objects();
    schema
}

fn object(grammar: &Grammar) -> Map<String, Value> {
    let properties: Map<String, Value> =
        grammar.keys.iter().map(|key| (key.name.to_owned(), Value::Object(property(key)))).collect();
    let mut schema = Map::new();
    schema.insert("description".to_owned(), json!(grammar.about));
    schema.insert("type".to_owned(), json!(["object", "null"]));
    schema.insert("additionalProperties".to_owned(), json!(false));
    schema.insert("properties".to_owned(), Value::Object(properties));
    let required: Vec<&str> =
        grammar.keys.iter().filter(|key| key.need == Need::Required).map(|key| key.name).collect();
    if grammar.keys.iter().any(|key| matches!(key.kind, Kind::Args)) {
        // The two older names stand in for the newer ones.
        schema.insert(
            "allOf".to_owned(),
            json!([
                {"anyOf": [{"required": ["name"]}, {"required": ["app"]}]},
                {"anyOf": [{"required": ["import_path"]}, {"required": ["server"]}]},
            ]),
        );
        if let Some(Value::Array(rules)) = schema.get_mut("allOf") {
            rules.extend(ARGS.iter().map(|(kind, grammar)| args_rule(kind, grammar)));
        }
    } else if !required.is_empty() {
        schema.insert("type".to_owned(), json!("object"));
        schema.insert("required".to_owned(), json!(required));
    }
    schema
}

/// `args` of one import path, under whichever of its names.
fn args_rule(kind: &str, grammar: &Grammar) -> Value {
    let builder = if kind == "server" { "(server|gateway)" } else { kind };
    let is_kind = json!({"type": "string", "pattern": format!("^{kind}$|(^|:)build_{builder}_app$")});
    json!({
        "if": {
            "anyOf": [
                {"properties": {"import_path": is_kind}, "required": ["import_path"]},
                {"properties": {"server": is_kind}, "required": ["server"]},
            ],
        },
        "then": {"properties": {"args": {"$ref": format!("#/$defs/{}", definition_name(grammar))}}},
    })
}

fn property(key: &Key) -> Map<String, Value> {
    let mut schema = taken(key.kind);
    // A key with nothing behind it counts as absent.
    if key.need != Need::Required {
        allow_nothing(&mut schema);
    }
    schema.insert("description".to_owned(), json!(description(key)));
    if let Kind::Other { example, .. } = key.kind
        && let Ok(example) = serde_yaml::from_str::<Value>(example)
    {
        schema.insert("examples".to_owned(), json!([example]));
    }
    if let Need::Default(default) = key.need {
        schema.insert("default".to_owned(), typed_default(key.kind, default));
    }
    schema
}

/// What a value may be.
fn taken(kind: Kind) -> Map<String, Value> {
    let schema = match kind {
        Kind::Text => json!({"type": "string"}),
        Kind::Flag => json!({
            "anyOf": [{"type": "boolean"}, {"enum": [0, 1]}, {"type": "string", "pattern": FLAG_TEXT}],
        }),
        Kind::Whole(low, high) => {
            let mut schema = json!({"type": ["integer", "string"], "minimum": low, "pattern": WHOLE_TEXT});
            if high < i64::from(u32::MAX) {
                schema["maximum"] = json!(high);
            }
            schema
        }
        Kind::Number(limits) | Kind::Seconds(limits) => number(limits),
        // Case does not matter to the reader; an editor should still offer the plain words.
        Kind::Words(words) => {
            let mut choices = vec![json!({"enum": words}), json!({"type": "string", "pattern": any_case(words)})];
            // YAML reads a bare `no` as false.
            if words.contains(&"no") {
                choices.push(json!({"enum": [false]}));
            }
            json!({"anyOf": choices})
        }
        Kind::Texts => json!({
            "type": "object",
            "additionalProperties": {"type": ["string", "number", "boolean"]},
        }),
        Kind::Section(grammar) => json!({
            "anyOf": [
                {"$ref": format!("#/$defs/{}", definition_name(grammar))},
                {"type": "string", "pattern": INTERPOLATED},
            ],
        }),
        Kind::Sections(grammar) => json!({
            "type": "array",
            "items": {"$ref": format!("#/$defs/{}", definition_name(grammar))},
        }),
        Kind::Args => json!({"type": "object"}),
        Kind::Anything => json!({}),
        Kind::Other { schema, .. } => serde_json::from_str(schema).unwrap_or_else(|_| json!({})),
    };
    match schema {
        Value::Object(schema) => schema,
        _ => Map::new(),
    }
}

fn number(limits: Limits) -> Value {
    let least = if limits.low_counts { "minimum" } else { "exclusiveMinimum" };
    let mut schema = json!({"type": ["number", "string"], "pattern": NUMBER_TEXT});
    schema[least] = json!(limits.low);
    if limits.high.is_finite() {
        schema["maximum"] = json!(limits.high);
    }
    schema
}

/// A pattern of these words in any case, or of an interpolation.
pub(in crate::config) fn any_case(words: &[&str]) -> String {
    let any = |word: &&str| -> String {
        word.chars()
            .map(|letter| match letter {
                letter if letter.is_ascii_alphabetic() => {
                    format!("[{}{}]", letter.to_ascii_uppercase(), letter.to_ascii_lowercase())
                }
                '.' => r"\.".to_owned(),
                other => other.to_string(),
            })
            .collect()
    };
    let words: Vec<String> = words.iter().map(any).collect();
    format!(r"^\s*({})\s*$|\$\{{", words.join("|"))
}

fn allow_nothing(schema: &mut Map<String, Value>) {
    if let Some(types) = schema.get_mut("type") {
        match types {
            Value::Array(types) => types.push(json!("null")),
            one => *one = json!([one.clone(), "null"]),
        }
    } else if let Some(Value::Array(choices)) = schema.get_mut("anyOf") {
        choices.push(json!({"type": "null"}));
    }
}

/// The meaning, and what the key does here.
fn description(key: &Key) -> String {
    let effect = match key.effect {
        Effect::Works => String::new(),
        Effect::Inert => " Has no effect here.".to_owned(),
        Effect::Refused(which) => format!(" Not available yet: {which}."),
    };
    format!("{}.{effect} (generations: {})", key.meaning, key.since)
}

fn typed_default(kind: Kind, default: &str) -> Value {
    match kind {
        Kind::Flag | Kind::Whole(..) | Kind::Number(_) | Kind::Seconds(_) | Kind::Texts | Kind::Other { .. } => {
            serde_json::from_str(default).unwrap_or_else(|_| json!(default))
        }
        _ => json!(default),
    }
}

/// `args of a model` as `args_of_a_model`.
fn definition_name(grammar: &Grammar) -> String {
    grammar.name.replace("[]", "").replace(' ', "_")
}
