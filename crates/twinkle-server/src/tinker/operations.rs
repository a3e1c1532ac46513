//! Operations on a training run: sent in order, and when refused, their numbers accounted for.

use serde::Deserialize;
use serde::de::DeserializeOwned;
use twinkle_core::call::{Call, Operation, Position, Reply, RunCall, RunOperation};
use twinkle_core::error::{Error, Result};
use twinkle_core::ids::{RequestId, RunId, TenantId};
use twinkle_core::wire::tinker::json;

use super::body::RawBody;
use super::{Front, unexpected};

/// The place of an operation: which run, and its number there if it has one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Place {
    pub(super) run: RunId,
    pub(super) sequence: Option<u64>,
}

impl Place {
    /// A place as the wire gives it: number 0 means unnumbered.
    pub(super) fn new(model_id: String, seq_id: Option<u64>) -> Self {
        Self { run: RunId::new(model_id), sequence: seq_id.filter(|number| *number > 0) }
    }
}

impl Front {
    /// Submits an operation to its run. `operation` may already be an error: then its future fails with it.
    ///
    /// Errors: the run is not there or no longer served, or the component refuses the call.
    pub(super) async fn submit(
        &self,
        tenant: &TenantId,
        place: Place,
        operation: Result<RunOperation>,
    ) -> Result<json::Future> {
        let record = self.run(tenant, place.run.clone()).await?;
        match operation {
            Ok(operation) => self.accept(tenant, &record.base_model, place, operation).await,
            Err(error) => self.refuse(tenant, &record.base_model, place, "refused", error).await,
        }
    }

    /// Sends an operation to the trainer of `base_model`, which answers as soon as it is durable.
    pub(super) async fn accept(
        &self,
        tenant: &TenantId,
        base_model: &str,
        place: Place,
        operation: RunOperation,
    ) -> Result<json::Future> {
        let trainer = self.context.directory.trainer(base_model)?;
        let call =
            RunCall { run: place.run.clone(), sequence: place.sequence, position: Position::default(), operation };
        let answer = trainer.ask(Call { tenant: tenant.clone(), operation: Operation::Run(call) }).await;
        match answer {
            Ok(Reply::Accepted(request)) => Ok(future(&request, Some(&place.run))),
            Ok(other) => Err(unexpected("the model component", &other)),
            Err(error) => {
                // The client will not send this number again; on other errors it will.
                if error.code.is_users_fault() {
                    self.consume(tenant, base_model, &place).await;
                }
                Err(error)
            }
        }
    }

    /// Accepts an operation whose content is wrong, only to fail its future.
    async fn refuse(
        &self,
        tenant: &TenantId,
        base_model: &str,
        place: Place,
        name: &'static str,
        error: Error,
    ) -> Result<json::Future> {
        self.consume(tenant, base_model, &place).await;
        let request = self.context.futures.spawn(tenant, name, async move { Err(error) })?;
        Ok(future(&request, Some(&place.run)))
    }

    /// Parses the JSON body of a numbered operation; when it is wrong, its number is consumed.
    pub(super) async fn parse<T: DeserializeOwned + Send + 'static>(
        &self,
        tenant: &TenantId,
        body: &RawBody,
    ) -> Result<T> {
        match body.json().await {
            Ok(parsed) => Ok(parsed),
            Err(error) => {
                if let Some(place) = place_in(&body.bytes) {
                    self.consume_foreign(tenant, &place).await;
                }
                Err(error)
            }
        }
    }

    /// Consumes the number of a request that was refused before its run was looked up.
    pub(super) async fn consume_foreign(&self, tenant: &TenantId, place: &Place) {
        if place.sequence.is_none() {
            return;
        }
        // Not the tenant's run, or none: there is no order to keep.
        if let Ok(record) = self.run(tenant, place.run.clone()).await {
            self.consume(tenant, &record.base_model, place).await;
        }
    }

    /// Records a number as used, so that later operations do not wait for it.
    async fn consume(&self, tenant: &TenantId, base_model: &str, place: &Place) {
        let Some(sequence) = place.sequence else { return };
        let journal = self.context.directory.model(base_model).ok().and_then(|model| model.journal.as_ref());
        let Some(journal) = journal else { return };
        if let Err(error) = journal.consume(tenant, &place.run, sequence).await {
            // The run goes on after the grace period for gaps.
            tracing::warn!(run = %place.run, sequence, %error, "a refused number could not be recorded");
        }
    }
}

/// The answer to an accepted request.
pub(super) fn future(request: &RequestId, run: Option<&RunId>) -> json::Future {
    json::Future {
        request_id: request.as_str().to_owned(),
        model_id: run.map(|run| run.as_str().to_owned()),
        sample_sequence_ids: None,
    }
}

/// The place named in a body that is wrong otherwise.
fn place_in(bytes: &[u8]) -> Option<Place> {
    #[derive(Deserialize)]
    struct Fields {
        model_id: String,
        seq_id: Option<u64>,
    }

    let fields: Fields =
        serde_json::from_slice(bytes).or_else(|_| serde_json::from_slice(&without_non_finite(bytes))).ok()?;
    Some(Place::new(fields.model_id, fields.seq_id))
}

/// Python writes `NaN` and `Infinity`, which JSON does not have: replaced by null, outside of strings,
/// only to find the number of the refused request.
fn without_non_finite(bytes: &[u8]) -> Vec<u8> {
    let mut clean = Vec::with_capacity(bytes.len());
    let mut rest = bytes;
    let mut in_string = false;
    while let [first, after @ ..] = rest {
        let word =
            [&b"-Infinity"[..], b"Infinity", b"NaN"].into_iter().find(|word| !in_string && rest.starts_with(word));
        if let Some(word) = word {
            clean.extend_from_slice(b"null");
            rest = rest.get(word.len()..).unwrap_or_default();
            continue;
        }
        clean.push(*first);
        rest = after;
        match (first, rest) {
            (b'"', _) => in_string = !in_string,
            (b'\\', [escaped, after @ ..]) if in_string => {
                clean.push(*escaped);
                rest = after;
            }
            _ => {}
        }
    }
    clean
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_number_is_found_in_bodies_that_are_not_json() {
        let place = |body: &str| place_in(body.as_bytes());
        let expected = Place { run: RunId::new("s:train:0"), sequence: Some(4) };
        assert_eq!(
            place(r#"{"adam_params":{"learning_rate":NaN,"eps":-Infinity},"model_id":"s:train:0","seq_id":4}"#),
            Some(expected.clone())
        );
        assert_eq!(
            place(r#"{"model_id":"s:train:0","seq_id":4,"adam_params":{"learning_rate":"fast"}}"#),
            Some(expected)
        );
        assert_eq!(place("{"), None);
        assert_eq!(place(r#"{"seq_id":4}"#), None);
    }

    #[test]
    fn words_inside_strings_stay() {
        let text = r#"{"a":"NaN \" Infinity","b":NaN}"#;
        assert_eq!(without_non_finite(text.as_bytes()), br#"{"a":"NaN \" Infinity","b":null}"#);
    }

    #[test]
    fn zero_is_no_number() {
        assert_eq!(Place::new("r".into(), Some(0)).sequence, None);
    }
}
