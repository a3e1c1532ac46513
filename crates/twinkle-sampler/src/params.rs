//! From a request to one the engine can trust: every limit is checked here, once.

use std::num::NonZeroUsize;
use std::sync::Arc;

use twinkle_core::call::{LogprobsMode, SampleRequest, SamplingParams, TargetTokens, TokenSender};
use twinkle_core::data::TokenIds;
use twinkle_core::{Error, Result};

use crate::bias::Bias;
use crate::logits::DrawParams;
use crate::penalties::{Seen, check_penalties};
use crate::prompt::PromptWants;
use crate::seeds::Seeds;
use crate::stop::StopRule;

/// Most likeliest or drawn tokens per position.
pub const MOST_PER_POSITION: u32 = 1024;
/// Most likeliest, given and drawn tokens of one request together: 32 MiB of ids and logprobs.
pub const MOST_CELLS: usize = 1 << 22;

/// What requests are checked against.
#[derive(Clone, Debug)]
pub struct ModelLimits {
    /// Rows of the output head; a token id is below it.
    pub vocabulary: usize,
    /// Most tokens of prompt and answer together.
    pub max_model_len: usize,
    /// Most samples in one request.
    pub max_samples: u32,
    /// Which numbers stand beside new tokens when a request does not say.
    pub numbers: LogprobsMode,
}

/// A sampling request whose limits have been checked against the served model.
#[derive(Clone, Debug)]
pub struct ValidRequest {
    /// Not empty, every id inside the vocabulary, leaves room for at least one new token.
    pub prompt: TokenIds,
    /// How many continuations, at least 1.
    pub samples: u32,
    /// Most new tokens per sample; with the prompt inside the context. 0 only when something is wanted of the prompt.
    pub max_new_tokens: usize,
    /// The seed of the whole request; each sample has its own key.
    pub seed: u64,
    /// How tokens are drawn.
    pub draw: DrawParams,
    /// When a sample ends before `max_new_tokens`.
    pub stop: StopRule,
    /// What is wanted of the prompt.
    pub wants: PromptWants,
    /// How many of the likeliest tokens of each new token are wanted.
    pub top: usize,
    /// What is added to the logits of tokens, if anything is.
    pub bias: Option<Bias>,
    /// What a sample has seen before its first token, if anything is held back.
    pub seen: Option<Arc<Seen>>,
    /// Which numbers stand beside new tokens.
    pub numbers: LogprobsMode,
    /// Is told every new token as it is drawn.
    pub stream: Option<TokenSender>,
}

impl ValidRequest {
    /// The noise key of a sample: the samples of one request differ, and each can be drawn again.
    #[must_use]
    pub const fn sample_key(&self, sample: u32) -> u64 {
        self.seed ^ sample as u64
    }

    /// How many numbers its extras may fill: tokens with their logprobs.
    #[must_use]
    pub fn extra_cells(&self) -> usize {
        let prompt = self.prompt.len();
        let targets = self.wants.targets.as_ref().map_or(0, |targets| targets.cells.len());
        let drawn = (self.samples as usize).saturating_mul(self.max_new_tokens).saturating_mul(self.top);
        (prompt * (self.wants.likeliest + self.wants.alternatives)).saturating_add(targets).saturating_add(drawn)
    }
}

