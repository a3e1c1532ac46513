//! Which front answers which path.

use std::collections::BTreeMap;
use std::sync::Arc;

use axum::Router;
use axum::response::IntoResponse;
use axum::routing::get;
use http::{Method, StatusCode, Uri};
use twinkle_core::component::{BoxComponent, ComponentKind};
use twinkle_core::config::{Application, ServerConfig};
use twinkle_core::error::Error;
use twinkle_hub::{Environment, Patience};

use crate::error_response::ErrorResponse;
use crate::front::FrontContext;
use crate::listing::{self, RouteEntry};
use crate::native::{self, ApplicationInformation, ApplicationState, Depth, NodeHealth, Readiness};
use crate::node::tell_route;
use crate::openai::{self, OpenAiFront};
use crate::openapi::{self, Content, SchemaOf};
use crate::route_table::{Route, router_of};
use crate::tinker;
use crate::twinkle::{self, Replica, Shared, TwinkleFront};

/// An application as the router mounts it.
#[derive(Clone, Debug)]
pub(crate) struct Mounted {
    /// What it tells about itself.
    pub(crate) information: ApplicationInformation,
    /// The component inside its stack.
    pub(crate) component: BoxComponent,
}

/// One router for the whole node: every application at its `route_prefix`, and the probes.
pub(crate) fn router(health: &NodeHealth, front: &FrontContext) -> Router {
    let mut router = router_of(node_routes()).with_state(health.clone());
    let shared = Arc::new(Shared::new(front, &Environment::of_process(), Patience::default()));
    let openai_front = OpenAiFront::new(front);
    // Any sampler of the node may answer this door: it is one replica.
    let openai_replica = Replica::fresh();
    for application in health.applications() {
        let prefix = application.information.route_prefix.as_str();
        let base_model = application.information.base_model.as_deref();
        let native = TwinkleFront::new(front, application.component.clone(), base_model, Arc::clone(&shared));
        let below = match application.information.import_path {
            ComponentKind::Server => {
                let given = twinkle::first_generation(prefix);
                let taken: Vec<_> =
                    places(&tinker::routes()).into_iter().filter(|place| !given.contains(place)).collect();
                let openai_router = openai_replica.clone().sign(openai::router(&openai_front));
                let tinker_router = tinker::router(front.clone(), &given).merge(openai_router);
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
        let information = get(native::information).with_state(application.clone());
        router = mount(router.route(prefix, information), prefix, below);
    }
    let mut prefixes = health.applications().iter().map(|application| application.information.route_prefix.as_str());
    if !prefixes.any(|prefix| prefix == openai::ROOT) {
        router = router.merge(openai_replica.sign(openai::root_router(&openai_front)));
    }
    router
        .fallback(unknown_path)
        .method_not_allowed_fallback(wrong_method)
        // Here, because only the router knows the route.
        .layer(axum::middleware::from_fn(tell_route))
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
    for RouteEntry { method, path, application, .. } in listing::of_config(config) {
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
pub(crate) fn node_routes() -> Vec<Route<NodeHealth>> {
    vec![
        Route::get("/livez", native::liveness).about("Whether the process answers.").tells(&["status"]),
        Route::get("/readyz", native::readiness)
            .about("Whether every application can work and the node is not stopping.")
            .answers::<Readiness<'_>>()
            .also(StatusCode::SERVICE_UNAVAILABLE, "not ready", Content::Json(SchemaOf::of::<Readiness<'_>>())),
        Route::get("/metrics", crate::telemetry::metrics).about("Everything recorded so far, for Prometheus.").also(
            StatusCode::OK,
            "metrics",
            Content::Media("text/plain"),
        ),
        Route::get("/openapi.json", openapi::serve).about("What this node answers, as OpenAPI 3.1.").also(
            StatusCode::OK,
            "the document",
            Content::Media("application/json"),
        ),
        Route::get("/health/{application}", native::health)
            .about("One application, and what its component is doing.")
            .answers::<Depth<'_>>()
            .also(StatusCode::SERVICE_UNAVAILABLE, "it cannot work", Content::Json(SchemaOf::of::<Depth<'_>>())),
    ]
}

/// What an application answers at its prefix.
pub(crate) fn application_routes() -> Vec<Route<Mounted>> {
    vec![Route::get("", native::information).about("What this application is.").answers::<ApplicationState<'_>>()]
}

/// Methods and paths that are answered already.
pub(crate) fn places<S>(routes: &[Route<S>]) -> Vec<(&'static str, &'static str)> {
    routes.iter().map(Route::place).collect()
}

/// The native routes of a `model` or a `sampler`, which say which replica they are.
fn component(routes: fn() -> Vec<Route<TwinkleFront>>, front: &TwinkleFront) -> Router {
    Replica::fresh().sign(twinkle::mount(Router::new(), routes, &[], front))
}

/// axum nests below a prefix, but not below `/`.
fn mount(router: Router, prefix: &str, below: Router) -> Router {
    if prefix == "/" { router.merge(below) } else { router.merge(Router::new().nest(prefix, below)) }
}

async fn unknown_path(method: Method, uri: Uri) -> impl IntoResponse {
    ErrorResponse(Error::not_found(format!("there is no route `{method} {}`", uri.path())))
}

async fn wrong_method(method: Method, uri: Uri) -> impl IntoResponse {
    let error = Error::invalid(format!("the route `{}` does not take `{method}`", uri.path()));
    (StatusCode::METHOD_NOT_ALLOWED, ErrorResponse(error))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(applications: &str) -> ServerConfig {
        ServerConfig::parse_with("node.yaml", &format!("applications: [{applications}]"), &|_| None).unwrap()
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
