//! The table of all spans and of their attributes. `docs/metrics.md` is written from it.

use super::labels::Deployment;
use super::trace::{Origin, Stage};

/// The tracer of everything below a request's own span.
pub const BUSINESS_TRACER: &str = "twinkle.server.business";

/// The tracer of the requests of one kind of application.
pub(super) const fn server_tracer(deployment: Deployment) -> &'static str {
    match deployment {
        Deployment::Gateway => "twinkle.server.Gateway",
        Deployment::Model => "twinkle.server.Model",
        Deployment::Sampler => "twinkle.server.Sampler",
        Deployment::Processor => "twinkle.server.Processor",
    }
}

/// Declares the attributes' keys.
macro_rules! attributes {
    ($($(#[doc = $text:literal])+ $name:ident = $key:literal;)*) => {
        /// What a span may say about itself. None of them ever holds an API key.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub enum Attribute {
            $($(#[doc = $text])+ $name,)*
        }

        impl Attribute {
            /// Every attribute, in the order of the documentation.
            pub const ALL: &[Self] = &[$(Self::$name),*];

            /// As it is exported.
            #[must_use]
            pub const fn key(self) -> &'static str {
                match self {
                    $(Self::$name => $key,)*
                }
            }

            /// What it says.
            #[must_use]
            pub const fn text(self) -> &'static str {
                match self {
                    $(Self::$name => concat!($($text),+),)*
                }
            }
        }
    };
}

attributes! {
    /// The request's method.
    HttpMethod = "http.method";
    /// The request's path, without its query.
    HttpUrl = "http.url";
    /// The route that answered, with its placeholders.
    HttpRoute = "http.route";
    /// `http` or `https`.
    HttpScheme = "http.scheme";
    /// The answer's status.
    HttpStatusCode = "http.status_code";
    /// The kind of application that answered.
    Component = "service.component";
    /// The `x-request-id` of the answer, as the log has it.
    HttpRequestId = "twinkle.http_request_id";
    /// The tenant: a hash or a name, never a key.
    TokenId = "twinkle.token_id";
    /// The session.
    SessionId = "twinkle.session_id";
    /// The training run.
    ModelId = "twinkle.model_id";
    /// The sampling session.
    SamplingSessionId = "twinkle.sampling_session_id";
    /// The base model's public name.
    BaseModel = "twinkle.base_model";
    /// The operation, such as `forward_backward`.
    TaskType = "twinkle.task_type";
    /// The kind of component.
    Deployment = "twinkle.deployment";
    /// The line the operation waits in: its run.
    QueueKey = "twinkle.queue_key";
    /// The id under which the client retrieves the result.
    RequestId = "twinkle.request_id";
    /// The operation's number in its run.
    Sequence = "twinkle.sequence";
    /// Rows of a pass, one a token.
    Rows = "twinkle.rows";
    /// Runs that share a pass.
    Runs = "twinkle.runs";
}

/// The name of a span below a request; only this table makes them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SpanName(&'static str);

impl SpanName {
    /// As it is exported.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        self.0
    }
}

/// What the table says about a span.
#[derive(Clone, Copy, Debug)]
pub struct SpanDescription {
    /// Its name.
    pub name: &'static str,
    /// What it covers.
    pub text: &'static str,
}

/// Declares the names of the spans below a request.
macro_rules! spans {
    ($($(#[doc = $text:literal])+ $name:ident = $exported:literal;)*) => {
        $($(#[doc = $text])+ pub const $name: SpanName = SpanName($exported);)*

        /// Every span below a request, in the order of the documentation.
        pub const SPANS: &[SpanDescription] = &[$(SpanDescription { name: $exported, text: concat!($($text),+) }),*];
    };
}

spans! {
    /// The tenant's quota is asked.
    QUOTA = "quota";
    /// The call waits for a place in its component.
    QUEUE = "queue";
    /// The operation is written to the journal and fsynced, perhaps together with others.
    JOURNAL_COMMIT = "journal.commit";
    /// The operation waits for its turn in its run, and for room in the engine's line.
    JOURNAL_TURN = "journal.turn";
    /// An accepted operation is worked on, from its turn to its stored result.
    EXECUTE = "task_queue.execute";
    /// The operation waits in the engine's fair schedule.
    ENGINE_QUEUE = "engine.queue";
    /// The operation on the engine thread, from its first pass to its last; see [`operation`].
    OPERATION = "Model.<task_type>";
    /// One pass over packed rows, perhaps shared with other operations.
    PASS = "engine.pass";
    /// The result is stored.
    RESULT_COMMIT = "journal.result";
    /// A sampling request, from the component to its answer.
    SAMPLE = "Sampler.sample";
    /// The prompt is computed, in steps shared with other requests.
    PREFILL = "engine.prefill";
    /// The continuations are drawn, in steps shared with other requests.
    DECODE = "engine.decode";
    /// Text is turned into tokens or back.
    PROCESS = "Processor.process";
    /// A session is opened.
    CREATE_SESSION = "server_state.create_session";
    /// A training run is entered into the records.
    REGISTER_MODEL = "server_state.register_model";
    /// A sampling session is opened.
    CREATE_SAMPLING_SESSION = "server_state.create_sampling_session";
}

/// [`OPERATION`] with the operation's name in it.
#[must_use]
pub fn operation(task_type: &'static str) -> SpanName {
    SpanName(match task_type {
        "create_model" => "Model.create_model",
        "unload_model" => "Model.unload_model",
        "forward" => "Model.forward",
        "forward_only" => "Model.forward_only",
        "forward_backward" => "Model.forward_backward",
        "optim_step" => "Model.optim_step",
        "save_weights" => "Model.save_weights",
        "save_weights_for_sampler" => "Model.save_weights_for_sampler",
        "load_weights" => "Model.load_weights",
        "restore" => "Model.restore",
        _ => "Model.other",
    })
}

/// Begins a span inside of what runs here and now.
#[must_use]
pub fn begin(name: SpanName) -> Stage {
    Stage::begin(name.0)
}

/// Begins a span inside of `origin`.
#[must_use]
pub fn begin_in(origin: &Origin, name: SpanName) -> Stage {
    Stage::begin_in(origin, name.0)
}
