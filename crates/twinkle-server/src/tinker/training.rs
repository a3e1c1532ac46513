//! Forward, backward and optimizer steps.

use axum::extract::State;
use prost::Message;
use serde_json::Value;
use twinkle_core::call::{AdamParams, ForwardOptions, RunOperation};
use twinkle_core::error::{Error, Result};
use twinkle_core::wire::tinker::bounds::check_forward_backward;
use twinkle_core::wire::tinker::json::{self, AnyOptimizerParams, OptimStep};
use twinkle_core::wire::tinker::proto;
use twinkle_core::wire::tinker::training::{ForwardBackward, ForwardBackwardContent};
use twinkle_model::losses::check_is_tinkers;

use super::body::{RawBody, off_runtime};
use super::models::unknown_optimizer;
use super::operations::Place;
use super::reply::{Answer, ok};
use super::{Front, Tenant};

/// `POST forward_backward`, as protobuf or, from old SDKs, JSON.
pub(super) async fn forward_backward(State(front): State<Front>, Tenant(tenant): Tenant, body: RawBody) -> Answer {
    let request = if body.is_protobuf {
        let bytes = body.bytes;
        let decoded = off_runtime(bytes.len(), move || decode(bytes)).await?;
        match decoded {
            Ok(request) => request,
            Err((place, error)) => {
                front.consume_foreign(&tenant, &place).await;
                return Err(error.into());
            }
        }
    } else {
        let wanted: json::ForwardBackward = front.parse(&tenant, &body).await?;
        from_json(wanted.model_id, wanted.seq_id, wanted.forward_backward_input, true).await?
    };
    submit(&front, &tenant, request).await
}

/// `POST forward`, of old SDKs only.
pub(super) async fn forward(State(front): State<Front>, Tenant(tenant): Tenant, body: RawBody) -> Answer {
    let wanted: json::Forward = front.parse(&tenant, &body).await?;
    let request = from_json(wanted.model_id, wanted.seq_id, wanted.forward_input, false).await?;
    submit(&front, &tenant, request).await
}

async fn submit(front: &Front, tenant: &twinkle_core::ids::TenantId, request: ForwardBackward) -> Answer {
    let place = Place::new(request.model_id, request.sequence);
    let content = front.with_graph(tenant, &place.run, request.loss_id, request.content).await?;
    let operation = content.and_then(operation);
    ok(&front.submit(tenant, place, operation).await?)
}

/// What the datums hold is checked by the loss they are for.
fn operation(content: ForwardBackwardContent) -> Result<RunOperation> {
    let ForwardBackwardContent { data, loss, backward } = content;
    check_is_tinkers(&loss)?;
    Ok(RunOperation::ForwardBackward { data, loss, backward, options: ForwardOptions::default() })
}

/// Decodes a protobuf request; a broken one still tells its place, if that came before the damage.
fn decode(bytes: bytes::Bytes) -> std::result::Result<ForwardBackward, (Place, Error)> {
    let mut request = proto::ForwardBackwardRequest::default();
    if let Err(error) = check_forward_backward(&bytes) {
        // Not worth decoding for its place: no client sends such a thing by mistake.
        return Err((Place::new(String::new(), None), error));
    }
    match request.merge(bytes) {
        Ok(()) => Ok(ForwardBackward::from_proto(request)),
        Err(error) => {
            let place = Place::new(request.model_id, u64::try_from(request.seq_id).ok());
            Err((place, Error::invalid(format!("the request body is not a `ForwardBackwardRequest`: {error}"))))
        }
    }
}

async fn from_json(
    model_id: String,
    seq_id: Option<u64>,
    input: json::ForwardBackwardInput,
    backward: bool,
) -> Result<ForwardBackward> {
    let values: usize = input.data.iter().map(|datum| 1 + datum.loss_fn_inputs.len()).sum();
    // Converting is cheap per value, so only very many datums are worth a thread.
    off_runtime(values, move || ForwardBackward::from_json(model_id, seq_id, input, backward)).await
}

/// `POST optim_step`
pub(super) async fn optim_step(State(front): State<Front>, Tenant(tenant): Tenant, body: RawBody) -> Answer {
    let wanted: OptimStep = front.parse(&tenant, &body).await?;
    let place = Place::new(wanted.model_id, wanted.seq_id);
    let params = match (wanted.adam_params, wanted.optimizer_params) {
        (Some(params), None) => Ok(params),
        (None, Some(params)) => adam_params(params),
        (None, None) => Err(Error::invalid("`adam_params` is missing")),
        (Some(_), Some(_)) => Err(Error::invalid("both `adam_params` and `optimizer_params` are given")),
    };
    ok(&front.submit(&tenant, place, params.map(RunOperation::OptimStep)).await?)
}

/// `AdamW`'s settings in the form that any optimizer may have.
fn adam_params(params: AnyOptimizerParams) -> Result<AdamParams> {
    if params.kind != "adamw" {
        return Err(unknown_optimizer(&params.kind));
    }
    let settings = Value::Object(params.settings.into_iter().collect());
    serde_json::from_value(settings)
        .map_err(|error| Error::invalid(format!("the optimizer's settings are wrong: {error}")))
}
