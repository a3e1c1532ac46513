//! Results in bulk, results given up, and results too big to send unasked.

use serde::{Deserialize, Serialize};

/// `POST retrieve_futures`: which samples of a sampling session have finished.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct RetrieveFutures {
    /// Whose samples.
    pub target: FuturesTarget,
    /// The cursor of the last answer; 0 in the beginning. What came up to it is acknowledged.
    #[serde(default, deserialize_with = "super::null_as_default")]
    pub prev_cursor: u64,
    /// Seconds to wait for the first completion; 0 answers at once.
    #[serde(default)]
    pub timeout: Option<f64>,
    /// Results the client has and that need not be kept.
    #[serde(default, deserialize_with = "super::null_as_default")]
    pub retrieved_request_ids: Vec<String>,
}

/// One client of a sampling session.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct FuturesTarget {
    /// `sampling_session`.
    #[serde(rename = "type", default, skip_serializing_if = "Option::is_none")]
    pub kind: Option<String>,
    /// The sampling session.
    pub sampling_session_id: String,
    /// Which of its clients: `seq_id // 1_000_000_000`.
    #[serde(default, deserialize_with = "super::null_as_default")]
    pub cloned_sampler_id: u64,
}

/// The answer to [`RetrieveFutures`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct FuturesRetrieved {
    /// What has finished since, in order.
    pub completions: Vec<FutureCompletion>,
    /// What to send with the next request.
    pub cursor: u64,
}

/// A sample that has come to an end; its result, or its error, is then retrieved by its id.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(tag = "state", rename_all = "snake_case")]
pub enum FutureCompletion {
    /// There is a result.
    Finished {
        /// The sample.
        request_id: String,
        /// About how many bytes its result takes.
        response_payload_uncompressed_size: u64,
    },
    /// There is none.
    Failed {
        /// The sample.
        request_id: String,
    },
}

/// The answer to `retrieve_future` about a big result, when the client says that it wants to be told.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct CompleteMetadata {
    /// `complete_metadata`.
    pub status: super::Tag,
    /// The operation.
    pub request_id: String,
    /// About how many bytes its result takes.
    pub response_payload_size: u64,
}

/// `POST cancel_future`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct CancelFuture {
    /// The operation nobody wants any more.
    pub request_id: String,
}

/// `POST join_sampling_session`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct JoinSamplingSession {
    /// The sampling session.
    pub sampling_session_id: String,
}

/// The answer to [`JoinSamplingSession`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct SamplingSessionJoined {
    /// `join_sampling_session`.
    #[serde(rename = "type", default)]
    pub kind: super::Tag,
    /// The client's number, from 1 on: its samples are numbered from 1,000,000,000 times it.
    pub client_counter: u64,
}
