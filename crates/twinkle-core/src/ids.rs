//! Names of things. Each is a newtype, so a session id cannot be passed where a run id is meant.

use std::fmt;

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use uuid::{Builder, Uuid};

use crate::error::{Error, Result};

macro_rules! string_id {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
        #[serde(transparent)]
        pub struct $name(String);

        impl $name {
            /// Wraps a name that came from a client or from the store.
            pub fn new(name: impl Into<String>) -> Self {
                Self(name.into())
            }

            /// The name as text.
            #[must_use]
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
                formatter.write_str(&self.0)
            }
        }
    };
}

string_id! {
    /// Who owns an object. Never a raw API key: see [`TenantId::of_key`].
    TenantId
}
string_id! {
    /// A client's session: the owner of runs and sampling sessions.
    SessionId
}
string_id! {
    /// A training run: `<session>:train:<n>`, which the Tinker SDK builds itself, or `<session>-<adapter>` for a Twinkle
    /// client's adapter.
    RunId
}
string_id! {
    /// A place to sample from, `<session>:sample:<n>`.
    SamplingSessionId
}
string_id! {
    /// A loss that a client wrote, `<session>:loss:<n>`.
    CustomLossId
}
string_id! {
    /// An accepted operation whose result can be retrieved later.
    RequestId
}

/// Longest name of an adapter, in bytes; with its session it is the name of a folder.
const MOST_ADAPTER_BYTES: usize = 120;

/// Longest session id that a client chooses, in bytes.
const MOST_SESSION_BYTES: usize = 100;

impl TenantId {
    /// The tenant of an API key: the first 128 bits of its SHA-256, in hex.
    #[must_use]
    pub fn of_key(key: &str) -> Self {
        let digest = Sha256::digest(key.as_bytes());
        Self(hex::encode(&digest[..16]))
    }
}

impl SessionId {
    /// A fresh, time-sortable session id.
    #[must_use]
    pub fn fresh() -> Self {
        Self(Uuid::now_v7().to_string())
    }

    /// A fresh session id as Twinkle clients know them: `session_` and 32 hexadecimal digits.
    #[must_use]
    pub fn fresh_twinkle() -> Self {
        Self(format!("session_{}", Uuid::now_v7().simple()))
    }

    /// The session of a client that opens none and only sends a request id, as those of 0.1 do: never another tenant's.
    #[must_use]
    pub fn of_request(tenant: &TenantId, request: &str) -> Self {
        let is_plain = |letter: char| letter.is_ascii_alphanumeric() || matches!(letter, '.' | '_');
        let plain: String =
            request.chars().take(48).map(|letter| if is_plain(letter) { letter } else { '_' }).collect();
        let digest = Sha256::digest(format!("{tenant}\n{request}").as_bytes());
        Self(format!("request_{plain}_{}", hex::encode(&digest[..8])))
    }

    /// The session of a request that its client may send again under the same key: the same for the same tenant, route and
    /// key, and nobody else's. It looks like a fresh one.
    #[must_use]
    pub fn of_key(tenant: &TenantId, route: &str, key: &str) -> Self {
        let digest = Sha256::digest(format!("{tenant}\0{route}\0{key}").as_bytes());
        let (halves, _) = digest.as_slice().as_chunks();
        let bytes = halves.first().copied().unwrap_or_default();
        Self(Builder::from_random_bytes(bytes).into_uuid().to_string())
    }

    /// A session id that a client chose: letters, digits, `.`, `_` and `-`, and none that this server would give.
    pub fn chosen(name: &str) -> Result<Self> {
        let starts_well = name.chars().next().is_some_and(|first| first.is_ascii_alphanumeric());
        let all_allowed =
            name.chars().all(|letter| letter.is_ascii_alphanumeric() || matches!(letter, '.' | '_' | '-'));
        let is_ours = name.starts_with("session_") || name.starts_with("request_");
        if starts_well && all_allowed && !is_ours && name.len() <= MOST_SESSION_BYTES {
            return Ok(Self(name.to_owned()));
        }
        Err(Error::invalid("`session_id` is not a name that a client can choose").hint(format!(
            "leave it out, or use up to {MOST_SESSION_BYTES} letters, digits, `.`, `_`, `-`, not beginning with `session_` or `request_`"
        )))
    }
}

impl RunId {
    /// The `number`-th training run of `session`.
    #[must_use]
    pub fn of_session(session: &SessionId, number: u64) -> Self {
        Self(format!("{session}:train:{number}"))
    }

