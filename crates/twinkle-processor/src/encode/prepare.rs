//! What is done to a conversation before the model's chat template sees it.

use serde_json::{Map, Value};
use twinkle_core::error::{Error, Result};
use twinkle_core::wire::twinkle::{Content, Message, Trajectory};

use super::spec::TemplateSpec;

/// Keys of a conversation or a turn that hold what is not text.
const MEDIA: [&str; 3] = ["images", "videos", "audios"];

/// A conversation that is ready for the chat template.
pub(super) struct Prepared {
    /// The turns, with thinking apart from speech.
    pub(super) messages: Vec<Message>,
    /// How many turns were put before those of the client.
    pub(super) added: usize,
}

/// Puts the default system turn first, takes thinking out of assistants' texts, and makes texts of blocks.
pub(super) fn prepare(trajectory: &Trajectory, spec: &TemplateSpec) -> Result<Prepared> {
    refuse_media(&trajectory.extra)?;
    let mut messages = Vec::with_capacity(trajectory.messages.len() + 1);
    let begins_with_user = trajectory.messages.first().is_some_and(|message| message.role == "user");
    if let Some(system) = spec.default_system.as_deref().filter(|_| spec.use_chat_template && begins_with_user) {
        messages.push(Message::new("system", system));
    }
    let added = messages.len();
    for message in &trajectory.messages {
        refuse_media(&message.extra)?;
        messages.push(standard(message)?);
    }
    Ok(Prepared { messages, added })
}

fn standard(message: &Message) -> Result<Message> {
    let mut message = message.clone();
    message.extra.retain(|name, value| !(MEDIA.contains(&name.as_str()) && is_nothing(value)));
    if let Some(Content::Blocks(blocks)) = &message.content {
        message.content = Some(Content::Text(text_of(blocks)?));
    }
    if message.role == "assistant" {
        separate_thinking(&mut message);
    }
    for call in message.tool_calls.iter_mut().flatten() {
        call.function.arguments = decoded(&call.function.arguments)?;
    }
    if message.tool_calls.as_ref().is_some_and(Vec::is_empty) {
        message.tool_calls = None;
    }
    Ok(message)
}

/// Moves what stands before the first `</think>` into `reasoning_content`, which every assistant's turn has afterwards.
fn separate_thinking(message: &mut Message) {
    if message.reasoning_content.is_none()
        && let Some(Content::Text(text)) = &message.content
        && let Some((thought, speech)) = split_thinking(text)
    {
        message.reasoning_content = Some(thought.to_owned());
        message.content = Some(Content::Text(speech.to_owned()));
    }
    message.reasoning_content.get_or_insert_default();
}

/// What stands inside `<think>` and what follows it. The opening tag may be missing: a prompt may have ended with it.
pub(crate) fn split_thinking(text: &str) -> Option<(&str, &str)> {
    let (thought, speech) = text.split_once("</think>")?;
    let thought = thought.trim_end_matches('\n');
    let thought = thought.rsplit_once("<think>").map_or(thought, |(_, inside)| inside);
    Some((thought.trim_start_matches('\n'), speech.trim_start_matches('\n')))
}

/// The texts of blocks one after the other.
fn text_of(blocks: &[Value]) -> Result<String> {
    let mut text = String::new();
    for block in blocks {
        match block.get("type").and_then(Value::as_str) {
            Some("text") | None => text.push_str(block.get("text").and_then(Value::as_str).unwrap_or_default()),
            Some(other) => {
                return Err(Error::unsupported(format!(
                    "a content block is of type `{other}`: this server reads text alone"
                )));
            }
        }
    }
    Ok(text)
}

/// Arguments as an object: chat templates list them by name.
fn decoded(arguments: &Value) -> Result<Value> {
    match arguments {
        Value::Object(_) => Ok(arguments.clone()),
        Value::String(text) if text.trim().is_empty() => Ok(Value::Object(Map::new())),
        Value::String(text) => serde_json::from_str(text)
            .map_err(|error| Error::invalid(format!("the arguments of a tool call are not JSON: {error}"))),
        _ => Ok(Value::Object(Map::new())),
    }
}

fn refuse_media(fields: &Map<String, Value>) -> Result<()> {
    match MEDIA.iter().find(|name| fields.get(**name).is_some_and(|value| !is_nothing(value))) {
        Some(name) => Err(Error::unsupported(format!("a conversation has `{name}`: this server reads text alone"))),
        None => Ok(()),
    }
}

