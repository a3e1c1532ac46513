//! How tokens are drawn, from the fields that chats and completions share.

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::Deserialize;
use twinkle_core::call::{Penalties, SampleExtras, SampleRequest, SamplingParams, SamplingSource, Stop};
use twinkle_core::data::TokenIds;
use twinkle_core::error::{Error, Result};

/// Most choices for one prompt.
const MOST_CHOICES: u32 = 128;

/// The fields of a request that say how tokens are drawn, without defaults.
#[derive(Clone, Debug, Default, Deserialize, JsonSchema)]
pub(super) struct Settings {
    /// How many choices.
    pub(super) n: Option<u32>,
    /// Most new tokens of a choice; `None`: until the context is full.
    pub(super) max_tokens: Option<u32>,
    /// 0 is greedy.
    pub(super) temperature: Option<f32>,
    /// The smallest set of tokens whose probability reaches this.
    pub(super) top_p: Option<f32>,
    /// The most likely tokens; -1 and 0 are all of them.
    pub(super) top_k: Option<i64>,
    /// The same seed draws the same tokens.
    pub(super) seed: Option<i64>,
    /// Texts that end a choice.
    pub(super) stop: Option<StopTexts>,
    /// Whether the end of the sequence ends no choice.
    pub(super) ignore_eos: Option<bool>,
    /// Taken from a token's logit for every time it was drawn.
    pub(super) frequency_penalty: Option<f32>,
    /// Taken once from the logit of every token that was drawn.
    pub(super) presence_penalty: Option<f32>,
    /// Logits of tokens that were there before are divided by this, or multiplied where they are below 0.
    pub(super) repetition_penalty: Option<f32>,
    /// Added to the logits of tokens, by their ids as text.
    #[serde(default)]
    pub(super) logit_bias: BTreeMap<String, f32>,
    /// How many of the likeliest tokens are wanted beside each new one: a field of its own in each protocol.
    #[serde(skip)]
    pub(super) top_logprobs: u32,
}

/// Texts that end a choice: one or several.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(untagged, expecting = "a text or a list of texts is expected")]
pub(super) enum StopTexts {
    /// One.
    One(String),
    /// Several.
    Several(Vec<String>),
}

impl Settings {
    /// The names of the fields that are read from a request.
    pub(super) const NAMES: [&str; 12] = [
        "n",
        "max_tokens",
        "temperature",
        "top_p",
        "top_k",
        "seed",
        "stop",
        "ignore_eos",
        "frequency_penalty",
        "presence_penalty",
        "repetition_penalty",
        "logit_bias",
    ];

    /// The texts that end a choice; they are no part of it.
    pub(super) fn stop_texts(&self) -> Vec<String> {
        match &self.stop {
            None => Vec::new(),
            Some(StopTexts::One(text)) => vec![text.clone()],
            Some(StopTexts::Several(texts)) => texts.clone(),
        }
    }

    /// One more text that ends a choice.
    pub(super) fn stop_also_at(&mut self, text: &str) {
        let mut texts = self.stop_texts();
        texts.push(text.to_owned());
        self.stop = Some(StopTexts::Several(texts));
    }

    /// How many choices there are for a prompt.
    pub(super) fn choices(&self) -> Result<u32> {
        match self.n.unwrap_or(1) {
            n if (1..=MOST_CHOICES).contains(&n) => Ok(n),
            n => Err(Error::invalid(format!("`n` is {n}, it must be from 1 to {MOST_CHOICES}"))),
        }
    }

    /// The sampling request for a prompt. What the sampler can check, it checks.
    pub(super) fn request(&self, source: SamplingSource, prompt: TokenIds) -> Result<SampleRequest> {
        let params = SamplingParams {
            max_tokens: self.max_tokens,
            seed: self.seed.map(i64::cast_unsigned),
            stop: self.stop()?,
            temperature: self.temperature.unwrap_or(1.0),
            top_k: self.top_k()?,
            top_p: self.top_p.unwrap_or(1.0),
        };
        let none = Penalties::default();
        Ok(SampleRequest {
            num_samples: self.choices()?,
            extras: SampleExtras { topk_sample_logprobs: self.top_logprobs, ..SampleExtras::default() },
            penalties: Penalties {
                repetition: self.repetition_penalty.unwrap_or(none.repetition),
                frequency: self.frequency_penalty.unwrap_or(none.frequency),
                presence: self.presence_penalty.unwrap_or(none.presence),
            },
            logit_bias: self.logit_bias()?,
            ..SampleRequest::new(source, prompt, params)
        })
    }

