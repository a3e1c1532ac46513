//! Which front answers which path.

use std::collections::BTreeMap;
use std::sync::Arc;

use axum::Router;
use axum::extract::State;
use axum::response::IntoResponse;
use axum::routing::get;
use http::{Method, Uri};
use twinkle_core::component::{BoxComponent, ComponentKind};
use twinkle_core::config::{Application, ServerConfig};
use twinkle_core::error::Error;

use crate::error_response::ErrorResponse;
use crate::front::FrontContext;
use crate::native::{self, ApplicationInformation, NodeHealth};
use crate::node::tell_route;
use crate::openai::{self, OpenAiFront};
use crate::route_table::{Route, router_of};
use crate::tinker;
use crate::twinkle::{self, TwinkleFront};

/// An application as the router mounts it.
#[derive(Clone, Debug)]
pub(crate) struct Mounted {
    /// What it tells about itself.
    pub(crate) information: ApplicationInformation,
    /// The component inside its stack.
    pub(crate) component: BoxComponent,
}

/// One line of what a node answers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct RouteEntry {
    /// The method's name.
    pub(crate) method: &'static str,
    /// The whole path; `{name}` is one segment, `{*name}` all that follow.
    pub(crate) path: String,
    /// The application that answers; empty for the node itself.
    pub(crate) application: String,
}

/// One router for the whole node: every application at its `route_prefix`, and the probes.
pub(crate) fn router(health: &NodeHealth, front: &FrontContext) -> Router {
    let mut router = router_of(node_routes()).with_state(health.clone());
    let (shared, openai_front) = (Arc::default(), OpenAiFront::new(front));
    for application in health.applications() {
        let prefix = application.information.route_prefix.as_str();
        let base_model = application.information.base_model.as_deref();
        let native = TwinkleFront::new(front, application.component.clone(), base_model, Arc::clone(&shared));
        let below = match application.information.import_path {
            ComponentKind::Server => {
                let given = twinkle::first_generation(prefix);
                let taken: Vec<_> =
                    places(&tinker::routes()).into_iter().filter(|place| !given.contains(place)).collect();
                let tinker_router = tinker::router(front.clone(), &given).merge(openai::router(&openai_front));
                twinkle::mount(tinker_router, twinkle::server_routes, &taken, &native)
            }
            ComponentKind::Processor => {
                let taken = places(&native::processor_routes());
                let text_router = native::processor_router(application.component.clone());
                twinkle::mount(text_router, twinkle::processor_routes, &taken, &native)
            }
            ComponentKind::Model => component(twinkle::model_routes, &native),
            ComponentKind::Sampler => component(twinkle::sampler_routes, &native),
        };
        router = mount(router.route(prefix, information(application)), prefix, below);
    }
    let mut prefixes = health.applications().iter().map(|application| application.information.route_prefix.as_str());
    if !prefixes.any(|prefix| prefix == openai::ROOT) {
        router = router.merge(openai::root_router(&openai_front));
    }
    router
        .fallback(unknown_path)
        .method_not_allowed_fallback(wrong_method)
        // Here, because only the router knows the route.
        .layer(axum::middleware::from_fn(tell_route))
}

/// What a node of this configuration answers: the node's own routes, then each application's in the order of the file.
pub(crate) fn table(config: &ServerConfig) -> Vec<RouteEntry> {
    let mut entries = entries("", "", &node_routes());
    if !config.applications.iter().any(|application| application.route_prefix == openai::ROOT) {
        entries.extend(self::entries("", "", &openai::root_routes()));
    }
    for application in &config.applications {
        let (prefix, name) = (application.route_prefix.as_str(), application.name.as_str());
        entries.push(RouteEntry { method: "GET", path: prefix.to_owned(), application: name.to_owned() });
        let prefix = prefix.trim_end_matches('/');
        let (below, taken) = match application.args.kind() {
            ComponentKind::Server => {
                let given = twinkle::first_generation(&application.route_prefix);
                let mut routes = tinker::routes();
                routes.retain(|route| !given.contains(&route.place()));
                entries.extend(self::entries(prefix, name, &routes));
                entries.extend(self::entries(prefix, name, &openai::routes()));
                (twinkle::server_routes(), places(&routes))
            }
            ComponentKind::Processor => {
                let routes = native::processor_routes();
                entries.extend(self::entries(prefix, name, &routes));
                (twinkle::processor_routes(), places(&routes))
            }
            ComponentKind::Model => (twinkle::model_routes(), Vec::new()),
            ComponentKind::Sampler => (twinkle::sampler_routes(), Vec::new()),
        };
        entries.extend(self::entries(&format!("{prefix}{}", twinkle::BELOW), name, &below));
        entries.extend(self::entries(prefix, name, &twinkle::direct(below, &taken)));
    }
    entries
}

