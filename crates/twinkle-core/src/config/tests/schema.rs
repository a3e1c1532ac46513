//! The JSON Schema and the reference page, as they are checked in.

use std::path::{Path, PathBuf};

use regex::Regex;
use serde_json::{Value, json};

use super::super::{reference, schema};
use super::fixtures::{examples, runnable};
use crate::docs::assert_written;

fn document(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs").join(name)
}

#[test]
fn the_documentation_says_what_the_schema_says() {
    assert_written("config.schema.json", &format!("{:#}\n", schema()));
}

#[test]
fn the_documentation_says_what_the_grammar_says() {
    const BEGIN: &str = "<!-- written by the tests from the grammar: begin -->\n";
    const END: &str = "<!-- end -->\n";
    let page = std::fs::read_to_string(document("configuration.md")).unwrap();
    let (before, rest) = page.split_once(BEGIN).unwrap();
    let (_, after) = rest.split_once(END).unwrap();
    assert_written("configuration.md", &format!("{before}{BEGIN}\n{}{END}{after}", reference()));
}

#[test]
fn every_accepted_file_is_valid_under_the_schema() {
    let checker = Checker { root: schema() };
    for (name, text) in examples().into_iter().chain(runnable()) {
        if name.ends_with("_as_printed.yaml") {
            continue;
        }
        let file: Value = serde_yaml::from_str(&text).unwrap();
        assert_eq!(checker.check(&checker.root, &file), Ok(()), "{name}");
    }
}

#[test]
fn lax_scalars_are_valid_under_the_schema() {
    let checker = Checker { root: schema() };
    for file in [
        json!({"http_options": {"port": "8000"}}),
        json!({"http_options": {"port": 8000.0}}),
        json!({"http_options": null}),
        json!({"task_queue": {"enabled": 1, "rps_limit": "0.5", "queue_timeout": "${a.b}"}}),
        json!({"task_queue": {"enabled": "Yes"}}),
        json!({"proxy_location": "everynode"}),
    ] {
        assert_eq!(checker.check(&checker.root, &file), Ok(()), "{file}");
    }
}

#[test]
fn mistakes_are_invalid_under_the_schema() {
    let checker = Checker { root: schema() };
    let device_group = json!({"name": "g", "ranks": 1});
    let application = |args: &Value| json!({"applications": [{"name": "m", "import_path": "model", "args": args}]});
    for file in [
        json!({"colour": "blue"}),
        json!({"http_options": {"port": 70000}}),
        json!({"http_options": {"port": "eighty"}}),
        json!({"task_queue": {"rps_limit": -1}}),
        json!({"task_queue": {"enabled": "maybe"}}),
        json!({"persistence": {"mode": "fiel"}}),
        json!({"applications": [{"import_path": "server"}]}),
        json!({"applications": [{"name": "s", "import_path": "serverr"}]}),
        json!({"applications": [{"name": "s", "import_path": "server", "route_prefix": "/x/"}]}),
        application(&json!({"device_group": device_group})),
        application(&json!({"model_id": "m", "device_group": {"name": "g"}})),
        application(&json!({"model_id": "m", "device_group": device_group, "engine_args": {}})),
    ] {
        assert!(checker.check(&checker.root, &file).is_err(), "{file}");
    }
    assert_eq!(
        checker.check(&checker.root, &application(&json!({"model_id": "m", "device_group": device_group}))),
        Ok(())
    );
}

/// As much of JSON Schema as the schema uses.
struct Checker {
    root: Value,
}

impl Checker {
    fn check(&self, schema: &Value, value: &Value) -> Result<(), String> {
        for (word, rule) in schema.as_object().unwrap() {
            let holds = match word.as_str() {
                "$ref" => {
                    let target = self.root.pointer(rule.as_str().unwrap().trim_start_matches('#')).unwrap();
                    self.check(target, value)?;
                    true
                }
                "type" => match rule {
                    Value::Array(types) => types.iter().any(|kind| is_of_type(kind, value)),
                    kind => is_of_type(kind, value),
                },
                "enum" => rule.as_array().unwrap().contains(value),
                "anyOf" => rule.as_array().unwrap().iter().any(|rule| self.check(rule, value).is_ok()),
                "allOf" => {
                    rule.as_array().unwrap().iter().try_for_each(|rule| self.check(rule, value))?;
                    true
                }
                "if" => {
                    if self.check(rule, value).is_ok() {
                        self.check(&schema["then"], value)?;
                    }
                    true
                }
                "required" => value.as_object().is_none_or(|mapping| {
                    rule.as_array().unwrap().iter().all(|key| mapping.contains_key(key.as_str().unwrap()))
                }),
                "properties" => {
                    for (key, below) in value.as_object().into_iter().flatten() {
                        if let Some(rule) = rule.get(key) {
                            self.check(rule, below).map_err(|error| format!("{key}: {error}"))?;
                        }
                    }
                    true
                }
                "additionalProperties" => {
                    for (key, below) in value.as_object().into_iter().flatten() {
                        if schema.get("properties").is_some_and(|known| known.get(key).is_some()) {
                            continue;
                        }
                        if rule == &json!(false) {
                            return Err(format!("unknown key {key}"));
                        }
                        self.check(rule, below)?;
                    }
                    true
                }
                "items" => {
                    value.as_array().into_iter().flatten().try_for_each(|item| self.check(rule, item))?;
                    true
                }
                "minimum" => value.as_f64().is_none_or(|number| number >= rule.as_f64().unwrap()),
                "exclusiveMinimum" => value.as_f64().is_none_or(|number| number > rule.as_f64().unwrap()),
                "maximum" => value.as_f64().is_none_or(|number| number <= rule.as_f64().unwrap()),
                "pattern" => {
                    let pattern = Regex::new(rule.as_str().unwrap()).unwrap();
                    value.as_str().is_none_or(|text| pattern.is_match(text))
                }
                "then" | "description" | "default" | "examples" | "title" | "$schema" | "$defs" => true,
                other => panic!("the checker does not know `{other}`"),
            };
            if !holds {
                return Err(format!("{value} breaks {word}: {rule}"));
            }
        }
        Ok(())
    }
}

fn is_of_type(kind: &Value, value: &Value) -> bool {
    match kind.as_str().unwrap() {
        "null" => value.is_null(),
        "boolean" => value.is_boolean(),
        "integer" => value.as_f64().is_some_and(|number| number.fract() == 0.0),
        "number" => value.is_number(),
        "string" => value.is_string(),
        "array" => value.is_array(),
        "object" => value.is_object(),
        other => panic!("unknown type {other}"),
    }
}
