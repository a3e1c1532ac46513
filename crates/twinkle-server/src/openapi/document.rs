//! From the table of routes to the document.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use http::StatusCode;
use schemars::SchemaGenerator;
use schemars::generate::SchemaSettings;
use serde_json::{Map, Value, json};
use twinkle_core::error::ErrorCode;
use twinkle_core::wire::tinker::PROTOBUF;

use super::operation::{Answer, Header};
use super::{Body, Content, Operation, SchemaOf};
use crate::error_response::{ErrorBody, status};
use crate::listing::{Front, RouteEntry};
use crate::node::{Access, access};
use crate::openai::{self, is_openai_path};

/// The names of the ways to send a key, which all hold the same one.
const KEYS: [&str; 3] = ["X-API-Key", "Authorization", "Twinkle-Authorization"];

const ABOUT: &str = "Many tenants train and sample LoRA adapters on a base model. Two protocols and an OpenAI door share \
                     one node; `tags` tell them apart. A key is a tenant: what another tenant owns is not there for it, \
                     in the same words as what nobody owns.";

/// The whole document of these routes.
pub(crate) fn document(entries: &[RouteEntry]) -> Value {
    let mut generator = SchemaSettings::draft2020_12()
        .with(|settings| {
            settings.definitions_path = "/components/schemas".into();
            settings.meta_schema = None;
        })
        .into_generator();
    let mut paths = Map::new();
    for entry in entries.iter().filter(|entry| entry.repeats.is_none()) {
        let described = operation(entry, &mut generator);
        at(&mut paths, entry.method, &entry.path, |place| *place = described);
    }
    for entry in entries {
        let Some(first) = &entry.repeats else { continue };
        at(&mut paths, entry.method, first, |described| {
            if let Some(again) = described["x-also-at"].as_array_mut() {
                again.push(entry.path.clone().into());
            } else {
                described["x-also-at"] = json!([entry.path]);
            }
        });
    }
    let responses = json!({
        "Refused": error("Refused: sending it again changes nothing, but for 429.", false, &generator.subschema_for::<ErrorBody<'_>>()),
        "Failed": error("Not done, and not the client's fault.", true, &generator.subschema_for::<ErrorBody<'_>>()),
        "OpenAiRefused": error("Refused: sending it again changes nothing, but for 429.", false, &openai::error_schema(&mut generator)),
        "OpenAiFailed": error("Not done, and not the client's fault.", true, &openai::error_schema(&mut generator)),
    });
    let schemas: BTreeMap<String, Value> = generator.take_definitions(false).into_iter().collect();
    let mut document = json!({
        "openapi": "3.1.0",
        "info": {
            "title": "Twinkle",
            "version": env!("CARGO_PKG_VERSION"),
            "description": ABOUT,
            "license": { "name": "Apache-2.0", "identifier": "Apache-2.0" },
        },
        "servers": [{ "url": "/" }],
        "security": KEYS.map(|name| json!({ name: [] })),
        "tags": Front::ALL.map(|front| json!({ "name": front.name(), "description": front.meaning() })),
        "paths": paths,
        "components": { "schemas": schemas, "responses": responses, "securitySchemes": security_schemes() },
    });
    tidy(&mut document);
    document
}

/// Changes what stands at a method of a path.
fn at(paths: &mut Map<String, Value>, method: &str, path: &str, change: impl FnOnce(&mut Value)) {
    let methods = paths.entry(templated(path)).or_insert_with(|| json!({}));
    change(&mut methods[method.to_ascii_lowercase()]);
}

/// A path as `OpenAPI` writes it, which knows no `{*rest}`.
fn templated(path: &str) -> String {
    path.replace("{*", "{")
}

fn operation(entry: &RouteEntry, generator: &mut SchemaGenerator) -> Value {
    let Operation { about, body, query, headers, answers, refuses: _ } = &entry.operation;
    let mut described = json!({
        "operationId": id(entry),
        "summary": about,
        "tags": [entry.front.name()],
    });
    if !entry.application.is_empty() {
        described["x-application"] = entry.application.as_str().into();
    }
    let mut parameters = path_parameters(&entry.path);
    if let Some(query) = query {
        parameters.extend(query_parameters(*query, generator));
    }
    parameters.extend(headers.iter().map(|Header { name, meaning }| {
        json!({ "name": name, "in": "header", "required": false, "description": meaning, "schema": { "type": "string" } })
    }));
    if !parameters.is_empty() {
        described["parameters"] = parameters.into();
    }
    if let Some(body) = request_body(*body, generator) {
        described["requestBody"] = body;
    }
    match access(&entry.path) {
        Access::Key => {}
        Access::Anyone => described["security"] = json!([]),
        Access::ThisMachine => {
            let with_key = KEYS.map(|name| json!({ name: [] }));
            described["security"] = std::iter::once(json!({})).chain(with_key).collect();
        }
    }
    described["responses"] = responses(answers, &entry.path, generator);
    described
}

/// Unique, for a path is.
fn id(entry: &RouteEntry) -> String {
    let mut id = entry.method.to_ascii_lowercase();
    for part in entry.path.split(|letter: char| !letter.is_ascii_alphanumeric()).filter(|part| !part.is_empty()) {
        id.push('_');
        id.push_str(part);
    }
    id
}

fn path_parameters(path: &str) -> Vec<Value> {
    let names = path.split('{').skip(1).filter_map(|rest| rest.split('}').next());
    let parameter = |name: &str| {
        let (name, meaning) = match name.strip_prefix('*') {
            Some(rest) => (rest, "May hold slashes."),
            None => (name, "One segment."),
        };
        json!({ "name": name, "in": "path", "required": true, "description": meaning, "schema": { "type": "string" } })
    };
    names.map(parameter).collect()
}

fn query_parameters(query: SchemaOf, generator: &mut SchemaGenerator) -> Vec<Value> {
    let schema = (query.whole)(generator).to_value();
    let is_required = |name: &str| schema["required"].as_array().is_some_and(|names| names.iter().any(|it| it == name));
    let fields = schema["properties"].as_object().into_iter().flatten();
    let parameter = |(name, field): (&String, &Value)| {
        let mut field = field.clone();
        let meaning = field.as_object_mut().and_then(|field| field.remove("description")).unwrap_or_default();
        let mut parameter = json!({ "name": name, "in": "query", "required": is_required(name), "schema": field });
        if !meaning.is_null() {
            parameter["description"] = meaning;
        }
        parameter
    };
    fields.map(parameter).collect()
}

fn request_body(body: Body, generator: &mut SchemaGenerator) -> Option<Value> {
    match body {
        Body::None | Body::Unnamed => None,
        Body::Ignored => Some(json!({ "required": false, "content": { "*/*": {} } })),
        Body::Json { schema, or_protobuf } => {
            let whole = (schema.whole)(generator).to_value();
            let is_required = whole["required"].as_array().is_some_and(|names| !names.is_empty());
            let mut content = json!({ "application/json": { "schema": (schema.reference)(generator) } });
            if or_protobuf {
                content[PROTOBUF] = json!({});
            }
            Some(json!({ "required": is_required, "content": content }))
        }
    }
}

fn responses(answers: &[Answer], path: &str, generator: &mut SchemaGenerator) -> Value {
    let mut responses = json!({});
    for Answer { status, meaning, content } in answers {
        let response = &mut responses[status.as_str()];
        if response.is_null() {
            *response = json!({ "description": meaning });
        }
        let (media_type, schema) = match content {
            Content::Nothing => continue,
            Content::Media(media_type) => (*media_type, None),
            Content::Json(schema) => ("application/json", Some((schema.reference)(generator).to_value())),
            Content::Fields(names) => ("application/json", Some(object(names))),
        };
        let place = &mut response["content"][media_type];
        match (schema, place["schema"].take()) {
            (None, _) => *place = json!({}),
            (Some(schema), Value::Null) => place["schema"] = schema,
            (Some(schema), mut before) => {
                if let Some(several) = before.get_mut("anyOf").and_then(Value::as_array_mut) {
                    several.push(schema);
                    place["schema"] = before;
                } else {
                    place["schema"] = json!({ "anyOf": [before, schema] });
                }
            }
        }
    }
    let (refused, failed) =
        if is_openai_path(path) { ("OpenAiRefused", "OpenAiFailed") } else { ("Refused", "Failed") };
    responses["4XX"] = json!({ "$ref": format!("#/components/responses/{refused}") });
    responses["5XX"] = json!({ "$ref": format!("#/components/responses/{failed}") });
    responses
}

fn object(names: &[&str]) -> Value {
    let properties: Map<String, Value> = names.iter().map(|name| ((*name).to_owned(), json!(true))).collect();
    json!({ "type": "object", "properties": properties, "required": names })
}

/// Errors of one kind, with every code that they may carry.
fn error(meaning: &str, is_servers: bool, schema: &schemars::Schema) -> Value {
    let mut text = meaning.to_owned();
    for code in ErrorCode::ALL {
        let status: StatusCode = status(*code);
        if status.is_server_error() == is_servers {
            let name = serde_json::to_value(code).unwrap_or_default();
            // Writing to a string cannot fail.
            let _ = write!(text, " {} `{}`: {}", status.as_u16(), name.as_str().unwrap_or_default(), code.meaning());
        }
    }
    json!({
        "description": text,
        "headers": {
            "Retry-After": {
                "description": "Seconds after which another attempt makes sense, where one does.",
                "schema": { "type": "integer" },
            },
        },
        "content": { "application/json": { "schema": schema } },
    })
}

fn security_schemes() -> Value {
    let [key, bearer, twinkle] = KEYS;
    json!({
        key: { "type": "apiKey", "in": "header", "name": key },
        bearer: { "type": "http", "scheme": "bearer" },
        twinkle: {
            "type": "apiKey", "in": "header", "name": twinkle,
            "description": "`Bearer <key>`, where a proxy uses `Authorization` itself.",
        },
    })
}

/// Makes descriptions of what the documentation of types says: one line, without links into the code.
fn tidy(value: &mut Value) {
    match value {
        Value::Object(fields) => {
            for (name, field) in fields.iter_mut() {
                match field {
                    Value::String(text) if name == "description" => {
                        *text = text.replace("[`", "`").replace("`]", "`").replace('\n', " ");
                    }
                    other => tidy(other),
                }
            }
        }
        Value::Array(items) => items.iter_mut().for_each(tidy),
        _ => {}
    }
}
