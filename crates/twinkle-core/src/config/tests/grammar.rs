//! The grammar and the readers say the same.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::{Map, Value, json};

use super::super::diagnostic::Report;
use super::super::grammar::{ARGS, Effect, Grammar, Kind, Need, ROOT, all};
use super::super::{
    AdapterConfig, AuthConfig, Autoscaling, Deployment, DeviceMesh, EngineArgs, HttpOptions, QueueConfig, ServerArgs,
    ServerConfig, TelemetryConfig, tree,
};

/// A value that a key takes.
fn sample(kind: Kind) -> Value {
    match kind {
        Kind::Text | Kind::Anything => json!("x"),
        Kind::Flag => json!(true),
        Kind::Whole(low, _) => json!(low.max(1)),
        Kind::Number(limits) | Kind::Seconds(limits) => json!(limits.high.min(1.0)),
        Kind::Words(words) => json!(words[0]),
        Kind::Texts => json!({"NAME": "value"}),
        Kind::Section(grammar) => Value::Object(filled(grammar)),
        Kind::Sections(grammar) => json!([filled(grammar)]),
        Kind::Args => json!({}),
        Kind::Other { example, .. } => serde_yaml::from_str(example).unwrap(),
    }
}

/// A mapping with every key of a grammar.
fn filled(grammar: &Grammar) -> Map<String, Value> {
    grammar.keys.iter().map(|key| (key.name.to_owned(), sample(key.kind))).collect()
}

/// Two files that have every key: one with an application of each kind, one in the short form.
fn everything() -> [Value; 2] {
    let short = ["model", "server", "ray"];
    let applications: Vec<Value> = ARGS
        .iter()
        .map(|(kind, args)| {
            let Kind::Sections(application) = ROOT.keys.iter().find(|key| key.name == "applications").unwrap().kind
            else {
                panic!("`applications` is a list")
            };
            let mut application = filled(application);
            application.insert("import_path".to_owned(), json!(kind));
            application.insert("args".to_owned(), Value::Object(filled(args)));
            Value::Object(application)
        })
        .collect();
    let mut long = filled(ROOT);
    long.retain(|key, _| !short.contains(&key.as_str()));
    long.insert("applications".to_owned(), Value::Array(applications));
    let mut brief = filled(ROOT);
    brief.retain(|key, _| short.contains(&key.as_str()));
    [Value::Object(long), Value::Object(brief)]
}

/// The grammar of the mapping at a path such as `applications[1].args.device_group`.
fn grammar_at(path: &str) -> &'static Grammar {
    let mut grammar = ROOT;
    let mut kind_of_application = 0;
    for part in path.split('.').filter(|part| !part.is_empty()) {
        let (name, index) = part.split_once('[').unwrap_or((part, ""));
        let key = grammar.keys.iter().find(|key| key.name == name).unwrap();
        grammar = match key.kind {
            Kind::Section(below) | Kind::Sections(below) => below,
            Kind::Args => ARGS[kind_of_application].1,
            other => panic!("`{path}` is {other:?}"),
        };
        if name == "applications" {
            kind_of_application = index.trim_end_matches(']').parse().unwrap();
        }
    }
    grammar
}

/// Reads a file and answers the keys that were asked for and those found inert, by the path of their mapping.
fn read(file: &Value) -> (BTreeMap<String, Vec<&'static str>>, Vec<String>) {
    let tree = tree::parse("everything", &file.to_string()).unwrap();
    let report = Report::default();
    let _ = ServerConfig::read("everything", &tree, &|_| None, &report);
    let asked = report.all_asked();
    let inert = report.into_findings().inert.iter().map(ToString::to_string).collect();
    (asked, inert)
}

#[test]
fn every_key_a_reader_asks_for_is_in_the_grammar_and_the_other_way_round() {
    let mut seen = BTreeSet::new();
    for file in everything() {
        let is_short = file.get("model").is_some();
        let (asked, _) = read(&file);
        for (path, keys) in asked {
            // The short form is read again as the applications it stands for.
            if is_short && !["", "model", "server", "ray"].contains(&path.as_str()) {
                continue;
            }
            // Items of a list of names.
            if path.contains("supported_models[") {
                continue;
            }
            let grammar = grammar_at(&path);
            let known: BTreeSet<&str> = grammar.keys.iter().map(|key| key.name).collect();
            let asked: BTreeSet<&str> = keys.into_iter().collect();
            assert_eq!(asked, known, "of `{path}`");
            seen.insert(grammar.name);
        }
    }
    let missing: Vec<&str> = all().iter().map(|grammar| grammar.name).filter(|name| !seen.contains(name)).collect();
    assert_eq!(missing, Vec::<&str>::new(), "nobody reads these");
}

#[test]
fn a_key_is_called_inert_exactly_when_its_reader_says_so() {
    let [file, _] = everything();
    let (asked, inert) = read(&file);
    let told: BTreeSet<&str> = inert.iter().map(|line| line.split(": ").next().unwrap()).collect();
    for path in asked.keys().filter(|path| !path.contains("supported_models[")) {
        // Which settings of a store are used depends on its mode; a processor's devices are inert as a whole.
        if path == "persistence" || path.contains("[3].args.device_") {
            continue;
        }
        for key in grammar_at(path).keys {
            let full = if path.is_empty() { key.name.to_owned() } else { format!("{path}.{}", key.name) };
            assert_eq!(told.contains(full.as_str()), key.effect == Effect::Inert, "`{full}`");
        }
    }
}

/// Whether two values are equal, with 1 equal to 1.0.
fn same(mine: &Value, theirs: &Value) -> bool {
    match (mine.as_f64(), theirs.as_f64()) {
        (Some(mine), Some(theirs)) => (mine - theirs).abs() < 1e-9,
        _ => mine == theirs,
    }
}

#[test]
fn every_default_is_the_one_of_the_normal_form() {
    fn of<T: serde::Serialize>(value: &T) -> Value {
        serde_json::to_value(value).unwrap()
    }
    let normal_forms = [
        ("http_options", of(&HttpOptions::default())),
        ("auth", of(&AuthConfig::default())),
        ("telemetry", of(&TelemetryConfig::default())),
        ("queue_config", of(&QueueConfig::default())),
        ("server_config", of(&ServerArgs::default())),
        ("adapter_config", of(&AdapterConfig::default())),
        ("engine_args", of(&EngineArgs::default())),
        ("deployments[]", of(&Deployment::default())),
        ("autoscaling_config", of(&Autoscaling::default())),
        ("device_mesh", of(&DeviceMesh::default())),
    ];
    let mut compared = 0;
    for (name, normal_form) in normal_forms {
        let grammar = all().into_iter().find(|grammar| grammar.name == name).unwrap();
        for key in grammar.keys {
            let (Need::Default(told), Some(actual)) = (key.need, normal_form.get(key.name)) else { continue };
            let told = serde_json::from_str(told).unwrap_or_else(|_| json!(told));
            assert!(same(&told, actual), "`{name}.{}` defaults to {actual}, not {told}", key.name);
            compared += 1;
        }
    }
    assert!(compared > 40, "only {compared} defaults were compared");
}

#[test]
fn no_key_is_described_twice() {
    for grammar in all() {
        let names: BTreeSet<&str> = grammar.keys.iter().map(|key| key.name).collect();
        assert_eq!(names.len(), grammar.keys.len(), "in {}", grammar.name);
    }
}