    /// The run of a Twinkle client's adapter, `<session>-<adapter>`.
    ///
    /// A name becomes a folder and a part of `twinkle://` paths: what is not a letter, digit, `.`, `_` or `-` is written as
    /// `_`, and a digest of the name keeps two such names apart. Errors: the name is empty, too long, or looks like a path.
    pub fn of_adapter(session: &SessionId, adapter: &str) -> Result<Self> {
        let is_path = adapter.contains("..") || adapter.contains(['\0', '~']) || adapter.starts_with('/');
        if adapter.trim().is_empty() || is_path || adapter.len() > MOST_ADAPTER_BYTES {
            let shown: String = adapter.chars().filter(|letter| !letter.is_control()).take(60).collect();
            return Err(Error::invalid(format!("invalid adapter_name: `{shown}`"))
                .hint(format!("use 1 to {MOST_ADAPTER_BYTES} bytes without `..`, `~` or a leading `/`")));
        }
        let is_plain = |letter: char| letter.is_ascii_alphanumeric() || matches!(letter, '.' | '_' | '-');
        if adapter.chars().all(is_plain) {
            return Ok(Self(format!("{session}-{adapter}")));
        }
        let plain: String = adapter.chars().map(|letter| if is_plain(letter) { letter } else { '_' }).collect();
        let digest = hex::encode(&Sha256::digest(adapter.as_bytes())[..4]);
        Ok(Self(format!("{session}-{plain}-{digest}")))
    }

    /// The session that owns this run, if the name says so as the Tinker SDK's do.
    #[must_use]
    pub fn session(&self) -> Option<SessionId> {
        let (session, _) = self.0.split_once(":train:")?;
        Some(SessionId::new(session))
    }
}

impl SamplingSessionId {
    /// The `number`-th sampling session of `session`.
    #[must_use]
    pub fn of_session(session: &SessionId, number: u64) -> Self {
        Self(format!("{session}:sample:{number}"))
    }

    /// The name of the weights that all inflight sampling sessions of `run`, a run of `session`, share. It is no sampling
    /// session itself, so no client can name it.
    #[must_use]
    pub fn inflight_weights(session: &SessionId, run: &RunId) -> Self {
        let number = run.0.rsplit(':').next().unwrap_or_default();
        Self(format!("{session}:sample:inflight-{number}"))
    }
}

impl CustomLossId {
    /// The `number`-th custom loss of `session`.
    #[must_use]
    pub fn of_session(session: &SessionId, number: u64) -> Self {
        Self(format!("{session}:loss:{number}"))
    }
}

impl RequestId {
    /// A fresh id for a journaled operation: its result survives a restart.
    #[must_use]
    pub fn journaled() -> Self {
        Self(format!("op-{}", Uuid::now_v7()))
    }

    /// A fresh id for an operation that is simply resubmitted after a restart (sampling).
    #[must_use]
    pub fn ephemeral() -> Self {
        Self(format!("try-{}", Uuid::now_v7()))
    }

    /// Whether a client may be told to submit the operation again when its result is gone.
    #[must_use]
    pub fn is_ephemeral(&self) -> bool {
        self.0.starts_with("try-")
    }
}

/// What a checkpoint is for; the middle part of its path.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum CheckpointKind {
    /// Adapter, optimizer and counters: training can continue from it.
    Weights,
    /// Adapter only, for sampling.
    SamplerWeights,
    /// Adapter only, to be downloaded: possibly encrypted, never read again by the server.
    ExternalWeights,
}

impl CheckpointKind {
    /// Every kind.
    pub const ALL: [Self; 3] = [Self::Weights, Self::SamplerWeights, Self::ExternalWeights];

    /// The kind with that path segment.
    #[must_use]
    pub fn of_segment(segment: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|kind| kind.segment() == segment)
    }

    /// The path segment, `weights`, `sampler_weights` or `external_weights`.
    #[must_use]
    pub const fn segment(self) -> &'static str {
        match self {
            Self::Weights => "weights",
            Self::SamplerWeights => "sampler_weights",
            Self::ExternalWeights => "external_weights",
        }
    }
}

/// `tinker://<run>/<kind>/<name>`, or the same with `twinkle://`.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct CheckpointPath {
    /// The run that saved it.
    pub run: RunId,
    /// What it is for.
    pub kind: CheckpointKind,
    /// The name the user gave.
    pub name: String,
}

impl CheckpointPath {
    /// Joins the parts, refusing names that are not a single safe path segment.
    pub fn new(run: RunId, kind: CheckpointKind, name: &str) -> Result<Self> {
        validate_checkpoint_name(name)?;
        Ok(Self { run, kind, name: name.to_owned() })
    }

    /// Parses `tinker://…` or `twinkle://…`.
    ///
    /// Run ids contain `:`, so this is not a URL and must not be parsed as one.
    pub fn parse(text: &str) -> Result<Self> {
        let rest = text.strip_prefix("tinker://").or_else(|| text.strip_prefix("twinkle://")).ok_or_else(|| {
            Error::invalid(format!("`{text}` is not a checkpoint path"))
                .hint("a checkpoint path looks like `tinker://<run>/weights/<name>`")
        })?;
        let parts: Vec<&str> = rest.split('/').collect();
        let [run, kind, name] = parts[..] else {
            return Err(Error::invalid(format!("`{text}` does not have three parts after the scheme"))
                .hint("a checkpoint path looks like `tinker://<run>/weights/<name>`"));
        };
        let kind = CheckpointKind::of_segment(kind).ok_or_else(|| {
            Error::invalid(format!("unknown checkpoint kind `{kind}` in `{text}`"))
                .hint("known kinds: `weights`, `sampler_weights`, `external_weights`")
        })?;
        if run.is_empty() || run == "." || run == ".." {
            return Err(Error::invalid(format!("`{text}` names no run")));
        }
        Self::new(RunId::new(run), kind, name)
    }

