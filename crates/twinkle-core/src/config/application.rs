//! `applications`: what a deployment serves, and where it is mounted.

use std::collections::BTreeMap;

use serde::Serialize;

use super::model::ModelArgs;
use super::processor::ProcessorArgs;
use super::queue::QueueConfig;
use super::sampler::SamplerArgs;
use super::section::{Located, Section};
use super::server::ServerArgs;
use crate::component::ComponentKind;
use crate::error::suggestion;

/// One application: a component at a route prefix.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Application {
    /// Its name, unique in the file.
    pub name: String,
    /// Where it is mounted: starts with `/`, does not end with one, unique in the file.
    pub route_prefix: String,
    /// What it is, with its settings.
    pub args: ApplicationArgs,
    /// How it is deployed.
    pub deployment: Deployment,
}

/// The settings of an application, by its `import_path`.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum ApplicationArgs {
    /// `import_path: server`.
    Server(ServerArgs),
    /// `import_path: model`.
    Model(Box<ModelArgs>),
    /// `import_path: sampler`.
    Sampler(Box<SamplerArgs>),
    /// `import_path: processor`.
    Processor(ProcessorArgs),
}

impl ApplicationArgs {
    /// Which kind of component they build.
    #[must_use]
    pub const fn kind(&self) -> ComponentKind {
        match self {
            Self::Server(_) => ComponentKind::Server,
            Self::Model(_) => ComponentKind::Model,
            Self::Sampler(_) => ComponentKind::Sampler,
            Self::Processor(_) => ComponentKind::Processor,
        }
    }

    /// What a tenant may send; the server component itself has no such limit.
    #[must_use]
    pub fn queue(&self) -> QueueConfig {
        match self {
            Self::Server(_) => QueueConfig::off(),
            Self::Model(args) => args.queue.clone(),
            Self::Sampler(args) => args.queue.clone(),
            Self::Processor(args) => args.queue.clone(),
        }
    }
}

/// How an application is deployed (`deployments[0]`).
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Deployment {
    /// Most requests inside the component at once.
    pub max_ongoing_requests: u32,
    /// Most requests waiting to enter it; `-1` in the file is this default, because nothing grows without a bound.
    pub max_queued_requests: u32,
    /// How many replicas there may be, and when another one is due; `None` when the file does not say.
    pub autoscaling: Option<Autoscaling>,
    /// Seconds the component has to finish its work when the node stops.
    pub graceful_shutdown_timeout_s: f64,
    /// Environment variables of the component.
    pub env_vars: BTreeMap<String, String>,
}

/// `autoscaling_config` of a deployment. One replica runs, whatever the bounds are.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Autoscaling {
    /// Fewest replicas.
    pub min_replicas: u32,
    /// Most replicas.
    pub max_replicas: u32,
    /// Requests inside a replica above which it counts as busy.
    pub target_ongoing_requests: f64,
}

impl Default for Autoscaling {
    fn default() -> Self {
        Self { min_replicas: 1, max_replicas: 1, target_ongoing_requests: 2.0 }
    }
}

impl Default for Deployment {
    fn default() -> Self {
        Self {
            max_ongoing_requests: 256,
            max_queued_requests: 4096,
            autoscaling: None,
            graceful_shutdown_timeout_s: 20.0,
            env_vars: BTreeMap::new(),
        }
    }
}

/// Reads the list and checks that names and prefixes are unique.
pub(super) fn read_all(root: &mut Section<'_>, task_queue: &QueueConfig) -> Vec<Located<Application>> {
    let mut applications: Vec<Located<Application>> = Vec::new();
    let mut names: Vec<String> = Vec::new();
    let mut prefixes: Vec<String> = Vec::new();
    for (index, node) in root.list("applications").iter().enumerate() {
        let Some(mut section) = root.item("applications", index, node) else { continue };
        let place = section.place();
        let name = section.required_text("name");
        let route_prefix = read_route_prefix(&mut section);
        let report_repeated = |what: &str, seen: &mut Vec<String>, text: Option<&Located<String>>| {
            let Some(text) = text else { return };
            if seen.contains(&text.value) {
                root.report().problem(text.place, format!("{what} `{}` is used by another application", text.value));
            } else {
                seen.push(text.value.clone());
            }
        };
        report_repeated("name", &mut names, name.as_ref());
        report_repeated("route_prefix", &mut prefixes, route_prefix.as_ref());
        let label = name.as_ref().map_or_else(|| format!("applications[{index}]"), |name| name.value.clone());
        let args = read_args(&mut section, &label, route_prefix.as_ref(), task_queue);
        let deployment = read_deployment(&mut section);
        section.finish();
        if let (Some(name), Some(route_prefix), Some(args)) = (name, route_prefix, args) {
            let application = Application { name: name.value, route_prefix: route_prefix.value, args, deployment };
            applications.push(Located { value: application, place });
        }
    }
    applications
}

