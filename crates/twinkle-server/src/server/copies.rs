//! Copies of checkpoints: the files are shared with the original, the copy lives on its own.

use std::collections::BTreeMap;

use twinkle_core::call::{CheckpointCopy, CheckpointRecord, CopyDestination, RunRecord, ServeOutcome, SessionRecord};
use twinkle_core::checkpoint::CheckpointStore;
use twinkle_core::error::{Error, ErrorCode, Result};
use twinkle_core::ids::{CheckpointPath, RunId, SessionId, TenantId};
use twinkle_core::state::{NewCopy, StateStore};

use super::checkpoints::expiry;
use super::sessions;

/// The note on a copy's run that says what it is a copy of.
const ORIGIN: &str = "copied_from";

/// Copies a checkpoint that the tenant may read. A repeated request is answered with the first copy.
pub(crate) async fn copy(
    store: &StateStore,
    files: &CheckpointStore,
    tenant: &TenantId,
    wanted: CheckpointCopy,
) -> Result<ServeOutcome> {
    let CheckpointCopy { source, destination, ttl_seconds, key } = wanted;
    let original = store.readable_checkpoint(tenant, &source).await?;
    let (session, run) = place(tenant, destination, key.as_deref(), &source)?;
    let path = CheckpointPath { run: run.clone(), ..source.clone() };
    if let Some(first) = earlier(store, tenant, &path, &source).await? {
        return Ok(ServeOutcome::Checkpoint(first));
    }
    if session.is_none() {
        // Before any file is copied; the store looks again.
        let owner = run.session().ok_or_else(|| Error::internal(format!("`{run}` is not a run's name")))?;
        sessions::describe(store, tenant, &owner).await?;
    }
    let created_at = sessions::now();
    let size_bytes = copy_files(files, &original, tenant, &path, created_at).await?;
    let checkpoint = CheckpointRecord {
        path: path.clone(),
        tenant: tenant.clone(),
        size_bytes,
        created_at,
        expires_at: ttl_seconds.map(|seconds| expiry(created_at, seconds)).transpose()?,
        public: false,
        ..original
    };
    let copy = NewCopy { run: run_record(&run, &checkpoint, &source), session, checkpoint: checkpoint.clone() };
    match store.insert_copy(copy).await {
        Ok(()) => Ok(ServeOutcome::Checkpoint(checkpoint)),
        // The same request may have come twice at the same time.
        Err(error) if error.code == ErrorCode::InvalidArgument => {
            earlier(store, tenant, &path, &source).await?.map(ServeOutcome::Checkpoint).ok_or(error)
        }
        Err(error) => Err(error),
    }
}

/// The session to make for the copy, if any, and the name of the copy's run.
fn place(
    tenant: &TenantId,
    destination: CopyDestination,
    key: Option<&str>,
    source: &CheckpointPath,
) -> Result<(Option<SessionRecord>, RunId)> {
    match destination {
        CopyDestination::Run { session, number } => Ok((None, RunId::of_session(&session, number))),
        CopyDestination::Project(project) => {
            sessions::check_name("destination_project_id", &project)?;
            let session = SessionRecord {
                id: key.map_or_else(SessionId::fresh, |key| SessionId::of_key(tenant, "copy_weights", key)),
                tenant: tenant.clone(),
                tags: Vec::new(),
                user_metadata: origin(source),
                sdk_version: None,
                finished: true,
                created_at: sessions::now(),
                project_id: Some(project),
                display_name: Some(format!("copy of {source}").chars().take(200).collect()),
                client_end: None,
            };
            let run = RunId::of_session(&session.id, 0);
            Ok((Some(session), run))
        }
    }
}

/// The copy that the same request made before. A run of that name that is something else is an error.
async fn earlier(
    store: &StateStore,
    tenant: &TenantId,
    path: &CheckpointPath,
    source: &CheckpointPath,
) -> Result<Option<CheckpointRecord>> {
    let run = match store.run(tenant, &path.run).await {
        Ok(run) => run,
        Err(error) if error.code == ErrorCode::NotFound => return Ok(None),
        Err(error) => return Err(error),
    };
    if run.user_metadata.get(ORIGIN) != Some(&source.to_string()) {
        return Err(Error::invalid(format!("run `{}` exists already and is no copy of `{source}`", path.run))
            .hint("give every copy a number or a key of its own"));
    }
    store.checkpoint(tenant, path).await.map(Some)
}

async fn copy_files(
    files: &CheckpointStore,
    original: &CheckpointRecord,
    tenant: &TenantId,
    path: &CheckpointPath,
    created_at: jiff::Timestamp,
) -> Result<u64> {
    let (files, owner, source) = (files.clone(), original.tenant.clone(), original.path.clone());
    let (tenant, target) = (tenant.clone(), path.clone());
    let copied =
        tokio::task::spawn_blocking(move || files.copy((&owner, &source), (&tenant, &target), created_at)).await;
    let copied = copied.map_err(|error| Error::internal(format!("copying `{}` failed: {error}", original.path)))??;
    Ok(copied.size_bytes)
}

fn run_record(run: &RunId, checkpoint: &CheckpointRecord, source: &CheckpointPath) -> RunRecord {
    RunRecord {
        id: run.clone(),
        tenant: checkpoint.tenant.clone(),
        session: run.session().unwrap_or_else(|| SessionId::new(run.as_str())),
        base_model: checkpoint.base_model.clone(),
        lora: checkpoint.lora.clone(),
        user_metadata: origin(source),
        closed: true,
        created_at: checkpoint.created_at,
        last_used_at: checkpoint.created_at,
    }
}

fn origin(source: &CheckpointPath) -> BTreeMap<String, String> {
    BTreeMap::from([(ORIGIN.to_owned(), source.to_string())])
}