/// Refuses a configuration in which two applications would answer the same request.
pub(crate) fn check(config: &ServerConfig) -> Result<(), Error> {
    for application in &config.applications {
        let prefix = application.route_prefix.as_str();
        let below =
            |other: &&Application| prefix == format!("{}{}", other.route_prefix.trim_end_matches('/'), twinkle::BELOW);
        if let Some(other) = config.applications.iter().find(below) {
            return Err(two_answers(&other.name, &application.name, prefix));
        }
    }
    let mut seen: BTreeMap<(&str, String), String> = BTreeMap::new();
    for RouteEntry { method, path, application } in table(config) {
        // Names of segments do not tell requests apart.
        let pattern: Vec<&str> = path.split('/').map(|part| if part.starts_with('{') { "{}" } else { part }).collect();
        if let Some(other) = seen.insert((method, pattern.join("/")), application.clone()) {
            return Err(two_answers(&other, &application, &path));
        }
    }
    Ok(())
}

fn two_answers(one: &str, other: &str, path: &str) -> Error {
    Error::invalid(format!("the applications `{one}` and `{other}` would both answer `{path}`"))
        .hint("give one of them another `route_prefix`")
}

/// What the node answers beside its applications.
fn node_routes() -> Vec<Route<NodeHealth>> {
    vec![
        Route::get("/livez", native::liveness),
        Route::get("/readyz", native::readiness),
        Route::get("/metrics", crate::telemetry::metrics),
        Route::get("/health/{application}", native::health),
    ]
}

fn entries<S>(prefix: &str, application: &str, routes: &[Route<S>]) -> Vec<RouteEntry> {
    let entry = |route: &Route<S>| RouteEntry {
        method: route.method,
        path: format!("{prefix}{}", route.path),
        application: application.to_owned(),
    };
    routes.iter().map(entry).collect()
}

/// Methods and paths that are answered already.
fn places<S>(routes: &[Route<S>]) -> Vec<(&'static str, &'static str)> {
    routes.iter().map(Route::place).collect()
}

/// The native routes of a `model` or a `sampler`, which say which replica they are.
fn component(routes: fn() -> Vec<Route<TwinkleFront>>, front: &TwinkleFront) -> Router {
    twinkle::named_replica(twinkle::mount(Router::new(), routes, &[], front))
}

/// axum nests below a prefix, but not below `/`.
fn mount(router: Router, prefix: &str, below: Router) -> Router {
    if prefix == "/" { router.merge(below) } else { router.merge(Router::new().nest(prefix, below)) }
}

fn information(application: &Mounted) -> axum::routing::MethodRouter {
    let application = application.clone();
    get(async |State(application): State<Mounted>| native::information(&application)).with_state(application)
}

async fn unknown_path(method: Method, uri: Uri) -> impl IntoResponse {
    ErrorResponse(Error::not_found(format!("there is no route `{method} {}`", uri.path())))
}

async fn wrong_method(method: Method, uri: Uri) -> impl IntoResponse {
    let error = Error::invalid(format!("the route `{}` does not take `{method}`", uri.path()));
    (http::StatusCode::METHOD_NOT_ALLOWED, ErrorResponse(error))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(applications: &str) -> ServerConfig {
        ServerConfig::parse_with("node.yaml", &format!("applications: [{applications}]"), &|_| None).unwrap()
    }

    fn paths(applications: &str, ending: &str) -> Vec<String> {
        let entries = table(&config(applications)).into_iter();
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

    #[test]
    fn no_configuration_makes_the_router_panic() {
        let two = |one: &str, other: &str| {
            config(&format!(
                "{{name: a, route_prefix: {one}, import_path: server}}, \
                 {{name: b, route_prefix: {other}, import_path: processor, args: {{ncpu_proc_per_node: 1}}}}"
            ))
        };
        assert_eq!(check(&two("/api/v1", "/api/v1/processor")), Ok(()));
        assert_eq!(check(&two("/server", "/processors")), Ok(()));
        for (one, other) in [("/api/v1", "/api/v1/twinkle"), ("/api/v1", "/api/v1/status"), ("/", "/livez")] {
            let refusal = check(&two(one, other)).unwrap_err();
            assert!(refusal.message.contains("would both answer"), "{one} {other}: {refusal}");
        }
    }
}
