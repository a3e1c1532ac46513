//! From a configuration to a node that answers: folders, store, base models, components, stacks, one router.
//!
//! Nothing listens before everything is there: a wrong configuration, a missing folder or a port in use is one clear
//! error, and a client that connects early is refused rather than kept waiting.

mod address;
mod applications;
mod base_models;
mod clear;
mod data_sets;
mod descriptors;
mod error;
mod folders;
mod housekeeping;
mod memory;
mod model_folders;
pub(crate) mod plan;
mod run;
mod running;
mod signals;

use std::path::{Path, PathBuf};
use std::time::Duration;

use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tracing::{error, info, warn};
use twinkle_core::config::{ApplicationArgs, ServerConfig};
use twinkle_core::error::{Error, Result};
use twinkle_core::middleware::journal::Journal;

pub(crate) use clear::{clear_persistence, open_records};
pub use error::LaunchError;
pub use run::launch_server;
pub use running::RunningServer;

use crate::keys;
use crate::native::NodeHealth;
use crate::node::listener::{self, ConnectionLimits};
use crate::node::{Tls, node_stack};
use crate::routes;
use crate::telemetry::{self, Counted, Settings, Telemetry};
use address::ReservedAddress;
use applications::{Applications, NodeState};
use folders::Folders;

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
    /// The file it was read from.
    path: Option<PathBuf>,
    options: LaunchOptions,
}

impl TwinkleServer {
    /// Reads and checks a configuration file; the error lists every problem with its line and column.
    pub fn from_config(path: impl AsRef<Path>) -> Result<Self, LaunchError> {
        let config = ServerConfig::load(path.as_ref())?;
        config.check_supported()?;
        Ok(Self { path: Some(path.as_ref().to_path_buf()), ..Self::new(config) })
    }

    /// A node of an already checked configuration.
    #[must_use]
    pub fn new(config: ServerConfig) -> Self {
        Self { config, path: None, options: LaunchOptions::default() }
    }

    /// The same node with these options.
    #[must_use]
    pub fn with_options(mut self, options: LaunchOptions) -> Self {
        self.options = options;
        self
    }

    /// The most time the node takes to stop once it is told to: what its slowest application is given by
    /// `graceful_shutdown_timeout_s`, and half a minute for snapshots and last answers.
    #[must_use]
    pub fn stops_within(&self) -> Duration {
        let limits = self.config.applications.iter().map(|application| running::drain_limit(&application.deployment));
        limits.max().unwrap_or_default() + running::STOP_GRACE
    }

    /// Starts the node on the current runtime; returns when it answers requests.
    pub async fn start(self) -> Result<RunningServer, LaunchError> {
        let stops_within = self.stops_within();
        let Self { config, options, path: _ } = self;
        let began = Instant::now();
        descriptors::raise_limit();
        for warning in config.warnings() {
            warn!("{warning}");
        }
        for key in config.inert_keys() {
            info!("no effect here: {key}");
        }
        if config.applications.is_empty() {
            let error = Error::invalid("no applications configured");
            return Err(error.hint("list at least one `server` application under `applications`").into());
        }
        routes::check(&config)?;
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
        let telemetry = Telemetry::start(&Settings::new(&config.telemetry)?)?;
        let folders = Folders::open(&config.persistence)?;
        let stop = CancellationToken::new();
        let state = NodeState::open(&folders, tls.is_some(), stop.clone()).await?;
        let (authentication, key_watch) = keys::authentication(&config, &state.store).await?;
        let applications = Applications::build(&config, &state).await?;
        let health = NodeHealth::new(applications.mounted());
        let router = routes::router(&health, &applications.front);

        let listener = address.listen()?;
        let address = listener
            .local_addr()
            .map_err(|error| Error::internal(format!("the listening address cannot be read: {error}")))?;
        let service = node_stack(authentication, applications.mounts(), router);
        let limits = ConnectionLimits::default();
        let scheme = if tls.is_some() { "https" } else { "http" };
        let served = listener::serve(listener, tls.clone(), service, limits, stop.clone(), running::REQUEST_GRACE);
        let listener = tokio::spawn(served);
        info!("ready in {:.2} s, listening on {scheme}://{address}", began.elapsed().as_secs_f64());
        let mut housekeeping = housekeeping::start(&state, &config, applications.trained);
        if let Some(key_watch) = key_watch {
            housekeeping.spawn(key_watch);
        }
        if let Some(tls) = tls {
            housekeeping.spawn(tls.follow_files());
        }
        let counted = Counted { store: state.store.clone(), futures: state.futures.clone() };
        housekeeping.spawn(telemetry::count_periodically(counted, gauge_interval(&config)));
        housekeeping.spawn(telemetry::watch_machine(gauge_interval(&config)));
        for draining in &applications.draining {
            if let Some(journal) = draining.journal.clone() {
                tokio::spawn(recover(draining.mounted.information.name.clone(), journal));
            }
        }
        Ok(RunningServer {
            address,
            stop,
            health,
            stops_within,
            telemetry,
            listener,
            applications: applications.draining,
            futures: state.futures,
            store: state.store,
            housekeeping,
            _folders: folders,
        })
    }
}

/// How often gauges are brought up to date: as the first `server` application says.
fn gauge_interval(config: &ServerConfig) -> Duration {
    let interval = config.applications.iter().find_map(|application| match &application.args {
        ApplicationArgs::Server(args) => Duration::try_from_secs_f64(args.metrics_update_interval).ok(),
        _ => None,
    });
    interval.unwrap_or(Duration::from_secs(15))
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
