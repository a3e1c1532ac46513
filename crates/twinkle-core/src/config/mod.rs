//! The YAML of a deployment and its typed normal form.
//!
//! Read in this order: `tree` is the file with the place of every value, `interpolate` resolves `${…}` in it,
//! `section` and `scalars` read typed values out of it and collect every problem, the files named after a section of
//! the YAML build the normal form, and `check` holds the rules that span sections. `short_form` writes the short form
//! out as the applications it stands for. [`diagnostic`] is how a problem is told, and `grammar` describes every key
//! for the JSON Schema ([`schema`]) and the reference ([`reference`]).
//!
//! Every generation of the grammar (meshes, sizes, unified, typed, short) ends in the same [`ServerConfig`]. A key no
//! generation knows is an error; a key that is understood and cannot be honoured yet is an error of
//! [`ServerConfig::check_supported`]; a key that has no effect in one process is listed by
//! [`ServerConfig::inert_keys`]. Nothing else exists: no key is dropped in silence.

mod application;
mod auth;
mod check;
mod choices;
mod deployment;
mod device;
pub mod diagnostic;
mod grammar;
mod http;
mod interpolate;
mod limits;
mod mesh;
mod model;
mod model_source;
mod persistence;
mod precision;
mod processor;
mod queue;
mod sampler;
mod scalars;
mod section;
mod server;
mod short_form;
mod telemetry;
mod tree;

use std::path::Path;

use serde::Serialize;

pub use application::{Application, ApplicationArgs};
pub use auth::AuthConfig;
pub use deployment::{Autoscaling, Deployment};
pub use device::{Device, DeviceGroup, DeviceType, Devices, Ranks};
pub use diagnostic::{ConfigErrors, Problem};
pub use grammar::{reference, schema};
pub use http::{HttpOptions, TlsConfig};
pub use mesh::DeviceMesh;
pub use model::{AdapterConfig, Backend, ModelArgs, TrainMode};
pub use model_source::{Hub, HubModel, ModelLocation, ModelSource};
pub use persistence::Persistence;
pub use precision::Precision;
pub use processor::ProcessorArgs;
pub use queue::QueueConfig;
pub use sampler::{EngineArgs, LogprobsMode, SamplerArgs, SamplerType};
pub use server::ServerArgs;
pub use telemetry::TelemetryConfig;

use choices::choices;
use diagnostic::{Findings, Report};
use section::Section;
use short_form::ShortForm;
use tree::Node;

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
    findings: Findings,
}

/// The protocol a whole server spoke in the first generations.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum ServerType {
    Twinkle,
    Tinker,
}
choices!(ServerType { Twinkle = "twinkle", Tinker = "tinker" });

/// Where a cluster listens.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum ProxyLocation {
    EveryNode,
    HeadOnly,
    Disabled,
}
choices!(ProxyLocation { EveryNode = "EveryNode", HeadOnly = "HeadOnly", Disabled = "Disabled" });

impl ServerConfig {
    /// Reads and checks a file; the error lists every problem with its line and column.
    ///
    /// Touches nothing but the file: looking for a model's files is `twinkle-hub`'s job.
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
        let config = Self::read(file, &root, environment, &report);
        let findings = report.into_findings();
        match config {
            Some(config) if findings.problems.is_empty() => Ok(Self { findings, ..config }),
            _ => Err(ConfigErrors::new(file, findings.problems)),
        }
    }

    fn read(file: &str, tree: &Node, environment: &dyn Fn(&str) -> Option<String>, report: &Report) -> Option<Self> {
        let mut root = Section::root(tree, report)?;
        let _ = (root.choice::<ServerType>("server_type"), root.choice::<ProxyLocation>("proxy_location"));
        root.inert("server_type", "both protocols are always served");
        root.inert("proxy_location", "there is one listener");
        let _ = root.filled_text("ray_namespace");
        root.inert("ray_namespace", "everything runs in one process");
        let mut http = HttpOptions::read(root.section("http_options"));
        let is_short = ShortForm::is_used(&mut root);
        let short = if is_short { ShortForm::read(&mut root, &mut http) } else { None };
        let auth = AuthConfig::read(root.section("auth"));
        let telemetry = TelemetryConfig::read(root.section_or_alias("telemetry", "telemetry_config"));
        let persistence = root.section_or_alias("persistence", "persistence_config");
        let persistence = Persistence::read(persistence, environment, report);
        let task_queue = QueueConfig::read(root.section("task_queue"), &QueueConfig::default());
        let expanded = short.as_ref().map(ShortForm::expanded);
        let applications = match expanded.as_ref().and_then(|node| Section::root(node, report)) {
            Some(mut expanded) => application::read_all(&mut expanded, &task_queue, environment),
            None => application::read_all(&mut root, &task_queue, environment),
        };
        check::all(&applications, root.place(), report);
        root.finish();
        Some(Self {
            http,
            auth,
            persistence,
            telemetry,
            task_queue,
            applications: applications.into_iter().map(|located| located.value).collect(),
            file: file.to_owned(),
            findings: Findings::default(),
        })
    }

    /// Refuses what the file asks for and this build cannot do yet, all of it at once.
    pub fn check_supported(&self) -> Result<(), ConfigErrors> {
        if self.findings.unavailable.is_empty() {
            return Ok(());
        }
        Err(ConfigErrors::new(&self.file, self.findings.unavailable.clone()))
    }

    /// The keys of the file that are understood and have no effect here, as `path: reason`, to be logged once.
    #[must_use]
    pub fn inert_keys(&self) -> Vec<String> {
        self.findings.inert.iter().map(ToString::to_string).collect()
    }

    /// What the file allows and probably does not mean, as `file:line:column: what`, to be logged once.
    #[must_use]
    pub fn warnings(&self) -> Vec<String> {
        self.findings.warnings.iter().map(|warning| warning.told(&self.file)).collect()
    }
}

#[cfg(test)]
mod tests;
