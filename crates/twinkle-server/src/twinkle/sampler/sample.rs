//! `POST sample`: every prompt is continued, all of them at the same time.

use std::time::Duration;

use axum::extract::{OriginalUri, State};
use futures::FutureExt;
use futures::stream::{self, StreamExt, TryStreamExt};
use twinkle_core::call::{Call, Operation, Reply, SampleOutcome, SampleRequest};
use twinkle_core::error::{Error, ErrorCode, Result};
use twinkle_core::ids::TenantId;

use super::answer;
use super::prompts::{Asked, Body};
use crate::twinkle::{Answer, BELOW, Caller, Json, TwinkleFront, patiently};

/// Prompts of one request that are in the sampler at once.
const AT_ONCE: usize = 128;
/// How long a prompt waits before it asks again, when it is not told.
const PACE: Duration = Duration::from_millis(500);

/// `POST sample`
pub(super) async fn sample(
    State(front): State<TwinkleFront>,
    OriginalUri(uri): OriginalUri,
    caller: Caller,
    Json(body): Json<Body>,
) -> Answer {
    let is_first_generation = !uri.path().ends_with(&format!("{BELOW}/sample"));
    let bytes = patiently("sample", async move {
        let asked = Asked::read(&front, &caller, body).await?;
        let outcomes = outcomes(&front, &caller.tenant, &asked).await?;
        let templates = &front.context.templates;
        templates.off_runtime(move || answer::bytes(&asked, outcomes, is_first_generation)).await?
    });
    Ok(answer::response(bytes.await?))
}

async fn outcomes(front: &TwinkleFront, tenant: &TenantId, asked: &Asked) -> Result<Vec<SampleOutcome>> {
    let context = front.model()?.max_context;
    let mut drawing = Vec::with_capacity(asked.prompts.len());
    for (number, prompt) in asked.prompts.iter().enumerate() {
        let drawn = draw(front, tenant, asked.request(prompt, context), number > 0);
        drawing.push(async move { drawn.await.map_err(|error| of_input(number, asked, error)) }.boxed());
    }
    stream::iter(drawing).buffered(AT_ONCE).try_collect().await
}

/// Continues one prompt. The sampler counts prompts where the client sees one request, so only the first may be turned
/// away for a quota or a full queue: the others come as fast as they may.
async fn draw(front: &TwinkleFront, tenant: &TenantId, request: SampleRequest, waits: bool) -> Result<SampleOutcome> {
    loop {
        let call = Call { tenant: tenant.clone(), operation: Operation::Sample(Box::new(request.clone())) };
        match front.component.ask(call).await {
            Ok(Reply::Sample(outcome)) => return Ok(outcome),
            Ok(_) => return Err(Error::internal("the sampler answered something that was not asked")),
            Err(error) if waits && is_about_pace(&error) => {
                tokio::time::sleep(error.retry_after_ms.map_or(PACE, Duration::from_millis)).await;
            }
            Err(error) => return Err(error),
        }
    }
}

fn is_about_pace(error: &Error) -> bool {
    matches!(error.code, ErrorCode::QuotaExceeded | ErrorCode::Overloaded)
}

fn of_input(number: usize, asked: &Asked, mut error: Error) -> Error {
    if asked.prompts.len() > 1 && error.code.is_users_fault() {
        error.message = format!("input {number}: {}", error.message);
    }
    error
}
