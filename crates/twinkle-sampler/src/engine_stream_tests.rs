//! Tokens told as they are drawn, tokens held back, and requests without any.

use std::collections::BTreeSet;
use std::sync::Arc;

use futures::executor::block_on;
use twinkle_core::call::{DrawnToken, Penalties, TokenStream, token_stream};

use super::tests::{House, request};
use crate::logits::DrawParams;
use crate::params::ValidRequest;
use crate::penalties::Seen;
use crate::prompt::PromptWants;

/// All that a stream tells until nobody tells any more.
fn told(mut stream: TokenStream) -> Vec<DrawnToken> {
    let mut told = Vec::new();
    while let Some(drawn) = block_on(stream.next()) {
        told.push(drawn);
    }
    told
}

#[test]
fn every_token_is_told_as_it_is_drawn_and_none_of_them_is_another() {
    let house = House::open();
    let mine = || ValidRequest { samples: 3, top: 2, ..request(&[1, 2, 3]) };
    let alone = house.sample(mine()).unwrap();
    let (sender, stream) = token_stream();
    let asked = house.ask(ValidRequest { stream: Some(sender), ..mine() });
    let told = told(stream);
    assert_eq!(asked.blocking_recv().unwrap().unwrap(), alone);
    for (sample, sequence) in (0..).zip(&alone.sequences) {
        let own: Vec<_> = told.iter().filter(|drawn| drawn.sample == sample).collect();
        assert_eq!(own.iter().map(|drawn| drawn.token).collect::<Vec<_>>(), sequence.tokens);
        assert_eq!(own.iter().map(|drawn| drawn.logprob).collect::<Vec<_>>(), sequence.logprobs);
        let rows: Vec<_> = own.iter().map(|drawn| drawn.likeliest.clone()).collect();
        assert_eq!(Some(rows), sequence.topk_logprobs.as_ref().map(|top| top.rows.clone()));
        let ends: Vec<_> = own.iter().filter_map(|drawn| drawn.ends).collect();
        assert_eq!((ends, own.last().unwrap().ends), (vec![sequence.stop_reason], Some(sequence.stop_reason)));
    }
}

#[test]
fn the_stream_of_an_abandoned_request_ends() {
    let house = House::open();
    let (sender, mut stream) = token_stream();
    let asked = house.ask(ValidRequest { max_new_tokens: 1900, stream: Some(sender), ..request(&[1, 2]) });
    let first = block_on(stream.next()).unwrap();
    assert_eq!((first.place, first.ends), (0, None));
    drop(asked);
    assert!(told(stream).into_iter().zip(1..).all(|(drawn, place)| drawn.place == place));
}

#[test]
fn a_request_of_its_prompt_only_draws_nothing() {
    let house = House::open();
    let wants = PromptWants { logprobs: true, ..PromptWants::default() };
    let outcome = house.sample(ValidRequest { wants, max_new_tokens: 0, samples: 2, ..request(&[4, 5]) }).unwrap();
    assert_eq!(outcome.prompt_logprobs, Some(vec![None, Some(-5.0)]));
    assert!(outcome.sequences.iter().all(|sequence| sequence.tokens.is_empty()));
    assert_eq!(house.stats.generated(), 0);
}

#[test]
fn what_is_held_back_is_drawn_less_often() {
    let house = House::open();
    let greedy = DrawParams { temperature: 0.0, top_k: None, top_p: 1.0 };
    let penalties = Penalties { frequency: 100.0, ..Default::default() };
    let ask = |penalties, samples| {
        let seen = Seen::new(penalties, &[1, 2]).map(Arc::new);
        house.sample(ValidRequest { draw: greedy, seen, samples, ..request(&[1, 2]) }).unwrap().sequences
    };
    let [held_back, other] = &ask(penalties, 2)[..] else { panic!("two samples were asked for") };
    let different: BTreeSet<_> = held_back.tokens.iter().collect();
    assert_eq!(different.len(), held_back.tokens.len(), "{:?}", held_back.tokens);
    assert_eq!(held_back.tokens, other.tokens, "samples of one request do not share what they have seen");
}
