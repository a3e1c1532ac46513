//! For every route: the requests that name an object, one for each kind of object they can name.

use prost::Message;
use serde_json::{Value, json};
use twinkle_core::wire::tinker::proto;

use super::native;
use super::objects::Objects;

/// What its owner would wait for, too.
const WAITING: &str = "a waiting operation";

/// How a request for a foreign object ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Expected {
    /// 404.
    NotFound,
    /// 404, also for its owner: who may read is said by a signature, which this request does not have.
    NotSigned,
    /// 410, which makes the SDK submit a sample again: samples are not kept for long, so it may have been there.
    Gone,
    /// 204, whatever is named, and nothing has happened.
    Done,
    /// 400: the content is wrong, whatever it names.
    BadRequest,
    /// The operation is accepted and fails, because its run is the caller's own.
    FailedOperation,
    /// No object is named, and none is shown.
    NothingForeign,
}

/// What goes along.
#[derive(Clone, Debug)]
pub(super) enum Body {
    None,
    Json(Value),
    Protobuf(Vec<u8>),
}

/// One request.
#[derive(Clone, Debug)]
pub(super) struct Case {
    pub(super) about: &'static str,
    pub(super) method: &'static str,
    pub(super) path: String,
    pub(super) body: Body,
    pub(super) takes_protobuf: bool,
    /// Named in a header, as the native protocol does.
    pub(super) session: Option<String>,
    /// Whether it would fail for the owner too, for a reason of its own.
    pub(super) only_for_others: bool,
    pub(super) expected: Expected,
    /// Above 0 when it ends an object; greater for objects that others need.
    pub(super) ends: u8,
}

impl Case {
    pub(super) fn new(method: &'static str, path: impl Into<String>, body: Body) -> Self {
        let (path, expected) = (path.into(), Expected::NotFound);
        Self {
            about: "an object",
            method,
            path,
            body,
            takes_protobuf: false,
            session: None,
            only_for_others: false,
            expected,
            ends: 0,
        }
    }

    pub(super) fn get(path: impl Into<String>) -> Self {
        Self::new("GET", path, Body::None)
    }

    pub(super) fn post(path: impl Into<String>, body: Value) -> Self {
        Self::new("POST", path, Body::Json(body))
    }

    pub(super) const fn about(mut self, about: &'static str) -> Self {
        self.about = about;
        self
    }

    pub(super) const fn expecting(mut self, expected: Expected) -> Self {
        self.expected = expected;
        self
    }

    /// With this session's name in its header.
    pub(super) fn in_session(mut self, session: &str) -> Self {
        self.session = Some(session.to_owned());
        self
    }

    pub(super) const fn not_for_the_owner(mut self) -> Self {
        self.only_for_others = true;
        self
    }

    const fn ending(mut self, rank: u8) -> Self {
        self.ends = rank;
        self
    }

    /// Whether it would do what it asks for if the objects were the caller's own.
    pub(super) fn works_for_the_owner(&self) -> bool {
        let is_right = !matches!(self.expected, Expected::BadRequest | Expected::NotSigned);
        is_right && self.about != WAITING && !self.only_for_others
    }

    /// Whether Bob was answered as he should be.
    pub(super) fn check(&self, about: &str, status: u16, body: &Value) {
        match self.expected {
            Expected::NotFound | Expected::NotSigned => assert_eq!(status, 404, "{about}: {body}"),
            Expected::Gone => assert_eq!(status, 410, "{about}: {body}"),
            Expected::Done => assert_eq!(status, 204, "{about}: {body}"),
            Expected::BadRequest => assert_eq!(status, 400, "{about}: {body}"),
            Expected::NothingForeign => assert_eq!(status, 200, "{about}: {body}"),
            Expected::FailedOperation => {
                assert_eq!(status, 200, "{about}: {body}");
                let text = body["error"].as_str().unwrap_or_default();
                assert!(text.ends_with("does not exist") && body["category"] == "user", "{about}: {body}");
            }
        }
    }
}

