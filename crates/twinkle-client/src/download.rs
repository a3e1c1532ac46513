//! Files from the server: each appears under its name when it is complete.

use std::path::Path;

use tokio::fs::{self, File};
use tokio::io::AsyncWriteExt;
use tracing::warn;

use crate::answer::Answer;
use crate::error::{Error, Result};
use crate::http::Http;

/// How far a file is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Download {
    /// Bytes that are here.
    pub bytes: u64,
    /// Bytes of the whole file, where the server says so.
    pub total: Option<u64>,
}

/// What is told about every piece.
type Progress<'a> = &'a mut (dyn FnMut(Download) + Send);

/// Downloads `url` to the file `to`, from the start again when the connection breaks. Returns its bytes.
pub(crate) async fn to_file(http: &Http, url: &str, to: &Path, progress: Progress<'_>) -> Result<u64> {
    let mut part = to.as_os_str().to_owned();
    part.push(".part");
    let part = Path::new(&part);
    let mut backoff = http.backoff();
    loop {
        let (error, pause) = match attempt(http, url, part, progress).await {
            Ok(Attempt::Complete(bytes)) => {
                fs::rename(part, to).await.map_err(|source| cannot_write(to, source))?;
                return Ok(bytes);
            }
            Ok(Attempt::Refused(answer)) => (answer.rejection(), backoff.after(&answer)),
            Err(error @ Error::Connection { .. }) => (error, backoff.next(None)),
            Err(error) => (error, None),
        };
        let Some(pause) = pause else {
            // What is left of it is of no use; that it cannot be removed is not what went wrong.
            let _ = fs::remove_file(part).await;
            return Err(error);
        };
        warn!(%error, url, ?pause, "downloading again");
        tokio::time::sleep(pause).await;
    }
}

/// Creates a folder and those above it.
pub(crate) async fn create_folder(folder: &Path) -> Result<()> {
    fs::create_dir_all(folder).await.map_err(|source| cannot_write(folder, source))
}

enum Attempt {
    Complete(u64),
    Refused(Answer),
}

async fn attempt(http: &Http, url: &str, part: &Path, progress: Progress<'_>) -> Result<Attempt> {
    let broken = |source| Error::Connection { url: url.to_owned(), source };
    let mut response = http.open_link(url).await?;
    if !response.status().is_success() {
        let (status, headers) = (response.status().as_u16(), response.headers().clone());
        let body = response.bytes().await.map_err(broken)?;
        return Ok(Attempt::Refused(Answer { status, headers, body }));
    }
    let total = response.content_length();
    let mut file = File::create(part).await.map_err(|source| cannot_write(part, source))?;
    let mut bytes = 0;
    progress(Download { bytes, total });
    while let Some(piece) = response.chunk().await.map_err(broken)? {
        file.write_all(&piece).await.map_err(|source| cannot_write(part, source))?;
        bytes += piece.len() as u64;
        progress(Download { bytes, total });
    }
    file.flush().await.map_err(|source| cannot_write(part, source))?;
    Ok(Attempt::Complete(bytes))
}

fn cannot_write(path: &Path, source: std::io::Error) -> Error {
    Error::File { path: path.display().to_string(), source }
}
