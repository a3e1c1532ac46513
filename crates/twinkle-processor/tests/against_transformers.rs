//! The same conversations through the same templates and tokenizer as Hugging Face transformers; `fixtures/generate.py`
//! wrote the answers.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde::Deserialize;
use serde_json::{Value, json};
use tempfile::TempDir;
use twinkle_core::call::ChatMessage;
use twinkle_core::wire::twinkle::{InputFeature, Trajectory};
use twinkle_processor::{Calling, ModelTokenizer, OfferedTools, Template, TemplateSpec, parse_assistant};

#[derive(Deserialize)]
struct Case {
    messages: Vec<ChatMessage>,
    add_generation_prompt: bool,
    text: String,
    tokens: Vec<u32>,
}

fn fixtures() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures")
}

/// What `fixtures/chat.py` wrote.
#[derive(Deserialize)]
struct Chat {
    conversations: BTreeMap<String, Trajectory>,
    /// By template and conversation.
    cases: BTreeMap<String, BTreeMap<String, Vec<ChatCase>>>,
}

#[derive(Deserialize)]
struct ChatCase {
    thinks: bool,
    /// With a generation prompt.
    prompt: Option<String>,
    text: Option<String>,
    learned: Option<Vec<String>>,
    /// Per token its id where it is learned, else `-`.
    labels: Option<String>,
    error: Option<String>,
}

fn chat() -> Chat {
    serde_json::from_slice(&std::fs::read(fixtures().join("chat.json")).unwrap()).unwrap()
}

/// A model folder with the small tokenizer and one of the templates.
fn model_with(template: &str) -> (TempDir, ModelTokenizer) {
    let folder = tempfile::tempdir().unwrap();
    for name in ["tokenizer.json", "tokenizer_config.json"] {
        std::fs::copy(fixtures().join(name), folder.path().join(name)).unwrap();
    }
    let source = fixtures().join(format!("templates/{template}.jinja"));
    std::fs::copy(source, folder.path().join("chat_template.jinja")).unwrap();
    let tokenizer = ModelTokenizer::load(folder.path()).unwrap();
    (folder, tokenizer)
}

fn conversation(turns: &[(&str, &str)]) -> Vec<ChatMessage> {
    turns
        .iter()
        .map(|(role, content)| ChatMessage { role: (*role).to_owned(), content: (*content).to_owned() })
        .collect()
}

/// The text of each run of tokens that the mask marks.
fn learned(tokenizer: &ModelTokenizer, messages: &[ChatMessage]) -> Vec<String> {
    let encoded = tokenizer.encode_chat(messages, false).unwrap();
    assert_eq!(encoded.tokens.len(), encoded.assistant_mask.len());
    let mut runs: Vec<Vec<u32>> = Vec::new();
    let mut inside = false;
    for (token, bit) in encoded.tokens.iter().zip(&encoded.assistant_mask) {
        match (*bit == 1, inside) {
            (true, true) => runs.last_mut().unwrap().push(*token),
            (true, false) => runs.push(vec![*token]),
            (false, _) => {}
        }
        inside = *bit == 1;
    }
    runs.iter().map(|run| tokenizer.decode(run, false).unwrap()).collect()
}

#[test]
fn text_and_tokens_are_those_of_transformers() {
    let file = std::fs::read(fixtures().join("expected.json")).unwrap();
    let expected: BTreeMap<String, BTreeMap<String, Case>> = serde_json::from_slice(&file).unwrap();
    assert!(expected.len() >= 4);
    for (template, cases) in expected {
        let (_folder, tokenizer) = model_with(&template);
        for (name, case) in cases {
            let text = tokenizer.render(&case.messages, case.add_generation_prompt).unwrap();
            assert_eq!(text, case.text, "{template}: {name}");
            assert_eq!(tokenizer.encode(&text).unwrap(), case.tokens, "{template}: {name}");
        }
    }
}

#[test]
fn what_is_learned_is_each_answer_with_its_end_of_turn() {
    let (_folder, tokenizer) = model_with("smollm2");
    let messages = conversation(&[
        ("user", "Hello"),
        ("assistant", "Hello! How are you? 🐦"),
        ("user", "Fine. Hello! How are you?"),
        ("assistant", "你好"),
    ]);
    assert_eq!(learned(&tokenizer, &messages), ["Hello! How are you? 🐦<|im_end|>", "你好<|im_end|>"]);
}

