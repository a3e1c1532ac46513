//! Traces: where a piece of work came from, and the stages it passes.
//!
//! A [`Stage`] is a span that ends when it is dropped. It begins only inside of a trace that is recorded; without one it
//! costs a look at a thread local. An [`Origin`] is carried along with work that changes its task or thread, so that
//! what happens there still belongs to the request that asked for it.

use std::sync::OnceLock;

use opentelemetry::context::FutureExt;
use opentelemetry::global::{self, BoxedSpan, BoxedTracer};
use opentelemetry::trace::{Span as _, SpanKind, Status, TraceContextExt, Tracer};
use opentelemetry::{Context, ContextGuard, KeyValue, Value};

use super::labels::Deployment;
use super::spans::{Attribute, BUSINESS_TRACER, server_tracer};

static TRACERS: OnceLock<Tracers> = OnceLock::new();

struct Tracers {
    business: BoxedTracer,
    gateway: BoxedTracer,
    model: BoxedTracer,
    sampler: BoxedTracer,
    processor: BoxedTracer,
}

/// Makes spans with the global tracer provider from now on. Only the first call counts.
pub fn install() {
    TRACERS.get_or_init(|| {
        let of = |deployment| global::tracer(server_tracer(deployment));
        Tracers {
            business: global::tracer(BUSINESS_TRACER),
            gateway: of(Deployment::Gateway),
            model: of(Deployment::Model),
            sampler: of(Deployment::Sampler),
            processor: of(Deployment::Processor),
        }
    });
}

impl Tracers {
    fn server(&self, deployment: Deployment) -> &BoxedTracer {
        match deployment {
            Deployment::Gateway => &self.gateway,
            Deployment::Model => &self.model,
            Deployment::Sampler => &self.sampler,
            Deployment::Processor => &self.processor,
        }
    }
}

/// The span that work belongs to; cheap to clone and to carry to another task or thread.
#[derive(Clone, Debug, Default)]
pub struct Origin(Context);

impl Origin {
    /// Of what runs here and now.
    #[must_use]
    pub fn current() -> Self {
        if TRACERS.get().is_none() { Self::default() } else { Self(Context::current()) }
    }

    /// Stages begun on this thread belong to it until the guard is dropped.
    #[must_use]
    pub fn enter(&self) -> ContextGuard {
        self.0.clone().attach()
    }

    /// Stages begun in `future` belong to it.
    pub fn surround<F>(self, future: F) -> opentelemetry::context::WithContext<F> {
        future.with_context(self.0)
    }

    /// Adds to its span.
    pub fn set(&self, attribute: Attribute, value: impl Into<Value>) {
        let span = self.0.span();
        if span.is_recording() {
            span.set_attribute(KeyValue::new(attribute.key(), value));
        }
    }

    /// Gives its span its final name.
    pub fn rename(&self, name: String) {
        let span = self.0.span();
        if span.is_recording() {
            span.update_name(name);
        }
    }

    /// Marks its span as failed for this reason.
    pub fn fail(&self, reason: impl Into<std::borrow::Cow<'static, str>>) {
        let span = self.0.span();
        if span.is_recording() {
            span.set_status(Status::error(reason));
        }
    }

    /// Ends its span; the last clone does so, too.
    pub fn end(&self) {
        self.0.span().end();
    }

    /// The id of the trace, in hex, if it is recorded.
    #[must_use]
    pub fn trace_id(&self) -> Option<String> {
        let span = self.0.span();
        let context = span.span_context();
        (context.is_valid() && context.is_sampled()).then(|| context.trace_id().to_string())
    }

    fn is_recorded(&self) -> bool {
        self.0.span().span_context().is_sampled()
    }
}

/// Adds to the span of what runs here and now.
pub fn set(attribute: Attribute, value: impl Into<Value>) {
    if TRACERS.get().is_none() {
        return;
    }
    Context::map_current(|context| {
        let span = context.span();
        if span.is_recording() {
            span.set_attribute(KeyValue::new(attribute.key(), value));
        }
    });
}

/// Begins the span of a request, in the trace of the client if `remote` names one. `None` when nothing is recorded.
#[must_use]
pub fn server_span(deployment: Deployment, name: &'static str, remote: impl FnOnce() -> Context) -> Option<Origin> {
    let tracer = TRACERS.get()?.server(deployment);
    let remote = remote();
    let span = tracer.span_builder(name).with_kind(SpanKind::Server).start_with_context(tracer, &remote);
    Some(Origin(remote.with_span(span)))
}

/// A span around a part of some work; it ends when it is dropped.
#[derive(Debug, Default)]
pub struct Stage(Option<BoxedSpan>);

impl Stage {
    /// Begins inside of what runs here and now; see [`super::spans`] for the names.
    pub(super) fn begin(name: &'static str) -> Self {
        Self::begin_in(&Origin::current(), name)
    }

    /// Begins inside of `origin`.
    pub(super) fn begin_in(origin: &Origin, name: &'static str) -> Self {
        let Some(tracers) = TRACERS.get().filter(|_| origin.is_recorded()) else { return Self(None) };
        Self(Some(tracers.business.span_builder(name).start_with_context(&tracers.business, &origin.0)))
    }

    /// Adds to it.
    #[must_use]
    pub fn with(mut self, attribute: Attribute, value: impl Into<Value>) -> Self {
        if let Some(span) = &mut self.0 {
            span.set_attribute(KeyValue::new(attribute.key(), value));
        }
        self
    }

    /// Adds to it if it is recorded: for values that cost something to make.
    #[must_use]
    pub fn with_text(mut self, attribute: Attribute, value: &impl std::fmt::Display) -> Self {
        if let Some(span) = &mut self.0 {
            span.set_attribute(KeyValue::new(attribute.key(), value.to_string()));
        }
        self
    }

    /// Marks it as failed where `outcome` is an error. The text is the one a client is told.
    pub fn note<T>(&mut self, outcome: &crate::Result<T>) {
        if let (Some(span), Err(error)) = (&mut self.0, outcome) {
            span.set_status(Status::error(error.message.clone()));
        }
    }

    /// The stage as the place where further stages begin; it ends with the last clone.
    #[must_use]
    pub fn into_origin(self) -> Origin {
        match self.0 {
            Some(span) => Origin(Context::current_with_span(span)),
            None => Origin::current(),
        }
    }

    /// Ends it.
    pub fn end(self) {
        drop(self);
    }
}
