//! From conversations to tokenized examples and back: what `twinkle.template.Template` does.
//!
//! In this order: [`prepare`] puts a conversation into a standard form, the model's chat template renders it, `rounds`
//! finds what an assistant wrote, [`length`] cuts what is too long, and the labels are shifted by one, so that each
//! position has the token that it predicts.

mod extend;
mod length;
mod prepare;
mod rows;
mod spec;

use std::sync::Arc;

use minijinja::value::{Serde, Value as Jinja};
use serde_json::{Map, Value};
use tokenizers::Encoding;
use twinkle_core::data::TokenIds;
use twinkle_core::error::{Error, Result};
use twinkle_core::wire::twinkle::{Content, IGNORED_LABEL, Input, InputFeature, Message, Trajectory};

use self::length::{Labelled, fit};
use self::prepare::{Prepared, prepare};
use crate::limits::check_trajectory;
use crate::rounds::{Rounds, inside, touching};
use crate::template::{GENERATION_MARKS, Prompt};
use crate::tokenizer::ModelTokenizer;
use crate::tool_calls::{Calling, OfferedTools, split_tool_calls};

pub use extend::extend_feature;
pub(crate) use prepare::split_thinking;
pub use spec::{TemplateClass, TemplateSpec, Truncation};

/// Ends what an assistant thinks.
const THOUGHT: &str = "</think>";

/// What a conversation may hold from before, and an example has of its own; and what is known to be empty.
const REPLACED: [&str; 8] =
    ["labels", "attention_mask", "position_ids", "completion_mask", "length", "images", "videos", "audios"];

/// A model's tokenizer and chat template with the settings of a tenant; a cheap handle.
#[derive(Clone, Debug)]
pub struct Template {
    tokenizer: Arc<ModelTokenizer>,
    spec: Arc<TemplateSpec>,
}

impl Template {
    /// A template of this model.
    #[must_use]
    pub fn new(tokenizer: Arc<ModelTokenizer>, spec: TemplateSpec) -> Self {
        Self { tokenizer, spec: Arc::new(spec) }
    }

    /// Its settings.
    #[must_use]
    pub fn spec(&self) -> &TemplateSpec {
        &self.spec
    }

    /// The model's tokenizer.
    #[must_use]
    pub fn tokenizer(&self) -> &ModelTokenizer {
        &self.tokenizer
    }

    /// A conversation as examples: one, or none or several where it is too long and the settings say so. Blocking.
    ///
    /// With `add_generation_prompt` it is a prompt that an assistant is to continue, and nothing of it is learned.
    /// Otherwise every assistant's turn is learned, or those that `key_rounds` in its `user_data` names.
    ///
    /// [`twinkle_core::ErrorCode::InvalidArgument`] when the model's chat template refuses it, and when it is too long.
    pub fn encode(&self, trajectory: &Trajectory, add_generation_prompt: bool) -> Result<Vec<InputFeature>> {
        check_trajectory(trajectory)?;
        let prepared = prepare(trajectory, &self.spec)?;
        let labelled = match (self.spec.use_chat_template, add_generation_prompt) {
            (false, _) => self.plain(&prepared.messages, add_generation_prompt)?,
            (true, true) => self.prompt(trajectory, &prepared)?,
            (true, false) => self.example(trajectory, &prepared)?,
        };
        let extra = kept(trajectory, &prepared.messages)?;
        let feature = |(tokens, mut labels): Labelled| {
            if !labels.is_empty() {
                labels.rotate_left(1);
            }
            InputFeature { extra: extra.clone(), ..InputFeature::new(tokens, labels) }
        };
        Ok(fit(labelled, &self.spec)?.into_iter().map(feature).collect())
    }

    /// An input as examples; tokens are an example already.
    pub fn encode_input(&self, input: Input, add_generation_prompt: bool) -> Result<Vec<InputFeature>> {
        match input {
            Input::Feature(feature) => Ok(vec![feature]),
            Input::Trajectory(trajectory) => self.encode(&trajectory, add_generation_prompt),
        }
    }

    /// A conversation as text. Blocking.
    pub fn render(&self, trajectory: &Trajectory, add_generation_prompt: bool) -> Result<String> {
        check_trajectory(trajectory)?;
        let prepared = prepare(trajectory, &self.spec)?;
        let messages = for_jinja(&prepared.messages);
        let prompt = self.asked(trajectory, &messages, add_generation_prompt);
        self.tokenizer.chat_template()?.render_prompt(&prompt)
    }

