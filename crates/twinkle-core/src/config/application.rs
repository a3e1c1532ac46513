//! `applications`: what a deployment serves, and where it is mounted.

use serde::Serialize;

use super::deployment::{CARDS_PER_MACHINE, Deployment, PROCESSORS_PER_TENANT, own_variable};
use super::device::Devices;
use super::model::ModelArgs;
use super::processor::ProcessorArgs;
use super::queue::QueueConfig;
use super::sampler::SamplerArgs;
use super::section::{Located, Section};
use super::server::ServerArgs;
use super::tree::Node;
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

    /// The devices it runs on; `None` of one that needs none.
    #[must_use]
    pub const fn devices(&self) -> Option<&Devices> {
        match self {
            Self::Model(args) => Some(&args.devices),
            Self::Sampler(args) => Some(&args.devices),
            Self::Server(_) | Self::Processor(_) => None,
        }
    }
}

/// What the readers of `args` need to know of what stands around them.
pub(super) struct Surroundings<'a> {
    /// The application's name, for messages.
    pub(super) name: &'a str,
    /// Where it is mounted.
    pub(super) route_prefix: &'a str,
    /// The limits of an application that sets none.
    pub(super) task_queue: &'a QueueConfig,
    /// How many cards one machine has, when the file counts cards over all machines.
    pub(super) cards_per_machine: Option<u32>,
    /// Most processors of one tenant, when only the environment says so.
    pub(super) processors_per_tenant: Option<u32>,
}

/// Reads the list and checks that names and prefixes are unique.
pub(super) fn read_all(
    root: &mut Section<'_>,
    task_queue: &QueueConfig,
    environment: &dyn Fn(&str) -> Option<String>,
) -> Vec<Located<Application>> {
    let mut applications: Vec<Located<Application>> = Vec::new();
    let mut names: Vec<String> = Vec::new();
    let mut prefixes: Vec<String> = Vec::new();
    for (index, node) in root.list("applications").iter().enumerate() {
        let Some(mut section) = root.item("applications", index, node) else { continue };
        let place = section.place();
        let name = section.either("name", "app", Section::filled_text);
        if name.is_none() && !section.has("name") && !section.has("app") {
            section.missing("name");
        }
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
        let variable = |name: &str| {
            let own = own_variable(node, name).map(Node::whole_number);
            own.unwrap_or_else(|| environment(name)?.trim().parse().ok())
        };
        let surroundings = Surroundings {
            name: &label,
            route_prefix: route_prefix.as_ref().map_or("/", |prefix| prefix.value.as_str()),
            task_queue,
            cards_per_machine: variable(CARDS_PER_MACHINE).and_then(|count| u32::try_from(count).ok()),
            processors_per_tenant: variable(PROCESSORS_PER_TENANT).and_then(|most| u32::try_from(most).ok()),
        };
        let args = read_args(&mut section, &surroundings);
        let deployment = Deployment::read(&mut section);
        section.finish();
        if let (Some(name), Some(route_prefix), Some(args)) = (name, route_prefix, args) {
            let application = Application { name: name.value, route_prefix: route_prefix.value, args, deployment };
            applications.push(Located { value: application, place });
        }
    }
    applications
}

fn read_route_prefix(section: &mut Section<'_>) -> Option<Located<String>> {
    if !section.has("route_prefix") {
        return Some(Located { value: "/".to_owned(), place: section.place() });
    }
    let prefix = section.text("route_prefix")?;
    let text = prefix.value.as_str();
    let wrong = if !text.starts_with('/') {
        Some("must start with `/`")
    } else if text.len() > 1 && text.ends_with('/') {
        Some("must not end with `/`")
    } else if text.contains("//") || text.contains(|letter: char| "?#{}*%\\".contains(letter) || letter <= ' ') {
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

fn read_args(section: &mut Section<'_>, surroundings: &Surroundings<'_>) -> Option<ApplicationArgs> {
    let kind = read_import_path(section);
    let has_args = section.has("args");
    let args = section.section("args");
    let kind = kind?;
    let Some(args) = args else {
        if !has_args && kind == ComponentKind::Server {
            return Some(ApplicationArgs::Server(ServerArgs::default()));
        }
        if !has_args {
            section.missing("args");
        }
        return None;
    };
    Some(match kind {
        ComponentKind::Server => ApplicationArgs::Server(ServerArgs::read(args)),
        ComponentKind::Model => ApplicationArgs::Model(Box::new(ModelArgs::read(args, surroundings)?)),
        ComponentKind::Sampler => ApplicationArgs::Sampler(Box::new(SamplerArgs::read(args, surroundings)?)),
        ComponentKind::Processor => ApplicationArgs::Processor(ProcessorArgs::read(args, surroundings)),
    })
}

/// `server`, `model`, …, or the builder's name that earlier generations wrote, with or without a module before it.
fn read_import_path(section: &mut Section<'_>) -> Option<ComponentKind> {
    let path = section.either("import_path", "server", Section::filled_text);
    let Some(path) = path else {
        if !section.has("import_path") && !section.has("server") {
            section.missing("import_path");
        }
        return None;
    };
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
