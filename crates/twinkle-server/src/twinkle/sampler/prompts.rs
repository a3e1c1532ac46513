//! From what a client sends to what a sampler is asked.

use schemars::JsonSchema;
use serde::Deserialize;
use serde_json::{Map, Value};
use twinkle_core::call::{SampleExtras, SampleRequest, SamplingSource};
use twinkle_core::error::{Error, Result};
use twinkle_core::ids::TenantId;
use twinkle_core::wire::twinkle::{Input, InputFeature, Inputs};
use twinkle_processor::Template;

use super::params::Wanted;
use super::settings;
use crate::twinkle::{Caller, TwinkleFront};

/// The body of `POST sample` and `POST sample_stream`.
#[derive(Debug, Deserialize, JsonSchema)]
#[schemars(rename = "TwinkleSample")]
pub(super) struct Body {
    /// What is to be continued.
    inputs: Inputs,
    #[serde(default)]
    sampling_params: Option<Map<String, Value>>,
    /// Weights are named by `adapter_uri`; a name alone means the base model.
    #[serde(default, rename = "adapter_name")]
    _adapter_name: Option<String>,
    #[serde(default)]
    adapter_uri: Option<String>,
    #[serde(default)]
    num_samples: Option<Value>,
}

/// A request that is understood.
pub(super) struct Asked {
    /// What is drawn.
    pub(super) wanted: Wanted,
    /// Of which weights.
    pub(super) source: SamplingSource,
    /// The prompts, in the order of the inputs.
    pub(super) prompts: Vec<InputFeature>,
    /// The caller's template; none where the model has no tokenizer and only tokens were sent.
    pub(super) template: Option<Template>,
}

impl Asked {
    /// Understands a request, or says what is wrong with it.
    pub(super) async fn read(front: &TwinkleFront, caller: &Caller, body: Body) -> Result<Self> {
        let wanted = Wanted::read(body.sampling_params.as_ref(), body.num_samples.as_ref())?;
        let source = source(front, &caller.tenant, body.adapter_uri.as_deref()).await?;
        let Inputs(inputs) = body.inputs;
        if inputs.is_empty() {
            return Err(Error::invalid("`inputs` is empty").hint("send at least one conversation or token list"));
        }
        let has_conversations = inputs.iter().any(|input| matches!(input, Input::Trajectory(_)));
        let template = match settings::template(front, caller).await {
            Ok(template) => Some(template),
            Err(error) if has_conversations => return Err(error),
            Err(_) => None,
        };
        let prompts = prompts(front, template.as_ref(), inputs, !wanted.only_prompt).await?;
        Ok(Self { wanted, source, prompts, template })
    }

    /// What the sampler is asked about a prompt, in a context of so many tokens.
    pub(super) fn request(&self, prompt: &InputFeature, context: usize) -> SampleRequest {
        let Wanted { params, penalties, samples, logprobs, prompt_logprobs, .. } = &self.wanted;
        let mut params = params.clone();
        // A sample ends where the context does, as it does in vLLM; a prompt without any room is refused by the sampler.
        let room = u32::try_from(context.saturating_sub(prompt.input_ids.len())).unwrap_or(u32::MAX);
        params.max_tokens = params.max_tokens.map(|most| most.min(room.max(1)));
        let mut request = SampleRequest::new(self.source.clone(), prompt.input_ids.clone(), params);
        request.num_samples = *samples;
        request.penalties = *penalties;
        request.prompt_logprobs = *prompt_logprobs > 0;
        request.extras = SampleExtras {
            topk_prompt_logprobs: *prompt_logprobs,
            // One is the token's own, which is always told.
            topk_sample_logprobs: logprobs.filter(|count| *count > 1).unwrap_or(0),
            ..SampleExtras::default()
        };
        request
    }
}

/// Each input as one prompt.
async fn prompts(
    front: &TwinkleFront,
    template: Option<&Template>,
    inputs: Vec<Input>,
    is_continued: bool,
) -> Result<Vec<InputFeature>> {
    let count = inputs.len();
    let encoded = match template {
        Some(template) => front.context.templates.encode(template, inputs, is_continued).await?,
        None => inputs
            .into_iter()
            .filter_map(|input| match input {
                Input::Feature(feature) => Some(vec![feature]),
                Input::Trajectory(_) => None,
            })
            .collect(),
    };
    let mut prompts = Vec::with_capacity(count);
    for (number, mut features) in encoded.into_iter().enumerate() {
        match (features.pop(), features.is_empty()) {
            (Some(prompt), true) if !prompt.input_ids.is_empty() => prompts.push(prompt),
            (Some(_), true) => return Err(Error::invalid(format!("input {number} has no tokens"))),
            _ => {
                return Err(Error::invalid(format!("input {number} is longer than the template's `max_length`"))
                    .hint("a prompt is neither split nor left out: use `left` or `right`, or a larger `max_length`"));
            }
        }
    }
    Ok(prompts)
}

/// Which weights: those of a checkpoint that the tenant may read, or the base model's.
async fn source(front: &TwinkleFront, tenant: &TenantId, uri: Option<&str>) -> Result<SamplingSource> {
    let Some(uri) = uri.filter(|uri| !uri.is_empty()) else { return Ok(SamplingSource::Base) };
    let model = front.model()?;
    let record = front.named_checkpoint(tenant, uri).await?;
    if record.base_model != model.name {
        let text = format!("`{uri}` is of base model `{}`, not `{}`", record.base_model, model.name);
        return Err(Error::invalid(text).hint("sample it below the address of its own model"));
    }
    if record.tenant == *tenant {
        return Ok(SamplingSource::Checkpoint(record.path));
    }
    Ok(SamplingSource::Shared { owner: record.tenant, path: record.path })
}