/// Checks `request` against the model. `stop` has been read by [`StopRule::read`]; `seeds` serves requests without a seed.
///
/// # Errors
/// `InvalidArgument`, naming the field and its limit.
pub fn validate(request: SampleRequest, stop: StopRule, limits: &ModelLimits, seeds: &Seeds) -> Result<ValidRequest> {
    let SampleRequest { prompt, num_samples, params, prompt_logprobs, extras, .. } = request;
    let SampleRequest { penalties, logit_bias, logprobs, stream, .. } = request;
    check_prompt(&prompt, limits)?;
    if num_samples == 0 || num_samples > limits.max_samples {
        return Err(Error::invalid(format!(
            "`num_samples` is {num_samples}, it must be from 1 to {}",
            limits.max_samples
        )));
    }
    let draw = check_draw(&params)?;
    check_penalties(&penalties)?;
    let numbers = logprobs.unwrap_or(limits.numbers);
    let seed = params.seed.unwrap_or_else(|| seeds.draw());
    let top = check_width("topk_sample_logprobs", extras.topk_sample_logprobs)?;
    let wants = PromptWants {
        logprobs: prompt_logprobs,
        likeliest: check_width("topk_prompt_logprobs", extras.topk_prompt_logprobs)?,
        from: first_wanted(prompt.len(), prompt_logprobs, extras.prompt_logprobs_last_n)?,
        alternatives: check_width("prompt_alt_tokens_k", extras.prompt_alt_tokens_k)?,
        temperature: draw.temperature,
        seed,
        targets: match extras.target_prompt_logprobs {
            Some(targets) => Some(Arc::new(check_targets(targets, prompt.len(), limits)?)),
            None => None,
        },
    };
    if wants.is_something() && numbers.is_logits() {
        return Err(Error::unsupported("logits of the prompt cannot be told, only log-probabilities")
            .hint("ask for nothing of the prompt, or for another `logprobs_mode`"));
    }
    let max_new_tokens = check_length(prompt.len(), params.max_tokens, wants.is_something(), limits)?;
    let request = ValidRequest {
        samples: num_samples,
        max_new_tokens,
        seed,
        draw,
        stop,
        wants,
        top,
        bias: Bias::new(logit_bias, limits.vocabulary)?,
        seen: Seen::new(penalties, &prompt).map(Arc::new),
        numbers,
        stream,
        prompt,
    };
    let cells = request.extra_cells();
    if cells > MOST_CELLS {
        return Err(Error::invalid(format!(
            "likeliest, given and drawn tokens of this request are {cells} in all, at most {MOST_CELLS} are allowed"
        ))
        .hint("ask for fewer per position, or send a shorter prompt, a smaller `max_tokens` or fewer samples"));
    }
    Ok(request)
}

/// How many tokens per position.
fn check_width(name: &str, k: u32) -> Result<usize> {
    if k > MOST_PER_POSITION {
        return Err(Error::invalid(format!("`{name}` is {k}, at most {MOST_PER_POSITION} are allowed")));
    }
    Ok(k as usize)
}

/// The first row of the prompt whose own token is wanted.
fn first_wanted(prompt: usize, prompt_logprobs: bool, last_n: Option<u32>) -> Result<usize> {
    let Some(last) = last_n else { return Ok(0) };
    if !prompt_logprobs {
        return Err(Error::invalid("`prompt_logprobs_last_n` is given without `prompt_logprobs`")
            .hint("set `prompt_logprobs`, or leave it out"));
    }
    match prompt.checked_sub(last as usize + 1) {
        Some(first) if last > 0 => Ok(first),
        _ => Err(Error::invalid(format!(
            "`prompt_logprobs_last_n` is {last}, a prompt of {prompt} tokens has from 1 to {} scored ones",
            prompt - 1
        ))),
    }
}

fn check_targets(targets: TargetTokens, prompt: usize, limits: &ModelLimits) -> Result<TargetTokens> {
    let rows = targets.layout.rows;
    if rows + 1 != prompt {
        return Err(Error::invalid(format!(
            "`target_prompt_logprobs` has {rows} rows, a prompt of {prompt} tokens needs {}",
            prompt - 1
        )));
    }
    if targets.cells.iter().all(Option::is_none) {
        return Err(Error::invalid("`target_prompt_logprobs` names no token").hint("leave it out"));
    }
    let named: TokenIds = targets.cells.iter().flatten().copied().collect();
    check_tokens("`target_prompt_logprobs`", &named, limits.vocabulary)?;
    Ok(targets)
}

fn check_prompt(prompt: &[u32], limits: &ModelLimits) -> Result<()> {
    if prompt.is_empty() {
        return Err(Error::invalid("the prompt is empty").hint("send at least one token"));
    }
    if prompt.len() >= limits.max_model_len {
        return Err(Error::invalid(format!(
            "the prompt has {} tokens, this leaves no room for an answer in a context of {}",
            prompt.len(),
            limits.max_model_len
        )));
    }
    check_tokens("the prompt", prompt, limits.vocabulary)
}

/// Refuses ids outside the vocabulary.
pub(crate) fn check_tokens(what: &str, tokens: &[u32], vocabulary: usize) -> Result<()> {
    match tokens.iter().enumerate().find(|(_, token)| **token as usize >= vocabulary) {
        Some((index, token)) => Err(Error::invalid(format!(
            "token {index} of {what} is `{token}`, outside the vocabulary of {vocabulary} entries"
        ))),
        None => Ok(()),
    }
}