    /// The text of tokens. Ids beyond the tokenizer's vocabulary have no text.
    pub fn decode(&self, tokens: &[u32], skip_special_tokens: bool) -> Result<String> {
        self.tokenizer.decode(tokens, skip_special_tokens)
    }

    /// A prompt and the tokens sampled after it as one example: [`extend_feature`], and the turn that the tokens say is
    /// put behind the prompt's `messages` where it has some, with the tools it calls apart from its text.
    pub fn extend(&self, prompt: &InputFeature, tokens: &[u32]) -> Result<InputFeature> {
        let mut feature = extend_feature(prompt, tokens)?;
        let tools = feature.extra.get("tools").and_then(Value::as_array).map_or(&[][..], Vec::as_slice);
        let calling = Calling { format: self.tokenizer.call_format(), tools: Arc::new(OfferedTools::new(tools)) };
        if let Some(Value::Array(messages)) = feature.extra.get_mut("messages") {
            let message = serde_json::to_value(self.sampled_turn(tokens, &calling)?);
            messages.push(message.map_err(|error| Error::internal(format!("a turn is not JSON: {error}")))?);
        }
        Ok(feature)
    }

    fn sampled_turn(&self, tokens: &[u32], calling: &Calling) -> Result<Message> {
        let text = self.tokenizer.decode_spoken(tokens)?;
        // What looks like a call inside a thought is none.
        let thought = text.find(THOUGHT).map_or(0, |at| at + THOUGHT.len());
        let (thought, speech) = text.split_at(thought);
        let (calls, said) = split_tool_calls(speech, calling);
        if calls.is_empty() {
            return Ok(Message::new("assistant", text));
        }
        Ok(Message { tool_calls: Some(calls), ..Message::new("assistant", [thought, &said].concat()) })
    }

    /// One user's text as it is.
    fn plain(&self, messages: &[Message], is_prompt: bool) -> Result<Labelled> {
        let [Message { role, content: Some(Content::Text(text)), .. }] = messages else {
            return Err(Error::invalid("without a chat template an input is exactly one message with a text"));
        };
        if role != "user" {
            return Err(Error::invalid(format!(
                "without a chat template an input is one message of `user`, not of `{role}`"
            )));
        }
        let tokens = self.tokenizer.encode_with_specials(text)?;
        let label = |token: &u32| if is_prompt { IGNORED_LABEL } else { i64::from(*token) };
        let labels = tokens.iter().map(label).collect();
        Ok((tokens, labels))
    }

    fn prompt(&self, trajectory: &Trajectory, prepared: &Prepared) -> Result<Labelled> {
        let messages = for_jinja(&prepared.messages);
        let text = self.tokenizer.chat_template()?.render_prompt(&self.asked(trajectory, &messages, true))?;
        let tokens = self.tokenizer.encode(&text)?;
        let labels = vec![IGNORED_LABEL; tokens.len()];
        Ok((tokens, labels))
    }

    fn example(&self, trajectory: &Trajectory, prepared: &Prepared) -> Result<Labelled> {
        let messages = for_jinja(&prepared.messages);
        let template = self.tokenizer.chat_template()?;
        let all = self.asked(trajectory, &messages, false);
        let wanted = trajectory.key_rounds();
        if wanted.is_none() && template.marks_generation() {
            refuse_marks(&prepared.messages)?;
            let marked = template.render_marked(&all)?;
            let encoding = self.tokenizer.encoding(&marked.text)?;
            let labels = touching(&encoding, &marked.generated);
            return Ok((tokens_of(&encoding), labels));
        }
        let wanted = wanted.map(|rounds| key_messages(rounds, prepared)).transpose()?;
        let full = template.render_prompt(&all)?;
        let encoding = self.tokenizer.encoding(&full)?;
        let render = |count: usize, add_generation_prompt: bool| {
            let first = messages.get(..count).unwrap_or(&messages);
            template.render_prompt(&self.asked(trajectory, first, add_generation_prompt))
        };
        let token_ends = |text: &str| self.tokenizer.token_ends(text);
        let rounds = Rounds { messages: &prepared.messages, full: &full, render: &render, token_ends: &token_ends };
        let written = rounds.written(|number| wanted.as_ref().is_none_or(|wanted| wanted.contains(&number)))?;
        Ok((tokens_of(&encoding), inside(&encoding, &written)))
    }

