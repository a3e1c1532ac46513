//! Builds every application's component and puts it in its stack.

use std::time::Duration;

use tokio_util::sync::CancellationToken;
use tracing::{info, warn};
use twinkle_core::checkpoint::CheckpointStore;
use twinkle_core::component::{BoxComponent, Component};
use twinkle_core::config::{Application, ApplicationArgs, ServerArgs, ServerConfig};
use twinkle_core::error::{Error, Result};
use twinkle_core::futures::Futures;
use twinkle_core::middleware::concurrency::ConcurrencyLimits;
use twinkle_core::state::StateStore;

use super::folders::Folders;
use super::running::Draining;
use crate::directory::{Directory, ServedModel};
use crate::front::FrontContext;
use crate::native::ApplicationInformation;
use crate::routes::Mounted;
use crate::server_component::{ServerComponent, ServerContext};
use crate::stack::{component_stack, quota_limits};

/// What all components of a node share.
#[derive(Clone)]
pub(super) struct NodeState {
    pub(super) store: StateStore,
    pub(super) futures: Futures,
    pub(super) checkpoints: CheckpointStore,
    pub(super) stopping: CancellationToken,
}

impl NodeState {
    /// Opens the store and the checkpoints of these folders.
    pub(super) async fn open(folders: &Folders, stopping: CancellationToken) -> Result<Self> {
        let store = match &folders.database {
            Some(path) => StateStore::open(path).await?,
            None => StateStore::open_in_memory().await?,
        };
        let checkpoints = CheckpointStore::new(folders.checkpoints.clone());
        let futures = Futures::new(store.clone());
        Ok(Self { store, futures, checkpoints, stopping })
    }
}

/// The node's applications, built and in their stacks.
pub(super) struct Applications {
    /// What the protocol fronts work with.
    pub(super) front: FrontContext,
    /// Every application, in the order of the file.
    pub(super) draining: Vec<Draining>,
}

impl Applications {
    /// Builds all of them; the first that cannot be built ends the launch.
    pub(super) async fn build(config: &ServerConfig, state: &NodeState) -> Result<Self> {
        let mut draining = Vec::new();
        let mut models: Vec<ServedModel> = Vec::new();
        for application in &config.applications {
            match &application.args {
                ApplicationArgs::Server(_) => {}
                ApplicationArgs::Model(_) | ApplicationArgs::Sampler(_) | ApplicationArgs::Processor(_) => {
                    return Err(Error::unsupported("only `server` applications"));
                }
            }
        }
        let directory = Directory::new(models);
        let mut front = None;
        for application in &config.applications {
            if let ApplicationArgs::Server(args) = &application.args {
                let server = build_server(application, args, &directory, state).await?;
                front.get_or_insert_with(|| FrontContext {
                    server: server.clone(),
                    directory: directory.clone(),
                    futures: state.futures.clone(),
                    stopping: state.stopping.clone(),
                });
                draining.push(drained(application, server, None));
            }
        }
        let front = front.ok_or_else(|| Error::invalid("no `server` application is configured"))?;
        Ok(Self { front, draining })
    }

    /// As the router mounts them.
    pub(super) fn mounted(&self) -> Vec<Mounted> {
        self.draining.iter().map(|draining| draining.mounted.clone()).collect()
    }
}

async fn build_server(
    application: &Application,
    args: &ServerArgs,
    directory: &Directory,
    state: &NodeState,
) -> Result<BoxComponent> {
    let context = ServerContext {
        store: state.store.clone(),
        checkpoints: state.checkpoints.clone(),
        directory: directory.clone(),
    };
    let component = ServerComponent::build(args.clone(), context).await?;
    Ok(stacked(application, component.boxed()))
}

/// The component inside the stack its application asks for.
fn stacked(application: &Application, component: BoxComponent) -> BoxComponent {
    let deployment = &application.deployment;
    let concurrency = ConcurrencyLimits {
        ongoing: deployment.max_ongoing_requests as usize,
        queued: deployment.max_queued_requests as usize,
    };
    component_stack(component, quota_limits(&application.args.queue()), concurrency)
}

fn drained(application: &Application, component: BoxComponent, base_model: Option<String>) -> Draining {
    let information = ApplicationInformation {
        name: application.name.clone(),
        import_path: application.args.kind(),
        route_prefix: application.route_prefix.clone(),
        base_model,
    };
    let limit = Duration::try_from_secs_f64(application.deployment.graceful_shutdown_timeout_s);
    Draining { mounted: Mounted { information, component }, limit: limit.unwrap_or(Duration::from_secs(20)) }
}