/// The requests of a route that name an object of `theirs`, everything else in them being `mine` and right.
///
/// `None` for a route that is not known here: whoever adds one says what it can name.
pub(super) fn cases(method: &str, path: &str, theirs: &Objects, mine: &Objects, model: &str) -> Option<Vec<Case>> {
    let nothing = |case: Case| Some(vec![case.about("nothing").expecting(Expected::NothingForeign)]);
    let Some(route) = path.strip_prefix("/api/v1/") else {
        return match (method, path) {
            ("GET", "/livez" | "/readyz" | "/metrics" | "/openapi.json" | "/api/v1") => nothing(Case::get(path)),
            ("GET", "/health/{application}") => nothing(Case::get("/health/model")),
            _ => native::cases(method, path, theirs, mine, model),
        };
    };
    let at = |route: &str| format!("/api/v1/{route}");
    let post = |body: Value| Case::post(path, body);
    let Objects { session, run, sampler, .. } = theirs;
    let cases = match (method, route) {
        ("GET", "healthz" | "get_server_capabilities" | "training_runs" | "checkpoints" | "sessions" | "processor") => {
            return nothing(Case::get(path));
        }
        ("POST", "sessions/search") => return nothing(post(json!({}))),
        ("GET", route) if route == format!("model/{model}") || route == format!("sampler/{model}") => {
            return nothing(Case::get(path));
        }
        ("POST", "client/config" | "client/dynamic_config" | "create_session" | "telemetry") => {
            return nothing(post(json!({ "sdk_version": "0.38.0" })));
        }
        ("POST", "processor/encode_chat") => {
            return nothing(post(json!({ "conversations": [[{ "role": "user", "content": "hello" }]] })));
        }
        ("POST", "processor/encode") => return nothing(post(json!({ "texts": ["hello"] }))),
        ("POST", "processor/decode") => return nothing(post(json!({ "sequences": [[1, 2]] }))),
        ("POST", "session_heartbeat") => vec![post(json!({ "session_id": session })).about("a session")],
        ("POST", "sessions/{session}/finish") => {
            let body = json!({ "reason": { "type": "success" } });
            vec![Case::post(at(&format!("sessions/{session}/finish")), body).about("a session").ending(3)]
        }
        ("POST", "create_model") => vec![post(new_model(session, model)).about("a session")],
        ("POST", "get_info") => vec![post(json!({ "model_id": run })).about("a run")],
        ("POST", "unload_model") => vec![post(json!({ "model_id": run })).about("a run").ending(2)],
        ("POST", "forward_backward") => vec![
            post(training(run, "forward_backward_input")).about("a run"),
            Case::new("POST", path, Body::Protobuf(training_protobuf(run))).about("a run, in protobuf"),
            post(training_by(mine, &theirs.custom_loss)).about("a custom loss").expecting(Expected::FailedOperation),
        ],
        ("POST", "forward") => vec![post(training(run, "forward_input")).about("a run")],
        ("POST", "optim_step") => {
            let step = |rate: Value| post(json!({ "model_id": run, "adam_params": { "learning_rate": rate } }));
            let broken = step(json!("fast")).expecting(Expected::BadRequest);
            vec![step(json!(0.0)).about("a run"), broken.about("a run and a broken number")]
        }
        ("POST", "save_weights" | "save_weights_external") => {
            vec![post(json!({ "model_id": run, "path": "copy" })).about("a run")]
        }
        ("POST", "save_weights_for_sampler") => vec![
            post(json!({ "model_id": run, "path": "copy" })).about("a run, by name"),
            post(json!({ "model_id": run, "sampling_session_seq_id": 9 })).about("a run, unnamed"),
        ],
        ("POST", "copy_weights") => vec![
            post(json!({ "source_path": theirs.weights_path(), "destination_project_id": "mine" }))
                .about("a checkpoint"),
            post(json!({ "source_path": mine.weights_path(), "session_id": session, "model_seq_id": 30 }))
                .about("a session"),
        ],
        ("POST", "load_weights") => load_weights(&post, theirs, mine),
        ("POST", "weights_info") => [theirs.weights_path(), theirs.sampler_weights_path()]
            .into_iter()
            .flat_map(|path| [path.replace("tinker://", "twinkle://"), path])
            .map(|path| post(json!({ "tinker_path": path })).about("a checkpoint"))
            .collect(),
        ("POST", "create_sampling_session") => vec![
            post(json!({ "session_id": session, "sampling_session_seq_id": 5, "base_model": model }))
                .about("a session"),
            post(sampling_of(mine, 6, &theirs.sampler_weights_path())).about("a checkpoint to sample from"),
            post(sampling_of(mine, 7, &theirs.weights_path())).about("a checkpoint to train from"),
        ],
        ("GET", "samplers/{sampler}") => {
            vec![Case::get(at(&format!("samplers/{sampler}"))).about("a sampling session")]
        }
        ("POST", "asample") => vec![post(sample_of(sampler)).about("a sampling session")],
        ("POST", "retrieve_future") => polls(&post, theirs),
        ("POST", "retrieve_futures") => {
            let target = json!({ "type": "sampling_session", "sampling_session_id": sampler });
            vec![post(json!({ "target": target, "timeout": 0 })).about("a sampling session")]
        }
        ("POST", "cancel_future") => [&theirs.operation, &theirs.waiting, &theirs.sample]
            .map(|request| post(json!({ "request_id": request })).about("an operation").expecting(Expected::Done))
            .into(),
        ("POST", "create_custom_loss") => vec![post(custom_loss_of(session, 1)).about("a session")],
        ("POST", "join_sampling_session") => {
            vec![post(json!({ "sampling_session_id": sampler })).about("a sampling session")]
        }
        ("GET", "training_runs/{run}") => vec![Case::get(at(&format!("training_runs/{run}"))).about("a run")],
        ("GET", "training_runs/{run}/checkpoints") => {
            vec![Case::get(at(&format!("training_runs/{run}/checkpoints"))).about("a run")]
        }
        _ => return of_directories(method, route, theirs).or_else(|| native::cases(method, path, theirs, mine, model)),
    };
    Some(cases)
}

