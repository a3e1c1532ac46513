//! Samples that are read while they are drawn, for every front that streams.
//!
//! [`sample`] asks a sampler and hands over tokens as they come; [`Detokenizer`] turns them into text piece by piece.

mod detokenizer;

use std::collections::VecDeque;

use futures::FutureExt;
use futures::future::BoxFuture;
use futures::stream::{Stream, unfold};
use tracing::Instrument;
use twinkle_core::call::{Call, DrawnToken, Operation, Reply, SampleOutcome, SampleRequest, TokenStream, token_stream};
use twinkle_core::component::BoxComponent;
use twinkle_core::error::{Error, Result};
use twinkle_core::ids::TenantId;
use twinkle_core::telemetry::trace::Origin;

pub(crate) use detokenizer::Detokenizer;

/// What comes of a streamed request.
#[derive(Debug)]
pub(crate) enum Sampled {
    /// A token; those of one sample are in order.
    Token(DrawnToken),
    /// All of it, after every token: the last that comes.
    Done(SampleOutcome),
}

/// Asks `sampler`. An error is the last that comes. Dropping the stream aborts the request.
pub(crate) fn sample(
    sampler: &BoxComponent,
    tenant: TenantId,
    mut request: SampleRequest,
) -> impl Stream<Item = Result<Sampled>> + Send + use<> {
    let (sender, tokens) = token_stream();
    request.stream = Some(sender);
    let call = Call { tenant, operation: Operation::Sample(Box::new(request)) };
    let sampler = sampler.clone();
    let answer = async move {
        match sampler.ask(call).await? {
            Reply::Sample(outcome) => Ok(outcome),
            _ => Err(Error::internal("the sampler answered something that was not asked")),
        }
    };
    let answer = Origin::current().surround(answer.in_current_span()).boxed();
    let reading = Reading { answer: Some(answer), tokens, is_told: true, rest: VecDeque::new() };
    unfold(reading, |mut reading| async { reading.next().await.map(|sampled| (sampled, reading)) })
}

/// A request on its way.
struct Reading {
    /// `None` once it has been given.
    answer: Option<BoxFuture<'static, Result<SampleOutcome>>>,
    tokens: TokenStream,
    /// Whether somebody still tells tokens.
    is_told: bool,
    /// What is left once the answer has been given.
    rest: VecDeque<Sampled>,
}

impl Reading {
    async fn next(&mut self) -> Option<Result<Sampled>> {
        let Some(answer) = &mut self.answer else { return self.rest.pop_front().map(Ok) };
        let outcome = loop {
            tokio::select! {
                biased;
                drawn = self.tokens.next(), if self.is_told => match drawn {
                    Some(drawn) => return Some(Ok(Sampled::Token(drawn))),
                    None => self.is_told = false,
                },
                outcome = &mut *answer => break outcome,
            }
        };
        self.answer = None;
        match outcome {
            Err(error) => Some(Err(error)),
            Ok(outcome) => {
                self.rest = self.tokens.rest(&outcome).into_iter().map(Sampled::Token).collect();
                self.rest.push_back(Sampled::Done(outcome));
                self.rest.pop_front().map(Ok)
            }
        }
    }
}

#[cfg(test)]
mod tests;
