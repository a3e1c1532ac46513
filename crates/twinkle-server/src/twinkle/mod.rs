//! The native protocol front: what the Python package `twinkle-kit` speaks, JSON over plain requests.
//!
//! Like `tinker`, it turns requests into calls and replies into bytes. Every kind of application has routes of its own,
//! mounted at the application's `route_prefix`:
//!
//! | folder | below the prefix of | routes |
//! | --- | --- | --- |
//! | `gateway` | a `server` | sessions, training runs, checkpoints, capacity, health in depth |
//! | `model` | a `model` | adapters and what trains them |
//! | `sampler` | a `sampler` | sampling |
//! | `processor` | a `processor` | data sets, loaders, preprocessing |
//! | `hub` | | uploads of checkpoints, which `model` starts |
//!
//! Every route is there twice: below `<prefix>/twinkle`, as clients from 0.2 on ask for it, and below `<prefix>` itself,
//! as the first generation did, unless the Tinker protocol has a route of that name there. The Tinker SDK adds `/api/v1` to
//! its server's address; a `server` at any other prefix (`/server` in the documents) is one of the first generation, whose
//! `training_runs` and `weights_info` answer in the native form.
//!
//! **How requests fail.** As `{"detail": …}`; `410` means an exhausted iterator and nothing else, because the client turns
//! it into `StopIteration` wherever it comes from.

mod answer;
mod caller;
mod front;
pub(crate) mod gateway;
pub(crate) mod hub;
pub(crate) mod model;
pub(crate) mod processor;
pub(crate) mod sampler;
#[cfg(test)]
mod tests;

pub(crate) use answer::{Answer, TwinkleError, null, ok};
#[cfg(test)]
pub(crate) use caller::SESSION;
pub(crate) use caller::{Caller, Json, Tenant};
pub(crate) use front::{Shared, TwinkleFront, patiently};

use axum::Router;
use axum::extract::{DefaultBodyLimit, OriginalUri};
use axum::response::Response;
use http::{HeaderName, HeaderValue, Method};
use twinkle_core::error::Error;
use uuid::Uuid;

use crate::route_table::{Route, router_of};

/// Where the routes are below an application's prefix.
pub(crate) const BELOW: &str = "/twinkle";

/// Which replica answered; opaque to clients.
const REPLICA: HeaderName = HeaderName::from_static("x-twinkle-replica-id");

/// The routes below the prefix of a `server`.
pub(crate) fn server_routes() -> Vec<Route<TwinkleFront>> {
    gateway::routes()
}

/// The routes that a `server` at this prefix answers in the native form although the Tinker protocol has them.
pub(crate) fn first_generation(prefix: &str) -> Vec<(&'static str, &'static str)> {
    if prefix == "/" || prefix.ends_with("/api/v1") {
        return Vec::new();
    }
    gateway::directory_routes().iter().map(Route::place).collect()
}

/// The routes below the prefix of a `model`.
pub(crate) fn model_routes() -> Vec<Route<TwinkleFront>> {
    let mut routes = gateway::component_routes();
    routes.extend(model::routes());
    routes.extend(hub::routes());
    routes
}

/// The routes below the prefix of a `sampler`.
pub(crate) fn sampler_routes() -> Vec<Route<TwinkleFront>> {
    let mut routes = gateway::component_routes();
    routes.extend(sampler::routes());
    routes
}

/// The routes below the prefix of a `processor`.
pub(crate) fn processor_routes() -> Vec<Route<TwinkleFront>> {
    processor::routes()
}

/// Those of `routes` that are also directly below the prefix: all whose place is not `taken`.
pub(crate) fn direct(
    routes: Vec<Route<TwinkleFront>>,
    taken: &[(&'static str, &'static str)],
) -> Vec<Route<TwinkleFront>> {
    routes.into_iter().filter(|route| !taken.contains(&route.place())).collect()
}

/// Adds the routes to a router that answers `taken` already.
pub(crate) fn mount(
    below: Router,
    routes: fn() -> Vec<Route<TwinkleFront>>,
    taken: &[(&'static str, &'static str)],
    front: &TwinkleFront,
) -> Router {
    let limit = DefaultBodyLimit::disable;
    let direct = router_of(direct(routes(), taken)).layer(limit()).with_state(front.clone());
    let nested = router_of(routes()).fallback(missing).method_not_allowed_fallback(missing).layer(limit());
    below.merge(direct).nest(BELOW, nested.with_state(front.clone()))
}

/// The name of what answers, opaque to clients: another one with each start.
#[derive(Clone, Debug)]
pub(crate) struct Replica(HeaderValue);

impl Replica {
    /// A name that nothing else has.
    pub(crate) fn fresh() -> Self {
        let name = HeaderValue::try_from(format!("replica-{}", Uuid::new_v4().simple()));
        Self(name.unwrap_or(HeaderValue::from_static("replica")))
    }

    /// The same answers, with this name.
    pub(crate) fn sign(self, router: Router) -> Router {
        router.layer(axum::middleware::map_response(move |mut response: Response| {
            response.headers_mut().insert(REPLICA, self.0.clone());
            std::future::ready(response)
        }))
    }
}

/// Answers what is not served: the client's user should read which route it was.
async fn missing(method: Method, OriginalUri(uri): OriginalUri) -> TwinkleError {
    let path = uri.path();
    Error::not_found(format!("this server has no route `{method} {path}`"))
        .hint("docs/twinkle.md lists what is served of the Twinkle protocol")
        .into()
}