fn check_draw(params: &SamplingParams) -> Result<DrawParams> {
    let SamplingParams { temperature, top_k, top_p, .. } = *params;
    if !temperature.is_finite() || temperature < 0.0 {
        return Err(Error::invalid(format!("`temperature` is `{temperature}`, it must be 0 (greedy) or above")));
    }
    if !(top_p > 0.0 && top_p <= 1.0) {
        return Err(Error::invalid(format!("`top_p` is `{top_p}`, it must be above 0 and at most 1 (off)")));
    }
    let top_k = top_k.and_then(|k| NonZeroUsize::new(k as usize));
    Ok(DrawParams { temperature, top_k, top_p })
}

fn check_length(prompt: usize, max_tokens: Option<u32>, wants_prompt: bool, limits: &ModelLimits) -> Result<usize> {
    let room = limits.max_model_len - prompt;
    match max_tokens.map(|most| most as usize) {
        None => Ok(room),
        Some(0) if !wants_prompt => {
            Err(Error::invalid("`max_tokens` is 0, it must be at least 1 when nothing is wanted of the prompt"))
        }
        Some(most) if most > room => Err(Error::invalid(format!(
            "a prompt of {prompt} tokens and `max_tokens` {most} exceed the context of {} tokens",
            limits.max_model_len
        ))
        .hint(format!("send `max_tokens` of at most {room}, or none to fill the context"))),
        Some(most) => Ok(most),
    }
}

#[cfg(test)]
mod tests {
    use twinkle_core::call::{CellLayout, Penalties, SampleExtras, SamplingSource, Stop};

    use super::*;

    fn request() -> SampleRequest {
        let params = SamplingParams {
            max_tokens: Some(4),
            seed: Some(9),
            stop: Stop::EndOfSequence,
            temperature: 1.0,
            top_k: None,
            top_p: 1.0,
        };
        SampleRequest::new(SamplingSource::Base, vec![1, 2, 3], params)
    }

    fn limits(max_model_len: usize) -> ModelLimits {
        ModelLimits { vocabulary: 10, max_model_len, max_samples: 4, numbers: LogprobsMode::Processed }
    }

    fn check(change: impl FnOnce(&mut SampleRequest)) -> Result<ValidRequest> {
        let mut request = request();
        change(&mut request);
        validate(request, StopRule::default(), &limits(8), &Seeds::new(Some(1)))
    }

    fn refusal(change: impl FnOnce(&mut SampleRequest)) -> String {
        check(change).unwrap_err().to_string()
    }

    #[test]
    fn each_limit_is_checked_and_named() {
        assert!(check(|_| {}).is_ok());
        assert!(refusal(|request| request.prompt.clear()).contains("empty"));
        assert!(refusal(|request| request.prompt = vec![1, 10]).contains("token 1 of the prompt is `10`"));
        assert!(refusal(|request| request.prompt = vec![1; 8]).contains("no room"));
        assert!(refusal(|request| request.num_samples = 0).contains("num_samples"));
        assert!(refusal(|request| request.num_samples = 5).contains("from 1 to 4"));
        assert!(refusal(|request| request.params.max_tokens = Some(0)).contains("max_tokens"));
        assert!(refusal(|request| request.params.max_tokens = Some(6)).contains("at most 5"));
        for temperature in [-0.1, f32::NAN, f32::INFINITY] {
            assert!(refusal(|request| request.params.temperature = temperature).contains("temperature"));
        }
        for top_p in [0.0, -1.0, 1.01, f32::NAN] {
            assert!(refusal(|request| request.params.top_p = top_p).contains("top_p"));
        }
    }

    fn wide(k: u32) -> Result<ValidRequest> {
        let mut request = request();
        request.prompt = vec![1; 5000];
        request.extras.topk_prompt_logprobs = k;
        validate(request, StopRule::default(), &limits(8000), &Seeds::new(Some(1)))
    }

