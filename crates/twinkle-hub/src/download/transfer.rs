//! One file: fetched, resumed where it broke off, and checked.

use std::path::Path;

use reqwest::header::{CONTENT_LENGTH, CONTENT_RANGE, HeaderMap};
use reqwest::{Response, StatusCode, Url};
use tracing::warn;
use twinkle_core::Error;
use twinkle_core::telemetry::labels::Whole;
use twinkle_core::telemetry::metrics::DOWNLOADED;

use super::attempts::Attempts;
use super::client::{Client, Setback, header, wait};
use super::failure::{Failure, file_error, with_causes};
use super::progress::FileProgress;
use super::writer::{Writer, sha256};

/// The largest file whose size the hub does not tell.
const LARGEST_UNKNOWN: u64 = 1 << 30;

/// How often a file that arrived whole but wrong is fetched again.
const SECOND_CHANCES: u32 = 1;

/// What the hub says a file is.
#[derive(Clone, Debug, Default)]
pub(crate) struct Expected {
    /// Its bytes.
    pub(crate) size: Option<u64>,
    /// Its checksum, in lowercase hex.
    pub(crate) sha256: Option<String>,
}

/// The transfer of one file.
pub(crate) struct Transfer<'a> {
    pub(crate) client: &'a Client,
    pub(crate) url: &'a Url,
    /// With the credential, if there is one.
    pub(crate) headers: &'a HeaderMap,
    pub(crate) expected: &'a Expected,
    /// Where the bytes gather. What is there from before is continued if a checksum can tell that it fits.
    pub(crate) partial: &'a Path,
    pub(crate) progress: &'a FileProgress,
}

/// How an attempt failed.
enum Broken {
    /// With this many new bytes on the disk.
    Off(Setback, u64),
    /// All bytes are there, and they are not the hub's.
    Wrong(Error),
}

impl From<Setback> for Broken {
    fn from(setback: Setback) -> Self {
        Self::Off(setback, 0)
    }
}

impl From<Error> for Broken {
    fn from(error: Error) -> Self {
        Self::Off(Setback::Final(error.into()), 0)
    }
}

