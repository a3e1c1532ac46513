//! What a node answers, as a list: for `twinkle-server routes`, for `GET /openapi.json` and for the documentation.

use twinkle_core::component::ComponentKind;
use twinkle_core::config::{Application, ServerConfig};

use crate::openapi::Operation;
use crate::route_table::Route;
use crate::routes::{self, Mounted};
use crate::{native, openai, tinker, twinkle};

/// Whose protocol a route belongs to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Front {
    /// The node's own.
    Node,
    /// `OpenAI`'s.
    OpenAi,
    /// Tinker's.
    Tinker,
    /// Twinkle's, of a `server`.
    Gateway,
    /// Twinkle's, of a `model`.
    Model,
    /// Twinkle's, of a `sampler`.
    Sampler,
    /// Twinkle's and our own, of a `processor`.
    Processor,
}

/// One line of what a node answers.
#[derive(Clone, Debug)]
pub(crate) struct RouteEntry {
    /// The method's name.
    pub(crate) method: &'static str,
    /// The whole path; `{name}` is one segment, `{*name}` all that follow.
    pub(crate) path: String,
    /// The application that answers; empty for the node itself.
    pub(crate) application: String,
    /// Whose protocol it belongs to.
    pub(crate) front: Front,
    /// What it takes and answers.
    pub(crate) operation: Operation,
    /// The path of the same route elsewhere, of one that is there for older clients.
    pub(crate) repeats: Option<String>,
}

/// Where an application is, and what it is.
#[derive(Clone, Copy, Debug)]
struct Place<'a> {
    name: &'a str,
    prefix: &'a str,
    kind: ComponentKind,
}

/// What a node of this configuration answers: the node's own routes, then each application's in the order of the file.
pub(crate) fn of_config(config: &ServerConfig) -> Vec<RouteEntry> {
    of_places(config.applications.iter().map(|application: &Application| Place {
        name: &application.name,
        prefix: &application.route_prefix,
        kind: application.args.kind(),
    }))
}

/// What a node with these applications answers.
pub(crate) fn of_mounted(applications: &[Mounted]) -> Vec<RouteEntry> {
    of_places(applications.iter().map(|Mounted { information, .. }| Place {
        name: &information.name,
        prefix: &information.route_prefix,
        kind: information.import_path,
    }))
}

fn of_places<'a>(places: impl Iterator<Item = Place<'a>> + Clone) -> Vec<RouteEntry> {
    let mut list = entries(Front::Node, "", "", &routes::node_routes());
    if !places.clone().any(|place| place.prefix == openai::ROOT) {
        list.extend(entries(Front::OpenAi, "", "", &openai::root_routes()));
    }
    for place in places {
        list.extend(entries(Front::Node, place.prefix, place.name, &routes::application_routes()));
        list.extend(below(place));
    }
    list
}

/// What an application answers below its prefix.
fn below(Place { name, prefix: mounted_at, kind }: Place<'_>) -> Vec<RouteEntry> {
    let prefix = mounted_at.trim_end_matches('/');
    let mut list = Vec::new();
    let (front, native, taken) = match kind {
        ComponentKind::Server => {
            let given = twinkle::first_generation(mounted_at);
            let mut routes = tinker::routes();
            routes.retain(|route| !given.contains(&route.place()));
            list.extend(entries(Front::Tinker, prefix, name, &routes));
            list.extend(entries(Front::OpenAi, prefix, name, &openai::routes()));
            (Front::Gateway, twinkle::server_routes(), routes::places(&routes))
        }
        ComponentKind::Processor => {
            let routes = native::processor_routes();
            list.extend(entries(Front::Processor, prefix, name, &routes));
            (Front::Processor, twinkle::processor_routes(), routes::places(&routes))
        }
        ComponentKind::Model => (Front::Model, twinkle::model_routes(), Vec::new()),
        ComponentKind::Sampler => (Front::Sampler, twinkle::sampler_routes(), Vec::new()),
    };
    let nested = format!("{prefix}{}", twinkle::BELOW);
    list.extend(entries(front, &nested, name, &native));
    for route in twinkle::direct(native, &taken) {
        let repeats = Some(format!("{nested}{}", route.path));
        list.push(RouteEntry { repeats, ..entry(front, prefix, name, &route) });
    }
    list
}

fn entries<S>(front: Front, prefix: &str, application: &str, routes: &[Route<S>]) -> Vec<RouteEntry> {
    routes.iter().map(|route| entry(front, prefix, application, route)).collect()
}

fn entry<S>(front: Front, prefix: &str, application: &str, route: &Route<S>) -> RouteEntry {
    RouteEntry {
        method: route.method,
        path: format!("{prefix}{}", route.path),
        application: application.to_owned(),
        front,
        operation: route.operation.clone(),
        repeats: None,
    }
}

impl Front {
    /// Every one, in the order of the documentation.
    pub(crate) const ALL: [Self; 7] =
        [Self::Node, Self::OpenAi, Self::Tinker, Self::Gateway, Self::Model, Self::Sampler, Self::Processor];

    /// What it is called.
    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::Node => "Node",
            Self::OpenAi => "OpenAI",
            Self::Tinker => "Tinker",
            Self::Gateway => "Twinkle: server",
            Self::Model => "Twinkle: model",
            Self::Sampler => "Twinkle: sampler",
            Self::Processor => "Twinkle: processor",
        }
    }

    /// Which routes these are.
    pub(crate) const fn meaning(self) -> &'static str {
        match self {
            Self::Node => "Probes, metrics, and what each application is: for operators.",
            Self::OpenAi => "Models, chats and completions, at the node's root and below the prefix of a `server`.",
            Self::Tinker => "What the Tinker SDK asks for, below the prefix of a `server`.",
            Self::Gateway => {
                "Sessions, runs and checkpoints of Twinkle's protocol, below the prefix of a `server`. Like all native routes \
                 they are below `<prefix>/twinkle`, and once more below `<prefix>` itself, for the first generation of \
                 clients, where no other route has that name."
            }
            Self::Model => "Adapters and what trains them, below the prefix of a `model`.",
            Self::Sampler => "Sampling, below the prefix of a `sampler`.",
            Self::Processor => "Data sets, loaders, preprocessing and texts, below the prefix of a `processor`.",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn paths(applications: &str, ending: &str) -> Vec<String> {
        let text = format!("applications: [{applications}]");
        let config = ServerConfig::parse_with("node.yaml", &text, &|_| None).unwrap();
        let entries = of_config(&config).into_iter();
        entries.filter(|entry| entry.path.ends_with(ending)).map(|entry| entry.path).collect()
    }

    #[test]
    fn native_routes_are_there_twice_unless_the_other_protocol_has_them() {
        let server = "{name: s, route_prefix: /api/v1, import_path: server}";
        assert_eq!(paths(server, "/capacity_info"), ["/api/v1/twinkle/capacity_info", "/api/v1/capacity_info"]);
        assert_eq!(paths(server, "/create_session"), ["/api/v1/create_session", "/api/v1/twinkle/create_session"]);
    }

    #[test]
    fn a_server_of_the_first_generation_lists_runs_in_the_native_form() {
        let server = "{name: s, route_prefix: /server, import_path: server}";
        assert_eq!(paths(server, "/training_runs"), ["/server/twinkle/training_runs", "/server/training_runs"]);
        let places = twinkle::first_generation("/server");
        assert!(places.contains(&("POST", "/weights_info")) && !places.contains(&("POST", "/create_session")));
        assert_eq!(twinkle::first_generation("/proxy/api/v1"), []);
    }
}
