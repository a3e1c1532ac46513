//! Conversations, whole and piece by piece.

use futures::{StreamExt, TryStreamExt};
use serde_json::{Value, json};
use twinkle_client::{ChatAnswer, ChatDelta, ChatMessage, ChatOptions, ChatUsage, Error};

use crate::script::{Answer, Server, json_answer};

const ROUTE: &str = "/prefix/v1/chat/completions";

fn events(events: &[&str]) -> Answer {
    let body = events.iter().flat_map(|event| ["data: ", event, "\n\n"]).collect::<String>();
    Answer { status: 200, headers: vec![("content-type", "text/event-stream")], body: body.into_bytes() }
}

fn delta(content: &str, reasoning: &str, finish_reason: Option<&str>) -> ChatDelta {
    let finish_reason = finish_reason.map(str::to_owned);
    ChatDelta { content: content.to_owned(), reasoning: reasoning.to_owned(), finish_reason }
}

#[tokio::test]
async fn a_conversation_is_answered() {
    let answer = json!({
        "choices": [{ "message": { "role": "assistant", "content": "Twinkle." }, "finish_reason": "stop" }],
        "usage": { "prompt_tokens": 9, "completion_tokens": 3, "total_tokens": 12 },
    });
    let busy = json_answer(503, &json!({ "error": { "message": "full" } }));
    let server = Server::new().on(ROUTE, [busy, json_answer(200, &answer)]);
    let chat = server.connect().await.unwrap().create_chat_client("tiny");
    let options = ChatOptions { max_tokens: Some(5), stop: vec!["!".to_owned()], ..ChatOptions::default() };
    let answer = chat.complete(&[ChatMessage::user("Who?")], &options).await.unwrap();
    let usage = Some(ChatUsage { prompt_tokens: 9, completion_tokens: 3 });
    let expected = ChatAnswer {
        content: "Twinkle.".to_owned(),
        finish_reason: Some("stop".to_owned()),
        usage,
        ..ChatAnswer::default()
    };
    assert_eq!(answer, expected);
    let sent: Value = serde_json::from_slice(&server.asked(ROUTE)[1]).unwrap();
    let message = json!({ "role": "user", "content": "Who?" });
    assert_eq!(
        sent,
        json!({ "model": "tiny", "messages": [message], "max_tokens": 5, "stop": ["!"], "stream": false })
    );
}

#[tokio::test]
async fn an_answer_comes_piece_by_piece_until_it_is_done() {
    let pieces = events(&[
        r#"{"choices":[{"delta":{"role":"assistant","reasoning_content":"Hm."},"finish_reason":null}]}"#,
        r#"{"choices":[{"delta":{"content":"Twin"},"finish_reason":null}]}"#,
        r#"{"choices":[{"delta":{"content":"kle."},"finish_reason":"stop"}]}"#,
        "[DONE]",
        "what comes after the end",
    ]);
    let server = Server::new().on(ROUTE, [pieces]);
    let chat = server.connect().await.unwrap().create_chat_client("tiny");
    let stream = chat.stream(&[ChatMessage::user("Who?")], &ChatOptions::default()).await.unwrap();
    let expected = [delta("", "Hm.", None), delta("Twin", "", None), delta("kle.", "", Some("stop"))];
    assert_eq!(stream.try_collect::<Vec<_>>().await.unwrap(), expected);
}

#[tokio::test]
async fn a_stream_that_fails_says_so_once_and_ends() {
    let broken = r#"{"error":{"message":"the device is lost","type":"server_error"}}"#;
    let server = Server::new().on(ROUTE, [events(&[broken, broken])]);
    let chat = server.connect().await.unwrap().create_chat_client("tiny");
    let mut stream = chat.stream(&[ChatMessage::user("Who?")], &ChatOptions::default()).await.unwrap();
    let error = stream.next().await.expect("an error").unwrap_err();
    assert!(matches!(&error, Error::Failed { message, .. } if message == "the device is lost"), "{error}");
    assert!(stream.next().await.is_none());
}

#[tokio::test]
async fn a_refused_conversation_is_shown_in_the_servers_words() {
    let refused =
        json_answer(404, &json!({ "error": { "message": "there is no model `tiny`", "code": "model_not_found" } }));
    let server = Server::new().on(ROUTE, [refused]);
    let chat = server.connect().await.unwrap().create_chat_client("tiny");
    let error = chat.stream(&[ChatMessage::user("Who?")], &ChatOptions::default()).await.unwrap_err();
    assert!(error.is_not_found() && error.to_string().contains("no model `tiny`"), "{error}");
}