fn read_route_prefix(section: &mut Section<'_>) -> Option<Located<String>> {
    let Some(prefix) = section.text("route_prefix") else {
        if section.node("route_prefix").is_some() {
            return None;
        }
        return Some(Located { value: "/".to_owned(), place: section.place() });
    };
    let text = prefix.value.as_str();
    let wrong = if !text.starts_with('/') {
        Some("must start with `/`")
    } else if text.len() > 1 && text.ends_with('/') {
        Some("must not end with `/`")
    } else if text.contains("//") || text.contains(['?', '#', '{', '}', '*', ' ']) {
        Some("must be a plain path")
    } else {
        None
    };
    if let Some(wrong) = wrong {
        section.report().problem(prefix.place, format!("route_prefix `{text}` {wrong}"));
        return None;
    }
    Some(prefix)
}

fn read_args(
    section: &mut Section<'_>,
    label: &str,
    route_prefix: Option<&Located<String>>,
    task_queue: &QueueConfig,
) -> Option<ApplicationArgs> {
    let kind = read_import_path(section);
    let has_args = section.node("args").is_some();
    let args = section.section("args");
    let kind = kind?;
    let prefix = route_prefix.map_or("/", |prefix| prefix.value.as_str());
    let Some(args) = args else {
        if !has_args && kind == ComponentKind::Server {
            return Some(ApplicationArgs::Server(ServerArgs::default()));
        }
        if !has_args {
            section.report().problem(section.place(), format!("`args` is missing in `{label}`"));
        }
        return None;
    };
    let args = args.renamed(format!("args of {label}"));
    Some(match kind {
        ComponentKind::Server => ApplicationArgs::Server(ServerArgs::read(args)),
        ComponentKind::Model => ApplicationArgs::Model(Box::new(ModelArgs::read(args, prefix, task_queue)?)),
        ComponentKind::Sampler => ApplicationArgs::Sampler(Box::new(SamplerArgs::read(args, prefix, task_queue)?)),
        ComponentKind::Processor => ApplicationArgs::Processor(ProcessorArgs::read(args, task_queue)),
    })
}

/// `server`, `model`, …, or the builder's name that earlier generations wrote, with or without a module before it.
fn read_import_path(section: &mut Section<'_>) -> Option<ComponentKind> {
    let path = section.required_text("import_path")?;
    let builder = path.value.rsplit(':').next().unwrap_or(&path.value);
    match builder {
        "server" | "build_server_app" | "build_gateway_app" => Some(ComponentKind::Server),
        "model" | "build_model_app" => Some(ComponentKind::Model),
        "sampler" | "build_sampler_app" => Some(ComponentKind::Sampler),
        "processor" | "build_processor_app" => Some(ComponentKind::Processor),
        _ => {
            let hint = suggestion(&path.value, "import paths", &["server", "model", "sampler", "processor"]);
            section.report().problem_with_hint(path.place, format!("unknown import_path `{}`", path.value), hint);
            None
        }
    }
}

