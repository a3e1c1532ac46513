//! The central component: sessions and directories of runs, sampling sessions and checkpoints.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::adapter::AdapterRecord;
use super::custom_loss::{CustomLossRecord, SharedGraph};
use super::lora::LoraSpec;
use super::sample::SamplingSource;
use crate::ids::{CheckpointPath, CustomLossId, RunId, SamplingSessionId, SessionId, TenantId};

/// The project of sessions that were filed under none.
pub const DEFAULT_PROJECT: &str = "default";

/// What the central `server` component does: sessions, directories of runs and checkpoints.
#[derive(Clone, Debug)]
pub enum ServeRequest {
    /// Opens a session.
    CreateSession {
        /// Its name, when the client or its front chose one: asked again, the same session is answered.
        id: Option<SessionId>,
        /// The client's tags.
        tags: Vec<String>,
        /// The user's notes.
        user_metadata: BTreeMap<String, String>,
        /// The client's version, for the record.
        sdk_version: Option<String>,
        /// The project it is filed under.
        project_id: Option<String>,
        /// A name to show and to search for.
        display_name: Option<String>,
    },
    /// Keeps a session alive.
    Heartbeat(SessionId),
    /// Ends a session.
    FinishSession {
        /// Which.
        session: SessionId,
        /// What its client said about it.
        end: Option<ClientEnd>,
    },
    /// Describes a live session.
    DescribeSession(SessionId),
    /// Describes a session, finished or not, with its runs and sampling sessions.
    ReadSession(SessionId),
    /// Names the tenant's sessions, newest first.
    ListSessions {
        /// At most this many.
        limit: u32,
        /// Leaving out this many.
        offset: u32,
    },
    /// Finds the tenant's sessions by what is known of them, newest first.
    SearchSessions(Box<SessionSearch>),
    /// Files a session and all it has under a project.
    AssignProject {
        /// Which.
        session: SessionId,
        /// Where.
        project_id: String,
    },
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
    /// Keeps a loss that the client wrote; its graph has been checked.
    CreateCustomLoss {
        /// The session it belongs to.
        session: SessionId,
        /// The client's number for it; the same number names the same loss.
        number: u64,
        /// What it computes.
        graph: SharedGraph,
    },
    /// Describes a loss that the client wrote.
    DescribeCustomLoss(CustomLossId),
    /// Keeps what was set for a Twinkle client's adapter, in place of what was kept of it before.
    KeepAdapter(Box<AdapterRecord>),
    /// Describes an adapter of a session, if there is one of that name.
    DescribeAdapter {
        /// Its session.
        session: SessionId,
        /// The client's name for it.
        name: String,
    },
    /// Counts a further client of a sampling session.
    JoinSamplingSession(SamplingSessionId),
    /// Describes a run.
    DescribeRun(RunId),
    /// Lists the tenant's runs, newest first.
    ListRuns {
        /// Only this project's.
        project_id: Option<String>,
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
    /// Describes a checkpoint of the tenant, or a public one.
    DescribeCheckpoint(CheckpointPath),
    /// Sets when a checkpoint is removed.
    KeepCheckpoint {
        /// Which.
        path: CheckpointPath,
        /// In how many seconds from now; `None`: never.
        ttl_seconds: Option<u64>,
    },
    /// Lets every tenant read a checkpoint, or its owner alone again.
    PublishCheckpoint {
        /// Which.
        path: CheckpointPath,
        /// Whether everybody may read it.
        public: bool,
    },
    /// Copies a checkpoint into a run of its own; answered with the copy.
    CopyCheckpoint(Box<CheckpointCopy>),
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
    /// A session and what belongs to it.
    SessionContents(SessionContents),
    /// Names of sessions.
    SessionNames(Vec<SessionId>),
    /// Sessions that were searched for.
    FoundSessions {
        /// One page.
        sessions: Vec<FoundSession>,
        /// Where the next page begins; `None` when nothing is left.
        next: Option<SessionPlace>,
    },
    /// A sampling session.
    SamplingSession(SamplingSessionRecord),
    /// A loss that the client wrote.
    CustomLoss(CustomLossRecord),
    /// An adapter, if there is one of that name.
    Adapter(Option<Box<AdapterRecord>>),
    /// The number of a sampling session's further client, from 1 on.
    JoinedSamplingSession(u64),
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
    /// The project it is filed under.
    pub project_id: Option<String>,
    /// A name to show and to search for.
    pub display_name: Option<String>,
    /// What its client said when it finished it.
    pub client_end: Option<ClientEnd>,
}

/// How a client says that its session ended.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ClientEnd {
    /// `success`, `errored` or `interrupted`.
    pub reason: String,
    /// More about it.
    pub detail: Option<String>,
}

/// A session and the names of what belongs to it, oldest first.
#[derive(Clone, Debug, PartialEq)]
pub struct SessionContents {
    /// The session.
    pub record: SessionRecord,
    /// Its training runs.
    pub runs: Vec<RunId>,
    /// Its sampling sessions.
    pub samplers: Vec<SamplingSessionId>,
}

/// What is searched for; everything that is given must hold.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SessionSearch {
    /// This session; with a name, a session that matches either one is found.
    pub session: Option<SessionId>,
    /// A session whose name has each of these words, in small letters.
    pub words: Option<Vec<String>>,
    /// Only sessions of these projects.
    pub projects: Option<Vec<String>>,
    /// Notes that a session must have, to the letter.
    pub user_metadata: BTreeMap<String, String>,
    /// Only sessions in one of these states.
    pub states: Option<Vec<SessionState>>,
    /// At most this many.
    pub limit: u32,
    /// Only sessions after this place.
    pub after: Option<SessionPlace>,
}

/// A state that sessions are searched by.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SessionState {
    /// Not finished.
    Active,
    /// Finished by its client, for one of these reasons; none given: for whatever reason.
    ClientFinished(Option<Vec<String>>),
    /// A state that no session has here.
    Never,
}

/// A place in the list of sessions, newest first.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SessionPlace {
    /// When the session there was opened.
    pub created_at: jiff::Timestamp,
    /// Its name.
    pub session: SessionId,
}

/// A session that was searched for.
#[derive(Clone, Debug, PartialEq)]
pub struct FoundSession {
    /// The session.
    pub record: SessionRecord,
    /// How many checkpoints its runs have.
    pub checkpoints: u64,
    /// Their bytes on disk.
    pub checkpoint_bytes: u64,
}

/// A checkpoint to copy, and where to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CheckpointCopy {
    /// The original: the tenant's or a public one.
    pub source: CheckpointPath,
    /// Where the copy belongs.
    pub destination: CopyDestination,
    /// Lifetime of the copy in seconds; `None` keeps it until deleted.
    pub ttl_seconds: Option<u64>,
    /// The client's name for this request: sent again with the same name, it is answered with the same copy.
    pub key: Option<String>,
}

/// Where a copy of a checkpoint belongs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum CopyDestination {
    /// A new session filed under this project.
    Project(String),
    /// The run of this number of an open session.
    Run {
        /// The session.
        session: SessionId,
        /// The run's number in it.
        number: u64,
    },
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
    /// Whether every tenant may read it.
    #[serde(default)]
    pub public: bool,
}
