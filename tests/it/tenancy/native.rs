//! The same for the native protocol's routes, which name a session in a header, and for the `OpenAI` door.

use serde_json::{Value, json};

use super::cases::{Body, Case, Expected};
use super::objects::{ADAPTER, Objects};

/// The requests of a route of the native protocol or of the `OpenAI` door; `None` for another route.
pub(super) fn cases(method: &str, path: &str, theirs: &Objects, mine: &Objects, model: &str) -> Option<Vec<Case>> {
    if let Some(cases) = door(method, path, theirs, model) {
        return Some(cases);
    }
    let route = path.strip_prefix("/api/v1/")?;
    if let Some(route) = below(route, &format!("model/{model}")) {
        return of_model(method, path, route, theirs, mine);
    }
    if let Some(route) = below(route, &format!("sampler/{model}")) {
        return of_sampler(method, path, route, theirs, mine);
    }
    if let Some(route) = below(route, "processor") {
        return of_processor(path, route, theirs, mine);
    }
    gateway(method, path, route, theirs)
}

/// The same routes are served with and without `twinkle/`.
fn below<'a>(route: &'a str, prefix: &str) -> Option<&'a str> {
    let route = route.strip_prefix(prefix)?.strip_prefix('/')?;
    Some(route.strip_prefix("twinkle/").unwrap_or(route))
}

#[expect(clippy::unnecessary_wraps, reason = "what a route's cases are")]
fn nothing(case: Case) -> Option<Vec<Case>> {
    Some(vec![case.about("nothing").expecting(Expected::NothingForeign)])
}

/// `/v1/…`, and the same below the server's prefix.
fn door(method: &str, path: &str, theirs: &Objects, model: &str) -> Option<Vec<Case>> {
    let route = path.strip_prefix("/api/v1/").or_else(|| path.strip_prefix("/v1/"))?;
    let body = match (method, route) {
        ("GET", "models") => return nothing(Case::get(path)),
        ("GET", "models/{*model}") => {
            let of = |name: &str| Case::get(path.replace("{*model}", name)).about("a model's name");
            return Some(vec![of(&theirs.run), of(&theirs.sampler), of(&theirs.sampler_weights_path())]);
        }
        ("POST", "chat/completions") => {
            json!({ "messages": [{ "role": "user", "content": "hello" }], "max_tokens": 1 })
        }
        ("POST", "completions") => json!({ "prompt": [1, 2, 3], "max_tokens": 1 }),
        _ => return None,
    };
    let with = |more: Value| Case::post(path, merged(&body, more));
    Some(vec![
        with(json!({ "model": theirs.sampler_weights_path() })).about("a checkpoint as the model"),
        with(json!({ "model": theirs.run })).about("a run as the model"),
        with(json!({ "model": theirs.sampler })).about("a sampling session as the model"),
        with(json!({ "model": model, "adapter_uri": theirs.sampler_weights_path() }))
            .about("a checkpoint beside the model"),
    ])
}

/// Sessions, runs and checkpoints.
fn gateway(method: &str, path: &str, route: &str, theirs: &Objects) -> Option<Vec<Case>> {
    let route = route.strip_prefix("twinkle/").unwrap_or(route);
    let run = &theirs.run;
    let at = |end: &str| format!("{}{end}", path.split('{').next().unwrap_or(path));
    let cases = match (method, route) {
        (
            "GET",
            "healthz" | "healthz/deep" | "get_server_capabilities" | "capacity_info" | "status" | "training_runs",
        ) => {
            return nothing(Case::get(path));
        }
        ("POST", "create_session") => return nothing(Case::post(path, json!({ "metadata": null }))),
        ("POST", "session_heartbeat") => {
            vec![Case::post(path, json!({ "session_id": theirs.native_session })).about("a session")]
        }
        ("GET", "training_runs/{run}") => vec![Case::get(at(run)).about("a run")],
        ("GET", "training_runs/{run}/checkpoints") => vec![Case::get(at(&format!("{run}/checkpoints"))).about("a run")],
        ("DELETE", "training_runs/{run}/checkpoints/{name}") => {
            let path = at(&format!("{run}/checkpoints/{}", theirs.weights));
            vec![
                Case::new("DELETE", path, Body::None)
                    .about("a checkpoint without its kind")
                    .expecting(Expected::BadRequest),
            ]
        }
        ("DELETE", "training_runs/{run}/checkpoints/{kind}/{name}") => {
            let path = at(&format!("{run}/checkpoints/weights/{}", theirs.weights));
            vec![Case::new("DELETE", path, Body::None).about("a checkpoint").not_for_the_owner()]
        }
        ("GET", "checkpoint_path/{run}/{name}") => {
            vec![
                Case::get(at(&format!("{run}/{}", theirs.weights)))
                    .about("a checkpoint without its kind")
                    .expecting(Expected::BadRequest),
            ]
        }
        ("GET", "checkpoint_path/{run}/{kind}/{name}") => {
            vec![Case::get(at(&format!("{run}/weights/{}", theirs.weights))).about("a checkpoint")]
        }
        ("POST", "weights_info") => {
            vec![Case::post(path, json!({ "twinkle_path": theirs.weights_path() })).about("a checkpoint")]
        }
        _ => return None,
    };
    Some(cases)
}

