//! Forward and backward passes: a batch becomes numbered requests, and their results become one again.

use std::collections::BTreeMap;

use futures::stream::{self, StreamExt};
use tokio::sync::OwnedMutexGuard;
use twinkle_core::call::{ForwardBackwardOutcome, Logprobs};
use twinkle_core::data::{Datum, TensorData, TensorValues};
use twinkle_core::wire::tinker::json::Future;
use twinkle_core::wire::tinker::proto;
use twinkle_core::wire::tinker::training::{ForwardBackwardContent, outcome_from_proto};

use crate::chunking;
use crate::data::Loss;
use crate::error::{Error, Result};
use crate::http::Http;
use crate::pending::Pending;
use crate::progress::Reporter;
use crate::request::Request;
use crate::retrieve;
use crate::session::Session;

const ROUTE: &str = "/api/v1/forward_backward";
/// How many chunks are on their way to the server at the same time.
const CHUNKS_AT_ONCE: usize = 4;
/// What a loss predicts.
const TARGETS: &str = "target_tokens";

/// What an objective says of a batch's logprobs, for
/// [`TrainingClient::forward_backward_custom`](crate::TrainingClient::forward_backward_custom).
#[derive(Clone, Debug, PartialEq)]
pub struct Objective {
    /// Its value, to be minimised.
    pub value: f64,
    /// Per example its derivative by each logprob, in their order.
    pub derivatives: Vec<Vec<f32>>,
}

/// The run's numbers, while nobody else may take one.
pub(crate) struct Numbers(pub(crate) OwnedMutexGuard<u64>);

impl Numbers {
    /// The next number. It is used up even if the request is refused, as on the server.
    pub(crate) fn take(&mut self) -> u64 {
        let number = *self.0;
        *self.0 += 1;
        number
    }
}

/// A batch and its loss.
pub(crate) struct Pass {
    pub(crate) data: Vec<Datum>,
    pub(crate) loss: Loss,
    pub(crate) backward: bool,
}

impl Pass {
    /// Numbers and submits the chunks; their request ids, in order.
    pub(crate) async fn submit(self, session: &Session, model_id: &str, numbers: &mut Numbers) -> Result<Vec<String>> {
        if self.data.is_empty() {
            return Err(Error::InvalidArgument("there is no datum to compute a loss of".to_owned()));
        }
        let mut requests = Vec::new();
        for data in chunking::split(self.data, &session.config) {
            let content = ForwardBackwardContent { data, loss: self.loss.0.clone(), backward: self.backward };
            let number = i32::try_from(numbers.take())
                .map_err(|_| Error::InvalidArgument("this run has used up its operation numbers".to_owned()))?;
            let request = Request::protobuf(ROUTE, &content.to_proto(model_id, number));
            requests.push(if session.config.proto_compress_fwdbwd { request.compressed()? } else { request });
        }
        let send = |request: Request| async move { send(&session.http, &request).await };
        if !session.config.parallel_fwdbwd_chunks {
            return stream::iter(requests).map(send).buffered(1).collect::<Vec<_>>().await.into_iter().collect();
        }
        // The first chunk goes last: when the run may begin, the server has them all, and computes them together. One that
        // is refused does not keep the others back, which would leave a hole in the numbers.
        let others = requests.split_off(1);
        let others: Vec<_> = stream::iter(others).map(send).buffered(CHUNKS_AT_ONCE).collect().await;
        let first: Vec<_> = stream::iter(requests).then(send).collect().await;
        first.into_iter().chain(others).collect()
    }
}

async fn send(http: &Http, request: &Request) -> Result<String> {
    let accepted: Future = http.send(request).await?.decode(ROUTE)?;
    Ok(accepted.request_id)
}

/// The result of submitted chunks.
pub(crate) fn pending(http: &Http, request_ids: Vec<String>) -> Pending<ForwardBackwardOutcome> {
    let (http, ids) = (http.clone(), request_ids.clone());
    Pending::spawn(request_ids, |reporter| async move { results(&http, &ids, &reporter).await })
}