fn read_deployment(section: &mut Section<'_>) -> Deployment {
    let mut deployment = Deployment::default();
    let list = section.list("deployments");
    if let Some(extra) = list.get(1) {
        section.report().unavailable(extra.place, "more than one entry in `deployments`");
    }
    let Some(mut entry) = list.first().and_then(|node| section.item("deployments", 0, node)) else { return deployment };
    // Only a label.
    let _ = entry.text("name");
    if let Some(most) = entry.integer("max_ongoing_requests", 1..=1_000_000) {
        deployment.max_ongoing_requests = most.value;
    }
    if let Some(most) = entry.integer::<i64>("max_queued_requests", -1..=10_000_000) {
        deployment.max_queued_requests = u32::try_from(most.value).unwrap_or(deployment.max_queued_requests);
    }
    if let Some(seconds) = entry.number("graceful_shutdown_timeout_s", 0.0) {
        deployment.graceful_shutdown_timeout_s = seconds.value;
    }
    deployment.autoscaling = read_replicas(&mut entry);
    if let Some(actor) = entry.section("ray_actor_options") {
        deployment.env_vars = read_actor_options(actor);
    }
    for key in [
        "graceful_shutdown_wait_loop_s",
        "health_check_period_s",
        "health_check_timeout_s",
        "user_config",
        "placement_group_bundles",
        "placement_group_strategy",
        "logging_config",
    ] {
        entry.inert(key, "a setting of Ray Serve");
    }
    entry.finish();
    deployment
}

/// One replica is what we run; asking for more is refused, room for more is noted.
fn read_replicas(entry: &mut Section<'_>) -> Option<Autoscaling> {
    let node = entry.node("num_replicas");
    let is_auto =
        entry.node("num_replicas").is_some_and(|node| node.value == super::tree::Value::Text("auto".to_owned()));
    if is_auto {
        entry.inert("num_replicas", "one replica runs");
    } else if let Some(count) = entry.integer::<u32>("num_replicas", 1..).filter(|count| count.value > 1) {
        entry.report().unavailable(count.place, format!("`num_replicas: {}`", count.value));
    }
    let mut scaling = entry.section("autoscaling_config")?;
    if let Some(node) = node.filter(|_| !is_auto) {
        entry.report().problem(node.place, "`num_replicas` and `autoscaling_config` exclude each other");
    }
    let mut autoscaling = Autoscaling::default();
    let least = scaling.integer::<u32>("min_replicas", 0..);
    let most = scaling.integer::<u32>("max_replicas", 1..);
    if let Some(least) = least.as_ref().filter(|least| least.value > 1) {
        scaling.report().unavailable(least.place, format!("`min_replicas: {}`", least.value));
    }
    if let (Some(least), Some(most)) = (&least, &most)
        && least.value > most.value
    {
        let message = format!("`min_replicas` ({}) is above `max_replicas` ({})", least.value, most.value);
        scaling.report().problem(most.place, message);
    }
    if let Some(least) = least {
        autoscaling.min_replicas = least.value;
    }
    if let Some(most) = most {
        if most.value > 1 {
            scaling.inert("max_replicas", "one replica runs");
        }
        autoscaling.max_replicas = most.value;
    }
    if let Some(target) = scaling.number("target_ongoing_requests", 0.0) {
        if target.value > 0.0 {
            autoscaling.target_ongoing_requests = target.value;
        } else {
            scaling.report().problem(target.place, "`target_ongoing_requests` must be above 0");
        }
    }
    for key in [
        "initial_replicas",
        "upscale_delay_s",
        "downscale_delay_s",
        "metrics_interval_s",
        "look_back_period_s",
        "smoothing_factor",
        "upscale_smoothing_factor",
        "downscale_smoothing_factor",
    ] {
        scaling.inert(key, "one replica runs");
    }
    scaling.finish();
    Some(autoscaling)
}

fn read_actor_options(mut actor: Section<'_>) -> BTreeMap<String, String> {
    for key in ["num_cpus", "num_gpus", "memory", "resources", "accelerator_type"] {
        actor.inert(key, "a hint for Ray's placement");
    }
    let mut variables = BTreeMap::new();
    if let Some(mut runtime) = actor.section("runtime_env") {
        variables = runtime.texts("env_vars");
        if !variables.is_empty() {
            runtime.inert("env_vars", "one process has one environment: set variables for the node");
        }
        for key in ["pip", "working_dir", "py_modules", "conda"] {
            runtime.inert(key, "no Python runs here");
        }
        runtime.finish();
    }
    actor.finish();
    variables
}
