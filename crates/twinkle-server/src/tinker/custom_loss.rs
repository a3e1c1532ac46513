//! Losses that clients write: created once, then named by the operations of their session's runs.

use axum::extract::State;
use twinkle_core::call::{ServeOutcome, ServeRequest};
use twinkle_core::error::{Error, Result};
use twinkle_core::futures::Outcome;
use twinkle_core::ids::{CustomLossId, RunId, SessionId, TenantId};
use twinkle_core::state::no_custom_loss;
use twinkle_core::wire::tinker::json::CreateCustomLoss;
use twinkle_core::wire::tinker::training::ForwardBackwardContent;
use twinkle_model::losses::custom;

use super::body::{RawBody, off_runtime};
use super::operations::future;
use super::reply::{Answer, ok};
use super::{Front, Tenant, unexpected};

/// `POST create_custom_loss`: what is wrong with the graph fails the future.
pub(super) async fn create(State(front): State<Front>, Tenant(tenant): Tenant, body: RawBody) -> Answer {
    let wanted: CreateCustomLoss = body.json().await?;
    let session = front.open_session(&tenant, SessionId::new(wanted.session_id.clone())).await?;
    let created = front.create_custom_loss(&tenant, session, wanted, body.bytes.len()).await;
    let outcome = match created {
        Err(error) if !error.code.is_users_fault() => return Err(error.into()),
        outcome => outcome.map(Outcome::CustomLoss),
    };
    let request = front.context.futures.spawn(&tenant, "create_custom_loss", async move { outcome })?;
    ok(&future(&request, None))
}

impl Front {
    async fn create_custom_loss(
        &self,
        tenant: &TenantId,
        session: SessionId,
        wanted: CreateCustomLoss,
        size: usize,
    ) -> Result<CustomLossId> {
        let CreateCustomLoss { custom_loss_seq_id: number, name, inputs, graph, .. } = wanted;
        let checked = move || {
            let graph = graph.into_graph(name, inputs)?;
            custom::check(&graph)?;
            Ok(graph)
        };
        let graph = off_runtime(size, checked).await?.map_err(|error: Error| Error {
            message: format!("the custom loss cannot be used: {}", error.message),
            ..error
        })?;
        let request = ServeRequest::CreateCustomLoss { session, number, graph: graph.into() };
        match self.serve(tenant, request).await? {
            ServeOutcome::CustomLoss(record) => Ok(record.id),
            other => Err(unexpected("the server component", &other)),
        }
    }

    /// Puts the graph in place of its id, so that whoever executes or replays the operation needs nothing else.
    ///
    /// The inner result is about the content of the request, the outer one about the server. A loss of another session
    /// is not there.
    pub(super) async fn with_graph(
        &self,
        tenant: &TenantId,
        run: &RunId,
        loss_id: Option<String>,
        content: Result<ForwardBackwardContent>,
    ) -> Result<Result<ForwardBackwardContent>> {
        let (mut content, id) = match (content, loss_id) {
            (Ok(content), Some(id)) => (content, CustomLossId::new(id)),
            (content, _) => return Ok(content),
        };
        let session = self.run(tenant, run.clone()).await?.session;
        let record = match self.serve(tenant, ServeRequest::DescribeCustomLoss(id.clone())).await {
            Ok(ServeOutcome::CustomLoss(record)) if record.session == session => record,
            Ok(ServeOutcome::CustomLoss(_)) => return Ok(Err(no_custom_loss(&id))),
            Ok(other) => return Err(unexpected("the server component", &other)),
            Err(error) if error.code.is_users_fault() => return Ok(Err(error)),
            Err(error) => return Err(error),
        };
        content.loss.graph = Some(record.graph);
        Ok(Ok(content))
    }
}
