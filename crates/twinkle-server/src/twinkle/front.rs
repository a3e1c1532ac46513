//! What a handler of the native protocol works with.

use std::sync::Arc;
use std::time::Duration;

use twinkle_core::call::{Call, Operation, Reply, ServeOutcome, ServeRequest};
use twinkle_core::call::{CheckpointRecord, RunRecord};
use twinkle_core::component::BoxComponent;
use twinkle_core::error::{Error, ErrorCode, Result};
use twinkle_core::ids::{CheckpointPath, RunId, SessionId, TenantId};
use twinkle_hub::{AdapterLibrary, Environment, Patience, Uploader};

use super::{hub, model};
use crate::directory::ServedModel;
use crate::front::FrontContext;
use crate::tinker::unexpected;

/// How long a request is kept waiting: the client gives up after 600 s, and would not hear how it went.
const PATIENCE: Duration = Duration::from_secs(580);

/// What an application's routes work with; a cheap handle.
#[derive(Clone)]
pub(crate) struct TwinkleFront {
    /// The node.
    pub(crate) context: FrontContext,
    /// The application's own component, inside its stack.
    pub(crate) component: BoxComponent,
    /// What all native routes of the node share.
    pub(crate) shared: Arc<Shared>,
    /// The base model of a `model` or `sampler` application.
    model: Option<Arc<ServedModel>>,
}

/// What the native routes of a node share, by the folder that owns it.
pub(crate) struct Shared {
    /// Of `model`.
    pub(crate) model: model::State,
    /// Of `hub`: checkpoints on their way to one.
    pub(crate) uploads: hub::Uploads,
    /// Of `hub`: adapters that come from one.
    pub(crate) adapters: hub::Adapters,
}

impl Shared {
    /// What the node of this context shares, with the hubs as this environment describes them.
    pub(crate) fn new(context: &FrontContext, environment: &Environment, patience: Patience) -> Self {
        let uploader = Uploader::new(environment, context.settings.hub_uploads.as_deref(), patience);
        // A client waits for an adapter, and gives up after ten minutes.
        let brief = Patience {
            attempts: patience.attempts.min(3),
            longest_wait: patience.longest_wait.min(Duration::from_secs(30)),
            ..patience
        };
        Self {
            model: model::State::default(),
            uploads: hub::Uploads::new(uploader, context.store.clone()),
            adapters: hub::Adapters::new(AdapterLibrary::new(environment, brief)),
        }
    }
}

impl TwinkleFront {
    /// The front of an application whose base model, if it has one, goes by this name.
    pub(crate) fn new(
        context: &FrontContext,
        component: BoxComponent,
        base_model: Option<&str>,
        shared: Arc<Shared>,
    ) -> Self {
        let model = base_model.and_then(|name| context.directory.model(name).ok()).cloned().map(Arc::new);
        Self { context: context.clone(), component, shared, model }
    }

    /// The base model of this application.
    pub(crate) fn model(&self) -> Result<&ServedModel> {
        self.model.as_deref().ok_or_else(|| {
            Error::unsupported("the model of this address is not offered to clients")
                .hint("the `server` application lists other models under `supported_models`")
        })
    }

    /// Asks the `server` component.
    pub(crate) async fn serve(&self, tenant: &TenantId, request: ServeRequest) -> Result<ServeOutcome> {
        let call = Call { tenant: tenant.clone(), operation: Operation::Serve(request) };
        match self.context.server.ask(call).await? {
            Reply::Serve(outcome) => Ok(outcome),
            other => Err(unexpected("the server component", &other)),
        }
    }

    /// The tenant's run, closed or not.
    pub(crate) async fn run(&self, tenant: &TenantId, run: RunId) -> Result<RunRecord> {
        match self.serve(tenant, ServeRequest::DescribeRun(run)).await? {
            ServeOutcome::Run(record) => Ok(record),
            other => Err(unexpected("the server component", &other)),
        }
    }

    /// A checkpoint of the tenant, or a public one.
    pub(crate) async fn checkpoint(&self, tenant: &TenantId, path: CheckpointPath) -> Result<CheckpointRecord> {
        match self.serve(tenant, ServeRequest::DescribeCheckpoint(path)).await? {
            ServeOutcome::Checkpoint(record) => Ok(record),
            other => Err(unexpected("the server component", &other)),
        }
    }

    /// Keeps alive the session of a client that opens none, and opens it at its first request.
    pub(super) async fn keep_implicit(&self, tenant: &TenantId, session: &SessionId) -> Result<()> {
        match self.serve(tenant, ServeRequest::Heartbeat(session.clone())).await {
            Err(error) if error.code == ErrorCode::NotFound => {}
            kept => return kept.map(drop),
        }
        let opening = ServeRequest::CreateSession {
            id: Some(session.clone()),
            tags: Vec::new(),
            user_metadata: [("opened_by".to_owned(), "request id".to_owned())].into(),
            sdk_version: None,
            project_id: None,
            display_name: None,
        };
        self.serve(tenant, opening).await.map(drop)
    }
}

/// Waits for `work` as long as the client does. What was accepted goes on when the waiting ends.
pub(crate) async fn patiently<T>(what: &str, work: impl Future<Output = Result<T>>) -> Result<T> {
    let Ok(done) = tokio::time::timeout(PATIENCE, work).await else {
        let waited = format!("`{what}` is not done after {} seconds", PATIENCE.as_secs());
        return Err(Error::new(ErrorCode::TimedOut, waited)
            .hint("what was accepted goes on; look at the adapter before sending it again"));
    };
    done
}
