//! Which front answers which path.

use axum::Router;
use axum::extract::State;
use axum::response::IntoResponse;
use axum::routing::get;
use http::{Method, Uri};
use twinkle_core::component::{BoxComponent, ComponentKind};
use twinkle_core::error::Error;

use crate::error_response::ErrorResponse;
use crate::front::FrontContext;
use crate::native::{self, ApplicationInformation};
use crate::tinker;

/// An application as the router mounts it.
#[derive(Clone, Debug)]
pub(crate) struct Mounted {
    /// What it tells about itself.
    pub(crate) information: ApplicationInformation,
    /// The component inside its stack.
    pub(crate) component: BoxComponent,
}

/// One router for the whole node: every application at its `route_prefix`, and the probes.
pub(crate) fn router(applications: &[Mounted], front: &FrontContext) -> Router {
    let mut router = Router::new().route("/livez", get(native::liveness)).route("/readyz", readiness(applications));
    for application in applications {
        let prefix = application.information.route_prefix.as_str();
        let below = match application.information.import_path {
            ComponentKind::Server => tinker::router(front.clone()),
            ComponentKind::Processor => native::processor_routes(application.component.clone()),
            // Training and sampling are reached through the fronts of the `server` application.
            ComponentKind::Model | ComponentKind::Sampler => Router::new(),
        };
        router = mount(router.route(prefix, information(application)), prefix, below);
    }
    router.fallback(unknown_path).method_not_allowed_fallback(wrong_method)
}

/// axum nests below a prefix, but not below `/`.
fn mount(router: Router, prefix: &str, below: Router) -> Router {
    if prefix == "/" { router.merge(below) } else { router.merge(Router::new().nest(prefix, below)) }
}

fn readiness(applications: &[Mounted]) -> axum::routing::MethodRouter {
    let applications = applications.to_vec();
    get(async |State(applications): State<Vec<Mounted>>| native::readiness(&applications)).with_state(applications)
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
