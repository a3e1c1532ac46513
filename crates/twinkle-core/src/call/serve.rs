//! The central component: sessions and directories of runs, sampling sessions and checkpoints.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::run::LoraSpec;
use super::sample::SamplingSource;
use crate::ids::{CheckpointPath, RunId, SamplingSessionId, SessionId, TenantId};

/// What the central `server` component does: sessions, directories of runs and checkpoints.
#[derive(Clone, Debug)]
pub enum ServeRequest {
    /// Opens a session.
    CreateSession {
        /// The client's tags.
        tags: Vec<String>,
        /// The user's notes.
        user_metadata: BTreeMap<String, String>,
        /// The client's version, for the record.
        sdk_version: Option<String>,
    },
    /// Keeps a session alive.
    Heartbeat(SessionId),
    /// Ends a session.
    FinishSession(SessionId),
    /// Describes a live session.
    DescribeSession(SessionId),
    /// Opens a place to sample from.
    CreateSamplingSession {
        /// The session it belongs to.
        session: SessionId,
        /// The client's number for it; the same number names the same sampling session.
        number: u64,
        /// The base model's public name; taken from the checkpoint when absent.
        base_model: Option<String>,
        /// The weights.
        source: SamplingSource,
    },
    /// Describes a sampling session.
    DescribeSamplingSession(SamplingSessionId),
    /// Describes a run.
    DescribeRun(RunId),
    /// Lists the tenant's runs, newest first.
    ListRuns {
        /// At most this many.
        limit: u32,
        /// Leaving out this many.
        offset: u32,
    },
    /// Lists checkpoints of a run, or of all runs, oldest first.
    ListCheckpoints {
        /// Only this run's.
        run: Option<RunId>,
        /// At most this many.
        limit: u32,
        /// Leaving out this many.
        offset: u32,
    },
    /// The newest checkpoint of each kind of a run.
    LatestCheckpoints(RunId),
    /// Describes a checkpoint.
    DescribeCheckpoint(CheckpointPath),
    /// Deletes a checkpoint.
    DeleteCheckpoint(CheckpointPath),
}

/// The result of a [`ServeRequest`].
#[derive(Clone, Debug, PartialEq)]
pub enum ServeOutcome {
    /// Done, nothing to tell.
    Done,
    /// A session.
    Session(SessionRecord),
    /// A sampling session.
    SamplingSession(SamplingSessionRecord),
    /// A run.
    Run(RunRecord),
    /// Runs, and how many there are in all.
    Runs {
        /// One page.
        runs: Vec<RunRecord>,
        /// How many there are in all.
        total: u64,
    },
    /// Checkpoints, and how many there are in all.
    Checkpoints {
        /// One page.
        checkpoints: Vec<CheckpointRecord>,
        /// How many there are in all.
        total: u64,
    },
    /// A checkpoint.
    Checkpoint(CheckpointRecord),
}

/// A session as the store knows it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct SessionRecord {
    /// Its id.
    pub id: SessionId,
    /// Its owner.
    pub tenant: TenantId,
    /// The client's tags.
    pub tags: Vec<String>,
    /// The user's notes.
    pub user_metadata: BTreeMap<String, String>,
    /// The client's version.
    pub sdk_version: Option<String>,
    /// Whether it was finished; new runs are refused then.
    pub finished: bool,
    /// When it was opened.
    pub created_at: jiff::Timestamp,
}

/// A sampling session as the store knows it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct SamplingSessionRecord {
    /// Its id.
    pub id: SamplingSessionId,
    /// Its owner.
    pub tenant: TenantId,
    /// The session it belongs to.
    pub session: SessionId,
    /// The base model's public name.
    pub base_model: String,
    /// The weights.
    pub source: SamplingSource,
}

/// A training run as the store knows it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct RunRecord {
    /// Its id.
    pub id: RunId,
    /// Its owner.
    pub tenant: TenantId,
    /// The session it belongs to.
    pub session: SessionId,
    /// The base model's public name.
    pub base_model: String,
    /// The adapter's shape.
    pub lora: LoraSpec,
    /// The user's notes.
    pub user_metadata: BTreeMap<String, String>,
    /// Whether it was unloaded or never came to be.
    pub closed: bool,
    /// When it was created.
    pub created_at: jiff::Timestamp,
    /// When it was last used.
    pub last_used_at: jiff::Timestamp,
}

/// A checkpoint as the store knows it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct CheckpointRecord {
    /// Its path.
    pub path: CheckpointPath,
    /// Its owner.
    pub tenant: TenantId,
    /// The base model's public name.
    pub base_model: String,
    /// The adapter's shape.
    pub lora: LoraSpec,
    /// Bytes on disk.
    pub size_bytes: u64,
    /// The user's notes.
    pub user_metadata: BTreeMap<String, String>,
    /// When it was saved.
    pub created_at: jiff::Timestamp,
    /// When it will be removed.
    pub expires_at: Option<jiff::Timestamp>,
}
