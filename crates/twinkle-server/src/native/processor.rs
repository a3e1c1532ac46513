//! `POST {prefix}/encode_chat`, `/encode` and `/decode` of a `processor` application.

use axum::extract::{Extension, State};
use axum::{Json as JsonResponse, Router};
use twinkle_core::call::{Call, Operation, ProcessOutcome, ProcessRequest, Reply};
use twinkle_core::component::BoxComponent;
use twinkle_core::error::{Error, Result};
use twinkle_core::ids::TenantId;
use twinkle_core::wire::native::{DecodeRequest, DecodedResponse, EncodeChatRequest, EncodeRequest, EncodedResponse};

use super::json::Json;
use crate::error_response::ErrorResponse;
use crate::route_table::{Route, router_of};

/// The routes of a processor, relative to its prefix.
pub(crate) fn processor_routes() -> Vec<Route<BoxComponent>> {
    vec![
        Route::post("/encode_chat", encode_chat)
            .about("Conversations as tokens, by the model's chat template.")
            .answers::<EncodedResponse>(),
        Route::post("/encode", encode).about("Texts as tokens.").answers::<EncodedResponse>(),
        Route::post("/decode", decode).about("Tokens as texts.").answers::<DecodedResponse>(),
    ]
}

/// What answers the routes of this processor.
pub(crate) fn processor_router(processor: BoxComponent) -> Router {
    router_of(processor_routes()).with_state(processor)
}

async fn encode_chat(
    State(processor): State<BoxComponent>,
    Extension(tenant): Extension<TenantId>,
    Json(body): Json<EncodeChatRequest>,
) -> Result<JsonResponse<EncodedResponse>, ErrorResponse> {
    let EncodeChatRequest { model, conversations, add_generation_prompt } = body;
    encoded(&processor, tenant, ProcessRequest::EncodeChat { model, conversations, add_generation_prompt }).await
}

async fn encode(
    State(processor): State<BoxComponent>,
    Extension(tenant): Extension<TenantId>,
    Json(body): Json<EncodeRequest>,
) -> Result<JsonResponse<EncodedResponse>, ErrorResponse> {
    encoded(&processor, tenant, ProcessRequest::Encode { model: body.model, texts: body.texts }).await
}

async fn decode(
    State(processor): State<BoxComponent>,
    Extension(tenant): Extension<TenantId>,
    Json(body): Json<DecodeRequest>,
) -> Result<JsonResponse<DecodedResponse>, ErrorResponse> {
    let DecodeRequest { model, sequences, skip_special_tokens } = body;
    match ask(&processor, tenant, ProcessRequest::Decode { model, sequences, skip_special_tokens }).await? {
        ProcessOutcome::Decoded(texts) => Ok(JsonResponse(DecodedResponse { texts })),
        _ => Err(unexpected().into()),
    }
}

async fn encoded(
    processor: &BoxComponent,
    tenant: TenantId,
    request: ProcessRequest,
) -> Result<JsonResponse<EncodedResponse>, ErrorResponse> {
    match ask(processor, tenant, request).await? {
        ProcessOutcome::Encoded(texts) => {
            Ok(JsonResponse(EncodedResponse { encoded: texts.into_iter().map(Into::into).collect() }))
        }
        _ => Err(unexpected().into()),
    }
}

async fn ask(processor: &BoxComponent, tenant: TenantId, request: ProcessRequest) -> Result<ProcessOutcome> {
    match processor.ask(Call { tenant, operation: Operation::Process(request) }).await? {
        Reply::Process(outcome) => Ok(outcome),
        _ => Err(unexpected()),
    }
}

fn unexpected() -> Error {
    Error::internal("the processor answered something that was not asked")
}
