//! The uploads under way. How each is doing is in the store, too: before it begins, every few seconds, and when it ends.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;
use twinkle_core::error::{Error, ErrorCode, Result};
use twinkle_core::ids::{RequestId, TenantId};
use twinkle_core::state::{StateStore, UploadRecord};
use twinkle_hub::{Progress, Upload, Uploader};
use uuid::Uuid;

/// Uploads at the same time; each reads a file and holds a connection.
const MOST_AT_ONCE: usize = 8;
/// Uploads of one tenant that have not ended.
const MOST_OF_TENANT: usize = 4;
/// Uploads that have not ended, of all tenants.
const MOST_OPEN: usize = 1_000;
/// How often the progress of an upload is noted.
const NOTED_EVERY: Duration = Duration::from_secs(10);

/// The uploads of a node; a cheap handle.
///
/// A token is in memory only. So an upload ends with the server, and its client is told so.
#[derive(Clone)]
pub(crate) struct Uploads {
    uploader: Result<Arc<Uploader>>,
    store: StateStore,
    open: Arc<Mutex<HashMap<RequestId, Task>>>,
    places: Arc<Semaphore>,
}

/// One upload; a cheap handle.
#[derive(Clone)]
struct Task {
    tenant: TenantId,
    progress: Progress,
    /// Its end, where the store could not be told.
    end: Option<Result<()>>,
}

impl Uploads {
    /// Uploads that are noted in `store`.
    pub(crate) fn new(uploader: Result<Uploader>, store: StateStore) -> Self {
        Self {
            uploader: uploader.map(Arc::new),
            store,
            open: Arc::default(),
            places: Arc::new(Semaphore::new(MOST_AT_ONCE)),
        }
    }

    /// Begins an upload and names it. It ends when the node stops.
    ///
    /// Errors: `LimitReached` when the tenant has as many under way as it may.
    pub(super) async fn begin(
        &self,
        tenant: &TenantId,
        upload: Upload,
        stopping: CancellationToken,
    ) -> Result<RequestId> {
        let uploader = self.uploader.clone()?;
        let request = RequestId::new(format!("req_{}", Uuid::new_v4().simple()));
        let task = Task { tenant: tenant.clone(), progress: Progress::default(), end: None };
        self.admit(&request, &task)?;
        let record = task.record(&request);
        // Noted before its name is told: what a client knows of is never unknown.
        if let Err(error) = self.store.keep_upload(&record).await {
            self.open.lock().remove(&request);
            return Err(error);
        }
        let (uploads, name) = (self.clone(), request.clone());
        tokio::spawn(async move {
            let end = uploads.run(&uploader, upload, (&name, &task), stopping).await;
            match &end {
                Ok(()) => tracing::info!(request = %name, bytes = task.progress.sent(), "a checkpoint was uploaded"),
                Err(error) => tracing::warn!(request = %name, %error, "an upload failed"),
            }
            uploads.end(name, Task { end: Some(end), ..task }).await;
        });
        Ok(request)
    }

    fn admit(&self, request: &RequestId, task: &Task) -> Result<()> {
        let mut open = self.open.lock();
        let of_tenant = open.values().filter(|other| other.tenant == task.tenant && other.end.is_none()).count();
        if of_tenant >= MOST_OF_TENANT {
            return Err(Error::new(ErrorCode::LimitReached, format!("{of_tenant} uploads are under way"))
                .hint("wait until one of them ends"));
        }
        if open.len() >= MOST_OPEN {
            return Err(Error::new(ErrorCode::Overloaded, format!("{MOST_OPEN} uploads are under way"))
                .retry_after(Duration::from_mins(1)));
        }
        open.insert(request.clone(), task.clone());
        Ok(())
    }

    /// Uploads, and notes meanwhile how far it is.
    async fn run(
        &self,
        uploader: &Uploader,
        upload: Upload,
        (request, task): (&RequestId, &Task),
        stopping: CancellationToken,
    ) -> Result<()> {
        let work = async {
            let _place = self.places.acquire().await.map_err(|_| Error::internal("no upload is begun any more"))?;
            uploader.upload(upload, &task.progress).await
        };
        let notes = async {
            loop {
                tokio::time::sleep(NOTED_EVERY).await;
                if let Err(error) = self.store.keep_upload(&task.record(request)).await {
                    tracing::warn!(%request, %error, "the progress of an upload was not noted");
                }
            }
        };
        tokio::select! {
            end = work => end,
            () = notes => Ok(()),
            () = stopping.cancelled() => Err(interrupted()),
        }
    }

    /// Notes the end. An end that cannot be noted is told from memory.
    async fn end(&self, request: RequestId, task: Task) {
        let noted = self.store.keep_upload(&task.record(&request)).await;
        let mut open = self.open.lock();
        match noted {
            Ok(()) => drop(open.remove(&request)),
            Err(error) => {
                tracing::warn!(%request, %error, "the end of an upload was not noted");
                open.insert(request, task);
            }
        }
    }

    /// How the tenant's upload of that name is doing; another tenant's is not there.
    pub(super) async fn state(&self, tenant: &TenantId, request: &str) -> Result<UploadRecord> {
        let request = RequestId::new(request);
        let open = self.open.lock().get(&request).filter(|task| task.tenant == *tenant).cloned();
        if let Some(task) = open {
            return Ok(task.record(&request));
        }
        let noted = self.store.upload(tenant, &request).await?;
        let mut noted = noted.ok_or_else(|| Error::not_found(format!("Upload task not found: {request}")))?;
        // Whoever was uploading it is gone.
        noted.end.get_or_insert_with(|| Err(interrupted()));
        Ok(noted)
    }
}

impl Task {
    fn record(&self, request: &RequestId) -> UploadRecord {
        UploadRecord {
            request: request.clone(),
            tenant: self.tenant.clone(),
            sent_bytes: self.progress.sent(),
            total_bytes: self.progress.total(),
            end: self.end.clone(),
        }
    }
}

/// The end of an upload whose server stopped.
fn interrupted() -> Error {
    Error::new(ErrorCode::Interrupted, "the server stopped during the upload")
        .hint("upload it again: files that the hub has already are not sent again")
}
