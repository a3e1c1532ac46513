//! From a folder to a model repository of a hub.
//!
//! Both hubs take small files inside a commit and large ones beforehand, by their SHA-256, as Git LFS does. A commit adds
//! all files at once or none. A repository that is not there is made, private.

mod files;
mod huggingface;
mod modelscope;
mod sender;
#[cfg(test)]
mod tests;

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use reqwest::Url;
use twinkle_core::config::{Hub, HubModel};
use twinkle_core::{Error, Result};

use crate::download::Patience;
use crate::environment::Environment;
use crate::hubs::{HuggingFace, ModelScope, Remote};
use files::LocalFile;
use sender::Sender;

/// The most files of one upload; a checkpoint has a handful.
const MOST_FILES: usize = 1_000;

/// Where uploads go: the hubs' addresses, from the same variables as for downloads.
pub struct Uploader {
    huggingface: Address,
    modelscope: Address,
    patience: Patience,
}

/// What is uploaded, and where to.
///
/// It has no `Debug`: the credential is never printed.
pub struct Upload {
    /// The hub.
    pub hub: Hub,
    /// The repository; it has no revision, for files are added to its main branch.
    pub repository: HubModel,
    /// The hub's token of whoever uploads.
    pub token: String,
    /// A folder with plain files.
    pub folder: PathBuf,
    /// Names of the files to take, without folders.
    pub files: Vec<String>,
}

/// How far an upload is; a cheap handle.
#[derive(Clone, Debug, Default)]
pub struct Progress {
    counts: Arc<Counts>,
}

#[derive(Debug, Default)]
struct Counts {
    sent: AtomicU64,
    total: AtomicU64,
}

struct Address {
    endpoint: Url,
    silence: Option<String>,
}

// === impl Progress ===

impl Progress {
    /// Bytes that the hub has, or that it had already.
    #[must_use]
    pub fn sent(&self) -> u64 {
        // A connection may still send what its hub has accepted already.
        self.counted().min(self.total())
    }

    /// Bytes of all files; 0 until they are known.
    #[must_use]
    pub fn total(&self) -> u64 {
        self.counts.total.load(Ordering::Relaxed)
    }

    fn begin(&self, total: u64) {
        self.counts.total.store(total, Ordering::Relaxed);
    }

    fn counted(&self) -> u64 {
        self.counts.sent.load(Ordering::Relaxed)
    }

    fn add(&self, bytes: u64) {
        self.counts.sent.fetch_add(bytes, Ordering::Relaxed);
    }

    /// Takes back what an attempt that failed had counted.
    fn take_back(&self, bytes: u64) {
        self.counts.sent.fetch_sub(bytes, Ordering::Relaxed);
    }
}

// === impl Uploader ===

impl Uploader {
    /// Uploads to the hubs that the operator allows: these, else those of `TWINKLE_HUB_UPLOADS`. `TWINKLE_FORBID_HF` holds
    /// in either case.
    ///
    /// Fails if a variable says something impossible.
    pub fn new(environment: &Environment, allowed: Option<&[Hub]>, patience: Patience) -> Result<Self> {
        let mut allowed = allowed.map_or_else(|| allowed_by(environment), |hubs| Ok(hubs.to_vec()))?;
        allowed.retain(|hub| *hub != Hub::HuggingFace || !environment.is_on("TWINKLE_FORBID_HF"));
        Ok(Self {
            huggingface: Address::of(&HuggingFace::new(environment)?, &allowed),
            modelscope: Address::of(&ModelScope::new(environment)?, &allowed),
            patience,
        })
    }

    /// Uploads; `progress` tells meanwhile how far it is.
    ///
    /// Errors: the hub may not be asked, refuses the token or the repository, or does not answer.
    pub async fn upload(&self, upload: Upload, progress: &Progress) -> Result<()> {
        let Upload { hub, repository, token, folder, files } = upload;
        let address = match hub {
            Hub::HuggingFace => &self.huggingface,
            Hub::ModelScope => &self.modelscope,
        };
        if let Some(silence) = &address.silence {
            return Err(Error::unsupported(format!("nothing is uploaded to {}: {silence}", hub.name())));
        }
        if files.len() > MOST_FILES {
            return Err(Error::invalid(format!(
                "{} files are too many for one upload, the limit is {MOST_FILES}",
                files.len()
            )));
        }
        let files = files::read(folder, files).await?;
        progress.begin(files.iter().map(|file| file.size).sum());
        let sender = Sender::new(hub, &token, self.patience, progress.clone())?;
        match hub {
            Hub::HuggingFace => huggingface::upload(&sender, &address.endpoint, &repository, &files).await,
            Hub::ModelScope => modelscope::upload(&sender, &address.endpoint, &repository, &files).await,
        }
    }
}

impl Address {
    fn of<R: Remote>(hub: &R, allowed: &[Hub]) -> Self {
        let forbidden = || (!allowed.contains(&R::HUB)).then(|| "the operator does not allow it".to_owned());
        Self { endpoint: hub.endpoint().clone(), silence: hub.silence().map(str::to_owned).or_else(forbidden) }
    }
}

/// The hubs of `TWINKLE_HUB_UPLOADS`, schemes with commas between them or `none`; both unless it is set.
fn allowed_by(environment: &Environment) -> Result<Vec<Hub>> {
    let mut allowed = Vec::new();
    for word in environment.text("TWINKLE_HUB_UPLOADS").unwrap_or("ms,hf").split(',').map(str::trim) {
        match word {
            "ms" => allowed.push(Hub::ModelScope),
            "hf" => allowed.push(Hub::HuggingFace),
            "none" => {}
            other => {
                return Err(Error::invalid(format!("`TWINKLE_HUB_UPLOADS` names the unknown hub `{other}`"))
                    .hint("write `ms`, `hf`, `ms,hf` or `none`"));
            }
        }
    }
    Ok(allowed)
}

/// The commit's title.
fn title(files: &[LocalFile]) -> String {
    format!("Upload {} files with Twinkle", files.len())
}
