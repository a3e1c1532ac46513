//! Streams over a sampler that answers as it is told to.

use std::task::{Context, Poll};
use std::time::Duration;

use futures::{StreamExt, pin_mut};
use twinkle_core::call::{SampledSequence, SamplingParams, SamplingSource, StopReason};
use twinkle_core::component::{Component, ComponentKind, Health, Lifecycle};

use super::*;

/// Draws the tokens of its prompt once more, and tells as many of them as it may.
#[derive(Clone)]
struct Echo {
    told: usize,
}

impl tower::Service<Call> for Echo {
    type Response = Reply;
    type Error = Error;
    type Future = BoxFuture<'static, Result<Reply>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, call: Call) -> Self::Future {
        let told = self.told;
        async move {
            let Operation::Sample(request) = call.operation else { panic!("only samples are asked for") };
            let SampleRequest { prompt, stream: Some(stream), .. } = *request else { panic!("nobody listens") };
            for (place, token) in prompt.iter().enumerate().take(told) {
                let ends = (place + 1 == prompt.len()).then_some(StopReason::Length);
                stream.tell(DrawnToken { sample: 0, place, token: *token, logprob: 0.0, likeliest: vec![], ends });
                tokio::task::yield_now().await;
            }
            if prompt.contains(&13) {
                return Err(Error::invalid("unlucky"));
            }
            let logprobs = vec![0.0; prompt.len()];
            let sequences = vec![SampledSequence::new(prompt, logprobs, StopReason::Length)];
            Ok(Reply::Sample(SampleOutcome { sequences, ..SampleOutcome::default() }))
        }
        .boxed()
    }
}

impl Lifecycle for Echo {
    fn kind(&self) -> ComponentKind {
        ComponentKind::Sampler
    }

    fn health(&self) -> Health {
        Health::Ready
    }

    fn drain(&self, _: Duration) -> BoxFuture<'static, ()> {
        futures::future::ready(()).boxed()
    }
}

impl Component for Echo {
    type Args = usize;
    type Context = ();

    async fn build(told: usize, (): ()) -> Result<Self> {
        Ok(Self { told })
    }
}

/// The tokens that come of a sampler that tells this many of them, and how it ends.
async fn read(told: usize, prompt: &[u32]) -> (Vec<u32>, Vec<bool>, std::result::Result<usize, String>) {
    let sampler = Echo::build(told, ()).await.unwrap().boxed();
    let request = SampleRequest::new(SamplingSource::Base, prompt.to_vec(), SamplingParams::greedy(9));
    let stream = sample(&sampler, TenantId::new("t"), request);
    pin_mut!(stream);
    let (mut tokens, mut ends) = (Vec::new(), Vec::new());
    loop {
        match stream.next().await.expect("it ends with an outcome or an error") {
            Ok(Sampled::Token(drawn)) => {
                tokens.push(drawn.token);
                ends.push(drawn.ends.is_some());
            }
            Ok(Sampled::Done(outcome)) => {
                assert!(stream.next().await.is_none(), "nothing comes after the outcome");
                return (tokens, ends, Ok(outcome.sequences.len()));
            }
            Err(error) => {
                assert!(stream.next().await.is_none(), "nothing comes after an error");
                return (tokens, ends, Err(error.message));
            }
        }
    }
}

#[tokio::test]
async fn however_many_tokens_are_told_all_of_them_come_once() {
    for told in 0..=3 {
        assert_eq!(read(told, &[5, 6, 7]).await, (vec![5, 6, 7], vec![false, false, true], Ok(1)), "{told} were told");
    }
}

#[tokio::test]
async fn an_error_comes_after_the_tokens_that_were_told() {
    assert_eq!(read(2, &[5, 6, 13]).await, (vec![5, 6], vec![false, false], Err("unlucky".to_owned())));
}
