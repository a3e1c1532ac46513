//! A checkpoint's adapter as one tar file, put together while it is sent: its length is known before.

use std::path::Path;

use bytes::Bytes;
use sha2::{Digest, Sha256};
use twinkle_core::checkpoint::Manifest;
use twinkle_core::error::{Error, Result};

use super::content::{Content, Piece, open_file};

/// The archive's file name in a link; no file of a checkpoint has it.
pub(super) const NAME: &str = "archive.tar";

/// What a tar file is made of.
const BLOCK: u64 = 512;

/// An empty file at the end: clients take an archive without it for one that was cut off.
const COMPLETE: &str = "checkpoint_complete";

/// The files of a PEFT adapter; an encrypted one's end with `.age`.
const ADAPTER: [&str; 2] = ["adapter_config.json", "adapter_model.safetensors"];

/// The archive of the adapter's files at its root.
pub(super) async fn open(directory: &Path, manifest: &Manifest) -> Result<Content> {
    let mut pieces = Vec::new();
    let mut digest = Sha256::new();
    let modified = u64::try_from(manifest.created_at.as_second()).unwrap_or_default();
    let is_adapter = |name: &str| ADAPTER.contains(&name.strip_suffix(".age").unwrap_or(name));
    for (name, entry) in manifest.files.iter().filter(|(name, _)| is_adapter(name)) {
        digest.update(name.as_bytes());
        digest.update(entry.sha256.as_bytes());
        pieces.push(Piece::Bytes(header(name, entry.size, modified)?));
        pieces.push(Piece::File(open_file(directory, name, entry.size).await?, entry.size));
        pieces.push(zeros(entry.size.next_multiple_of(BLOCK) - entry.size));
    }
    pieces.push(Piece::Bytes(header(COMPLETE, 0, modified)?));
    pieces.push(zeros(2 * BLOCK));
    digest.update(modified.to_le_bytes());
    Content::new(pieces, &hex::encode(digest.finalize()), "application/x-tar", NAME)
}

fn header(name: &str, size: u64, modified: u64) -> Result<Bytes> {
    let mut header = tar::Header::new_gnu();
    header.set_path(name).map_err(|error| Error::internal(format!("`{name}` cannot be archived: {error}")))?;
    header.set_size(size);
    header.set_mode(0o644);
    header.set_mtime(modified);
    header.set_entry_type(tar::EntryType::Regular);
    header.set_cksum();
    Ok(Bytes::copy_from_slice(header.as_bytes()))
}

fn zeros(count: u64) -> Piece {
    Piece::Bytes(Bytes::from(vec![0; usize::try_from(count).unwrap_or_default()]))
}
