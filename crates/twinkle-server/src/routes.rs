//! Which front answers which path.

use axum::Router;
use axum::extract::State;
use axum::response::IntoResponse;
use axum::routing::get;
use http::{Method, Uri};
use twinkle_core::component::{BoxComponent, ComponentKind};
use twinkle_core::config::ServerConfig;
use twinkle_core::error::Error;

use crate::error_response::ErrorResponse;
use crate::front::FrontContext;
use crate::native::{self, ApplicationInformation, NodeHealth};
use crate::node::tell_route;
use crate::route_table::{Route, router_of};
use crate::tinker;

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
    for application in health.applications() {
        let prefix = application.information.route_prefix.as_str();
        let below = match application.information.import_path {
            ComponentKind::Server => tinker::router(front.clone()),
            ComponentKind::Processor => native::processor_router(application.component.clone()),
            // Training and sampling are reached through the fronts of the `server` application.
            ComponentKind::Model | ComponentKind::Sampler => Router::new(),
        };
        router = mount(router.route(prefix, information(application)), prefix, below);
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
    for application in &config.applications {
        let (prefix, name) = (application.route_prefix.as_str(), application.name.as_str());
        entries.push(RouteEntry { method: "GET", path: prefix.to_owned(), application: name.to_owned() });
        let prefix = prefix.trim_end_matches('/');
        match application.args.kind() {
            ComponentKind::Server => entries.extend(self::entries(prefix, name, &tinker::routes())),
            ComponentKind::Processor => entries.extend(self::entries(prefix, name, &native::processor_routes())),
            ComponentKind::Model | ComponentKind::Sampler => {}
        }
    }
    entries
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
