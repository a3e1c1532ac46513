//! The engine as the telemetry sees it: how far each request is, and what the engine holds.

use std::time::Duration;

use twinkle_core::telemetry::carried::Carried;
use twinkle_core::telemetry::labels::{BaseModel, Component, Deployment, Model, TaskType};
use twinkle_core::telemetry::metrics::{
    ENGINE_PASS, KV_CACHE_USED, SEQUENCES_RUNNING, SEQUENCES_WAITING, TOKENS_GENERATED, TOKENS_PROMPT,
};
use twinkle_core::telemetry::spans::{self, Attribute, SpanName};
use twinkle_core::telemetry::trace::{Origin, Stage};

const DEPLOYMENT: Deployment = Deployment::Sampler;

/// How far a request is. Its stages are shared with other requests, so they are longer than its own share.
#[derive(Debug, Default)]
pub(crate) enum Progress {
    /// Not begun.
    Waiting(Carried),
    /// Its prompt is computed.
    Prefilling(Origin, Stage),
    /// Its samples are drawn.
    Decoding { _until_dropped: Stage },
    /// Nothing more is shown of it.
    #[default]
    Over,
}

impl Progress {
    /// Its first tile is about to be computed, or a further one.
    pub(crate) fn prefills(&mut self, rows: usize) {
        match std::mem::take(self) {
            Self::Waiting(carried) => {
                let origin = carried.join(DEPLOYMENT, TaskType("sample"));
                let stage = begin(&origin, spans::PREFILL).with(Attribute::Rows, rows as i64);
                *self = Self::Prefilling(origin, stage);
            }
            other => *self = other,
        }
    }

    /// Its prompt is complete.
    pub(crate) fn decodes(&mut self) {
        match std::mem::take(self) {
            Self::Prefilling(origin, stage) => {
                stage.end();
                *self = Self::Decoding { _until_dropped: begin(&origin, spans::DECODE) };
            }
            other => *self = other,
        }
    }
}

fn begin(origin: &Origin, name: SpanName) -> Stage {
    spans::begin_in(origin, name).with(Attribute::Deployment, DEPLOYMENT.as_str())
}

/// What an engine shows of itself after every step.
#[derive(Debug)]
pub(crate) struct Shown {
    base_model: BaseModel,
    generated: u64,
}

/// What an engine holds.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Holding {
    pub(crate) running: u64,
    pub(crate) waiting: u64,
    pub(crate) cache_bytes: u64,
    /// Tokens drawn since the engine started.
    pub(crate) generated: u64,
}

impl Shown {
    pub(crate) fn new(base_model: &str) -> Self {
        Self { base_model: BaseModel::new(base_model), generated: 0 }
    }

    fn model(&self) -> Model {
        Model { base_model: self.base_model.clone() }
    }

    /// A request with a prompt of this many tokens was admitted.
    pub(crate) fn admitted(&self, prompt: usize) {
        TOKENS_PROMPT.add(prompt as u64, self.model());
    }

    /// A step took this long.
    pub(crate) fn stepped(took: Duration) {
        ENGINE_PASS.record(took, Component { deployment: DEPLOYMENT });
    }

    pub(crate) fn holds(&mut self, now: Holding) {
        SEQUENCES_RUNNING.set(now.running, self.model());
        SEQUENCES_WAITING.set(now.waiting, self.model());
        KV_CACHE_USED.set(now.cache_bytes, self.model());
        let drawn = now.generated.saturating_sub(self.generated);
        if drawn > 0 {
            TOKENS_GENERATED.add(drawn, self.model());
        }
        self.generated = now.generated;
    }
}
