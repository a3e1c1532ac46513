//! The labels of metrics: closed types, so that a metric has as many series as the code says and no more.

use std::sync::Arc;

use opentelemetry::{KeyValue, StringValue, Value};

use crate::call::Operation;
use crate::component::ComponentKind;
use crate::error::{ErrorCode, Result};

/// The value of one label.
pub trait Label {
    /// As it is exported.
    fn value(self) -> Value;
}

/// The labels of one metric.
pub trait Labels {
    /// Their names, in order.
    const NAMES: &'static [&'static str];
    /// The names with their values.
    type Attributes: AsRef<[KeyValue]>;

    /// The names with their values.
    fn attributes(self) -> Self::Attributes;
}

/// Labels as structs whose fields are the labels' names.
macro_rules! labels {
    ($($(#[$doc:meta])* $name:ident { $($field:ident: $type:ty),* $(,)? })*) => {$(
        $(#[$doc])*
        #[derive(Clone, Debug)]
        pub struct $name {
            $(
                #[doc = concat!("The label `", stringify!($field), "`.")]
                pub $field: $type,
            )*
        }

        impl Labels for $name {
            const NAMES: &'static [&'static str] = &[$(stringify!($field)),*];
            type Attributes = [KeyValue; [$(stringify!($field)),*].len()];

            fn attributes(self) -> Self::Attributes {
                [$(KeyValue::new(stringify!($field), self.$field.value())),*]
            }
        }
    )*};
}

labels! {
    /// An answered HTTP request.
    HttpAnswer { deployment: Deployment, method: Route, status: HttpStatus }
    /// A route, for what is measured per HTTP request.
    HttpRoute { deployment: Deployment, method: Route }
    /// A finished operation.
    FinishedTask { deployment: Deployment, task_type: TaskType, status: TaskStatus }
    /// An operation, for what is measured per operation.
    Task { deployment: Deployment, task_type: TaskType }
    /// One kind of component.
    Component { deployment: Deployment }
    /// One base model.
    Model { base_model: BaseModel }
    /// Something that worked or did not.
    Attempt { status: TaskStatus }
    /// One kind of exported data.
    Exported { signal: Signal }
    /// One GPU.
    Gpu { gpu_index: GpuIndex }
}

/// The label set of a metric that has one series only.
#[derive(Clone, Copy, Debug)]
pub struct Whole;

impl Labels for Whole {
    const NAMES: &'static [&'static str] = &[];
    type Attributes = [KeyValue; 0];

    fn attributes(self) -> Self::Attributes {
        []
    }
}

/// The kind of component, in upstream's words.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Deployment {
    /// The `server` application: sessions, records, the protocol fronts.
    Gateway,
    /// A `model` application.
    Model,
    /// A `sampler` application.
    Sampler,
    /// A `processor` application.
    Processor,
}

impl Deployment {
    /// As it is exported.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Gateway => "Gateway",
            Self::Model => "Model",
            Self::Sampler => "Sampler",
            Self::Processor => "Processor",
        }
    }
}

impl From<ComponentKind> for Deployment {
    fn from(kind: ComponentKind) -> Self {
        match kind {
            ComponentKind::Server => Self::Gateway,
            ComponentKind::Model => Self::Model,
            ComponentKind::Sampler => Self::Sampler,
            ComponentKind::Processor => Self::Processor,
        }
    }
}

impl Deployment {
    /// The kind of component that `operation` is for.
    #[must_use]
    pub const fn of(operation: &Operation) -> Self {
        match operation {
            Operation::Run(_) => Self::Model,
            Operation::Sample(_) => Self::Sampler,
            Operation::Process(_) => Self::Processor,
            Operation::Serve(_) => Self::Gateway,
        }
    }
}

impl Label for Deployment {
    fn value(self) -> Value {
        self.as_str().into()
    }
}

/// What an operation does: `forward_backward`, `sample`, …; see [`crate::call::Operation::name`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct TaskType(pub &'static str);

impl Label for TaskType {
    fn value(self) -> Value {
        self.0.into()
    }
}

/// How an operation ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum TaskStatus {
    /// With a result.
    Completed,
    /// With an error.
    Failed,
    /// It ran or waited longer than it may.
    Timeout,
}

impl TaskStatus {
    /// How `outcome` counts.
    #[must_use]
    pub fn of<T>(outcome: &Result<T>) -> Self {
        match outcome {
            Ok(_) => Self::Completed,
            Err(error) if error.code == ErrorCode::TimedOut => Self::Timeout,
            Err(_) => Self::Failed,
        }
    }
}

impl Label for TaskStatus {
    fn value(self) -> Value {
        match self {
            Self::Completed => "completed",
            Self::Failed => "failed",
            Self::Timeout => "timeout",
        }
        .into()
    }
}

/// A route as it was declared, with its placeholders: never a path with somebody's ids in it.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Route(pub Arc<str>);

impl Label for Route {
    fn value(self) -> Value {
        Value::String(StringValue::from(self.0))
    }
}

/// An HTTP status code.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct HttpStatus(pub u16);

impl Label for HttpStatus {
    fn value(self) -> Value {
        i64::from(self.0).into()
    }
}

/// A base model's public name.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct BaseModel(pub Arc<str>);

impl BaseModel {
    /// The base model of that public name.
    #[must_use]
    pub fn new(name: &str) -> Self {
        Self(Arc::from(name))
    }
}

impl Label for BaseModel {
    fn value(self) -> Value {
        Value::String(StringValue::from(self.0))
    }
}

/// What is exported.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Signal {
    /// Spans.
    Traces,
    /// Metrics.
    Metrics,
    /// Log lines.
    Logs,
}

impl Signal {
    /// As it is exported.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Traces => "traces",
            Self::Metrics => "metrics",
            Self::Logs => "logs",
        }
    }
}

impl Label for Signal {
    fn value(self) -> Value {
        self.as_str().into()
    }
}

/// The number of a GPU, as its driver counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct GpuIndex(pub u32);

impl Label for GpuIndex {
    fn value(self) -> Value {
        i64::from(self.0).into()
    }
}