/// The same for what is known of sessions, and for checkpoints and their files.
fn of_directories(method: &str, route: &str, theirs: &Objects) -> Option<Vec<Case>> {
    let at = |route: &str| format!("/api/v1/{route}");
    let Objects { session, run, .. } = theirs;
    let cases = match (method, route) {
        ("GET", "sessions/{session}") => vec![Case::get(at(&format!("sessions/{session}"))).about("a session")],
        ("GET", "sessions/{session}/trace_export") => {
            vec![Case::get(at(&format!("sessions/{session}/trace_export"))).about("a session")]
        }
        ("PUT", "sessions/{session}/project") => {
            let body = Body::Json(json!({ "project_id": "elsewhere" }));
            vec![Case::new("PUT", at(&format!("sessions/{session}/project")), body).about("a session")]
        }
        ("DELETE", "training_runs/{run}/checkpoints/{name}") => {
            let path = at(&format!("training_runs/{run}/checkpoints/{}", theirs.weights));
            let case = Case::new("DELETE", path, Body::None).expecting(Expected::BadRequest);
            vec![case.about("a checkpoint without its kind")]
        }
        ("DELETE", "training_runs/{run}/checkpoints/{kind}/{name}") => {
            of_checkpoints(theirs, "DELETE", "", &Body::None).into_iter().map(|case| case.ending(1)).collect()
        }
        ("PUT", "training_runs/{run}/checkpoints/{kind}/{name}/ttl") => {
            of_checkpoints(theirs, "PUT", "/ttl", &Body::Json(json!({ "ttl_seconds": 7200 })))
        }
        ("POST" | "DELETE", "training_runs/{run}/checkpoints/{kind}/{name}/publish") => {
            let method = if method == "POST" { "POST" } else { "DELETE" };
            of_checkpoints(theirs, method, "/publish", &Body::None)
        }
        ("GET", "training_runs/{run}/checkpoints/{kind}/{name}/archive") => {
            of_checkpoints(theirs, "GET", "/archive", &Body::None)
        }
        ("GET", "training_runs/{run}/checkpoints/{kind}/{name}/external_weights_urls") => {
            let end = format!("external_weights/{}/external_weights_urls", theirs.exported);
            vec![Case::get(at(&format!("training_runs/{run}/checkpoints/{end}"))).about("a checkpoint")]
        }
        ("GET", "downloads/{run}/{kind}/{name}/{file}") => {
            let link = format!("downloads/{run}/external_weights/{}/adapter_config.json", theirs.exported);
            let query = format!("saved=1&expires=9999999999&signature={}", "0".repeat(64));
            [link.clone(), format!("{link}?{query}")]
                .map(|link| Case::get(at(&link)).about("a file").expecting(Expected::NotSigned))
                .into()
        }
        _ => return None,
    };
    Some(cases)
}

/// One request for each kind of checkpoint.
fn of_checkpoints(theirs: &Objects, method: &'static str, end: &str, body: &Body) -> Vec<Case> {
    let run = &theirs.run;
    let path = |id: String| format!("/api/v1/training_runs/{run}/checkpoints/{id}{end}");
    theirs.checkpoint_ids().map(|id| Case::new(method, path(id), body.clone()).about("a checkpoint")).into()
}