#[test]
fn an_answer_that_holds_a_special_token_is_learned_to_its_end() {
    let (_folder, tokenizer) = model_with("smollm2");
    let messages = conversation(&[("user", "a"), ("assistant", "no <|im_end|> yes")]);
    assert_eq!(learned(&tokenizer, &messages), ["no <|im_end|> yes<|im_end|>"]);
}

#[test]
fn a_template_that_puts_a_think_block_before_the_last_answer_has_it_learned() {
    let (_folder, tokenizer) = model_with("qwen3_style");
    let messages = conversation(&[("user", "a"), ("assistant", "b"), ("user", "c"), ("assistant", "d")]);
    assert_eq!(learned(&tokenizer, &messages), ["b<|im_end|>", "<think>\n\n</think>\n\nd<|im_end|>"]);
}

#[test]
fn a_template_that_drops_text_is_answered_with_an_error_and_never_with_a_wrong_mask() {
    let (_folder, tokenizer) = model_with("qwen3_style");
    let thinking = "<think>\nhm\n</think>\n\nb";
    let messages = conversation(&[("user", "a"), ("assistant", thinking), ("user", "c"), ("assistant", "d")]);
    let error = tokenizer.encode_chat(&messages, false).unwrap_err();
    let expected = "the chat template changes its text when more turns follow";
    assert_eq!(error.message, format!("it cannot be told which tokens message 1 wrote: {expected}"));
    assert!(tokenizer.encode_chat(&messages, true).is_ok(), "a prompt needs no mask");
}

#[test]
fn a_prompt_to_continue_has_nothing_to_learn() {
    let (_folder, tokenizer) = model_with("smollm2");
    let messages = conversation(&[("user", "a"), ("assistant", "b"), ("user", "c")]);
    let encoded = tokenizer.encode_chat(&messages, true).unwrap();
    assert!(encoded.assistant_mask.iter().all(|bit| *bit == 0));
    assert!(tokenizer.decode(&encoded.tokens, false).unwrap().ends_with("<|im_start|>assistant\n"));
}

#[test]
fn a_template_refuses_in_its_own_words() {
    let (_folder, tokenizer) = model_with("strict_roles");
    let error = tokenizer.encode_chat(&conversation(&[("assistant", "hi")]), false).unwrap_err();
    assert!(error.message.contains("Conversation roles must alternate"), "{}", error.message);
}

#[test]
fn ids_beyond_the_vocabulary_have_no_text() {
    let (_folder, tokenizer) = model_with("smollm2");
    let mut tokens = tokenizer.encode("Hello 你好 🐦").unwrap();
    tokens.push(u32::try_from(tokenizer.vocabulary_size()).unwrap() + 7);
    assert_eq!(tokenizer.decode(&tokens, false).unwrap(), "Hello 你好 🐦");
    let prompt = tokenizer.encode("<|im_start|>a<think>").unwrap();
    assert_eq!(tokenizer.decode(&prompt, true).unwrap(), "a<think>");
}

/// The labels of an example before they were shifted, as the file has them.
fn labels(feature: &InputFeature) -> String {
    let mut labels = feature.labels.clone().unwrap();
    labels.rotate_right(1);
    let words = labels.iter().map(|label| if *label == -100 { "-".to_owned() } else { label.to_string() });
    words.collect::<Vec<_>>().join(" ")
}

/// The conversations of the file through each template, with a template of these settings for each case.
fn each_case(mut check: impl FnMut(&str, &Template, &Trajectory, &ChatCase)) {
    let Chat { conversations, cases } = chat();
    assert!(cases.len() >= 7);
    for (template, by_conversation) in cases {
        let (_folder, tokenizer) = model_with(&format!("../chat/{template}"));
        let tokenizer = Arc::new(tokenizer);
        for (name, cases) in by_conversation {
            for case in cases {
                let spec = TemplateSpec { enable_thinking: case.thinks, ..TemplateSpec::default() };
                let made = Template::new(Arc::clone(&tokenizer), spec);
                check(&format!("{template}: {name}"), &made, &conversations[&name], &case);
            }
        }
    }
}

#[test]
fn conversations_with_tools_and_thoughts_are_rendered_as_transformers_does() {
    each_case(|name, template, trajectory, case| {
        let Some(text) = &case.text else {
            assert!(case.error.is_some() && template.render(trajectory, false).is_err(), "{name}");
            return;
        };
        assert_eq!(&template.render(trajectory, false).unwrap(), text, "{name}");
        assert_eq!(template.render(trajectory, true).unwrap(), *case.prompt.as_ref().unwrap(), "{name}");
    });
}