    /// The path as Twinkle clients write it, `twinkle://<run>/<kind>/<name>`.
    #[must_use]
    pub fn to_twinkle(&self) -> String {
        format!("twinkle://{}/{}/{}", self.run, self.kind.segment(), self.name)
    }

    /// The id used below a run in REST routes: `weights/<name>`.
    #[must_use]
    pub fn checkpoint_id(&self) -> String {
        format!("{}/{}", self.kind.segment(), self.name)
    }
}

impl fmt::Display for CheckpointPath {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "tinker://{}/{}/{}", self.run, self.kind.segment(), self.name)
    }
}

/// A checkpoint name is one path segment: letters, digits, `.`, `_`, `-`, not starting with a dot.
pub fn validate_checkpoint_name(name: &str) -> Result<()> {
    let starts_well = name.chars().next().is_some_and(|first| first.is_ascii_alphanumeric());
    let all_allowed = name.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-'));
    if starts_well && all_allowed && name.len() <= 255 {
        return Ok(());
    }
    Err(Error::invalid(format!("`{name}` is not a checkpoint name"))
        .hint("use up to 255 letters, digits, `.`, `_`, `-`, starting with a letter or digit"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_schemes_name_the_same_checkpoint() {
        let tinker = CheckpointPath::parse("tinker://s-1:train:0/weights/step-3").unwrap();
        let twinkle = CheckpointPath::parse("twinkle://s-1:train:0/weights/step-3").unwrap();
        assert_eq!(tinker, twinkle);
        assert_eq!(tinker.to_string(), "tinker://s-1:train:0/weights/step-3");
        assert_eq!(tinker.run.session(), Some(SessionId::new("s-1")));
    }

    #[test]
    fn adapters_of_one_session_have_names_of_their_own() {
        let session = SessionId::new("session_0123");
        let run = |adapter: &str| RunId::of_adapter(&session, adapter);
        assert_eq!(run("math.v1").unwrap().as_str(), "session_0123-math.v1");
        assert_ne!(run("a b").unwrap(), run("a/b").unwrap());
        assert!(run("a/b").unwrap().as_str().starts_with("session_0123-a_b-"));
        for name in ["", " ", "..", "../x", "a/../b", "~root", "/etc", "a\0b", &"x".repeat(121)] {
            let refusal = run(name).unwrap_err().message;
            assert!(refusal.starts_with("invalid adapter_name: "), "{name:?}: {refusal}");
        }
    }

    #[test]
    fn an_implicit_session_is_the_tenants_alone() {
        let (alice, bob) = (TenantId::new("alice"), TenantId::new("bob"));
        let session = |tenant| SessionId::of_request(tenant, "20260101_120000-abcdef01");
        assert_eq!(session(&alice), session(&alice));
        assert_ne!(session(&alice), session(&bob));
        assert!(session(&alice).as_str().starts_with("request_20260101_120000_abcdef01_"), "{}", session(&alice));
        assert!(!SessionId::of_request(&alice, "../x").as_str().contains('/'));
    }

    #[test]
    fn a_key_names_one_session_of_one_tenant_and_route() {
        let of = |tenant, route, key| SessionId::of_key(&TenantId::new(tenant), route, key);
        let first = of("alice", "create_session", "k");
        assert_eq!(first, of("alice", "create_session", "k"));
        for other in
            [of("bob", "create_session", "k"), of("alice", "copy_weights", "k"), of("alice", "create_session", "k2")]
        {
            assert_ne!(first, other);
        }
        assert!(Uuid::parse_str(first.as_str()).is_ok(), "{first}");
    }

    #[test]
    fn a_client_cannot_choose_a_session_that_the_server_would_give() {
        assert_eq!(SessionId::chosen("mine-1").unwrap(), SessionId::new("mine-1"));
        for name in ["", "-x", "a b", "a:train:0", "a/b", "session_1", "request_x", &"x".repeat(101)] {
            assert!(SessionId::chosen(name).is_err(), "{name:?} was accepted");
        }
    }

    #[test]
    fn paths_that_escape_are_refused() {
        for text in [
            "tinker://a/weights/..",
            "tinker://a/weights/.x",
            "tinker://../weights/x",
            "tinker://a/weights/b/c",
            "/etc/passwd",
            "tinker://a/code/x",
        ] {
            assert!(CheckpointPath::parse(text).is_err(), "{text} was accepted");
        }
    }
}