/// An adapter of a session.
fn of_model(method: &str, path: &str, route: &str, theirs: &Objects, mine: &Objects) -> Option<Vec<Case>> {
    let inputs = json!([{ "input_ids": [5, 9, 31], "labels": [9, 31, -100] }]);
    let extras = match (method, route) {
        ("GET", "healthz") => return nothing(Case::get(path)),
        ("POST", "create") => return nothing(Case::post(path, json!({}))),
        ("GET", "upload_status/{request}") => {
            let path = path.replace("{request}", &theirs.operation);
            return Some(vec![Case::get(path).about("an upload").not_for_the_owner()]);
        }
        ("POST", "upload_to_hub") => {
            let body = json!({ "checkpoint_dir": theirs.weights_path(), "hub_model_id": "a/b", "hub_token": "t" });
            let case = Case::post(path, body).in_session(&theirs.native_session);
            return Some(vec![case.about("a session and a checkpoint").not_for_the_owner()]);
        }
        ("POST", "add_adapter_to_model") => json!({ "config": { "r": 4, "target_modules": "all-linear" } }),
        ("POST", "set_loss") => json!({ "loss_cls": "CrossEntropyLoss" }),
        ("POST", "set_template") => json!({ "template_cls": "Template" }),
        ("POST", "set_processor") => json!({ "processor_cls": "InputProcessor" }),
        ("POST", "set_optimizer") => json!({ "optimizer_cls": "AdamW", "lr": 0.0 }),
        ("POST", "set_lr_scheduler") => json!({ "scheduler_cls": "ConstantLR" }),
        ("POST", "add_metric") => json!({ "metric_cls": "LossMetric" }),
        ("POST", "forward" | "forward_only" | "forward_backward") => json!({ "inputs": inputs }),
        ("POST", "save") => json!({ "name": "kept" }),
        (
            "POST",
            "heartbeat" | "clip_grad_norm" | "step" | "zero_grad" | "lr_step" | "clip_grad_and_step"
            | "calculate_metric" | "get_train_configs" | "get_state_dict",
        ) => json!({}),
        // What they need comes from requests before them.
        ("POST", "apply_patch") => return of_adapter(path, json!({ "patch_cls": "P" }), theirs, false),
        ("POST", "calculate_loss" | "backward") => return of_adapter(path, json!({}), theirs, false),
        ("POST", "load" | "resume_from_checkpoint") => {
            let body = json!({ "adapter_name": ADAPTER, "name": theirs.weights_path() });
            let of = |session: &str| Case::post(path, body.clone()).in_session(session).not_for_the_owner();
            return Some(vec![
                of(&theirs.native_session).about("a session's adapter"),
                of(&mine.native_session).about("a checkpoint"),
            ]);
        }
        _ => return None,
    };
    of_adapter(path, extras, theirs, true)
}

#[expect(clippy::unnecessary_wraps, reason = "what a route's cases are")]
fn of_adapter(path: &str, extras: Value, theirs: &Objects, works: bool) -> Option<Vec<Case>> {
    let body = merged(&json!({ "adapter_name": ADAPTER }), extras);
    let case = Case::post(path, body).in_session(&theirs.native_session).about("a session's adapter");
    Some(vec![if works { case } else { case.not_for_the_owner() }])
}

fn of_sampler(method: &str, path: &str, route: &str, theirs: &Objects, mine: &Objects) -> Option<Vec<Case>> {
    let sample = json!({ "inputs": [{ "input_ids": [1, 2, 3] }], "sampling_params": { "max_tokens": 1, "seed": 1 } });
    let in_session = |body: Value| Case::post(path, body).in_session(&theirs.native_session).about("a session");
    let cases = match (method, route) {
        ("GET", "healthz") => return nothing(Case::get(path)),
        ("POST", "create") => return nothing(Case::post(path, json!({}))),
        ("POST", "heartbeat") => vec![in_session(json!({ "adapter_name": ADAPTER })).not_for_the_owner()],
        ("POST", "set_template") => vec![in_session(json!({ "template_cls": "Template" }))],
        ("POST", "add_adapter_to_sampler") => {
            vec![in_session(json!({ "adapter_name": ADAPTER, "config": { "r": 4 } })).not_for_the_owner()]
        }
        ("POST", "apply_patch") => vec![in_session(json!({ "patch_cls": "P" })).expecting(Expected::BadRequest)],
        ("POST", "sample" | "sample_stream") => vec![
            in_session(sample.clone()),
            Case::post(path, merged(&sample, json!({ "adapter_uri": theirs.sampler_weights_path() })))
                .in_session(&mine.native_session)
                .about("a checkpoint"),
        ],
        _ => return None,
    };
    Some(cases)
}

/// Objects of a processor.
fn of_processor(path: &str, route: &str, theirs: &Objects, mine: &Objects) -> Option<Vec<Case>> {
    let cases = match route {
        "create" => vec![Case::post(path, data_set()).in_session(&theirs.native_session).about("a session")],
        "call" => {
            vec![
                Case::post(path, json!({ "processor_id": theirs.object, "function": "__len__" }))
                    .in_session(&mine.native_session)
                    .about("an object"),
            ]
        }
        "heartbeat" => {
            vec![
                Case::post(path, json!({ "processor_id": theirs.object }))
                    .in_session(&mine.native_session)
                    .about("an object")
                    .expecting(Expected::NothingForeign),
            ]
        }
        _ => return None,
    };
    Some(cases)
}

/// A data set whose rows come along.
pub(super) fn data_set() -> Value {
    let meta = json!({ "data": [{ "text": "a" }, { "text": "b" }], "_TWINKLE_TYPE_": "DatasetMeta" }).to_string();
    json!({ "processor_type": "dataset", "class_type": "Dataset", "dataset_meta": meta })
}

fn merged(body: &Value, more: Value) -> Value {
    let mut body = body.clone();
    if let (Some(body), Value::Object(more)) = (body.as_object_mut(), more) {
        body.extend(more);
    }
    body
}