#[test]
fn what_is_learned_of_them_are_the_assistants_turns() {
    let mut compared = 0;
    each_case(|name, template, trajectory, case| {
        // Nothing can be rendered before a first turn.
        let encoded = match template.encode(trajectory, false) {
            Err(_) if name.ends_with("starts_with_assistant") || case.labels.is_none() => return,
            encoded => encoded.unwrap(),
        };
        let [feature] = &encoded[..] else { panic!("{name}: {} examples", encoded.len()) };
        assert_eq!(labels(feature), *case.labels.as_ref().unwrap(), "{name}: {:?}", case.learned);
        let tokens = template.tokenizer().encode(case.text.as_ref().unwrap()).unwrap();
        assert_eq!(feature.input_ids, tokens, "{name}");
        compared += 1;
    });
    assert!(compared > 180, "{compared} examples were compared");
}

#[test]
fn a_prompt_ends_with_the_assistants_header_and_has_no_labels() {
    each_case(|name, template, trajectory, case| {
        let Some(prompt) = &case.prompt else { return };
        let encoded = template.encode(trajectory, true).unwrap();
        assert_eq!(encoded[0].input_ids, template.tokenizer().encode(prompt).unwrap(), "{name}");
        assert_eq!(encoded[0].learned(), 0, "{name}");
    });
}

#[test]
fn calls_that_a_template_writes_are_read_back() {
    let mut read_back = BTreeSet::new();
    each_case(|name, template, trajectory, case| {
        if case.text.is_none() {
            return;
        }
        let tools = OfferedTools::new(trajectory.tools.as_deref().unwrap_or_default());
        let calling = Calling { format: template.tokenizer().call_format(), tools: Arc::new(tools) };
        for (place, message) in trajectory.messages.iter().enumerate() {
            let Some(calls) = &message.tool_calls else { continue };
            let first =
                |count: usize| Trajectory { messages: trajectory.messages[..count].to_vec(), ..trajectory.clone() };
            let prompt = template.render(&first(place), true).unwrap();
            let text = template.render(&first(place + 1), false).unwrap();
            let same = prompt.chars().zip(text.chars()).take_while(|(left, right)| left == right);
            let turn = &text[same.map(|(letter, _)| letter.len_utf8()).sum()..];
            if !turn.contains(calls[0].function.name.as_str()) {
                // Some templates write no calls.
                continue;
            }
            let expected: Vec<(&str, Value)> =
                calls.iter().map(|call| (call.function.name.as_str(), as_object(&call.function.arguments))).collect();
            let read = parse_assistant(turn, &calling).tool_calls;
            let read: Vec<(&str, Value)> =
                read.iter().map(|call| (call.function.name.as_str(), call.function.arguments.clone())).collect();
            assert_eq!(read, expected, "{name}: {turn}");
            read_back.insert(name.split(':').next().unwrap().to_owned());
        }
    });
    let expected = ["llama3_1", "mistral", "qwen2_5", "qwen3", "qwen3_5"];
    assert_eq!(read_back.iter().map(String::as_str).collect::<Vec<_>>(), expected);
}

#[test]
fn the_mark_of_a_call_is_text_though_its_token_is_special() {
    let (folder, plain) = model_with("../chat/mistral");
    let file = folder.path().join("tokenizer.json");
    let mut written: Value = serde_json::from_slice(&std::fs::read(&file).unwrap()).unwrap();
    let mark = plain.vocabulary_size();
    let token = json!({"id": mark, "content": "[TOOL_CALLS]", "special": true, "single_word": false, "lstrip": false,
        "rstrip": false, "normalized": false});
    written["added_tokens"].as_array_mut().unwrap().push(token);
    std::fs::write(&file, written.to_string()).unwrap();
    let tokenizer = ModelTokenizer::load(folder.path()).unwrap();
    let text = "ok[TOOL_CALLS] [{\"name\": \"f\", \"arguments\": {}}]";
    let mut tokens = tokenizer.encode(text).unwrap();
    assert!(tokens.contains(&u32::try_from(mark).unwrap()), "{tokens:?}");
    tokens.extend(tokenizer.encode("<|im_end|>").unwrap());
    assert_eq!(tokenizer.decode_spoken(&tokens).unwrap(), text);
    assert!(!tokenizer.decode(&tokens, true).unwrap().contains("TOOL_CALLS"));
    assert_eq!(plain.call_mark(tokens[0]), None);
}

/// Arguments may be written as text.
fn as_object(arguments: &Value) -> Value {
    arguments.as_str().map_or_else(|| arguments.clone(), |text| serde_json::from_str(text).unwrap())
}
