//! The native routes below the prefix of a `processor` application: objects are made, called and kept.
//!
//! A call is forwarded as it is; which types, classes and functions there are is `twinkle-processor`'s to know. Nothing is
//! kept in memory here: objects are the component's.

use axum::extract::State as Front;
use axum::response::Response;
use http::StatusCode;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use serde_json::{Map, Value, json};
use twinkle_core::call::{Call, Operation, ProcessOutcome, ProcessRequest, Reply};
use twinkle_core::error::{Error, Result};
use twinkle_core::ids::TenantId;

use super::{Answer, Caller, Json, TwinkleError, TwinkleFront, ok, patiently};
use crate::openapi::Content;
use crate::route_table::Route;

/// The routes, relative to the prefix.
pub(crate) fn routes() -> Vec<Route<TwinkleFront>> {
    vec![
        Route::post("/create", create)
            .about("Makes a data set, a loader, or what else the processor knows.")
            .tells(&["processor_id"]),
        Route::post("/call", call).about("Calls a function of such an object.").answers::<CallResponse>().also(
            StatusCode::GONE,
            "an iterator has no further element",
            Content::Fields(&["detail"]),
        ),
        Route::post("/heartbeat", heartbeat).about("Keeps objects and the session.").tells(&["status"]),
    ]
}

/// The body of `POST create`; further fields are the constructor's arguments.
#[derive(Deserialize, JsonSchema)]
#[schemars(rename = "CreateObject")]
struct CreateRequest {
    /// What kind of object.
    processor_type: String,
    /// Its class.
    class_type: String,
    #[serde(flatten)]
    arguments: Map<String, Value>,
}

/// The body of `POST call`; further fields are the function's arguments.
#[derive(Deserialize, JsonSchema)]
#[schemars(rename = "CallObject")]
struct CallRequest {
    /// The object, from `create`.
    processor_id: String,
    /// Which of its functions.
    function: String,
    #[serde(flatten)]
    arguments: Map<String, Value>,
}

/// The body of `POST heartbeat`.
#[derive(Deserialize, JsonSchema)]
#[schemars(rename = "KeepObjects")]
struct HeartbeatRequest {
    /// One name, or several between commas.
    processor_id: String,
}

/// What the function gave back.
#[derive(Serialize, JsonSchema)]
#[schemars(rename = "CallResult")]
struct CallResponse {
    /// Whatever it is.
    #[schemars(with = "Value")]
    result: Box<RawValue>,
}

async fn create(Front(front): Front<TwinkleFront>, caller: Caller, Json(body): Json<CreateRequest>) -> Answer {
    let Caller { tenant, session } = caller;
    let CreateRequest { processor_type: kind, class_type: class, arguments } = body;
    let request = ProcessRequest::Create { session, kind, class, arguments };
    match patiently("create", ask(&front, tenant, request)).await? {
        ProcessOutcome::Created(name) => ok(&json!({"processor_id": name})),
        _ => Err(unexpected().into()),
    }
}

async fn call(
    Front(front): Front<TwinkleFront>,
    caller: Caller,
    Json(body): Json<CallRequest>,
) -> Result<Response, TwinkleError> {
    let CallRequest { processor_id: object, function, arguments } = body;
    let name = function.clone();
    let request = ProcessRequest::CallObject { object, function, arguments };
    match patiently(&name, ask(&front, caller.tenant, request)).await? {
        ProcessOutcome::Answered(result) => {
            let result = RawValue::from_string(result);
            ok(&CallResponse { result: result.map_err(|_| unexpected())? })
        }
        ProcessOutcome::Exhausted => Err(TwinkleError::Exhausted),
        _ => Err(unexpected().into()),
    }
}

/// Clients of the first generation say so that they are still there.
async fn heartbeat(Front(front): Front<TwinkleFront>, caller: Caller, Json(body): Json<HeartbeatRequest>) -> Answer {
    let objects = body.processor_id.split(',').map(|name| name.trim().to_owned()).collect();
    ask(&front, caller.tenant, ProcessRequest::KeepObjects { objects }).await?;
    ok(&json!({"status": "ok"}))
}

async fn ask(front: &TwinkleFront, tenant: TenantId, request: ProcessRequest) -> Result<ProcessOutcome> {
    match front.component.ask(Call { tenant, operation: Operation::Process(request) }).await? {
        Reply::Process(outcome) => Ok(outcome),
        _ => Err(unexpected()),
    }
}

fn unexpected() -> Error {
    Error::internal("the processor answered something that was not asked")
}
