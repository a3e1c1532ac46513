//! The component as the launcher uses it.

use std::collections::BTreeMap;
use std::path::Path;
use std::time::Duration;

use twinkle_core::call::{
    Call, ChatMessage, EncodedText, Operation, ProcessOutcome, ProcessRequest, Reply, ServeRequest,
};
use twinkle_core::component::{BoxComponent, Component, Health};
use twinkle_core::config::{ApplicationArgs, ProcessorArgs, ServerConfig};
use twinkle_core::error::{Error, ErrorCode, Result};
use twinkle_core::ids::{SessionId, TenantId};
use twinkle_processor::{Processor, ProcessorContext};

fn args() -> ProcessorArgs {
    let text = "applications: [{name: p, route_prefix: /p, import_path: processor, args: {ncpu_proc_per_node: 2}}]";
    let mut config = ServerConfig::parse("test.yaml", text).unwrap();
    match config.applications.remove(0).args {
        ApplicationArgs::Processor(args) => args,
        other => panic!("not a processor: {other:?}"),
    }
}

async fn serving(names: &[&str]) -> BoxComponent {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures");
    let models: BTreeMap<_, _> = names.iter().map(|name| ((*name).to_owned(), folder.clone())).collect();
    Processor::build(args(), ProcessorContext { models, ..ProcessorContext::default() }).await.unwrap().boxed()
}

async fn ask(component: &BoxComponent, request: ProcessRequest) -> Result<ProcessOutcome> {
    let call = Call { tenant: TenantId::new("alice"), operation: Operation::Process(request) };
    match component.ask(call).await? {
        Reply::Process(outcome) => Ok(outcome),
        other => panic!("not a processor's answer: {other:?}"),
    }
}

fn encode(model: Option<&str>, text: &str) -> ProcessRequest {
    ProcessRequest::Encode { model: model.map(str::to_owned), texts: vec![text.to_owned()] }
}

#[tokio::test]
async fn text_goes_to_tokens_and_back() {
    let component = serving(&["tiny"]).await;
    let ProcessOutcome::Encoded(encoded) = ask(&component, encode(None, "Who are you? 你好")).await.unwrap() else {
        panic!("not tokens");
    };
    let [EncodedText { tokens, assistant_mask }] = &encoded[..] else { panic!("not one text") };
    assert_eq!(assistant_mask, &vec![0; tokens.len()]);
    let back = ProcessRequest::Decode { model: None, sequences: vec![tokens.clone()], skip_special_tokens: false };
    assert_eq!(ask(&component, back).await.unwrap(), ProcessOutcome::Decoded(vec!["Who are you? 你好".to_owned()]));
}

#[tokio::test]
async fn one_model_needs_no_name_and_several_do() {
    let component = serving(&["a/tiny", "b/tiny"]).await;
    assert!(ask(&component, encode(Some("a/tiny"), "x")).await.is_ok());
    let unnamed = ask(&component, encode(None, "x")).await.unwrap_err();
    assert_eq!(unnamed.code, ErrorCode::InvalidArgument);
    let misspelt = ask(&component, encode(Some("a/tny"), "x")).await.unwrap_err();
    assert_eq!(misspelt.message, "base model `a/tny` is not served here");
    assert!(misspelt.hint.unwrap().starts_with("did you mean `a/tiny`?"));
    let nothing = ask(&serving(&[]).await, encode(None, "x")).await.unwrap_err();
    assert_eq!(nothing.code, ErrorCode::Unsupported);
}

#[tokio::test]
async fn a_model_without_a_template_encodes_text_and_says_what_is_missing() {
    let component = serving(&["tiny"]).await;
    let message = ChatMessage { role: "user".to_owned(), content: "hi".to_owned() };
    let request =
        ProcessRequest::EncodeChat { model: None, conversations: vec![vec![message]], add_generation_prompt: true };
    let error = ask(&component, request).await.unwrap_err();
    assert_eq!((error.code, error.message.as_str()), (ErrorCode::Unsupported, "the model has no chat template"));
}

#[tokio::test]
async fn too_much_text_is_refused() {
    let component = serving(&["tiny"]).await;
    let request = ProcessRequest::Encode { model: None, texts: vec![String::new(); 5000] };
    assert_eq!(ask(&component, request).await.unwrap_err().code, ErrorCode::TooLarge);
}

#[tokio::test]
async fn a_draining_processor_takes_no_work() {
    let component = serving(&["tiny"]).await;
    assert_eq!(component.health(), Health::Ready);
    component.drain(Duration::from_secs(5)).await;
    assert_eq!(component.health(), Health::Draining);
    assert_eq!(ask(&component, encode(None, "x")).await.unwrap_err().code, ErrorCode::Draining);
}

#[tokio::test]
async fn an_operation_of_another_kind_is_a_defect() {
    let component = serving(&["tiny"]).await;
    let operation = Operation::Serve(ServeRequest::Heartbeat(SessionId::new("s")));
    let error = component.ask(Call { tenant: TenantId::new("alice"), operation }).await.unwrap_err();
    assert_eq!(error.code, ErrorCode::Internal);
}

#[tokio::test]
async fn a_folder_without_a_tokenizer_is_named_at_start() {
    let folder = tempfile::tempdir().unwrap();
    let start = |models| Processor::build(args(), ProcessorContext { models, ..ProcessorContext::default() });
    let models = BTreeMap::from([("tiny".to_owned(), folder.path().to_owned())]);
    let error: Error = start(models.clone()).await.unwrap_err();
    assert_eq!(error.code, ErrorCode::NotFound);
    assert!(error.message.contains("has no `tokenizer.json`"), "{}", error.message);
    std::fs::write(folder.path().join("tokenizer.json"), "{\"version\": 3").unwrap();
    let error = start(models).await.unwrap_err();
    assert_eq!(error.code, ErrorCode::InvalidArgument);
}