    fn stop(&self) -> Result<Stop> {
        let texts = self.stop_texts();
        match (texts.is_empty(), self.ignore_eos.unwrap_or(false)) {
            (true, false) => Ok(Stop::EndOfSequence),
            (true, true) => Ok(Stop::Never),
            (false, false) => Ok(Stop::Strings(texts)),
            (false, true) => Err(Error::unsupported("`ignore_eos` together with `stop` is not supported")),
        }
    }

    fn logit_bias(&self) -> Result<Vec<(u32, f32)>> {
        let by_token = |(token, bias): (&String, &f32)| match token.parse() {
            Ok(token) => Ok((token, *bias)),
            Err(_) => Err(Error::invalid(format!("`logit_bias` has the key `{token}`, which is no token id"))),
        };
        self.logit_bias.iter().map(by_token).collect()
    }

    fn top_k(&self) -> Result<Option<u32>> {
        match self.top_k.unwrap_or(-1) {
            -1 | 0 => Ok(None),
            k => u32::try_from(k)
                .map(Some)
                .map_err(|_| Error::invalid(format!("`top_k` is {k}, it must be a count, or -1 for all tokens"))),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request(settings: &Settings) -> Result<SampleRequest> {
        settings.request(SamplingSource::Base, vec![1])
    }

    #[test]
    fn every_field_that_is_read_is_named() {
        let schema = schemars::schema_for!(Settings).to_value();
        let fields: Vec<&str> = schema["properties"].as_object().unwrap().keys().map(String::as_str).collect();
        assert_eq!(fields, Settings::NAMES);
    }

    #[test]
    fn nothing_said_is_the_protocols_default() {
        let request = request(&Settings::default()).unwrap();
        let params = &request.params;
        assert_eq!((params.temperature, params.top_p, params.top_k, params.seed), (1.0, 1.0, None, None));
        assert_eq!((request.num_samples, params.max_tokens, &params.stop), (1, None, &Stop::EndOfSequence));
        assert_eq!(request.penalties, Penalties::default());
    }

    #[test]
    fn one_stop_text_or_several_and_an_empty_list_is_none() {
        let stop = |stop| request(&Settings { stop: Some(stop), ..Settings::default() }).unwrap().params.stop;
        assert_eq!(stop(StopTexts::One("a".to_owned())), Stop::Strings(vec!["a".to_owned()]));
        assert_eq!(stop(StopTexts::Several(Vec::new())), Stop::EndOfSequence);
        let endless = Settings { ignore_eos: Some(true), ..Settings::default() };
        assert_eq!(request(&endless).unwrap().params.stop, Stop::Never);
        assert!(request(&Settings { stop: Some(StopTexts::One("a".to_owned())), ..endless }).is_err());
    }

    #[test]
    fn counts_outside_their_range_are_refused_by_name() {
        for n in [0, MOST_CHOICES + 1] {
            let error = request(&Settings { n: Some(n), ..Settings::default() }).unwrap_err();
            assert!(error.message.starts_with("`n` is "), "{error}");
        }
        assert!(request(&Settings { top_k: Some(-2), ..Settings::default() }).unwrap_err().message.contains("`top_k`"));
        assert_eq!(request(&Settings { top_k: Some(3), ..Settings::default() }).unwrap().params.top_k, Some(3));
    }

    #[test]
    fn biases_are_by_token_id() {
        let bias = |key: &str| {
            request(&Settings { logit_bias: BTreeMap::from([(key.to_owned(), -100.0)]), ..Settings::default() })
        };
        assert_eq!(bias("5").unwrap().logit_bias, [(5, -100.0)]);
        assert!(bias("the").unwrap_err().message.starts_with("`logit_bias` has the key `the`"));
    }

    #[test]
    fn another_text_may_end_a_choice() {
        let mut settings = Settings { stop: Some(StopTexts::One("a".to_owned())), ..Settings::default() };
        settings.stop_also_at("b");
        assert_eq!(request(&settings).unwrap().params.stop, Stop::Strings(vec!["a".to_owned(), "b".to_owned()]));
    }

    #[test]
    fn a_negative_seed_is_a_seed() {
        let seed = |seed| request(&Settings { seed: Some(seed), ..Settings::default() }).unwrap().params.seed;
        assert_eq!(seed(-1), Some(u64::MAX));
        assert_ne!(seed(-2), seed(2));
    }
}
