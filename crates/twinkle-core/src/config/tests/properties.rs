//! Whatever is written in a file, reading it ends with a configuration or with problems that have a place.

use std::fmt::Write as _;

use proptest::prelude::*;
use serde_json::{Map, Value, json};

use super::super::ServerConfig;
use super::super::grammar::all;
use super::fixtures::examples;
use super::parse;

/// Reads a file; problems must be told, and lie in the file.
fn read(text: &str) -> Option<ServerConfig> {
    match parse(text) {
        Ok(config) => {
            let _ = (config.check_supported(), config.inert_keys(), config.warnings());
            serde_json::to_value(&config).unwrap();
            Some(config)
        }
        Err(errors) => {
            let lines = text.lines().count() + 1;
            assert!(!errors.problems.is_empty());
            assert!(errors.problems.iter().all(|problem| problem.line as usize <= lines), "{errors}");
            None
        }
    }
}

fn key() -> impl Strategy<Value = String> {
    let known: Vec<&'static str> = all().iter().flat_map(|grammar| grammar.keys).map(|key| key.name).collect();
    prop_oneof![8 => proptest::sample::select(known).prop_map(str::to_owned), 1 => "[a-z_]{0,6}"]
}

fn scalar() -> impl Strategy<Value = Value> {
    prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        (-3..12_i64).prop_map(Value::from),
        any::<f64>().prop_map(|number| json!(number)),
        "[ -~]{0,8}".prop_map(Value::from),
        proptest::sample::select(vec![
            "model",
            "sampler",
            "server",
            "processor",
            "cuda",
            "cpu",
            "/api/v1",
            "dp",
            "auto",
            "4",
            "0.5",
            "${a.b}",
            "${applications}",
            "${oc.env:X,1}",
            "${model.model_id}",
            "ms://a/b",
            "x://y",
            "full",
            "redis",
            "yes",
        ])
        .prop_map(str::to_owned)
        .prop_map(Value::from),
    ]
}

fn tree() -> impl Strategy<Value = Value> {
    scalar().prop_recursive(6, 96, 10, |inner| {
        prop_oneof![
            2 => proptest::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
            5 => proptest::collection::vec((key(), inner), 0..10)
                .prop_map(|entries| Value::Object(entries.into_iter().collect::<Map<_, _>>())),
        ]
    })
}

/// A file whose sections are where they belong, with arbitrary things in them.
fn file() -> impl Strategy<Value = Value> {
    let application = (proptest::sample::select(vec!["server", "model", "sampler", "processor"]), tree(), tree())
        .prop_map(|(kind, args, deployments)| {
            json!({"name": "n", "route_prefix": "/p", "import_path": kind, "args": args, "deployments": deployments})
        });
    let section = || prop_oneof![1 => Just(Value::Null), 3 => tree()];
    (proptest::collection::vec(application, 0..3), section(), section(), section()).prop_map(
        |(applications, http_options, persistence, task_queue)| {
            json!({
                "applications": applications, "http_options": http_options, "persistence": persistence,
                "task_queue": task_queue,
            })
        },
    )
}

proptest! {
    #[test]
    fn any_tree_is_read(tree in prop_oneof![tree(), file()]) {
        read(&tree.to_string());
    }

    #[test]
    fn any_text_is_read(text in "[\\-\\[\\]{}:,&*!|>'\"%@# \n\ta-c0-2$]{0,80}") {
        read(&text);
    }

    #[test]
    fn an_example_with_a_mistake_is_read(which in any::<prop::sample::Index>(), at in any::<prop::sample::Index>(), inserted in "[ -~\n]{0,3}") {
        let examples = examples();
        let (_, text) = which.get(&examples);
        let letters: Vec<char> = text.chars().collect();
        let (before, after) = letters.split_at(at.index(letters.len()));
        let mistaken: String = before.iter().copied().chain(inserted.chars()).chain(after.iter().skip(1).copied()).collect();
        read(&mistaken);
    }

    /// What a file says does not depend on the order of its keys.
    #[test]
    fn the_order_of_keys_does_not_matter(file in file()) {
        fn reversed(value: &Value) -> String {
            match value {
                Value::Object(entries) => {
                    let entries: Vec<String> =
                        entries.iter().rev().map(|(key, below)| format!("{}: {}", json!(key), reversed(below))).collect();
                    format!("{{{}}}", entries.join(", "))
                }
                Value::Array(items) => format!("[{}]", items.iter().map(reversed).collect::<Vec<_>>().join(", ")),
                other => other.to_string(),
            }
        }
        let (one, other) = (read(&file.to_string()), read(&reversed(&file)));
        prop_assert_eq!(one.map(|config| json!(config)), other.map(|config| json!(config)));
    }
}

#[test]
fn a_deeply_nested_file_is_refused() {
    for opening in ["[", "{a: ", "- "] {
        assert!(read(&opening.repeat(100_000)).is_none());
    }
}

#[test]
fn lines_that_name_each_other_do_not_fill_the_memory() {
    let mut text = String::from("l0: [1, 2, 3, 4, 5, 6, 7, 8]\n");
    for level in 1..14 {
        let names = vec![format!("'${{l{}}}'", level - 1); 8].join(", ");
        let _ = writeln!(text, "l{level}: [{names}]");
    }
    let errors = parse(&text).unwrap_err();
    assert!(errors.to_string().contains("interpolation makes the file too large"));
}
