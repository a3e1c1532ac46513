//! The checked-in files: `docs/openapi.json`, and `docs/routes.md` for people.

use std::collections::BTreeSet;
use std::fmt::Write as _;

use serde_json::Value;
use twinkle_core::config::ServerConfig;
use twinkle_core::docs::assert_written;

use super::operation::Answer;
use super::{Body, Content, Operation, document};
use crate::listing::{Front, RouteEntry, of_config};
use crate::node::{Access, access};
use crate::twinkle;

/// One application of each kind.
const NODE: &str = "
applications:
  - {name: server, route_prefix: /api/v1, import_path: server}
  - name: model
    route_prefix: /api/v1/model/Qwen/Qwen3-4B
    import_path: model
    args:
      model_id: Qwen/Qwen3-4B
      backend: transformers
      device_group: {name: model, ranks: 1, device_type: CPU}
      device_mesh: {device_type: CPU, dp_size: 1}
  - name: sampler
    route_prefix: /api/v1/sampler/Qwen/Qwen3-4B
    import_path: sampler
    args:
      model_id: Qwen/Qwen3-4B
      sampler_type: torch
      device_group: {name: sampler, ranks: 1, device_type: CPU}
      device_mesh: {device_type: CPU, dp_size: 1}
  - {name: processor, route_prefix: /api/v1/processor, import_path: processor, args: {ncpu_proc_per_node: 1}}
";

fn entries() -> Vec<RouteEntry> {
    of_config(&ServerConfig::parse_with("node.yaml", NODE, &|_| None).unwrap())
}

/// The whole page, in Markdown.
fn page(entries: &[RouteEntry]) -> String {
    let mut page = String::from(
        "# Routes\n\n\
         Written from the table of routes; a test compares. [openapi.json](openapi.json) says the same with every field of \
         every request and answer, as OpenAPI 3.1; a node serves its own at `GET /openapi.json`, and \
         `twinkle-server routes` lists it. Paths are those of a node with one application of each kind: a `server` at \
         `/api/v1`, a `model`, a `sampler` and a `processor`.\n\n\
         *Who*: *anyone*; a *key*, which is a tenant, for whom what others own is not there; a *session*, which is a key and \
         the session it opened (`X-Twinkle-Session-Id`). Errors: [errors.md](errors.md). What the fields mean: \
         [tinker.md](tinker.md), [twinkle.md](twinkle.md), [openai.md](openai.md).\n",
    );
    for front in Front::ALL {
        let _ = writeln!(page, "\n## {}\n\n{}\n", front.name(), front.meaning());
        page += "| Route | Who | What | Takes | Answers |\n| --- | --- | --- | --- | --- |\n";
        for entry in entries.iter().filter(|entry| entry.front == front && entry.repeats.is_none()) {
            let RouteEntry { method, path, operation, .. } = entry;
            let _ = writeln!(
                page,
                "| `{method} {path}` | {} | {} | {} | {} |",
                who(entry),
                operation.about,
                takes(operation),
                answers(operation)
            );
        }
    }
    page
}

fn who(entry: &RouteEntry) -> &'static str {
    match access(&entry.path) {
        Access::Anyone => "anyone",
        Access::ThisMachine => "this machine, or a key",
        Access::Key if entry.operation.headers.iter().any(|header| header.name == twinkle::SESSION) => "session",
        Access::Key => "key",
    }
}

fn takes(operation: &Operation) -> String {
    let query = operation.query.map(|query| format!("query `{}`", (query.name)()));
    let body = match operation.body {
        Body::None | Body::Unnamed => None,
        Body::Ignored => Some("anything".to_owned()),
        Body::Json { schema, or_protobuf: false } => Some(format!("`{}`", (schema.name)())),
        Body::Json { schema, or_protobuf: true } => Some(format!("`{}`, or protobuf", (schema.name)())),
    };
    query.into_iter().chain(body).collect::<Vec<_>>().join(", ")
}

fn answers(operation: &Operation) -> String {
    if operation.refuses {
        return "always an error".to_owned();
    }
    let answer = |Answer { status, content, .. }: &Answer| {
        let content = match content {
            Content::Nothing => String::new(),
            Content::Json(schema) => format!("`{}`", (schema.name)()),
            Content::Fields(names) => format!("`{{{}}}`", names.join(", ")),
            Content::Media(media_type) => format!("`{media_type}`"),
        };
        if status.as_u16() == 200 { content } else { format!("{} {content}", status.as_u16()).trim().to_owned() }
    };
    operation.answers.iter().map(answer).collect::<Vec<_>>().join(", ")
}

#[test]
fn every_route_says_what_it_takes_and_answers() {
    for RouteEntry { method, path, operation, .. } in entries() {
        if let Some(what) = operation.is_silent_about() {
            panic!("`{method} {path}` does not say {what}: add it where the route is listed");
        }
    }
}

#[test]
fn the_documentation_says_what_the_routes_say() {
    let entries = entries();
    assert_written("openapi.json", &format!("{:#}\n", document(&entries)));
    assert_written("routes.md", &page(&entries));
}

#[test]
fn every_route_is_in_the_document() {
    let entries = entries();
    let document = document(&entries);
    let described = document["paths"].as_object().unwrap().iter().flat_map(|(path, methods)| {
        let methods = methods.as_object().unwrap().iter();
        methods.flat_map(move |(method, operation)| {
            let again = operation["x-also-at"].as_array().into_iter().flatten().filter_map(Value::as_str);
            let places = std::iter::once(path.as_str()).chain(again);
            places.map(move |place| (method.to_ascii_uppercase(), place.to_owned()))
        })
    });
    let described: BTreeSet<(String, String)> = described.collect();
    let listed = entries.iter().map(|entry| (entry.method.to_owned(), entry.path.replace("{*", "{")));
    assert_eq!(described, listed.collect());
}

#[test]
fn every_reference_leads_somewhere_and_names_are_of_one_type() {
    let document = document(&entries());
    let mut references = BTreeSet::new();
    collect(&document, &mut references);
    assert!(!references.is_empty());
    for reference in references {
        let pointer = reference.strip_prefix('#').unwrap();
        assert!(document.pointer(pointer).is_some(), "there is no `{reference}`");
    }
    // Where two types have one name, the second is numbered.
    let schemas = document["components"]["schemas"].as_object().unwrap();
    let names: BTreeSet<&str> = schemas.keys().map(String::as_str).collect();
    for name in &names {
        let bare = name.trim_end_matches(|letter: char| letter.is_ascii_digit());
        assert!(bare == *name || !names.contains(bare), "two types are called `{bare}`: rename one for its schema");
    }
}

#[test]
fn names_of_operations_are_unique() {
    let document = document(&entries());
    let operations =
        document["paths"].as_object().unwrap().values().flat_map(|path| path.as_object().unwrap().values());
    let mut seen = BTreeSet::new();
    for operation in operations {
        assert!(seen.insert(operation["operationId"].to_string()), "{}", operation["operationId"]);
    }
}

fn collect(value: &Value, references: &mut BTreeSet<String>) {
    match value {
        Value::Object(fields) => {
            references.extend(fields.get("$ref").and_then(Value::as_str).map(str::to_owned));
            fields.values().for_each(|field| collect(field, references));
        }
        Value::Array(items) => items.iter().for_each(|item| collect(item, references)),
        _ => {}
    }
}
