//! Routes as data: the router is built from them and `twinkle-server routes` lists them, so the list cannot be wrong.

use axum::Router;
use axum::handler::Handler;
use axum::routing::{MethodFilter, MethodRouter, on};

/// One method of one path, and what answers it.
pub(crate) struct Route<S> {
    /// The method's name.
    pub(crate) method: &'static str,
    /// The path below where it is mounted, in axum's pattern language.
    pub(crate) path: &'static str,
    handler: MethodRouter<S>,
}

impl<S> Route<S> {
    /// Its method and its path.
    pub(crate) const fn place(&self) -> (&'static str, &'static str) {
        (self.method, self.path)
    }
}

impl<S: Clone + Send + Sync + 'static> Route<S> {
    /// A `GET` route (and `HEAD`, which axum answers by it).
    pub(crate) fn get<T: 'static>(path: &'static str, handler: impl Handler<T, S>) -> Self {
        Self { method: "GET", path, handler: on(MethodFilter::GET, handler) }
    }

    /// A `POST` route.
    pub(crate) fn post<T: 'static>(path: &'static str, handler: impl Handler<T, S>) -> Self {
        Self { method: "POST", path, handler: on(MethodFilter::POST, handler) }
    }

    /// A `PUT` route.
    pub(crate) fn put<T: 'static>(path: &'static str, handler: impl Handler<T, S>) -> Self {
        Self { method: "PUT", path, handler: on(MethodFilter::PUT, handler) }
    }

    /// A `DELETE` route.
    pub(crate) fn delete<T: 'static>(path: &'static str, handler: impl Handler<T, S>) -> Self {
        Self { method: "DELETE", path, handler: on(MethodFilter::DELETE, handler) }
    }
}

/// A router that answers these; several methods of one path are one entry each.
pub(crate) fn router_of<S: Clone + Send + Sync + 'static>(routes: impl IntoIterator<Item = Route<S>>) -> Router<S> {
    routes.into_iter().fold(Router::new(), |router, route| router.route(route.path, route.handler))
}
