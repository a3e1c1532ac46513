//! `POST chat/completions`.

mod reader;
mod reply;
mod request;
mod told;
mod tool_choice;

use std::sync::Arc;

use axum::extract::State;
use futures::StreamExt;
use twinkle_core::call::{Call, Operation, Reply, SampleOutcome, SampleRequest};
use twinkle_core::component::BoxComponent;
use twinkle_core::error::{Error, Result};
use twinkle_core::ids::TenantId;
use twinkle_core::wire::twinkle::{InputFeature, Trajectory};
use twinkle_processor::{Calling, ModelTokenizer, Template, TemplateSpec};

use self::reader::Reader;
use self::reply::Choice;
pub(super) use self::reply::Completion;
pub(super) use self::request::ChatRequest;
use self::request::FIELDS;
use self::told::Told;
use self::tool_choice::FORCE_HINT;
use super::answer::{OpenAiError, Outcome, fresh_id, ok};
use super::choice::Choice as Weights;
use super::events;
use super::front::{Body, OpenAiFront, Tenant, now};
use super::speech::Listening;
use crate::streaming;

/// How many tokens at a prompt's end may open a thought.
const OPENING: usize = 8;

/// `POST chat/completions`
pub(super) async fn create(State(front): State<OpenAiFront>, Tenant(tenant): Tenant, body: Body) -> Outcome {
    let wanted: ChatRequest = body.read(&FIELDS).await?;
    let weights = front.choose(&tenant, &wanted.model, wanted.adapter_uri.as_deref()).await?;
    let is_streamed = wanted.stream.unwrap_or(false);
    let include_usage = wanted.includes_usage()?;
    let chat = Chat::prepare(&front, wanted, &weights).await?;
    let sampler = front.context.directory.sampler(&weights.model.name)?;
    if !is_streamed {
        return chat.answer(&front, sampler, tenant).await;
    }
    let told = streaming::sample(sampler, tenant, chat.request.clone()).map(|sampled| (0, sampled)).boxed();
    events::answer(told, Told::new(chat, include_usage), |error| FIELDS.tell(error)).await
}

/// A chat that is about to be answered.
#[derive(Debug)]
struct Chat {
    /// The answer's id.
    id: String,
    /// When it was asked, in seconds since 1970.
    created: i64,
    /// The model as the client named it.
    model: String,
    tokenizer: Arc<ModelTokenizer>,
    /// Texts that end a choice.
    stops: Vec<String>,
    /// What is told apart in the assistant's text.
    listening: Listening,
    /// Whether logprobs are wanted.
    logprobs: bool,
    /// What the sampler is asked.
    request: SampleRequest,
}

impl Chat {
    async fn prepare(front: &OpenAiFront, wanted: ChatRequest, weights: &Weights) -> Result<Self, OpenAiError> {
        let mut settings = wanted.settings()?;
        let tool_use = wanted.tool_use()?;
        let spec = TemplateSpec {
            max_length: None,
            enable_thinking: wanted.may_think(&tool_use)?,
            ..TemplateSpec::for_model(&weights.model.name)
        };
        let templates = &front.context.templates;
        let template = templates.load(&weights.model.tokenizer, &spec).await?;
        let tokenizer = templates.tokenizer(&weights.model.tokenizer).await?;
        let logprobs = wanted.logprobs.unwrap_or(false);
        let thoughts = wanted.separate_reasoning.unwrap_or(true);
        let model = wanted.model.clone();
        let format = tokenizer.call_format();
        if let Some(end) = wanted.end_of_only_call(&tool_use, format)? {
            settings.stop_also_at(end);
        }
        let calls = tool_use.may_call().then(|| Calling { format, tools: Arc::new(wanted.offered()) });
        let trajectory = wanted.into_trajectory(calls.is_some())?;
        let mut prompt = templates.off_runtime(move || prompt(&template, &trajectory)).await??;
        let opening = prompt.get(prompt.len().saturating_sub(OPENING)..).unwrap_or_default();
        let begins_thinking = tokenizer.decode(opening, false)?.trim_end().ends_with("<think>");
        let forced = tool_use.forced();
        if let Some(name) = &forced {
            if begins_thinking {
                let text =
                    "`tool_choice` cannot force a call: the model's chat template begins every answer with a thought";
                return Err(OpenAiError::of("tool_choice", Error::unsupported(text).hint(FORCE_HINT)));
            }
            prompt.extend(tokenizer.encode(&format.beginning_of_call(name))?);
        }
        let stops = settings.stop_texts();
        let request = settings.request(weights.source.clone(), prompt).map_err(|error| FIELDS.tell(error))?;
        Ok(Self {
            id: fresh_id("chatcmpl-"),
            created: now(),
            model,
            tokenizer,
            stops,
            listening: Listening { thoughts, begins_thinking, calls, forced },
            logprobs,
            request,
        })
    }

    /// Answers with everything at once.
    async fn answer(self, front: &OpenAiFront, sampler: &BoxComponent, tenant: TenantId) -> Outcome {
        let call = Call { tenant, operation: Operation::Sample(Box::new(self.request.clone())) };
        let Reply::Sample(outcome) = sampler.ask(call).await.map_err(|error| FIELDS.tell(error))? else {
            return Err(Error::internal("the sampler answered something that was not asked").into());
        };
        let completion = front.context.templates.off_runtime(move || self.complete(&outcome)).await?;
        ok(&completion)
    }

    fn complete(self, outcome: &SampleOutcome) -> Completion {
        let choices: Vec<Choice> =
            (0..).zip(&outcome.sequences).map(|(index, sequence)| self.reader().read(index, sequence)).collect();
        let generated = outcome.sequences.iter().map(|sequence| sequence.tokens.len()).sum();
        Completion::new(self, choices, generated)
    }

    /// A reader of a choice without tokens.
    fn reader(&self) -> Reader {
        Reader::new(&self.tokenizer, self.stops.clone(), &self.listening, self.logprobs)
    }
}

/// The tokens of a conversation that an assistant is to continue. Blocking.
fn prompt(template: &Template, trajectory: &Trajectory) -> Result<Vec<u32>, OpenAiError> {
    let features = template.encode(trajectory, true).map_err(|error| OpenAiError::of("messages", error))?;
    match <[InputFeature; 1]>::try_from(features) {
        Ok([feature]) => Ok(feature.input_ids),
        Err(_) => Err(Error::internal("a prompt became several").into()),
    }
}