    #[test]
    fn extras_are_bounded_and_must_fit_the_prompt() {
        let extras = |change: fn(&mut SampleExtras)| {
            refusal(|request| {
                request.prompt_logprobs = true;
                change(&mut request.extras);
            })
        };
        assert!(extras(|extras| extras.topk_prompt_logprobs = 1025).contains("`topk_prompt_logprobs` is 1025"));
        assert!(extras(|extras| extras.topk_sample_logprobs = 1025).contains("`topk_sample_logprobs` is 1025"));
        assert!(extras(|extras| extras.prompt_alt_tokens_k = 1025).contains("`prompt_alt_tokens_k` is 1025"));
        for last in [0, 3, u32::MAX] {
            let text = refusal(|request| {
                request.prompt_logprobs = true;
                request.extras.prompt_logprobs_last_n = Some(last);
            });
            assert!(text.contains("from 1 to 2"), "{text}");
        }
        assert!(refusal(|request| request.extras.prompt_logprobs_last_n = Some(1)).contains("without"));
        assert!(wide(800).is_ok());
        let text = wide(1000).unwrap_err().to_string();
        assert!(text.contains("5000000 in all"), "{text}");
    }

    #[test]
    fn the_last_two_of_three_tokens_begin_at_the_first_row() {
        let from = |last| {
            let wanted = check(|request| {
                request.prompt_logprobs = true;
                request.extras.prompt_logprobs_last_n = last;
            });
            wanted.unwrap().wants.from
        };
        assert_eq!([from(None), from(Some(2)), from(Some(1))], [0, 0, 1]);
    }

    #[test]
    fn targets_need_a_row_per_scored_token_and_at_least_one_id() {
        let targets = |rows, cells: &[Option<u32>]| {
            let layout = CellLayout { rows, columns: 1, sparse: None };
            let targets = TargetTokens { layout, cells: cells.to_vec() };
            check(|request| request.extras.target_prompt_logprobs = Some(targets)).map_err(|error| error.to_string())
        };
        assert!(targets(2, &[None, Some(9)]).is_ok());
        assert!(targets(3, &[Some(1); 3]).unwrap_err().contains("needs 2"));
        assert!(targets(2, &[None, None]).unwrap_err().contains("names no token"));
        assert!(targets(2, &[None, Some(10)]).unwrap_err().contains("`10`"));
    }

    #[test]
    fn no_new_token_is_right_when_the_prompt_is_of_interest() {
        let scored = check(|request| {
            request.params.max_tokens = Some(0);
            request.prompt_logprobs = true;
        });
        assert_eq!(scored.unwrap().max_new_tokens, 0);
    }

    #[test]
    fn the_samplers_numbers_are_told_unless_the_request_names_others() {
        let numbers = |named, change: fn(&mut SampleRequest)| {
            let mut request = request();
            request.logprobs = named;
            change(&mut request);
            let limits = ModelLimits { numbers: LogprobsMode::RawLogits, ..limits(8) };
            validate(request, StopRule::default(), &limits, &Seeds::new(Some(1))).map(|valid| valid.numbers)
        };
        assert_eq!(numbers(None, |_| {}), Ok(LogprobsMode::RawLogits));
        assert_eq!(numbers(Some(LogprobsMode::Raw), |request| request.prompt_logprobs = true), Ok(LogprobsMode::Raw));
        let error = numbers(None, |request| request.prompt_logprobs = true).unwrap_err();
        assert_eq!(error.code, twinkle_core::ErrorCode::Unsupported);
    }

    #[test]
    fn a_bias_is_checked_against_the_vocabulary() {
        assert!(check(|_| {}).unwrap().bias.is_none());
        assert!(check(|request| request.logit_bias = vec![(9, 1.0)]).unwrap().bias.is_some());
        assert!(refusal(|request| request.logit_bias = vec![(10, 1.0)]).contains("`logit_bias`"));
    }

    #[test]
    fn only_penalties_that_do_something_are_kept_in_mind() {
        assert!(check(|_| {}).unwrap().seen.is_none());
        let penalties = Penalties { presence: 0.5, ..Penalties::default() };
        assert!(check(|request| request.penalties = penalties).unwrap().seen.is_some());
        let wrong = Penalties { repetition: 0.0, ..Penalties::default() };
        assert!(refusal(|request| request.penalties = wrong).contains("repetition_penalty"));
    }

    #[test]
    fn no_max_tokens_fills_the_context() {
        assert_eq!(check(|request| request.params.max_tokens = None).unwrap().max_new_tokens, 5);
    }

    #[test]
    fn top_k_of_zero_is_off() {
        assert_eq!(check(|request| request.params.top_k = Some(0)).unwrap().draw.top_k, None);
    }
}