/// Asks for the results of all chunks at the same time, and joins them.
pub(crate) async fn results(http: &Http, ids: &[String], reporter: &Reporter) -> Result<ForwardBackwardOutcome> {
    let result = |id: &String| {
        let id = id.clone();
        async move {
            let output: proto::ForwardBackwardOutput = retrieve::protobuf(http, &id, reporter).await?;
            outcome_from_proto(&output).map_err(|error| Error::malformed("forward_backward", &error))
        }
    };
    let outcomes = futures::future::join_all(ids.iter().map(result)).await;
    Ok(chunking::combine(outcomes.into_iter().collect::<Result<_>>()?))
}

/// The examples with nothing but their targets: what a forward pass needs for logprobs.
pub(crate) fn targets_only(data: &[Datum]) -> Vec<Datum> {
    let only = |datum: &Datum| Datum {
        tokens: datum.tokens.clone(),
        loss_inputs: datum
            .loss_inputs
            .get_key_value(TARGETS)
            .map(|(name, one)| (name.clone(), one.clone()))
            .into_iter()
            .collect(),
    };
    data.iter().map(only).collect()
}

/// The examples whose `cross_entropy` has these derivatives by the logprobs: its weights are their negatives.
///
/// Errors: not one derivative for each logprob.
pub(crate) fn with_derivatives(
    data: Vec<Datum>,
    logprobs: &[Logprobs],
    derivatives: &[Vec<f32>],
) -> Result<Vec<Datum>> {
    if derivatives.len() != data.len() {
        let (given, wanted) = (derivatives.len(), data.len());
        return Err(Error::InvalidArgument(format!("{given} lists of derivatives for {wanted} examples")));
    }
    let mut weighted = Vec::with_capacity(data.len());
    for (index, ((mut datum, logprobs), derivatives)) in data.into_iter().zip(logprobs).zip(derivatives).enumerate() {
        let (given, wanted) = (derivatives.len(), logprobs.values.len());
        let targets = datum.loss_inputs.remove(TARGETS).filter(|_| given == wanted);
        let Some(targets) = targets else {
            let message = format!("example {index} has {given} derivatives for {wanted} logprobs");
            return Err(Error::InvalidArgument(message));
        };
        let values = TensorValues::Float32(derivatives.iter().map(|derivative| -derivative).collect());
        let weights = TensorData { values, shape: targets.shape.clone() };
        datum.loss_inputs = BTreeMap::from([(TARGETS.to_owned(), targets), ("weights".to_owned(), weights)]);
        weighted.push(datum);
    }
    Ok(weighted)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn datum() -> Datum {
        let inputs = [(TARGETS, TensorData::ints(vec![5, 6])), ("advantages", TensorData::floats(vec![1.0, 1.0]))];
        Datum { tokens: vec![4, 5], loss_inputs: inputs.map(|(name, tensor)| (name.to_owned(), tensor)).into() }
    }

    #[test]
    fn derivatives_become_the_weights_that_have_them() {
        let weighted =
            with_derivatives(vec![datum()], &[Logprobs::flat(vec![-1.0, -2.0])], &[vec![0.5, -2.0]]).unwrap();
        assert_eq!(weighted[0].loss_inputs.keys().collect::<Vec<_>>(), [TARGETS, "weights"]);
        assert_eq!(weighted[0].loss_inputs["weights"], TensorData::floats(vec![-0.5, 2.0]));
        assert_eq!(targets_only(&[datum()])[0].loss_inputs.keys().collect::<Vec<_>>(), [TARGETS]);
    }

    #[test]
    fn derivatives_that_do_not_fit_are_refused() {
        let logprobs = [Logprobs::flat(vec![-1.0, -2.0])];
        for derivatives in [vec![], vec![vec![1.0]], vec![vec![1.0, 2.0], vec![]]] {
            assert!(with_derivatives(vec![datum()], &logprobs, &derivatives).is_err(), "{derivatives:?}");
        }
        let bare = Datum { loss_inputs: BTreeMap::new(), ..datum() };
        assert!(with_derivatives(vec![bare], &logprobs, &[vec![0.5, -2.0]]).is_err());
    }
}
