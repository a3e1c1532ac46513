//! The uploads under way, and how those of the last day ended.

use std::sync::Arc;
use std::time::Duration;

use moka::sync::Cache;
use parking_lot::Mutex;
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;
use twinkle_core::error::{Error, ErrorCode, Result};
use twinkle_core::ids::TenantId;
use twinkle_hub::{Environment, Patience, Progress, Upload, Uploader};
use uuid::Uuid;

/// Uploads at the same time; each reads a file and holds a connection.
const MOST_AT_ONCE: usize = 8;

/// Uploads of one tenant that have not ended.
const MOST_OF_TENANT: usize = 4;

/// Uploads that are remembered, and for how long.
const REMEMBERED: u64 = 10_000;
const REMEMBERED_FOR: Duration = Duration::from_hours(24);

/// The uploads of a node; a cheap handle. Nothing of them survives a restart: a client that asks is told so.
#[derive(Clone)]
pub(crate) struct Uploads {
    uploader: Result<Arc<Uploader>>,
    tasks: Cache<String, Task>,
    places: Arc<Semaphore>,
}

/// One upload; a cheap handle.
#[derive(Clone)]
struct Task {
    tenant: TenantId,
    progress: Progress,
    end: Arc<Mutex<Option<Result<()>>>>,
}

/// How an upload is doing.
#[derive(Clone, Debug)]
pub(super) struct State {
    /// Its end, if it has ended.
    pub(super) end: Option<Result<()>>,
    /// How far it is.
    pub(super) progress: Progress,
}

impl Default for Uploads {
    fn default() -> Self {
        Self::new(&Environment::of_process(), Patience::default())
    }
}

impl Uploads {
    pub(super) fn new(environment: &Environment, patience: Patience) -> Self {
        Self {
            uploader: Uploader::new(environment, patience).map(Arc::new),
            tasks: Cache::builder().max_capacity(REMEMBERED).time_to_live(REMEMBERED_FOR).build(),
            places: Arc::new(Semaphore::new(MOST_AT_ONCE)),
        }
    }

    /// Begins an upload and names it. It ends when the node stops.
    ///
    /// Errors: `LimitReached` when the tenant has as many under way as it may.
    pub(super) fn begin(&self, tenant: &TenantId, upload: Upload, stopping: CancellationToken) -> Result<String> {
        let uploader = self.uploader.clone()?;
        let is_open = |task: &Task| task.tenant == *tenant && task.end.lock().is_none();
        let open = self.tasks.iter().filter(|(_, task)| is_open(task)).count();
        if open >= MOST_OF_TENANT {
            return Err(Error::new(ErrorCode::LimitReached, format!("{open} uploads are under way"))
                .hint("wait until one of them ends"));
        }
        let request = format!("req_{}", Uuid::new_v4().simple());
        let task = Task { tenant: tenant.clone(), progress: Progress::default(), end: Arc::default() };
        self.tasks.insert(request.clone(), task.clone());
        let places = Arc::clone(&self.places);
        let shown = request.clone();
        tokio::spawn(async move {
            let work = async {
                let _place = places.acquire().await.map_err(|_| Error::internal("no upload is begun any more"))?;
                uploader.upload(upload, &task.progress).await
            };
            let end = tokio::select! {
                end = work => end,
                () = stopping.cancelled() => Err(Error::new(ErrorCode::Draining, "the server stopped during the upload")),
            };
            match &end {
                Ok(()) => tracing::info!(request = shown, bytes = task.progress.sent(), "a checkpoint was uploaded"),
                Err(error) => tracing::warn!(request = shown, %error, "an upload failed"),
            }
            *task.end.lock() = Some(end);
        });
        Ok(request)
    }

    /// How the tenant's upload of that name is doing; another tenant's is not there.
    pub(super) fn state(&self, tenant: &TenantId, request: &str) -> Result<State> {
        let task = self.tasks.get(request).filter(|task| task.tenant == *tenant);
        let task = task.ok_or_else(|| Error::not_found(format!("Upload task not found: {request}")))?;
        let end = task.end.lock().clone();
        Ok(State { end, progress: task.progress })
    }
}
