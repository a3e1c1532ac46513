//! `sampling_params`: what a client may say about how tokens are drawn.

use serde_json::{Map, Value};
use twinkle_core::call::{Penalties, SamplingParams, Stop};
use twinkle_core::error::{Error, Result};

/// New tokens when a client does not say how many, as `vLLM` has it.
const MAX_TOKENS: u32 = 16;
/// Most continuations of one prompt.
const MOST_SAMPLES: u32 = 1024;

/// What is drawn, and what is told about it.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Wanted {
    /// How.
    pub(super) params: SamplingParams,
    /// How tokens that are already there are held back.
    pub(super) penalties: Penalties,
    /// How many continuations of each prompt.
    pub(super) samples: u32,
    /// Per new token so many of the likeliest, and always its own; `None`: nothing is told.
    pub(super) logprobs: Option<u32>,
    /// Per prompt token so many of the likeliest, and its own; 0: nothing is told.
    pub(super) prompt_logprobs: u32,
    /// Nothing is drawn: the prompt's logprobs are all that is wanted.
    pub(super) only_prompt: bool,
}

impl Wanted {
    /// Reads `sampling_params`, and the `num_samples` beside it, which counts where the parameters say nothing.
    ///
    /// Keys that are not known are left out, as the original leaves them out.
    pub(super) fn read(params: Option<&Map<String, Value>>, num_samples: Option<&Value>) -> Result<Self> {
        let none = Map::new();
        let given = Given(params.unwrap_or(&none));
        let samples = match given.get("num_samples") {
            Some(_) => given.integer("num_samples", 1)?,
            None => num_samples.map_or(Ok(None), |value| integer("num_samples", value, 1))?,
        };
        let samples = samples.unwrap_or(1);
        if samples > MOST_SAMPLES.into() {
            return Err(Error::invalid(format!("num_samples must be <= {MOST_SAMPLES}, got {samples}")));
        }
        let most = given.integer("max_tokens", 0)?.or(given.integer("max_new_tokens", 0)?);
        let top_k = given.get("top_k").filter(|value| value.as_i64() != Some(-1));
        let top_k = top_k.map_or(Ok(None), |value| match value.as_i64() {
            Some(number) if number < 1 => Err(Error::invalid(format!("top_k must be -1 or >= 1, got {number}"))),
            _ => integer("top_k", value, 1),
        })?;
        let temperature = given.number("temperature")?.unwrap_or(1.0);
        if temperature < 0.0 {
            return Err(Error::invalid(format!("temperature must be >= 0, got {temperature}")));
        }
        let top_p = given.number("top_p")?.unwrap_or(1.0);
        if !(top_p > 0.0 && top_p <= 1.0) {
            return Err(Error::invalid(format!("top_p must be in range (0, 1], got {top_p}")));
        }
        let repetition = given.number("repetition_penalty")?.unwrap_or(1.0);
        if repetition <= 0.0 {
            return Err(Error::invalid(format!("repetition_penalty must be > 0, got {repetition}")));
        }
        let params = SamplingParams {
            max_tokens: Some(narrow(most.unwrap_or(MAX_TOKENS.into())).max(1)),
            seed: given.seed()?,
            stop: given.stop()?,
            temperature: temperature as f32,
            top_k: top_k.map(narrow),
            top_p: top_p as f32,
        };
        Ok(Self {
            params,
            penalties: Penalties { repetition: repetition as f32, ..Penalties::default() },
            samples: narrow(samples),
            logprobs: given.integer("logprobs", 0)?.map(narrow),
            prompt_logprobs: given.integer("prompt_logprobs", 0)?.map_or(0, narrow),
            only_prompt: most == Some(0),
        })
    }
}

/// The parameters that are not null.
struct Given<'a>(&'a Map<String, Value>);

impl Given<'_> {
    fn get(&self, name: &str) -> Option<&Value> {
        self.0.get(name).filter(|value| !value.is_null())
    }

    fn integer(&self, name: &str, least: i64) -> Result<Option<u64>> {
        self.get(name).map_or(Ok(None), |value| integer(name, value, least))
    }

    fn number(&self, name: &str) -> Result<Option<f64>> {
        let Some(value) = self.get(name) else { return Ok(None) };
        let number = value.as_f64().filter(|number| number.is_finite());
        number.map(Some).ok_or_else(|| Error::invalid(format!("{name} must be a number, got `{value}`")))
    }

    /// Any whole number; negative ones are seeds as good as others.
    fn seed(&self) -> Result<Option<u64>> {
        let Some(value) = self.get("seed") else { return Ok(None) };
        let seed = value.as_u64().or_else(|| value.as_i64().map(i64::cast_unsigned));
        seed.map(Some).ok_or_else(|| Error::invalid(format!("seed must be an int or None, got `{value}`")))
    }

    fn stop(&self) -> Result<Stop> {
        let refusal = || {
            let value = self.get("stop").unwrap_or(&Value::Null);
            Error::invalid(format!("stop must be a text, a list of texts or a list of token ids, got `{value}`"))
        };
        match self.get("stop") {
            None => Ok(Stop::EndOfSequence),
            Some(Value::String(text)) if text.is_empty() => Ok(Stop::EndOfSequence),
            Some(Value::String(text)) => Ok(Stop::Strings(vec![text.clone()])),
            Some(Value::Array(list)) if list.is_empty() => Ok(Stop::EndOfSequence),
            Some(Value::Array(list)) if list.iter().all(Value::is_string) => {
                Ok(Stop::Strings(list.iter().filter_map(Value::as_str).map(str::to_owned).collect()))
            }
            Some(Value::Array(list)) => {
                let token = |value: &Value| value.as_u64().and_then(|id| u32::try_from(id).ok());
                list.iter().map(token).collect::<Option<_>>().map(Stop::Tokens).ok_or_else(refusal)
            }
            Some(_) => Err(refusal()),
        }
    }
}

