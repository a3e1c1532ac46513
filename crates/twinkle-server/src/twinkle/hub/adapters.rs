//! Adapters that come from a hub. A run loads a copy among its own checkpoints: a replay asks no hub and finds the same bytes.

use std::collections::BTreeMap;
use std::fs;
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use tokio::sync::Semaphore;
use twinkle_core::call::{CheckpointRecord, LoraSpec, Position};
use twinkle_core::checkpoint::CheckpointMeta;
use twinkle_core::error::{Error, ErrorCode, Result};
use twinkle_core::ids::{CheckpointKind, CheckpointPath, RunId, TenantId};
use twinkle_hub::{AdapterFiles, AdapterLibrary};
use twinkle_model::Imported;

use crate::twinkle::TwinkleFront;

/// Adapters that are fetched at the same time.
const MOST_FETCHED: usize = 4;
/// The files of an adapter, and those that its training left beside it.
const FILES: [&str; 4] = ["adapter_config.json", "adapter_model.safetensors", "run.json", "optimizer.safetensors"];
/// Bytes of a description that are read.
const MOST_DESCRIBED: u64 = 1 << 20;
/// Bytes that are read at once.
const PART: usize = 1 << 20;
/// The note on a checkpoint that says where it came from.
const ORIGIN: &str = "loaded_from";
/// Letters of a repository's name in a checkpoint's.
const LONGEST_NAME: usize = 60;

/// The way of adapters from the hubs to this node.
pub(crate) struct Adapters {
    library: Result<AdapterLibrary>,
    fetching: Semaphore,
    /// Held while an adapter is in memory.
    reading: Semaphore,
}

/// A checkpoint with an adapter of a hub.
pub(crate) struct Brought {
    pub(crate) checkpoint: CheckpointRecord,
    /// Whether it was made now.
    pub(crate) is_new: bool,
}

impl Adapters {
    /// An error is what is wrong with this node's variables; it is told to whoever asks for an adapter.
    pub(crate) fn new(library: Result<AdapterLibrary>) -> Self {
        Self { library, fetching: Semaphore::new(MOST_FETCHED), reading: Semaphore::new(1) }
    }

    async fn folder(&self, id: &str, wanted: AdapterFiles) -> Result<PathBuf> {
        let library = self.library.as_ref().map_err(Clone::clone)?;
        let Ok(_place) = self.fetching.try_acquire() else {
            return Err(Error::new(
                ErrorCode::Overloaded,
                format!("{MOST_FETCHED} adapters are being fetched from hubs"),
            )
            .retry_after(Duration::from_secs(10)));
        };
        library.folder(id, wanted).await
    }
}

impl TwinkleFront {
    /// Whether a name is an id of a hub, and not a folder of the tenant's own checkpoints.
    pub(crate) fn is_on_hub(&self, tenant: &TenantId, name: &str) -> bool {
        let is_own = !name.contains("://") && self.context.checkpoints.path_of(tenant, Path::new(name)).is_some();
        !is_own && AdapterLibrary::is_id(name)
    }

    /// Makes a checkpoint of the run from an adapter of a hub. The same bytes are the same checkpoint.
    pub(crate) async fn bring(&self, tenant: &TenantId, run: &RunId, id: &str) -> Result<Brought> {
        let model = self.model()?;
        let adapters = &self.shared.adapters;
        let source = adapters.folder(id, AdapterFiles::Everything).await?;
        let read = source.clone();
        let digest = blocking(move || digest(&read)).await?;
        let path = CheckpointPath::new(run.clone(), CheckpointKind::Weights, &name_of(id, &digest))?;
        match self.context.store.checkpoint(tenant, &path).await {
            Ok(checkpoint) => return Ok(Brought { checkpoint, is_new: false }),
            Err(error) if error.code == ErrorCode::NotFound => {}
            Err(error) => return Err(error),
        }
        let _alone = adapters.reading.acquire().await.map_err(|_| Error::internal("no adapter is read any more"))?;
        let (store, owner, target) = (self.context.checkpoints.clone(), tenant.clone(), path.clone());
        let (folder, base_model) = (model.tokenizer.clone(), model.name.clone());
        let created_at = jiff::Timestamp::now();
        let user_metadata = BTreeMap::from([(ORIGIN.to_owned(), id.to_owned())]);
        let notes = user_metadata.clone();
        let (lora, size_bytes) = blocking(move || {
            let draft = store.draft(&owner, &target)?;
            let Imported { lora, optimizer_steps } =
                twinkle_model::import(&source, draft.directory(), &folder, &base_model)?;
            let meta = CheckpointMeta {
                base_model,
                lora: lora.clone(),
                user_metadata: notes,
                created_at,
                position: Position::default(),
                optimizer_steps,
            };
            // What is in the way is of a process that died before it was listed.
            Ok::<(LoraSpec, u64), Error>((lora, draft.commit(&meta, true)?.size_bytes))
        })
        .await?;
        let checkpoint = CheckpointRecord {
            path,
            tenant: tenant.clone(),
            base_model: model.name.clone(),
            lora,
            size_bytes,
            user_metadata,
            created_at,
            expires_at: None,
            public: false,
        };
        self.context.store.insert_checkpoint(&checkpoint).await?;
        Ok(Brought { checkpoint, is_new: true })
    }

