//! What a handler's arguments take out of a request.

use axum::Extension;
use axum::extract::{OriginalUri, Path, Query, State};
use http::HeaderMap;
use schemars::JsonSchema;

use super::{Operation, SchemaOf};

/// An argument of a handler.
pub(crate) trait Extracted {
    /// Notes what it takes.
    fn note(_operation: &mut Operation) {}
}

/// All arguments of a handler, as axum's `Handler` names them.
pub(crate) trait Arguments {
    /// Notes what they take.
    fn note(operation: &mut Operation);
}

// The state, the names in the path, which the path itself tells, and what every request has.
impl<S> Extracted for State<S> {}
impl<T> Extracted for Path<T> {}
impl<T> Extracted for Extension<T> {}
impl Extracted for OriginalUri {}
impl Extracted for HeaderMap {}

impl<T: JsonSchema> Extracted for Query<T> {
    fn note(operation: &mut Operation) {
        operation.query = Some(SchemaOf::of::<T>());
    }
}

/// An argument whose refusal the handler words itself.
impl<T: Extracted, E> Extracted for Result<T, E> {
    fn note(operation: &mut Operation) {
        T::note(operation);
    }
}

/// A handler without arguments.
impl Arguments for ((),) {
    fn note(_: &mut Operation) {}
}

/// axum puts a marker before the arguments.
macro_rules! arguments {
    ($($name:ident)+) => {
        impl<Marker, $($name: Extracted),+> Arguments for (Marker, $($name,)+) {
            fn note(operation: &mut Operation) {
                $($name::note(operation);)+
            }
        }
    };
}

arguments!(A);
arguments!(A B);
arguments!(A B C);
arguments!(A B C D);
arguments!(A B C D E);
