//! `POST completions`.

mod reply;
mod request;
mod scores;
mod told;

use std::sync::Arc;

use axum::extract::State;
use futures::FutureExt;
use futures::future::{BoxFuture, ready};
use futures::stream::{self, StreamExt, TryStreamExt};
use twinkle_core::call::{Call, Operation, Reply, SampleOutcome, SampleRequest, SampledSequence, StopReason};
use twinkle_core::component::BoxComponent;
use twinkle_core::error::{Error, Result};
use twinkle_core::ids::TenantId;
use twinkle_processor::ModelTokenizer;

use self::reply::Choice;
pub(super) use self::reply::Completion;
pub(super) use self::request::CompletionRequest;
use self::request::{FIELDS, Prompt, Wishes};
use self::scores::Scores;
use self::told::Told;
use super::answer::{OpenAiError, Outcome, Usage, fresh_id, ok};
use super::choice::Choice as Weights;
use super::events;
use super::front::{Body, OpenAiFront, Tenant, now};
use super::writer::Writer;
use crate::streaming::{self, Sampled};

/// Prompts of one request that are sampled at the same time.
const AT_ONCE: usize = 32;

/// `POST completions`
pub(super) async fn create(State(front): State<OpenAiFront>, Tenant(tenant): Tenant, body: Body) -> Outcome {
    let wanted: CompletionRequest = body.read(&FIELDS).await?;
    let weights = front.choose(&tenant, &wanted.model, wanted.adapter_uri.as_deref()).await?;
    let is_streamed = wanted.stream.unwrap_or(false);
    let include_usage = wanted.includes_usage()?;
    let work = Work::prepare(&front, wanted, &weights).await?;
    let sampler = front.context.directory.sampler(&weights.model.name)?;
    if !is_streamed {
        return work.answer(&front, sampler, &tenant).await;
    }
    let streams: Vec<_> =
        work.jobs.iter().enumerate().map(|(place, job)| job.samples(place, sampler, &tenant)).collect();
    let told = stream::select_all(streams).boxed();
    events::answer(told, Told::new(work, include_usage), |error| FIELDS.tell(error)).await
}

/// A request that is about to be answered.
#[derive(Debug)]
struct Work {
    /// The answer's id.
    id: String,
    /// When it was asked, in seconds since 1970.
    created: i64,
    /// The model as the client named it.
    model: String,
    tokenizer: Arc<ModelTokenizer>,
    wishes: Wishes,
    /// One per prompt, in order.
    jobs: Vec<Job>,
}

/// One prompt.
#[derive(Debug)]
struct Job {
    prompt: Vec<u32>,
    /// Its text, when it is to be repeated.
    echo: String,
    /// What the sampler is asked.
    request: SampleRequest,
    /// Whether it is asked at all: a prompt that is only repeated needs no model.
    is_sampled: bool,
}

impl Work {
    async fn prepare(front: &OpenAiFront, wanted: CompletionRequest, weights: &Weights) -> Result<Self, OpenAiError> {
        let settings = wanted.settings()?;
        let wishes = wanted.wishes()?;
        let model = wanted.model.clone();
        let templates = &front.context.templates;
        let tokenizer = templates.tokenizer(&weights.model.tokenizer).await?;
        let (shared, source) = (Arc::clone(&tokenizer), weights.source.clone());
        let add_special_tokens = wanted.add_special_tokens.unwrap_or(true);
        let prompts = wanted.into_prompts()?;
        let is_echoed = wishes.echo;
        let encode = move || {
            let mut encoded = Vec::with_capacity(prompts.len());
            for prompt in prompts {
                let text = prompt_text(&prompt, &shared, is_echoed);
                let tokens = match prompt {
                    Prompt::Tokens(tokens) => tokens,
                    Prompt::Text(text) if add_special_tokens => shared.encode_with_specials(&text)?,
                    Prompt::Text(text) => shared.encode(&text)?,
                };
                encoded.push((tokens, text?));
            }
            Ok::<_, Error>(encoded)
        };
        let encoded = templates.off_runtime(encode).await?.map_err(|error| OpenAiError::of("prompt", error))?;
        let job = |(prompt, echo): (Vec<u32>, String)| {
            let mut request = settings.request(source.clone(), prompt.clone())?;
            if wishes.scores_prompt() {
                request.prompt_logprobs = true;
                request.extras.topk_prompt_logprobs = wishes.logprobs.unwrap_or(0);
            }
            let is_sampled = settings.max_tokens != Some(0) || wishes.scores_prompt();
            Ok(Job { prompt, echo, request, is_sampled })
        };
        let jobs = encoded.into_iter().map(job).collect::<Result<_>>().map_err(|error| FIELDS.tell(error))?;
        Ok(Self { id: fresh_id("cmpl-"), created: now(), model, tokenizer, wishes, jobs })
    }