    fn asked<'a>(&self, trajectory: &Trajectory, messages: &'a [Jinja], add_generation_prompt: bool) -> Prompt<'a> {
        let tools = trajectory.tools.as_ref().filter(|tools| !tools.is_empty());
        Prompt {
            messages,
            tools: tools.map_or_else(|| Jinja::from(()), |tools| Jinja::from(Serde(tools))),
            add_generation_prompt,
            enable_thinking: Some(self.spec.enable_thinking),
            allows_tool_tail: self.spec.class == TemplateClass::Qwen3_5,
        }
    }
}

/// The turns to learn, by their numbers among the prepared ones.
fn key_messages(rounds: impl IntoIterator<Item = usize>, prepared: &Prepared) -> Result<Vec<usize>> {
    let numbered = |round: usize| {
        let number = round.saturating_add(prepared.added);
        match prepared.messages.get(number) {
            Some(message) if message.role == "assistant" => Ok(number),
            Some(message) => {
                Err(Error::invalid(format!("`key_rounds` names message {round}, which is of `{}`", message.role)))
            }
            None => Err(Error::invalid(format!("`key_rounds` names message {round}, which is not there"))),
        }
    };
    rounds.into_iter().map(numbered).collect()
}

/// What an example keeps of its conversation.
fn kept(trajectory: &Trajectory, messages: &[Message]) -> Result<Map<String, Value>> {
    let not_json = |error: serde_json::Error| Error::internal(format!("a conversation is not JSON: {error}"));
    let mut extra = Map::new();
    extra.insert("messages".to_owned(), serde_json::to_value(messages).map_err(not_json)?);
    extra.extend(trajectory.tools.as_ref().map(|tools| ("tools".to_owned(), Value::Array(tools.clone()))));
    extra.extend(trajectory.user_data.as_ref().map(|data| ("user_data".to_owned(), data.clone())));
    let others = trajectory.extra.iter().filter(|(name, _)| !REPLACED.contains(&name.as_str()));
    extra.extend(others.map(|(name, value)| (name.clone(), value.clone())));
    Ok(extra)
}

fn for_jinja(messages: &[Message]) -> Vec<Jinja> {
    messages.iter().map(|message| Jinja::from(Serde(message))).collect()
}

fn tokens_of(encoding: &Encoding) -> TokenIds {
    encoding.get_ids().to_vec()
}