/// Loading names a run or session, and a checkpoint.
fn load_weights(post: &impl Fn(Value) -> Case, theirs: &Objects, mine: &Objects) -> Vec<Case> {
    let body = |path: String| json!({ "path": path, "optimizer": false });
    let with = |mut body: Value, more: Value| {
        for (name, value) in more.as_object().into_iter().flatten() {
            body[name] = value.clone();
        }
        post(body)
    };
    vec![
        with(body(mine.weights_path()), json!({ "model_id": theirs.run })).about("a run"),
        with(body(theirs.weights_path()), json!({ "model_id": mine.run }))
            .about("a checkpoint")
            .expecting(Expected::FailedOperation),
        with(body(mine.weights_path()), json!({ "session_id": theirs.session, "model_seq_id": 20 }))
            .about("a session for a new run"),
        with(body(theirs.weights_path()), json!({ "session_id": mine.session, "model_seq_id": 21 }))
            .about("a checkpoint for a new run"),
    ]
}

/// Polls of every kind of result, in both forms.
fn polls(post: &impl Fn(Value) -> Case, theirs: &Objects) -> Vec<Case> {
    let kinds = [
        ("a finished operation", &theirs.operation, Expected::NotFound),
        (WAITING, &theirs.waiting, Expected::NotFound),
        ("a sample", &theirs.sample, Expected::Gone),
    ];
    let polls = kinds.map(|(about, request, expected)| {
        let json = post(json!({ "request_id": request })).about(about).expecting(expected);
        [Case { takes_protobuf: true, ..json.clone() }, json]
    });
    polls.into_iter().flatten().collect()
}

/// A small sample from a sampling session.
pub(super) fn sample_of(sampler: &str) -> Value {
    json!({
        "sampling_session_id": sampler,
        "prompt": { "chunks": [{ "tokens": [1, 2, 3] }] },
        "sampling_params": { "max_tokens": 1, "seed": 1 },
        "num_samples": 1,
    })
}

fn sampling_of(mine: &Objects, number: u64, path: &str) -> Value {
    json!({ "session_id": mine.session, "sampling_session_seq_id": number, "model_path": path })
}

fn new_model(session: &str, model: &str) -> Value {
    json!({ "session_id": session, "model_seq_id": 10, "base_model": model, "lora_config": { "rank": 2 } })
}

fn training(run: &str, field: &str) -> Value {
    json!({
        "model_id": run,
        field: {
            "loss_fn": "cross_entropy",
            "data": [{
                "model_input": { "chunks": [{ "tokens": [1, 2] }] },
                "loss_fn_inputs": {
                    "target_tokens": { "data": [2, 3], "dtype": "int64" },
                    "weights": { "data": [1.0, 1.0], "dtype": "float32" },
                },
            }],
        },
    })
}

/// A training operation of `mine` with a loss of its session's own.
fn training_by(mine: &Objects, loss: &str) -> Value {
    let mut body = training(&mine.run, "forward_backward_input");
    body["forward_backward_input"]["loss_fn"] = json!("custom");
    body["forward_backward_input"]["loss_fn_config"] = json!({ "loss_id": loss });
    body
}

/// A new loss: minus the sum of all logprobs.
pub(super) fn custom_loss_of(session: &str, number: u64) -> Value {
    let logprobs = json!({ "ref": "logprobs" });
    json!({
        "session_id": session,
        "custom_loss_seq_id": number,
        "name": "likelihood",
        "inputs": [{ "name": "logprobs", "rank": 1 }],
        "graph": { "format": 1, "nodes": [
            { "op": "placeholder", "name": "logprobs", "target": "logprobs", "args": [], "kwargs": {} },
            { "op": "call_method", "name": "sum_1", "target": "sum", "args": [logprobs], "kwargs": {} },
            { "op": "call_function", "name": "neg", "target": "operator.neg", "args": [{ "ref": "sum_1" }], "kwargs": {} },
            { "op": "output", "name": "output", "target": "output", "kwargs": {},
              "args": [{ "tuple": [{ "ref": "neg" }, { "dict": { "custom/likelihood:sum": { "ref": "sum_1" } } }] }] },
        ] },
        "type": "create_custom_loss",
    })
}

fn training_protobuf(run: &str) -> Vec<u8> {
    let request = proto::ForwardBackwardRequest {
        model_id: run.to_owned(),
        loss_fn: "cross_entropy".to_owned(),
        ..proto::ForwardBackwardRequest::default()
    };
    request.encode_to_vec()
}
