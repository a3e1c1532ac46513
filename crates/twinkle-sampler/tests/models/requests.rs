use std::time::Duration;

use tokenizers::Tokenizer;
use twinkle_core::ErrorCode;
use twinkle_core::call::{SampleRequest, Stop, StopReason};
use twinkle_core::component::{Component, Health, Lifecycle};

use crate::house::{House, fixture, greedy, prompt, request};

#[tokio::test]
async fn a_stop_text_or_token_ends_the_sequence_and_stays_in_it() {
    let house = House::open("qwen2").await;
    let whole = house.ask(request(&prompt(6, 4))).await.unwrap().sequences.remove(0);
    assert_eq!((whole.tokens.len(), whole.stop_reason), (16, StopReason::Length));

    let stopping = |stop| {
        let mut request = request(&prompt(6, 4));
        request.params.stop = stop;
        house.ask(request)
    };
    let first = whole.tokens.iter().position(|token| *token == whole.tokens[5]).unwrap();
    let stopped = stopping(Stop::Tokens(vec![whole.tokens[5]])).await.unwrap().sequences.remove(0);
    assert_eq!((&stopped.tokens[..], stopped.stop_reason), (&whole.tokens[..=first], StopReason::Stop));
    assert_eq!(stopped.logprobs, whole.logprobs[..=first]);

    let tokenizer = Tokenizer::from_file(fixture("qwen2").join("tokenizer.json")).unwrap();
    let text = tokenizer.decode(&whole.tokens, false).unwrap();
    let letter = text.chars().skip(3).find(|letter| *letter != char::REPLACEMENT_CHARACTER).unwrap().to_string();
    let stopped = stopping(Stop::Strings(vec![letter.clone()])).await.unwrap().sequences.remove(0);
    assert_eq!(stopped.stop_reason, StopReason::Stop);
    assert_eq!(stopped.tokens, whole.tokens[..stopped.tokens.len()]);
    assert!(tokenizer.decode(&stopped.tokens, false).unwrap().contains(&letter));
    assert!(!tokenizer.decode(&stopped.tokens[..stopped.tokens.len() - 1], false).unwrap().contains(&letter));
}

#[tokio::test]
async fn no_max_tokens_fills_the_context() {
    let house = House::open_with("llama3", "max_model_len: 100").await;
    let mut request = request(&prompt(70, 4));
    request.params.max_tokens = None;
    let sequence = house.ask(request).await.unwrap().sequences.remove(0);
    assert_eq!((sequence.tokens.len(), sequence.stop_reason), (30, StopReason::Length));
}

type Change = Box<dyn Fn(&mut SampleRequest)>;

#[tokio::test]
async fn bad_requests_are_refused_with_their_reason() {
    let house = House::open_with("llama3", "max_model_len: 100").await;
    let cases: [(&str, Change); 5] = [
        ("vocabulary", Box::new(|request| request.prompt.push(100_000))),
        ("empty", Box::new(|request| request.prompt.clear())),
        ("no room", Box::new(|request| request.prompt = prompt(100, 0))),
        ("context of 100", Box::new(|request| request.params.max_tokens = Some(99))),
        ("temperature", Box::new(|request| request.params.temperature = f32::NAN)),
    ];
    for (reason, change) in cases {
        let mut request = request(&prompt(3, 1));
        change(&mut request);
        let error = house.ask(request).await.unwrap_err();
        assert_eq!(error.code, ErrorCode::InvalidArgument);
        assert!(error.message.contains(reason), "{error}");
    }
    assert!(house.ask(request(&prompt(3, 1))).await.is_ok());
}

#[tokio::test]
async fn dropping_a_request_frees_its_memory() {
    let house = House::open("qwen3").await;
    let long = || {
        let mut long = SampleRequest { num_samples: 8, ..greedy(&prompt(100, 4)) };
        long.params.max_tokens = None;
        house.ask(long)
    };
    for _ in 0..4 {
        let mut abandoned = long();
        // Polled once, it is in line.
        assert!(futures::poll!(&mut abandoned).is_pending());
    }
    // Answered behind them, so the engine has seen that they are gone.
    house.ask(request(&prompt(3, 4))).await.unwrap();
    house.sampler.drain(Duration::from_mins(1)).await;
    assert_eq!((house.sampler.stats().requests(), house.sampler.stats().cache_bytes()), (0, 0));
    let all_of_them = 4 * 8 * 400;
    assert!(house.sampler.stats().generated() < all_of_them, "{}", house.sampler.stats().generated());
}

#[tokio::test]
async fn a_drained_sampler_finishes_its_work_and_takes_no_more() {
    let house = House::open("qwen2").await;
    let mut running = house.ask(greedy(&prompt(30, 4)));
    assert!(futures::poll!(&mut running).is_pending());
    assert_eq!(house.sampler.health(), Health::Ready);
    house.sampler.drain(Duration::from_mins(1)).await;
    assert_eq!(running.await.unwrap().sequences[0].tokens.len(), 16);
    assert_eq!(house.sampler.health(), Health::Draining);
    assert_eq!(house.ask(greedy(&prompt(3, 4))).await.unwrap_err().code, ErrorCode::Draining);
    assert_eq!(house.sampler.clone().boxed().kind(), twinkle_core::component::ComponentKind::Sampler);
}
