//! Files whose rows can be read from the beginning as often as one likes.

use std::fs::File;
use std::io::{BufRead, BufReader, Read};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use flate2::bufread::MultiGzDecoder;
use serde_json::Value;
use twinkle_core::error::{Error, Result};

use super::format::Format;
use super::meta::row_of;
use super::{csv, json, parquet};
use crate::data::row::{Row, raw};

/// Rows, read one by one; nothing comes after an error.
pub type Rows = Box<dyn Iterator<Item = Result<Row>> + Send>;

const BUFFER: usize = 1 << 18;

/// Where rows come from.
#[derive(Clone, Debug)]
pub enum Source {
    /// Files, one after another.
    Files(Arc<[DataFile]>),
    /// Rows that came with a request.
    Memory(Arc<[Value]>),
}

/// A file with rows.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DataFile {
    /// Where it is.
    pub path: PathBuf,
    /// What a client is told it is called.
    pub name: String,
    /// What is in it.
    pub format: Format,
}

impl Source {
    /// The rows, from the first.
    #[must_use]
    pub fn rows(&self) -> Rows {
        match self {
            Self::Memory(rows) => {
                let rows = Arc::clone(rows);
                Box::new((0..rows.len()).map(move |index| rows.get(index).map_or_else(|| Ok(Row::default()), row_of)))
            }
            Self::Files(files) => {
                let files = Arc::clone(files);
                let rows = (0..files.len()).filter_map(move |index| files.get(index).cloned()).flat_map(|file| {
                    let named =
                        move |error: Error| Error { message: format!("`{}`: {}", file.name, error.message), ..error };
                    let rows: Rows = match open(&file.path, file.format) {
                        Ok(rows) => rows,
                        Err(error) => Box::new(std::iter::once(Err(error))),
                    };
                    rows.map(move |row| row.map_err(&named))
                });
                Box::new(until_error(rows))
            }
        }
    }
}

/// Ends after the first error.
pub(crate) fn until_error<T>(rows: impl Iterator<Item = Result<T>>) -> impl Iterator<Item = Result<T>> {
    let mut failed = false;
    rows.take_while(move |row| !std::mem::replace(&mut failed, row.is_err()))
}

fn open(path: &Path, format: Format) -> Result<Rows> {
    Ok(match format {
        Format::Parquet => Box::new(parquet::rows(file(path)?)?),
        Format::JsonLines => Box::new(json::Lines::new(text(path)?)),
        Format::Json => json::values(text(path)?)?,
        Format::Text => Box::new(lines(text(path)?)),
        Format::Csv => {
            let is_tabbed = path.to_string_lossy().split('.').any(|part| part.eq_ignore_ascii_case("tsv"));
            let path = path.to_owned();
            Box::new(csv::records(if is_tabbed { b'\t' } else { b',' }, move || text(&path))?)
        }
    })
}

fn file(path: &Path) -> Result<File> {
    File::open(path).map_err(|error| Error::invalid(format!("it cannot be opened: {}", error.kind())))
}

/// The bytes of a file, unpacked if its name says so.
fn text(path: &Path) -> Result<Box<dyn BufRead + Send>> {
    let bytes = BufReader::with_capacity(BUFFER, file(path)?);
    let unreadable = |error: std::io::Error| Error::invalid(format!("it cannot be unpacked: {error}"));
    Ok(match path.extension().and_then(|ending| ending.to_str()) {
        Some("gz") => Box::new(BufReader::with_capacity(BUFFER, MultiGzDecoder::new(bytes))),
        Some("zst") => {
            let decoder = zstd::Decoder::with_buffer(bytes).map_err(unreadable)?;
            Box::new(BufReader::with_capacity(BUFFER, decoder))
        }
        _ => Box::new(bytes),
    })
}

/// A row a line.
fn lines(reader: impl BufRead) -> impl Iterator<Item = Result<Row>> {
    const LONGEST: u64 = 64 << 20;
    let mut reader = reader;
    std::iter::from_fn(move || {
        let mut line = Vec::new();
        let read = Read::take(&mut reader, LONGEST + 1).read_until(b'\n', &mut line);
        let row = || {
            let bytes = read.map_err(|error| Error::invalid(format!("it cannot be read: {error}")))?;
            if bytes == 0 {
                return Ok(None);
            }
            if bytes as u64 > LONGEST {
                return Err(Error::invalid(format!("it has a line of more than {} MiB", LONGEST >> 20)));
            }
            let line = line.strip_suffix(b"\n").unwrap_or(&line);
            let line = line.strip_suffix(b"\r").unwrap_or(line);
            let text = std::str::from_utf8(line).map_err(|_| Error::invalid("it is not UTF-8 text"))?;
            let mut row = Row::default();
            row.set_raw("text".to_owned(), raw(&text)?);
            Ok(Some(row))
        };
        row().transpose()
    })
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    fn source(folder: &Path, files: &[(&str, &[u8])]) -> Source {
        let file = |(name, bytes): &(&str, &[u8])| {
            let path = folder.join(name);
            std::fs::write(&path, bytes).unwrap();
            DataFile { path, name: (*name).to_owned(), format: Format::of_name(name).unwrap() }
        };
        Source::Files(files.iter().map(file).collect())
    }

    fn texts(source: &Source) -> Vec<String> {
        source.rows().map(|row| row.map_or_else(|error| error.message, |row| row.to_text().unwrap())).collect()
    }

    #[test]
    fn files_are_read_one_after_another_and_again_from_the_beginning() {
        let folder = tempfile::tempdir().unwrap();
        let mut gz = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        gz.write_all(b"{\"a\":2}\n").unwrap();
        let zst = zstd::encode_all(&b"{\"a\":3}"[..], 1).unwrap();
        let files: &[(&str, &[u8])] =
            &[("1.jsonl", b"{\"a\":1}\n"), ("2.jsonl.gz", &gz.finish().unwrap()), ("3.jsonl.zst", &zst)];
        let source = source(folder.path(), files);
        for _ in 0..2 {
            assert_eq!(texts(&source), [r#"{"a":1}"#, r#"{"a":2}"#, r#"{"a":3}"#]);
        }
    }

    #[test]
    fn nothing_comes_after_a_mistake_and_it_names_the_file() {
        let folder = tempfile::tempdir().unwrap();
        let source = source(folder.path(), &[("1.jsonl", b"{\"a\":1}\nx\n{\"a\":2}"), ("2.jsonl", b"{\"a\":3}")]);
        let texts = texts(&source);
        assert_eq!(texts.len(), 2);
        assert!(texts[1].starts_with("`1.jsonl`: line 2 is not a JSON object"), "{}", texts[1]);
    }

    #[test]
    fn text_is_a_row_a_line_and_tabs_separate_where_the_name_says_so() {
        let folder = tempfile::tempdir().unwrap();
        let text = source(folder.path(), &[("a.txt", b"one\r\n\ntwo")]);
        assert_eq!(texts(&text), [r#"{"text":"one"}"#, r#"{"text":""}"#, r#"{"text":"two"}"#]);
        let table = source(folder.path(), &[("a.tsv", b"a\tb\n1\tx,y\n")]);
        assert_eq!(texts(&table), [r#"{"a":1,"b":"x,y"}"#]);
    }
}
