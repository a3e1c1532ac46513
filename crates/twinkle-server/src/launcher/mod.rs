//! From a configuration to a node that answers: folders, store, base models, components, stacks, one router.
//!
//! Nothing listens before everything is there: a wrong configuration, a missing folder or a port in use is one clear
//! error, and a client that connects early is refused rather than kept waiting.

mod address;
mod applications;
mod base_models;
mod descriptors;
mod error;
mod folders;
mod housekeeping;
mod running;

use std::path::Path;
use std::time::Duration;

use tokio::runtime;
use tokio::signal::unix::{SignalKind, signal};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tracing::{error, info, warn};
use twinkle_core::config::{ApplicationArgs, ServerConfig};
use twinkle_core::error::{Error, Result};
use twinkle_core::middleware::journal::Journal;
use twinkle_core::state::Retention;

pub use error::LaunchError;
pub use running::RunningServer;

use crate::keys;
use crate::node::listener::{self, ConnectionLimits};
use crate::node::{Tls, node_stack};
use crate::routes;
use address::ReservedAddress;
use applications::{Applications, NodeState};
use folders::Folders;

/// Threads for calls that block on files; more wait, so that a burst cannot start hundreds.
const BLOCKING_THREADS: usize = 32;

/// What the command line adds to a configuration.
#[derive(Clone, Copy, Debug, Default)]
pub struct LaunchOptions {
    /// Listen beyond this machine although any API key is accepted.
    pub insecure: bool,
}

/// A node that has not started: a checked configuration.
#[derive(Clone, Debug)]
pub struct TwinkleServer {
    config: ServerConfig,
    options: LaunchOptions,
}

impl TwinkleServer {
    /// Reads and checks a configuration file; the error lists every problem with its line and column.
    pub fn from_config(path: impl AsRef<Path>) -> Result<Self, LaunchError> {
        let config = ServerConfig::load(path.as_ref())?;
        config.check_supported()?;
        Ok(Self::new(config))
    }

    /// A node of an already checked configuration.
    #[must_use]
    pub fn new(config: ServerConfig) -> Self {
        Self { config, options: LaunchOptions::default() }
    }

    /// The same node with these options.
    #[must_use]
    pub fn with_options(mut self, options: LaunchOptions) -> Self {
        self.options = options;
        self
    }

    /// Runs the node on a runtime of its own until SIGINT or SIGTERM, then stops it; blocks.
    pub fn run(self) -> Result<(), LaunchError> {
        let runtime = runtime::Builder::new_multi_thread()
            .enable_all()
            .thread_name("twinkle-server")
            .max_blocking_threads(BLOCKING_THREADS)
            .build()
            .map_err(|error| Error::internal(format!("the async runtime could not be started: {error}")))?;
        let outcome = runtime.block_on(async {
            let server = self.start().await?;
            wait_for_signal().await?;
            // A second signal means: now.
            tokio::select! {
                () = server.shutdown() => Ok(()),
                impatient = wait_for_signal() => {
                    impatient?;
                    warn!("stopped by a second signal: accepted operations continue after the next start");
                    Ok(())
                }
            }
        });
        // A blocking call that hangs must not keep the process.
        runtime.shutdown_timeout(Duration::from_secs(1));
        outcome
    }

    /// Starts the node on the current runtime; returns when it answers requests.
    pub async fn start(self) -> Result<RunningServer, LaunchError> {
        let Self { config, options } = self;
        let began = Instant::now();
        descriptors::raise_limit();
        for key in config.inert_keys() {
            info!("no effect here: {key}");
        }
        if config.applications.is_empty() {
            let error = Error::invalid("no applications configured");
            return Err(error.hint("list at least one `server` application under `applications`").into());
        }
        // The address first: a port in use should not be found out after minutes of loading.
        let needs_keys = config.auth.is_required();
        let address = ReservedAddress::take(&config.http, options.insecure || needs_keys).await?;
        let tls = config.http.tls.as_ref().map(Tls::load).transpose()?;
        if tls.is_none() && !address.is_loopback() {
            warn!("without `http_options.tls` API keys and data cross the network as plain text");
        }
        if options.insecure && !needs_keys {
            warn!("--insecure: any API key is accepted from every machine that reaches this one");
        }
        let folders = Folders::open(&config.persistence)?;
        let stop = CancellationToken::new();
        let state = NodeState::open(&folders, stop.clone()).await?;
        let (authentication, key_watch) = keys::authentication(&config, &state.store).await?;
        let applications = Applications::build(&config, &state).await?;
        let router = routes::router(&applications.mounted(), &applications.front);

        let listener = address.listen()?;
        let address = listener
            .local_addr()
            .map_err(|error| Error::internal(format!("the listening address cannot be read: {error}")))?;
        let service = node_stack(authentication, router);
        let limits = ConnectionLimits::default();
        let scheme = if tls.is_some() { "https" } else { "http" };
        let served = listener::serve(listener, tls.clone(), service, limits, stop.clone(), running::REQUEST_GRACE);
        let listener = tokio::spawn(served);
        info!("ready in {:.2} s, listening on {scheme}://{address}", began.elapsed().as_secs_f64());
        let mut housekeeping = housekeeping::start(&state.store, &state.checkpoints, retention(&config));
        if let Some(key_watch) = key_watch {
            housekeeping.spawn(key_watch);
        }
        if let Some(tls) = tls {
            housekeeping.spawn(tls.follow_files());
        }
        for draining in &applications.draining {
            if let Some(journal) = draining.journal.clone() {
                tokio::spawn(recover(draining.mounted.information.name.clone(), journal));
            }
        }
        Ok(RunningServer {
            address,
            stop,
            listener,
            applications: applications.draining,
            futures: state.futures,
            store: state.store,
            housekeeping,
            _folders: folders,
        })
    }
}

/// How long records are kept: sessions as long as the first `server` application says.
fn retention(config: &ServerConfig) -> Retention {
    let timeout = config.applications.iter().find_map(|application| match &application.args {
        ApplicationArgs::Server(args) => Duration::try_from_secs_f64(args.expiration_timeout).ok(),
        _ => None,
    });
    let standard = Retention::default();
    Retention { idle_sessions: timeout.unwrap_or(standard.idle_sessions), ..standard }
}

/// Takes up the runs that the last stop left with unfinished operations; requests are welcome meanwhile.
async fn recover(application: String, journal: Journal) {
    match journal.recover().await {
        Ok(0) => {}
        Ok(runs) => info!(application, runs, "runs with unfinished operations were taken up again"),
        Err(error) => {
            error!(application, %error, "unfinished runs could not be taken up; each is tried again when used");
        }
    }
}

/// Returns at the first SIGINT or SIGTERM from now on.
async fn wait_for_signal() -> Result<()> {
    let cannot = |error| Error::internal(format!("signals cannot be received: {error}"));
    let mut interrupt = signal(SignalKind::interrupt()).map_err(cannot)?;
    let mut terminate = signal(SignalKind::terminate()).map_err(cannot)?;
    tokio::select! {
        _ = interrupt.recv() => info!("received SIGINT"),
        _ = terminate.recv() => info!("received SIGTERM"),
    }
    Ok(())
}