    /// What `weights_info` tells of an adapter of a hub: nobody's here, and of no run.
    pub(crate) async fn described_on_hub(&self, id: &str) -> Result<Value> {
        let folder = self.shared.adapters.folder(id, AdapterFiles::Description).await?;
        let (description, saved) =
            blocking(move || Ok((object(&folder, "adapter_config.json")?, object(&folder, "run.json").ok()))).await?;
        let saved_base = saved.as_ref().and_then(|saved| saved.get("base_model"));
        let base_model = saved_base.or_else(|| description.get("base_model_name_or_path"));
        Ok(json!({
            "training_run_id": "",
            "base_model": base_model.and_then(Value::as_str).unwrap_or_default(),
            "model_owner": "",
            "is_lora": true,
            "lora_rank": description.get("r").and_then(Value::as_u64),
        }))
    }
}

/// A file with a JSON object.
fn object(folder: &Path, name: &str) -> Result<Value> {
    let unreadable = |why: String| Error::invalid(format!("`{name}` of the adapter cannot be read: {why}"));
    let mut text = Vec::new();
    let file = fs::File::open(folder.join(name)).map_err(|error| unreadable(error.kind().to_string()))?;
    file.take(MOST_DESCRIBED).read_to_end(&mut text).map_err(|error| unreadable(error.kind().to_string()))?;
    serde_json::from_slice(&text).map_err(|error| unreadable(error.to_string()))
}

/// The name of the checkpoint with these bytes of that repository.
fn name_of(id: &str, digest: &str) -> String {
    let repository = id.rsplit('/').next().unwrap_or(id);
    let is_plain = |letter: char| letter.is_ascii_alphanumeric() || matches!(letter, '_' | '-');
    let plain: String =
        repository.chars().take(LONGEST_NAME).map(|letter| if is_plain(letter) { letter } else { '_' }).collect();
    format!("hub_{plain}_{digest}")
}

/// The beginning of the SHA-256 of all files, in hex.
fn digest(folder: &Path) -> Result<String> {
    let (mut hasher, mut buffer) = (Sha256::new(), vec![0; PART]);
    for name in FILES {
        let mut file = match fs::File::open(folder.join(name)) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
            Err(error) => return Err(Error::invalid(format!("`{name}` of the adapter cannot be read: {error}"))),
        };
        hasher.update(name.as_bytes());
        loop {
            let count = file
                .read(&mut buffer)
                .map_err(|error| Error::internal(format!("`{name}` of the adapter cannot be read: {error}")))?;
            match buffer.get(..count) {
                Some(part) if !part.is_empty() => hasher.update(part),
                _ => break,
            }
        }
    }
    let digest = hex::encode(hasher.finalize());
    Ok(digest.get(..12).unwrap_or(&digest).to_owned())
}

/// File work, off the async threads.
async fn blocking<T: Send + 'static>(work: impl FnOnce() -> Result<T> + Send + 'static) -> Result<T> {
    tokio::task::spawn_blocking(work)
        .await
        .map_err(|error| Error::internal(format!("work on an adapter's files failed: {error}")))?
}

#[cfg(test)]
mod tests {
    use http::StatusCode;

    use super::*;
    use crate::twinkle::tests::Gateway;

    #[test]
    fn the_same_bytes_have_the_same_name() {
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join("adapter_config.json"), "{}").unwrap();
        let first = digest(folder.path()).unwrap();
        assert_eq!(first, digest(folder.path()).unwrap());
        fs::write(folder.path().join("README.md"), "not of the adapter").unwrap();
        assert_eq!(first, digest(folder.path()).unwrap());
        fs::write(folder.path().join("adapter_model.safetensors"), "x").unwrap();
        assert_ne!(first, digest(folder.path()).unwrap());
    }

    #[test]
    fn a_checkpoint_is_called_after_its_repository() {
        assert_eq!(name_of("hf://me/math.v2@main", "abc"), "hub_math_v2_main_abc");
        let path = CheckpointPath::new(RunId::new("s-a"), CheckpointKind::Weights, &name_of(&"x".repeat(500), "abc"));
        assert!(path.is_ok());
    }

    #[tokio::test]
    async fn an_adapter_of_a_hub_is_described_and_one_that_is_not_there_says_where_it_may_be_put() {
        let cache = tempfile::tempdir().unwrap();
        let place = cache.path().display().to_string();
        let gateway = Gateway::with_hubs(&[("TWINKLE_OFFLINE", "1"), ("HF_HUB_CACHE", &place)]).await;
        let folder = cache.path().join("models--me--math/snapshots/main");
        let info = async || {
            let wanted = json!({ "twinkle_path": "hf://me/math" });
            gateway.ask("alice", "POST", "/twinkle/weights_info", Some(wanted)).await
        };
        let absent = info().await;
        assert_eq!(absent.status, StatusCode::NOT_FOUND);
        let text = absent.body["detail"].as_str().unwrap();
        assert!(text.contains("`TWINKLE_OFFLINE` is set") && text.contains(&folder.display().to_string()), "{text}");
        std::fs::create_dir_all(&folder).unwrap();
        let description = json!({ "peft_type": "LORA", "r": 8, "base_model_name_or_path": "tiny/model" });
        std::fs::write(folder.join("adapter_config.json"), description.to_string()).unwrap();
        let told = info().await.body;
        assert_eq!((&told["base_model"], &told["lora_rank"]), (&json!("tiny/model"), &json!(8)), "{told}");
        assert_eq!((&told["training_run_id"], &told["model_owner"]), (&json!(""), &json!("")));
    }
}