fn integer(name: &str, value: &Value, least: i64) -> Result<Option<u64>> {
    match value {
        Value::Null => Ok(None),
        _ => match (value.as_u64(), value.as_i64()) {
            (Some(number), _) if i64::try_from(number).map_or(true, |number| number >= least) => Ok(Some(number)),
            (_, Some(number)) => Err(Error::invalid(format!("{name} must be >= {least}, got {number}"))),
            _ => Err(Error::invalid(format!("{name} must be an int or None, got `{value}`"))),
        },
    }
}

/// Numbers beyond any limit stay beyond it.
fn narrow(number: u64) -> u32 {
    u32::try_from(number).unwrap_or(u32::MAX)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn read(params: &Value, beside: Option<&Value>) -> Result<Wanted> {
        Wanted::read(params.as_object(), beside)
    }

    #[test]
    fn nothing_said_is_vllms_defaults() {
        let wanted = read(&Value::Null, None).unwrap();
        assert_eq!(wanted.params.max_tokens, Some(16));
        assert_eq!((wanted.params.temperature, wanted.params.top_p, wanted.params.top_k), (1.0, 1.0, None));
        assert_eq!((wanted.samples, wanted.logprobs, wanted.prompt_logprobs), (1, None, 0));
        assert_eq!((wanted.only_prompt, wanted.params.seed, wanted.penalties), (false, None, Penalties::default()));
        // What the client's dataclass sends.
        let all = json!({"max_tokens": null, "seed": null, "stop": null, "temperature": 1.0, "top_k": -1, "top_p": 1.0,
                         "repetition_penalty": 1.0, "logprobs": null, "prompt_logprobs": null, "num_samples": 1});
        assert_eq!(read(&all, Some(&json!(1))).unwrap(), wanted);
    }

    #[test]
    fn everything_said_arrives() {
        let params = json!({"max_new_tokens": 5, "seed": -1, "stop": ["a", "b"], "temperature": 0, "top_k": 3,
                            "top_p": 0.5, "repetition_penalty": 1.25, "logprobs": 2, "prompt_logprobs": 4, "num_samples": 7,
                            "unknown": 1});
        let wanted = read(&params, Some(&json!(3))).unwrap();
        assert_eq!((wanted.params.max_tokens, wanted.params.seed), (Some(5), Some(u64::MAX)));
        assert_eq!(wanted.params.stop, Stop::Strings(vec!["a".to_owned(), "b".to_owned()]));
        assert_eq!((wanted.params.temperature, wanted.params.top_p, wanted.params.top_k), (0.0, 0.5, Some(3)));
        assert_eq!((wanted.samples, wanted.logprobs, wanted.prompt_logprobs), (7, Some(2), 4));
        assert_eq!(wanted.penalties, Penalties { repetition: 1.25, ..Penalties::default() });
        assert_eq!(read(&json!({}), Some(&json!(3))).unwrap().samples, 3, "the number beside counts alone");
    }

    #[test]
    fn no_new_tokens_are_a_question_about_the_prompt() {
        let wanted = read(&json!({"max_tokens": 0, "prompt_logprobs": 1}), None).unwrap();
        assert!(wanted.only_prompt);
        assert_eq!(wanted.params.max_tokens, Some(1));
    }

    #[test]
    fn stops_are_texts_or_tokens() {
        let stop = |stop: Value| read(&json!({"stop": stop}), None).map(|wanted| wanted.params.stop);
        assert_eq!(stop(json!("x")).unwrap(), Stop::Strings(vec!["x".to_owned()]));
        assert_eq!(stop(json!([5, 7])).unwrap(), Stop::Tokens(vec![5, 7]));
        for nothing in [json!([]), json!(""), json!(null)] {
            assert_eq!(stop(nothing).unwrap(), Stop::EndOfSequence);
        }
        for wrong in [json!(5), json!(["a", 5]), json!([-1]), json!([1.5])] {
            assert!(stop(wrong).unwrap_err().message.starts_with("stop must be a text"));
        }
    }

    #[test]
    fn a_bad_value_is_told_in_the_originals_words() {
        for (params, text) in [
            (json!({"temperature": -1}), "temperature must be >= 0, got -1"),
            (json!({"temperature": "hot"}), "temperature must be a number, got `\"hot\"`"),
            (json!({"top_p": 0}), "top_p must be in range (0, 1], got 0"),
            (json!({"top_p": 1.5}), "top_p must be in range (0, 1], got 1.5"),
            (json!({"top_k": 0}), "top_k must be -1 or >= 1, got 0"),
            (json!({"top_k": 1.5}), "top_k must be an int or None, got `1.5`"),
            (json!({"repetition_penalty": 0}), "repetition_penalty must be > 0, got 0"),
            (json!({"max_tokens": -1}), "max_tokens must be >= 0, got -1"),
            (json!({"max_tokens": true}), "max_tokens must be an int or None, got `true`"),
            (json!({"logprobs": -1}), "logprobs must be >= 0, got -1"),
            (json!({"num_samples": 0}), "num_samples must be >= 1, got 0"),
            (json!({"num_samples": 2000}), "num_samples must be <= 1024, got 2000"),
            (json!({"seed": 1.5}), "seed must be an int or None, got `1.5`"),
        ] {
            assert_eq!(read(&params, None).unwrap_err().message, text);
        }
        assert_eq!(read(&json!({}), Some(&json!(0))).unwrap_err().message, "num_samples must be >= 1, got 0");
    }
}
