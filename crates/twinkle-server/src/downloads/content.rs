//! What is sent: bytes and pieces of files in a row, read while they are sent.

use std::io::{Cursor, SeekFrom};
use std::path::Path;

use axum::body::Body;
use bytes::Bytes;
use http::HeaderValue;
use tokio::fs::File;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncSeekExt};
use tokio::sync::OwnedSemaphorePermit;
use tokio_util::io::ReaderStream;
use twinkle_core::checkpoint::Manifest;
use twinkle_core::error::{Error, Result};

/// Bytes read at once.
const CHUNK: usize = 128 << 10;

/// Something of known length and content.
pub(crate) struct Content {
    pub(super) pieces: Vec<Piece>,
    /// Tells this content from any other, in quotes.
    pub(super) etag: HeaderValue,
    pub(super) media_type: &'static str,
    /// The name to save it under.
    pub(super) name: String,
    place: Option<OwnedSemaphorePermit>,
}

/// A part of it.
pub(super) enum Piece {
    Bytes(Bytes),
    /// A file from its beginning, with its length.
    File(File, u64),
}

impl Piece {
    fn length(&self) -> u64 {
        match self {
            Self::Bytes(bytes) => bytes.len() as u64,
            Self::File(_, length) => *length,
        }
    }

    /// Reads `length` bytes from `start` on.
    async fn reader(self, start: u64, length: u64) -> Result<Box<dyn AsyncRead + Send + Unpin>> {
        Ok(match self {
            Self::Bytes(bytes) => {
                let from = usize::try_from(start).unwrap_or(usize::MAX).min(bytes.len());
                Box::new(Cursor::new(bytes.slice(from..)).take(length))
            }
            Self::File(mut file, _) => {
                file.seek(SeekFrom::Start(start))
                    .await
                    .map_err(|error| Error::internal(format!("a file could not be read: {error}")))?;
                Box::new(file.take(length))
            }
        })
    }
}

impl Content {
    /// `tag` tells it from any other content; only letters and digits.
    pub(super) fn new(pieces: Vec<Piece>, tag: &str, media_type: &'static str, name: &str) -> Result<Self> {
        let etag = HeaderValue::try_from(format!("\"{tag}\""))
            .map_err(|_| Error::internal("a checkpoint's manifest is damaged: a digest is not text"))?;
        Ok(Self { pieces, etag, media_type, name: name.to_owned(), place: None })
    }

    /// The same, occupying `place` until it is sent.
    pub(super) fn holding(mut self, place: OwnedSemaphorePermit) -> Self {
        self.place = Some(place);
        self
    }

    /// Bytes in all.
    pub(super) fn length(&self) -> u64 {
        self.pieces.iter().map(Piece::length).sum()
    }

    /// `length` bytes from `start` on, as a body that reads them when they are sent.
    pub(super) async fn body(self, start: u64, length: u64) -> Result<Body> {
        let Self { pieces, place, .. } = self;
        let (mut begin, end) = (0, start.saturating_add(length));
        let mut whole: Box<dyn AsyncRead + Send + Unpin> = Box::new(tokio::io::empty());
        for piece in pieces {
            let size = piece.length();
            let (from, to) = (start.max(begin), end.min(begin + size));
            if from < to {
                whole = Box::new(whole.chain(piece.reader(from - begin, to - from).await?));
            }
            begin += size;
        }
        let stream = ReaderStream::with_capacity(whole, CHUNK);
        Ok(Body::from_stream(Sending { stream, _place: place }))
    }
}

/// The bytes on their way, and the place they take.
struct Sending<S> {
    stream: S,
    _place: Option<OwnedSemaphorePermit>,
}

impl<S: futures::Stream + Unpin> futures::Stream for Sending<S> {
    type Item = S::Item;

    fn poll_next(
        mut self: std::pin::Pin<&mut Self>,
        context: &mut std::task::Context<'_>,
    ) -> std::task::Poll<Option<S::Item>> {
        std::pin::Pin::new(&mut self.stream).poll_next(context)
    }
}

/// One file of a checkpoint, which its manifest must list.
pub(super) async fn open(directory: &Path, manifest: &Manifest, name: &str) -> Result<Content> {
    let Some(entry) = manifest.files.get(name) else {
        return Err(Error::not_found(format!("the checkpoint has no file `{name}`")));
    };
    let file = open_file(directory, name, entry.size).await?;
    Content::new(vec![Piece::File(file, entry.size)], &entry.sha256, "application/octet-stream", name)
}

/// Opens a file that must be as long as it was written.
pub(super) async fn open_file(directory: &Path, name: &str, size: u64) -> Result<File> {
    let damaged = |detail: String| {
        Error::invalid(format!("`{name}` of the checkpoint is damaged: {detail}")).hint("use another checkpoint")
    };
    if name.starts_with('.') || name.contains(['/', '\\']) {
        return Err(damaged("that is not a file name".to_owned()));
    }
    let file = File::open(directory.join(name)).await.map_err(|error| damaged(error.to_string()))?;
    let found = file.metadata().await.map_err(|error| damaged(error.to_string()))?.len();
    if found != size {
        return Err(damaged(format!("it has {found} bytes instead of {size}")));
    }
    Ok(file)
}
