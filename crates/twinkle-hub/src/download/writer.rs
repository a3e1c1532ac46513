//! Writing a file and taking its checksum, on a thread of its own.

use std::fs::{File, OpenOptions};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use bytes::Bytes;
use sha2::{Digest, Sha256};
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use twinkle_core::{Error, Result};

use super::failure::file_error;

/// Chunks between the network and the disk: enough to keep both busy.
const CHUNKS: usize = 32;

/// A file that grows. Dropping it keeps what has arrived.
pub(crate) struct Writer {
    path: PathBuf,
    chunks: mpsc::Sender<Bytes>,
    thread: JoinHandle<io::Result<String>>,
}

impl Writer {
    /// Keeps the first `from` bytes of the file and adds to them.
    pub(crate) fn start(path: &Path, from: u64) -> Self {
        let (chunks, arriving) = mpsc::channel(CHUNKS);
        let owned = path.to_owned();
        let thread = tokio::task::spawn_blocking(move || write(&owned, from, arriving));
        Self { path: path.to_owned(), chunks, thread }
    }

    /// Adds a chunk. Says no when the file cannot be written: [`Writer::finish`] then tells why.
    pub(crate) async fn add(&self, chunk: Bytes) -> bool {
        self.chunks.send(chunk).await.is_ok()
    }

    /// Waits until all is on the disk. Returns the SHA-256 of the whole file, in hex.
    pub(crate) async fn finish(self) -> Result<String> {
        drop(self.chunks);
        match self.thread.await {
            Ok(written) => written.map_err(|error| file_error("write", &self.path, &error)),
            Err(error) => Err(Error::internal(format!("writing `{}` failed: {error}", self.path.display()))),
        }
    }
}

fn write(path: &Path, from: u64, mut arriving: mpsc::Receiver<Bytes>) -> io::Result<String> {
    if let Some(folder) = path.parent() {
        std::fs::create_dir_all(folder)?;
    }
    let mut file = OpenOptions::new().create(true).truncate(false).read(true).write(true).open(path)?;
    file.set_len(from)?;
    let mut hash = Sha256::new();
    add_to(&mut hash, &mut file)?;
    file.seek(SeekFrom::End(0))?;
    while let Some(chunk) = arriving.blocking_recv() {
        file.write_all(&chunk)?;
        hash.update(&chunk);
    }
    file.sync_all()?;
    Ok(hex::encode(hash.finalize()))
}

/// The SHA-256 of a file, in hex. Blocks.
pub(crate) fn sha256(path: &Path) -> io::Result<String> {
    let mut hash = Sha256::new();
    add_to(&mut hash, &mut File::open(path)?)?;
    Ok(hex::encode(hash.finalize()))
}

fn add_to(hash: &mut Sha256, file: &mut File) -> io::Result<()> {
    let mut buffer = vec![0; 1 << 20];
    loop {
        let read = file.read(&mut buffer)?;
        if read == 0 {
            return Ok(());
        }
        hash.update(buffer.get(..read).unwrap_or_default());
    }
}
