//! What a checkpoint says about itself: `manifest.json`.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::disk::{digest, failed};
use crate::call::{LoraSpec, Position};
use crate::error::{Error, Result};
use crate::ids::CheckpointPath;

/// The manifest's file name.
pub const MANIFEST: &str = "manifest.json";
/// The format this version writes. Older ones stay readable forever.
const FORMAT: u32 = 1;

/// The manifest of a checkpoint.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Manifest {
    /// The version of this format.
    pub format: u32,
    /// The base model's public name.
    pub base_model: String,
    /// The adapter's shape.
    pub lora: LoraSpec,
    /// The user's notes.
    pub user_metadata: BTreeMap<String, String>,
    /// When it was saved.
    pub created_at: Timestamp,
    /// The operation that saved it.
    pub position: Position,
    /// How many optimizer steps its run had taken; `None` in a manifest of an earlier version.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub optimizer_steps: Option<u64>,
    /// Every other file of the folder, by name.
    pub files: BTreeMap<String, FileEntry>,
}

/// One file of a checkpoint.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FileEntry {
    /// In bytes.
    pub size: u64,
    /// In hex.
    pub sha256: String,
}

impl Manifest {
    /// The manifest of the files in `folder`, which are read from end to end.
    pub(super) fn of_folder(folder: &Path, meta: &super::CheckpointMeta) -> Result<Self> {
        let mut files = BTreeMap::new();
        for path in super::disk::list(folder)? {
            let name = path.file_name().and_then(|name| name.to_str()).map(ToOwned::to_owned);
            let Some(name) = name.filter(|_| path.is_file()) else {
                return Err(Error::internal(format!("`{}` cannot be part of a checkpoint", path.display())));
            };
            let (size, sha256) = digest(&path).map_err(|error| failed("read", &path, &error))?;
            files.insert(name, FileEntry { size, sha256 });
        }
        Ok(Self {
            format: FORMAT,
            base_model: meta.base_model.clone(),
            lora: meta.lora.clone(),
            user_metadata: meta.user_metadata.clone(),
            created_at: meta.created_at,
            position: meta.position,
            optimizer_steps: meta.optimizer_steps,
            files,
        })
    }

    /// Bytes of all files together.
    #[must_use]
    pub fn size_bytes(&self) -> u64 {
        self.files.values().map(|file| file.size).sum()
    }

    /// Reads the manifest of the checkpoint in `folder`.
    pub(super) fn read(folder: &Path, path: &CheckpointPath) -> Result<Self> {
        let text = fs::read(folder.join(MANIFEST)).map_err(|error| damaged(path, MANIFEST, &error.to_string()))?;
        let head: Head = serde_json::from_slice(&text).map_err(|error| damaged(path, MANIFEST, &error.to_string()))?;
        if head.format > FORMAT {
            return Err(Error::unsupported(format!(
                "checkpoint `{path}` has format {}, this server reads up to {FORMAT}",
                head.format
            ))
            .hint("it was saved by a newer version"));
        }
        serde_json::from_slice(&text).map_err(|error| damaged(path, MANIFEST, &error.to_string()))
    }

    /// Compares every file with what was written.
    pub(super) fn verify(&self, folder: &Path, path: &CheckpointPath) -> Result<()> {
        for (name, expected) in &self.files {
            if name.starts_with('.') || name.contains(['/', '\\']) {
                return Err(damaged(path, MANIFEST, &format!("`{name}` is not a file name")));
            }
            let (size, sha256) = digest(&folder.join(name)).map_err(|error| damaged(path, name, &error.to_string()))?;
            if size != expected.size {
                return Err(damaged(path, name, &format!("it has {size} bytes instead of {}", expected.size)));
            }
            if sha256 != expected.sha256 {
                return Err(damaged(path, name, "its SHA-256 does not match"));
            }
        }
        Ok(())
    }
}

#[derive(Deserialize)]
struct Head {
    format: u32,
}

fn damaged(path: &CheckpointPath, file: &str, detail: &str) -> Error {
    Error::invalid(format!("checkpoint `{path}` is damaged: `{file}`: {detail}")).hint("use another checkpoint")
}