impl Transfer<'_> {
    /// Brings the whole file to `partial`.
    pub(crate) async fn run(&self) -> Result<(), Failure> {
        let mut attempts = Attempts::new(self.client.patience());
        let mut chances = SECOND_CHANCES;
        loop {
            match self.attempt().await {
                Ok(()) => return Ok(()),
                Err(Broken::Off(setback, received)) => wait(&mut attempts, self.url, received > 0, setback).await?,
                Err(Broken::Wrong(error)) => {
                    self.forget().await?;
                    if chances == 0 {
                        return Err(error.into());
                    }
                    chances -= 1;
                    warn!(%error, "fetched again from its beginning");
                }
            }
        }
    }

    async fn attempt(&self) -> Result<(), Broken> {
        let have = self.have().await?;
        self.progress.at(have);
        if have > 0 && self.expected.size == Some(have) {
            return self.check_what_is_there().await;
        }
        let answer = match self.client.get(self.url, self.headers, have).await {
            Err(Setback::Final(Failure::Refused { status: StatusCode::RANGE_NOT_SATISFIABLE, .. })) if have > 0 => {
                self.forget().await?;
                let why = format!("the hub has nothing after byte {have}");
                return Err(Setback::Passing { why, retry_after: None }.into());
            }
            answer => answer?,
        };
        let from = begins_at(&answer);
        if from != 0 && from != have {
            self.forget().await?;
            let why = format!("the hub sent what follows byte {from}, not {have}");
            return Err(Setback::Passing { why, retry_after: None }.into());
        }
        self.check_announced(&answer, from)?;
        self.receive(answer, from).await
    }

    /// How much of the file is there to continue.
    async fn have(&self) -> Result<u64, Error> {
        let Ok(metadata) = tokio::fs::metadata(self.partial).await else { return Ok(0) };
        let fits = self.expected.size.is_none_or(|size| metadata.len() <= size);
        if self.expected.sha256.is_some() && fits {
            return Ok(metadata.len());
        }
        self.forget().await?;
        Ok(0)
    }

    async fn receive(&self, mut answer: Response, from: u64) -> Result<(), Broken> {
        let most = self.expected.size.unwrap_or(LARGEST_UNKNOWN);
        let announced = content_length(&answer).map(|length| from + length);
        let writer = Writer::start(self.partial, from);
        let mut position = from;
        let broken = loop {
            let chunk = match answer.chunk().await {
                Ok(Some(chunk)) => chunk,
                Ok(None) => break None,
                Err(error) => break Some(with_causes(&error)),
            };
            position += chunk.len() as u64;
            DOWNLOADED.add(chunk.len() as u64, Whole);
            if position > most || !writer.add(chunk).await {
                break None;
            }
            self.progress.at(position);
        };
        // Waited for in every case: the next attempt writes to the same file.
        let hash = writer.finish().await?;
        if position > most {
            return Err(Broken::Wrong(self.wrong(&format!("it is longer than {most} bytes"))));
        }
        let whole = self.expected.size.or(announced);
        if broken.is_some() || whole.is_some_and(|whole| position < whole) {
            let why = broken.unwrap_or_else(|| "the connection ended early".to_owned());
            return Err(Broken::Off(Setback::Passing { why, retry_after: None }, position - from));
        }
        self.check(&hash).map_err(Broken::Wrong)
    }

    async fn check_what_is_there(&self) -> Result<(), Broken> {
        let path = self.partial.to_owned();
        let hashed = tokio::task::spawn_blocking(move || sha256(&path)).await;
        let hashed = hashed.map_err(|error| Error::internal(format!("reading a file failed: {error}")))?;
        let hash = hashed.map_err(|error| file_error("read", self.partial, &error))?;
        self.check(&hash).map_err(Broken::Wrong)
    }

    /// The size the server is about to send is the one the hub listed.
    fn check_announced(&self, answer: &Response, from: u64) -> Result<(), Broken> {
        let announced = content_length(answer).map(|length| from + length);
        match (announced, self.expected.size) {
            (Some(announced), Some(size)) if announced != size => {
                let text = format!("the hub lists {size} bytes and sends {announced}");
                Err(Broken::Wrong(self.wrong(&text)))
            }
            _ => Ok(()),
        }
    }

    fn check(&self, hash: &str) -> Result<(), Error> {
        match &self.expected.sha256 {
            Some(expected) if expected != hash => {
                Err(self.wrong(&format!("its sha256 is `{hash}`, and the hub lists `{expected}`")))
            }
            _ => Ok(()),
        }
    }

    fn wrong(&self, why: &str) -> Error {
        Error::invalid(format!("`{}` arrived damaged: {why}", self.url))
            .hint("a proxy or mirror may have changed it; nothing of it was kept")
    }

    async fn forget(&self) -> Result<(), Error> {
        match tokio::fs::remove_file(self.partial).await {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                Err(file_error("remove", self.partial, &error))
            }
            _ => Ok(()),
        }
    }
}

/// The offset of the answer's first byte: not zero only if the server honoured the range.
fn begins_at(answer: &Response) -> u64 {
    if answer.status() != StatusCode::PARTIAL_CONTENT {
        return 0;
    }
    let range = header(answer.headers(), CONTENT_RANGE.as_str());
    let start = range.and_then(|range| range.strip_prefix("bytes ")?.split_once('-')?.0.parse().ok());
    // A range that says nothing of itself fits nowhere.
    start.unwrap_or(u64::MAX)
}

fn content_length(answer: &Response) -> Option<u64> {
    header(answer.headers(), CONTENT_LENGTH.as_str())?.parse().ok()
}
