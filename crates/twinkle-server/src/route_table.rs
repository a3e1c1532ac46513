//! Routes as data: the router is built from them, `twinkle-server routes` lists them and `GET /openapi.json` describes them,
//! so neither the list nor the description can be wrong.

use axum::Router;
use axum::handler::Handler;
use axum::routing::{MethodFilter, MethodRouter, on};
use http::StatusCode;
use schemars::JsonSchema;

use crate::openapi::{Arguments, Body, Content, Header, Operation, SchemaOf};

/// One method of one path, what answers it, and what it says about itself.
pub(crate) struct Route<S> {
    /// The method's name.
    pub(crate) method: &'static str,
    /// The path below where it is mounted, in axum's pattern language.
    pub(crate) path: &'static str,
    /// What it takes and answers.
    pub(crate) operation: Operation,
    handler: MethodRouter<S>,
}

impl<S> Route<S> {
    /// Its method and its path.
    pub(crate) const fn place(&self) -> (&'static str, &'static str) {
        (self.method, self.path)
    }

    /// What it is for, in a sentence.
    pub(crate) fn about(mut self, text: &'static str) -> Self {
        self.operation.about = text;
        self
    }

    /// The body is JSON of this form; of a handler whose arguments do not say so.
    pub(crate) fn takes<T: JsonSchema>(mut self) -> Self {
        self.operation.body = Body::Json { schema: SchemaOf::of::<T>(), or_protobuf: false };
        self
    }

    /// The body is JSON of this form, or a protobuf message of the same request.
    pub(crate) fn takes_or_protobuf<T: JsonSchema>(mut self) -> Self {
        self.operation.body = Body::Json { schema: SchemaOf::of::<T>(), or_protobuf: true };
        self
    }

    /// A header matters.
    pub(crate) fn reads(mut self, name: &'static str, meaning: &'static str) -> Self {
        self.operation.headers.push(Header { name, meaning });
        self
    }

    /// The body is not looked into.
    pub(crate) fn ignores_body(mut self) -> Self {
        self.operation.body = Body::Ignored;
        self
    }

    /// 200 with JSON of this form; called again, it may be of another form too.
    pub(crate) fn answers<T: JsonSchema>(self) -> Self {
        self.also(StatusCode::OK, "done", Content::Json(SchemaOf::of::<T>()))
    }

    /// 200 with a JSON object of these fields.
    pub(crate) fn tells(self, fields: &'static [&'static str]) -> Self {
        self.also(StatusCode::OK, "done", Content::Fields(fields))
    }

    /// 204 with nothing.
    pub(crate) fn answers_nothing(self) -> Self {
        self.also(StatusCode::NO_CONTENT, "done", Content::Nothing)
    }

    /// Another answer that is not an error.
    pub(crate) fn also(mut self, status: StatusCode, meaning: &'static str, content: Content) -> Self {
        self.operation.answer(status, meaning, content);
        self
    }

    /// Every request is refused: the route is there to say why.
    pub(crate) fn refuses(mut self) -> Self {
        self.operation.refuses = true;
        self
    }
}

impl<S: Clone + Send + Sync + 'static> Route<S> {
    /// A `GET` route (and `HEAD`, which axum answers by it).
    pub(crate) fn get<T: Arguments + 'static>(path: &'static str, handler: impl Handler<T, S>) -> Self {
        Self::new("GET", MethodFilter::GET, path, handler)
    }

    /// A `POST` route.
    pub(crate) fn post<T: Arguments + 'static>(path: &'static str, handler: impl Handler<T, S>) -> Self {
        Self::new("POST", MethodFilter::POST, path, handler)
    }

    /// A `PUT` route.
    pub(crate) fn put<T: Arguments + 'static>(path: &'static str, handler: impl Handler<T, S>) -> Self {
        Self::new("PUT", MethodFilter::PUT, path, handler)
    }

    /// A `DELETE` route.
    pub(crate) fn delete<T: Arguments + 'static>(path: &'static str, handler: impl Handler<T, S>) -> Self {
        Self::new("DELETE", MethodFilter::DELETE, path, handler)
    }

    fn new<T: Arguments + 'static>(
        method: &'static str,
        filter: MethodFilter,
        path: &'static str,
        handler: impl Handler<T, S>,
    ) -> Self {
        let mut operation = Operation::default();
        T::note(&mut operation);
        Self { method, path, operation, handler: on(filter, handler) }
    }
}

/// A router that answers these; several methods of one path are one entry each.
pub(crate) fn router_of<S: Clone + Send + Sync + 'static>(routes: impl IntoIterator<Item = Route<S>>) -> Router<S> {
    routes.into_iter().fold(Router::new(), |router, route| router.route(route.path, route.handler))
}