    /// Answers with everything at once.
    async fn answer(self, front: &OpenAiFront, sampler: &BoxComponent, tenant: &TenantId) -> Outcome {
        let asked: Vec<_> = self.jobs.iter().map(|job| job.ask(sampler, tenant)).collect();
        let outcomes = stream::iter(asked).buffered(AT_ONCE).try_collect::<Vec<_>>().await;
        let outcomes = outcomes.map_err(|error| FIELDS.tell(error))?;
        let completion = front.context.templates.off_runtime(move || self.complete(&outcomes)).await?;
        ok(&completion)
    }

    fn complete(self, outcomes: &[SampleOutcome]) -> Completion {
        let mut choices = Vec::new();
        for (job, outcome) in self.jobs.iter().zip(outcomes) {
            for (sample, sequence) in (0..).zip(&outcome.sequences) {
                let mut writer = self.writer();
                let mut text = job.echo.clone();
                let mut scores = self.wishes.logprobs.map(|_| Scores::default());
                if let Some(scores) = scores.as_mut().filter(|_| self.wishes.scores_prompt()) {
                    scores.add_prompt(&self.tokenizer, &job.prompt, outcome);
                }
                for drawn in sequence.drawn(sample) {
                    text.push_str(&writer.push(drawn.token));
                    if let Some(scores) = &mut scores {
                        scores.add(&self.tokenizer, &drawn);
                    }
                }
                text.push_str(&writer.finish());
                let index = choices.len();
                choices.push(Choice::new(
                    index,
                    text,
                    scores.map(|scores| scores.told(self.wishes.top())),
                    sequence.stop_reason,
                ));
            }
        }
        let generated = outcomes.iter().flat_map(|outcome| &outcome.sequences);
        let usage = self.usage(generated.map(|sequence| sequence.tokens.len()).sum());
        Completion::whole(self.id, self.created, self.model, choices, usage)
    }

    fn writer(&self) -> Writer {
        Writer::new(&self.tokenizer, self.wishes.stops.clone())
    }

    fn usage(&self, generated: usize) -> Usage {
        Usage::new(self.jobs.iter().map(|job| job.prompt.len()).sum(), generated)
    }
}

impl Job {
    /// Everything that comes of it.
    fn ask(&self, sampler: &BoxComponent, tenant: &TenantId) -> BoxFuture<'static, Result<SampleOutcome>> {
        if !self.is_sampled {
            return ready(Ok(self.unsampled())).boxed();
        }
        let call = Call { tenant: tenant.clone(), operation: Operation::Sample(Box::new(self.request.clone())) };
        let sampler = sampler.clone();
        async move {
            match sampler.ask(call).await? {
                Reply::Sample(outcome) => Ok(outcome),
                _ => Err(Error::internal("the sampler answered something that was not asked")),
            }
        }
        .boxed()
    }

    /// What comes of it, as it comes.
    fn samples(&self, place: usize, sampler: &BoxComponent, tenant: &TenantId) -> events::Samples {
        if !self.is_sampled {
            let done = Sampled::Done(self.unsampled());
            return stream::once(ready((place, Ok(done)))).boxed();
        }
        let told = streaming::sample(sampler, tenant.clone(), self.request.clone());
        told.map(move |sampled| (place, sampled)).boxed()
    }

    /// Choices without a new token.
    fn unsampled(&self) -> SampleOutcome {
        let empty = SampledSequence::new(Vec::new(), Vec::new(), StopReason::Length);
        SampleOutcome { sequences: vec![empty; self.request.num_samples as usize], ..SampleOutcome::default() }
    }
}

/// The prompt as text, when it is wanted.
fn prompt_text(prompt: &Prompt, tokenizer: &ModelTokenizer, is_wanted: bool) -> Result<String> {
    match prompt {
        _ if !is_wanted => Ok(String::new()),
        Prompt::Text(text) => Ok(text.clone()),
        Prompt::Tokens(tokens) => tokenizer.decode(tokens, false),
    }
}