/// The marks around what a template generates must be in no text.
fn refuse_marks(messages: &[Message]) -> Result<()> {
    let holds = |text: &String| text.contains(GENERATION_MARKS);
    let is_marked = |message: &Message| {
        let content = matches!(&message.content, Some(Content::Text(text)) if holds(text));
        content || message.reasoning_content.as_ref().is_some_and(holds)
    };
    match messages.iter().position(is_marked) {
        Some(number) => Err(Error::invalid(format!("message {number} holds U+FDD0 or U+FDD1, which are no letters"))),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use serde_json::json;

    use super::*;

    fn template(spec: TemplateSpec) -> Template {
        let fixtures = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures");
        let folder = tempfile::tempdir().unwrap();
        for name in ["tokenizer.json", "tokenizer_config.json"] {
            std::fs::copy(fixtures.join(name), folder.path().join(name)).unwrap();
        }
        std::fs::copy(fixtures.join("chat/qwen2_5.jinja"), folder.path().join("chat_template.jinja")).unwrap();
        Template::new(Arc::new(ModelTokenizer::load(folder.path()).unwrap()), spec)
    }

    fn trajectory(value: Value) -> Trajectory {
        serde_json::from_value(value).unwrap()
    }

    /// The text that the labels of an example say.
    fn learned(template: &Template, feature: &InputFeature) -> String {
        let labels = feature.labels.iter().flatten().filter_map(|label| u32::try_from(*label).ok());
        template.decode(&labels.collect::<Vec<_>>(), false).unwrap()
    }

    #[test]
    fn labels_are_shifted_once_and_the_last_is_the_firsts() {
        let template = template(TemplateSpec::default());
        let conversation =
            json!({"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]});
        let feature = template.encode(&trajectory(conversation), false).unwrap().remove(0);
        let labels = feature.labels.clone().unwrap();
        assert_eq!(labels.last(), Some(&IGNORED_LABEL));
        for (place, label) in labels.iter().enumerate().filter(|(_, label)| **label != IGNORED_LABEL) {
            assert_eq!(*label, i64::from(feature.input_ids[place + 1]));
        }
        assert_eq!(learned(&template, &feature), "b<|im_end|>\n");
    }

    #[test]
    fn key_rounds_are_numbers_of_the_clients_messages() {
        let spec = TemplateSpec { default_system: Some("s".to_owned()), ..TemplateSpec::default() };
        let template = template(spec);
        let conversation = |rounds: &str| {
            trajectory(json!({
                "messages": [
                    {"role": "user", "content": "a"}, {"role": "assistant", "content": "b"},
                    {"role": "user", "content": "c"}, {"role": "assistant", "content": "d"},
                ],
                "user_data": [["key_rounds", rounds]],
            }))
        };
        let of = |rounds: &str| {
            let mut features = template.encode(&conversation(rounds), false)?;
            Ok::<_, Error>(learned(&template, &features.remove(0)))
        };
        assert_eq!(of("[3]").unwrap(), "d<|im_end|>\n");
        assert_eq!(of("[1, 3]").unwrap(), "b<|im_end|>\nd<|im_end|>\n");
        assert_eq!(of("[2]").unwrap_err().message, "`key_rounds` names message 2, which is of `user`");
        assert_eq!(of("[9]").unwrap_err().message, "`key_rounds` names message 9, which is not there");
    }

    #[test]
    fn an_example_keeps_what_its_conversation_had() {
        let template = template(TemplateSpec::default());
        let conversation = json!({
            "messages": [{"role": "user", "content": "a"}], "question": null, "labels": [1], "images": [], "id": 7,
        });
        let feature = template.encode(&trajectory(conversation), true).unwrap().remove(0);
        let names: Vec<&str> = feature.extra.keys().map(String::as_str).collect();
        assert_eq!(names, ["messages", "question", "id"]);
        let written = serde_json::to_string(&feature).unwrap();
        assert_eq!(serde_json::from_str::<InputFeature>(&written).unwrap(), feature);
    }

    #[test]
    fn text_without_a_chat_template_is_all_learned_unless_it_is_a_prompt() {
        let template = template(TemplateSpec { use_chat_template: false, ..TemplateSpec::default() });
        let text = trajectory(json!({"messages": [{"role": "user", "content": "Who are you?"}]}));
        let feature = template.encode(&text, false).unwrap().remove(0);
        assert_eq!(feature.input_ids, template.tokenizer().encode_with_specials("Who are you?").unwrap());
        assert_eq!(feature.learned(), feature.input_ids.len());
        assert_eq!(template.encode(&text, true).unwrap().remove(0).learned(), 0);
        let answered = json!({"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]});
        assert!(template.encode(&trajectory(answered), false).is_err());
    }

    #[test]
    fn what_was_sampled_becomes_a_turn_with_its_calls() {
        let template = template(TemplateSpec::default());
        let question = trajectory(json!({"messages": [{"role": "user", "content": "a"}]}));
        let prompt = template.encode(&question, true).unwrap().remove(0);
        let text = "So:\n<tool_call>\n{\"name\": \"f\", \"arguments\": {\"x\": 1}}\n</tool_call><|im_end|>";
        let tokens = template.tokenizer().encode(text).unwrap();
        let feature = template.extend(&prompt, &tokens).unwrap();
        assert_eq!(feature.learned(), tokens.len());
        let said = &feature.extra["messages"][1];
        assert_eq!((&said["role"], &said["content"]), (&json!("assistant"), &json!("So:")));
        assert_eq!(said["tool_calls"][0]["function"], json!({"name": "f", "arguments": {"x": 1}}));
        // The next turn is encoded from what came back.
        let mut messages = feature.extra["messages"].clone();
        messages.as_array_mut().unwrap().push(json!({"role": "tool", "content": "2"}));
        let next = template.render(&trajectory(json!({"messages": messages})), true).unwrap();
        assert!(next.contains("{\"name\": \"f\", \"arguments\": {\"x\": 1}}"), "{next}");
    }

    #[test]
    fn a_row_with_several_conversations_has_each_in_its_place() {
        let template =
            template(TemplateSpec { max_length: Some(120), truncation: Truncation::Delete, ..TemplateSpec::default() });
        let turns = |text: &str| json!({"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": text}]});
        let row = |positive: &str| {
            let row = json!({"positive": turns(positive), "id": 3, "negative": turns("c")});
            template.encode_row(row.as_object().unwrap().clone(), false).unwrap()
        };
        let [pair] = &row("b")[..] else { panic!("not one row") };
        assert_eq!(pair.keys().collect::<Vec<_>>(), ["positive", "id", "negative"]);
        assert!(pair["negative"]["input_ids"].is_array() && pair["id"] == 3);
        assert!(row(&"long ".repeat(90)).is_empty(), "a pair without one half is no pair");
        assert!(template.encode_row(Map::new(), false).is_err());
    }
}
