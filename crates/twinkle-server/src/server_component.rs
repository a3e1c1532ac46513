//! The `server` component: sessions, and the directories of runs, sampling sessions and checkpoints.
//!
//! Everything it answers from is in the store, so any number of front ends may ask it at once.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use futures::FutureExt;
use futures::future::BoxFuture;
use tower::Service;
use twinkle_core::call::{AdapterRecord, Call, CustomLossRecord, Operation, Reply, ServeOutcome, ServeRequest};
use twinkle_core::checkpoint::CheckpointStore;
use twinkle_core::component::{Component, ComponentKind, Health, Lifecycle, misrouted};
use twinkle_core::config::ServerArgs;
use twinkle_core::error::{Error, ErrorCode, Result};
use twinkle_core::ids::{CustomLossId, TenantId};
use twinkle_core::state::StateStore;

use crate::directory::Directory;
use crate::server::heartbeats::RecentHeartbeats;
use crate::server::{checkpoints, copies, runs, sampling_sessions, session_search, sessions};

/// What the launcher hands the component.
#[derive(Clone)]
pub struct ServerContext {
    /// Where the records are.
    pub store: StateStore,
    /// Where the checkpoints' files are.
    pub checkpoints: CheckpointStore,
    /// What this node serves.
    pub directory: Directory,
}

/// A cloneable handle to the `server` component.
#[derive(Clone)]
pub struct ServerComponent {
    context: Arc<ServerContext>,
    recent: RecentHeartbeats,
    draining: Arc<AtomicBool>,
}

impl Component for ServerComponent {
    type Args = ServerArgs;
    type Context = ServerContext;

    async fn build(_: ServerArgs, context: ServerContext) -> Result<Self> {
        Ok(Self { context: Arc::new(context), recent: RecentHeartbeats::default(), draining: Arc::default() })
    }
}

impl Service<Call> for ServerComponent {
    type Response = Reply;
    type Error = Error;
    type Future = BoxFuture<'static, Result<Reply>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, call: Call) -> Self::Future {
        let Call { tenant, operation } = call;
        let Operation::Serve(request) = operation else {
            let error = misrouted(ComponentKind::Server, operation.name());
            return async move { Err(error) }.boxed();
        };
        if self.draining.load(Ordering::Relaxed) {
            return async { Err(Error::new(ErrorCode::Draining, "the server is stopping")) }.boxed();
        }
        let context = Arc::clone(&self.context);
        let recent = self.recent.clone();
        async move { serve(&context, &recent, tenant, request).await.map(Reply::Serve) }.boxed()
    }
}

impl Lifecycle for ServerComponent {
    fn kind(&self) -> ComponentKind {
        ComponentKind::Server
    }

    fn health(&self) -> Health {
        if self.draining.load(Ordering::Relaxed) { Health::Draining } else { Health::Ready }
    }

    fn drain(&self, _: Duration) -> BoxFuture<'static, ()> {
        // Every answered request is already durable: there is nothing to finish.
        self.draining.store(true, Ordering::Relaxed);
        futures::future::ready(()).boxed()
    }
}

/// Sends each request to the file of its resource.
async fn serve(
    context: &ServerContext,
    recent: &RecentHeartbeats,
    tenant: TenantId,
    request: ServeRequest,
) -> Result<ServeOutcome> {
    let ServerContext { store, checkpoints: files, directory } = context;
    match request {
        ServeRequest::CreateSession { id, tags, user_metadata, sdk_version, project_id, display_name } => {
            let opening = sessions::Opening { id, tags, user_metadata, sdk_version, project_id, display_name };
            sessions::create(store, tenant, opening).await
        }
        ServeRequest::Heartbeat(session) => recent.heartbeat(store, tenant, session).await,
        ServeRequest::FinishSession { session, end } => recent.finish(store, tenant, session, end).await,
        ServeRequest::DescribeSession(session) => sessions::describe(store, &tenant, &session).await,
        ServeRequest::ReadSession(session) => sessions::read(store, &tenant, &session).await,
        ServeRequest::ListSessions { limit, offset } => sessions::list(store, &tenant, limit, offset).await,
        ServeRequest::SearchSessions(search) => session_search::search(store, &tenant, *search).await,
        ServeRequest::AssignProject { session, project_id } => {
            sessions::assign_project(store, &tenant, &session, &project_id).await
        }
        ServeRequest::CreateSamplingSession { session, number, base_model, source } => {
            let wanted = sampling_sessions::Wanted { session, number, base_model, source };
            sampling_sessions::create(store, directory, tenant, wanted).await
        }
        ServeRequest::DescribeSamplingSession(session) => {
            store.sampling_session(&tenant, &session).await.map(ServeOutcome::SamplingSession)
        }
        ServeRequest::JoinSamplingSession(session) => {
            store.join_sampling_session(&tenant, &session).await.map(ServeOutcome::JoinedSamplingSession)
        }
        ServeRequest::CreateCustomLoss { session, number, graph } => {
            let id = CustomLossId::of_session(&session, number);
            let record = CustomLossRecord { id, tenant, session, graph };
            store.create_custom_loss(&record).await?;
            Ok(ServeOutcome::CustomLoss(record))
        }
        ServeRequest::KeepAdapter(record) => {
            store.keep_adapter(&AdapterRecord { tenant, ..*record }).await.map(|()| ServeOutcome::Done)
        }
        ServeRequest::DescribeAdapter { session, name } => {
            let found = store.adapter(&tenant, &session, &name).await?;
            Ok(ServeOutcome::Adapter(found.map(Box::new)))
        }
        ServeRequest::DescribeCustomLoss(id) => store.custom_loss(&tenant, &id).await.map(ServeOutcome::CustomLoss),
        ServeRequest::DescribeRun(run) => store.run(&tenant, &run).await.map(ServeOutcome::Run),
        ServeRequest::ListRuns { project_id, limit, offset } => {
            runs::list(store, &tenant, project_id.as_deref(), limit, offset).await
        }
        ServeRequest::ListCheckpoints { run, limit, offset } => {
            checkpoints::list(store, &tenant, run.as_ref(), limit, offset).await
        }
        ServeRequest::LatestCheckpoints(run) => checkpoints::latest(store, &tenant, &run).await,
        ServeRequest::DescribeCheckpoint(path) => {
            store.readable_checkpoint(&tenant, &path).await.map(ServeOutcome::Checkpoint)
        }
        ServeRequest::KeepCheckpoint { path, ttl_seconds } => {
            checkpoints::keep(store, &tenant, &path, ttl_seconds).await
        }
        ServeRequest::PublishCheckpoint { path, public } => {
            store.publish_checkpoint(&tenant, &path, public).await?;
            Ok(ServeOutcome::Done)
        }
        ServeRequest::CopyCheckpoint(wanted) => copies::copy(store, files, &tenant, *wanted).await,
        ServeRequest::DeleteCheckpoint(path) => checkpoints::delete(store, files, tenant, path).await,
    }
}
