//! What a route says about itself beside its handler.

#[cfg(test)]
use std::borrow::Cow;

use http::StatusCode;
use schemars::{JsonSchema, Schema, SchemaGenerator};

/// How a type is written in JSON.
#[derive(Clone, Copy, Debug)]
pub(crate) struct SchemaOf {
    /// The type's name among all schemas, for the page.
    #[cfg(test)]
    pub(crate) name: fn() -> Cow<'static, str>,
    /// A reference to its schema, which is kept with those of the types that it refers to.
    pub(crate) reference: fn(&mut SchemaGenerator) -> Schema,
    /// The schema itself.
    pub(crate) whole: fn(&mut SchemaGenerator) -> Schema,
}

impl SchemaOf {
    /// How `T` is written.
    pub(crate) fn of<T: JsonSchema>() -> Self {
        Self {
            #[cfg(test)]
            name: T::schema_name,
            reference: SchemaGenerator::subschema_for::<T>,
            whole: T::json_schema,
        }
    }
}

/// The body of a request.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) enum Body {
    /// None is read.
    #[default]
    None,
    /// One is read, and the handler's arguments do not say of what form.
    Unnamed,
    /// Any bytes, which are not looked into.
    Ignored,
    /// JSON.
    Json {
        /// Of this form.
        schema: SchemaOf,
        /// Whether the same request may be a protobuf message.
        or_protobuf: bool,
    },
}

/// What an answer holds.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Content {
    /// Nothing.
    Nothing,
    /// JSON of a type.
    Json(SchemaOf),
    /// A JSON object with these fields.
    Fields(&'static [&'static str]),
    /// Something else, by its media type.
    Media(&'static str),
}

/// A way a request may be answered, other than by an error.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Answer {
    pub(crate) status: StatusCode,
    pub(crate) meaning: &'static str,
    pub(crate) content: Content,
}

/// A header that a request may have.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Header {
    pub(crate) name: &'static str,
    pub(crate) meaning: &'static str,
}

/// What a route takes, what it answers and what for.
#[derive(Clone, Debug, Default)]
pub(crate) struct Operation {
    /// What it is for, in a sentence.
    pub(crate) about: &'static str,
    /// The body of the request.
    pub(crate) body: Body,
    /// The fields of the query.
    pub(crate) query: Option<SchemaOf>,
    /// Headers that matter.
    pub(crate) headers: Vec<Header>,
    /// Every answer that is not an error.
    pub(crate) answers: Vec<Answer>,
    /// Whether every request is refused: the route is there to say why.
    pub(crate) refuses: bool,
}

impl Operation {
    /// Adds an answer.
    pub(crate) fn answer(&mut self, status: StatusCode, meaning: &'static str, content: Content) {
        self.answers.push(Answer { status, meaning, content });
    }

    /// What it does not say and should.
    #[cfg(test)]
    pub(crate) fn is_silent_about(&self) -> Option<&'static str> {
        if self.about.is_empty() {
            return Some("what it is for");
        }
        if matches!(self.body, Body::Unnamed) {
            return Some("the form of its body");
        }
        (self.answers.is_empty() != self.refuses).then_some("how it answers")
    }
}
