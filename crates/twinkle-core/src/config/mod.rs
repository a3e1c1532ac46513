//! The YAML of a deployment and its typed normal form.
//!
//! Read in this order: `tree` is the file with the place of every value, `interpolate` resolves `${…}` in it,
//! `section` reads typed values out of it and collects every problem, the files named after a section of the YAML
//! build the normal form, and `check` holds the rules that span sections. [`diagnostic`] is how a problem is told.
//!
//! The unified grammar (0.2–0.3: `use_megatron`, integer `ranks`) and the typed one (0.4–0.5: `backend`, strict keys)
//! end in the same [`ServerConfig`]. A key no generation knows is an error; a key that is understood and cannot be
//! honoured yet is an error of [`ServerConfig::check_supported`]; a key that has no effect in one process is listed
//! by [`ServerConfig::inert_keys`]. Nothing else exists: no key is dropped in silence.

mod application;
mod auth;
mod check;
mod choices;
mod device;
pub mod diagnostic;
mod http;
mod interpolate;
mod model;
mod model_source;
mod persistence;
mod processor;
mod queue;
mod sampler;
mod section;
mod server;
mod telemetry;
mod tree;

use std::path::Path;

use serde::Serialize;

pub use application::{Application, ApplicationArgs, Autoscaling, Deployment};
pub use auth::AuthConfig;
pub use device::{Device, DeviceGroup, DeviceMesh, DeviceType, Devices, Ranks};
pub use diagnostic::{ConfigErrors, Problem};
pub use http::{HttpOptions, TlsConfig};
pub use model::{AdapterConfig, Backend, ModelArgs, Precision, TrainMode};
pub use model_source::ModelSource;
pub use persistence::Persistence;
pub use processor::ProcessorArgs;
pub use queue::QueueConfig;
pub use sampler::{EngineArgs, LogprobsMode, SamplerArgs, SamplerType};
pub use server::ServerArgs;
pub use telemetry::TelemetryConfig;

use diagnostic::{InertKey, Report};
use section::Section;

/// Everything one YAML file says, checked and with every default filled in.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct ServerConfig {
    /// Where the node listens.
    pub http: HttpOptions,
    /// Whose requests it answers.
    pub auth: AuthConfig,
    /// Where its state is kept.
    pub persistence: Persistence,
    /// Metrics and traces.
    pub telemetry: TelemetryConfig,
    /// The limits of every application that sets none of its own.
    pub task_queue: QueueConfig,
    /// What it serves.
    pub applications: Vec<Application>,
    #[serde(skip)]
    file: String,
    #[serde(skip)]
    inert: Vec<InertKey>,
    #[serde(skip)]
    unavailable: Vec<Problem>,
}

impl ServerConfig {
    /// Reads and checks a file; the error lists every problem with its line and column.
    ///
    /// Touches nothing but the file: model folders are looked for by [`ModelSource::folder`].
    pub fn load(path: &Path) -> Result<Self, ConfigErrors> {
        let file = path.display().to_string();
        let text = match std::fs::read_to_string(path) {
            Ok(text) => text,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                return Err(ConfigErrors::of_file(&file, "config file not found"));
            }
            Err(error) => return Err(ConfigErrors::of_file(&file, format!("cannot be read: {error}"))),
        };
        Self::parse(&file, &text)
    }

    /// Checks the text of a file; `file` is the name used in messages.
    pub fn parse(file: &str, text: &str) -> Result<Self, ConfigErrors> {
        Self::parse_with(file, text, &|name| std::env::var(name).ok())
    }

    /// As [`ServerConfig::parse`], with `environment` in place of the process's environment.
    pub fn parse_with(
        file: &str,
        text: &str,
        environment: &dyn Fn(&str) -> Option<String>,
    ) -> Result<Self, ConfigErrors> {
        let report = Report::default();
        let mut root = tree::parse(file, text)?;
        interpolate::resolve(&mut root, environment, &report);
        let config = Section::root(&root, &report).map(|root| Self::read(file, root));
        let (problems, inert, unavailable) = report.into_parts();
        match config {
            Some(config) if problems.is_empty() => Ok(Self { inert, unavailable, ..config }),
            _ => Err(ConfigErrors::new(file, problems)),
        }
    }

    fn read(file: &str, mut root: Section<'_>) -> Self {
        root.inert("ray_namespace", "everything runs in one process");
        root.inert("server_type", "both protocols are always served");
        root.inert("proxy_location", "there is one listener");
        let http = HttpOptions::read(root.section("http_options"));
        let auth = AuthConfig::read(root.section("auth"));
        let telemetry = TelemetryConfig::read(root.section_or_alias("telemetry", "telemetry_config"));
        let persistence = Persistence::read(root.section_or_alias("persistence", "persistence_config"));
        let task_queue = QueueConfig::read(root.section("task_queue"), &QueueConfig::default());
        let applications = application::read_all(&mut root, &task_queue);
        check::model_limits(&applications, root.report());
        root.finish();
        let file = file.to_owned();
        Self {
            http,
            auth,
            persistence,
            telemetry,
            task_queue,
            applications: applications.into_iter().map(|located| located.value).collect(),
            file,
            inert: Vec::new(),
            unavailable: Vec::new(),
        }
    }

    /// Refuses what the file asks for and this build cannot do yet, all of it at once.
    pub fn check_supported(&self) -> Result<(), ConfigErrors> {
        if self.unavailable.is_empty() {
            return Ok(());
        }
        Err(ConfigErrors::new(&self.file, self.unavailable.clone()))
    }

    /// The keys of the file that are understood and have no effect here, as `path: reason`, to be logged once.
    #[must_use]
    pub fn inert_keys(&self) -> Vec<String> {
        self.inert.iter().map(ToString::to_string).collect()
    }
}

#[cfg(test)]
mod tests;