fn is_nothing(value: &Value) -> bool {
    value.is_null() || value.as_array().is_some_and(|list| list.iter().all(Value::is_null))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn prepared(messages: &Value, spec: &TemplateSpec) -> Result<Vec<Message>> {
        let trajectory: Trajectory = serde_json::from_value(json!({"messages": messages})).unwrap();
        prepare(&trajectory, spec).map(|prepared| prepared.messages)
    }

    fn assistant(content: &str) -> (String, String) {
        let messages = prepared(&json!([{"role": "assistant", "content": content}]), &TemplateSpec::default()).unwrap();
        let Some(Content::Text(content)) = messages[0].content.clone() else { panic!("no text") };
        (messages[0].reasoning_content.clone().unwrap(), content)
    }

    #[test]
    fn thinking_is_taken_out_of_what_an_assistant_says() {
        let of = |reasoning: &str, content: &str| (reasoning.to_owned(), content.to_owned());
        assert_eq!(assistant("<think>\nhm\n</think>\n\nyes"), of("hm", "yes"));
        assert_eq!(assistant("hm\n</think>\nyes"), of("hm", "yes"));
        assert_eq!(assistant("yes"), of("", "yes"));
        assert_eq!(assistant("<think>a</think>b</think>c"), of("a", "b</think>c"));
        assert_eq!(assistant("<think>\n\n</think>\n\n"), of("", ""));
    }

    #[test]
    fn thinking_that_is_apart_already_stays() {
        let given = json!([{"role": "assistant", "content": "a</think>b", "reasoning_content": "r"}]);
        let messages = prepared(&given, &TemplateSpec::default()).unwrap();
        assert_eq!(messages[0].reasoning_content.as_deref(), Some("r"));
        assert_eq!(messages[0].content, Some(Content::Text("a</think>b".to_owned())));
        let user = prepared(&json!([{"role": "user", "content": "a</think>b"}]), &TemplateSpec::default()).unwrap();
        assert_eq!(user[0], Message::new("user", "a</think>b"));
    }

    #[test]
    fn the_default_system_turn_goes_before_a_users_only() {
        let spec = TemplateSpec { default_system: Some("s".to_owned()), ..TemplateSpec::default() };
        let roles = |messages: Value| -> Vec<String> {
            prepared(&messages, &spec).unwrap().into_iter().map(|message| message.role).collect()
        };
        assert_eq!(roles(json!([{"role": "user", "content": "a"}])), ["system", "user"]);
        assert_eq!(roles(json!([{"role": "system", "content": "b"}])), ["system"]);
        assert!(roles(json!([])).is_empty());
    }

    #[test]
    fn blocks_of_text_become_one_text_and_others_are_refused() {
        let blocks = json!([{"role": "user", "content": [
            {"type": "text", "text": "a", "image": null}, {"type": "text", "text": "b"}]}]);
        assert_eq!(prepared(&blocks, &TemplateSpec::default()).unwrap()[0], Message::new("user", "ab"));
        for image in [
            json!([{"role": "user", "content": [{"type": "image", "url": "x"}]}]),
            json!([{"role": "user", "content": "a", "images": ["x"]}]),
        ] {
            assert!(prepared(&image, &TemplateSpec::default()).is_err());
        }
        let none = json!([{"role": "user", "content": "a", "images": [null], "videos": null}]);
        assert_eq!(prepared(&none, &TemplateSpec::default()).unwrap()[0], Message::new("user", "a"));
    }

    #[test]
    fn arguments_become_objects() {
        let call = |arguments: Value| json!([{"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": arguments}}]}]);
        let arguments = |given: Value| {
            let messages = prepared(&call(given), &TemplateSpec::default())?;
            Ok::<_, Error>(messages[0].tool_calls.as_ref().unwrap()[0].function.arguments.clone())
        };
        assert_eq!(arguments(json!("{\"b\": 1, \"a\": 2}")).unwrap().to_string(), r#"{"b":1,"a":2}"#);
        assert_eq!(arguments(json!(" ")).unwrap(), json!({}));
        assert_eq!(arguments(json!(null)).unwrap(), json!({}));
        assert!(arguments(json!("{")).unwrap_err().message.starts_with("the arguments of a tool call are not JSON"));
    }
}
