//! Rows into files.

mod csv;
mod parquet;
mod shape;

use std::fs::{self, File};
use std::io::{BufRead, BufReader, BufWriter, Write};
use std::path::{Path, PathBuf};

use tempfile::NamedTempFile;
use twinkle_core::error::{Error, ErrorCode, Result};

use super::format::Format;
use super::row::Row;

/// The largest file that is saved, in bytes of JSON.
const LARGEST: u64 = 8 << 30;

/// Takes rows and makes a file of them.
///
/// Rows are first written as lines of JSON beside the file; [`Saver::finish`] gives them their format and the file its
/// name. A file of that name is replaced whole, or not at all.
#[derive(Debug)]
pub struct Saver {
    target: PathBuf,
    format: Format,
    lines: BufWriter<NamedTempFile>,
    written: u64,
}

impl Saver {
    /// Begins a file. Its folder is made if need be.
    pub fn create(target: &Path, format: Format) -> Result<Self> {
        let folder = target.parent().unwrap_or(Path::new("."));
        let made = fs::create_dir_all(folder).and_then(|()| NamedTempFile::with_prefix_in(".saving-", folder));
        let lines = made.map_err(|error| failed(&error))?;
        Ok(Self { target: target.to_owned(), format, lines: BufWriter::new(lines), written: 0 })
    }

    /// Adds a row, given as one line of JSON.
    pub fn write(&mut self, row: &str) -> Result<()> {
        self.written += row.len() as u64 + 1;
        if self.written > LARGEST {
            let text = format!("the rows take more than the {} GiB that one file may have", LARGEST >> 30);
            return Err(Error::new(ErrorCode::TooLarge, text).hint("save several smaller files"));
        }
        let written = self.lines.write_all(row.as_bytes()).and_then(|()| self.lines.write_all(b"\n"));
        written.map_err(|error| failed(&error))
    }

    /// Completes the file.
    pub fn finish(self) -> Result<()> {
        let lines = self.lines.into_inner().map_err(|error| failed(error.error()))?;
        let rows = || -> Result<Lines> {
            Ok(Lines { reader: BufReader::new(File::open(lines.path()).map_err(|error| failed(&error))?) })
        };
        let complete = match self.format {
            Format::Csv | Format::Parquet => {
                let folder = self.target.parent().unwrap_or(Path::new("."));
                let file = NamedTempFile::with_prefix_in(".saving-", folder).map_err(|error| failed(&error))?;
                if self.format == Format::Csv {
                    csv::write(file.as_file(), rows)?;
                } else {
                    parquet::write(file.as_file(), rows)?;
                }
                file
            }
            _ => lines,
        };
        complete.as_file().sync_all().map_err(|error| failed(&error))?;
        complete.persist(&self.target).map_err(|error| failed(&error.error))?;
        Ok(())
    }
}

/// The rows written so far.
struct Lines {
    reader: BufReader<File>,
}

impl Iterator for Lines {
    type Item = Result<Row>;

    fn next(&mut self) -> Option<Self::Item> {
        let mut line = String::new();
        match self.reader.read_line(&mut line) {
            Ok(0) => None,
            Ok(_) => Some(Row::parse(line.trim_end())),
            Err(error) => Some(Err(failed(&error))),
        }
    }
}

fn failed(error: &std::io::Error) -> Error {
    let code = match error.kind() {
        std::io::ErrorKind::StorageFull | std::io::ErrorKind::QuotaExceeded => ErrorCode::ResourceExhausted,
        std::io::ErrorKind::IsADirectory | std::io::ErrorKind::NotADirectory => ErrorCode::InvalidArgument,
        _ => ErrorCode::Internal,
    };
    Error::new(code, format!("the rows cannot be saved: {}", error.kind()))
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::super::source::{DataFile, Source};
    use super::*;

    const ROWS: &[&str] = &[
        r#"{"n":1,"t":"one, \"1\"","f":0.5,"b":true,"ids":[1,2,3],"messages":[{"role":"user","content":"ü"}],"none":null}"#,
        r#"{"n":2,"t":"two\nlines","f":2,"b":null,"ids":[],"messages":[{"role":"user","content":null},{"role":"assistant","content":"x"}],"none":null}"#,
        r#"{"n":null,"t":"","f":null,"b":false,"ids":null,"messages":null,"none":null}"#,
    ];

    fn saved(format: Format, name: &str) -> (tempfile::TempDir, PathBuf) {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("made/on/the way").join(name);
        let mut saver = Saver::create(&path, format).unwrap();
        for row in ROWS {
            saver.write(row).unwrap();
        }
        assert!(!path.exists());
        saver.finish().unwrap();
        let left: Vec<_> = fs::read_dir(path.parent().unwrap()).unwrap().collect();
        assert_eq!(left.len(), 1, "no leftovers");
        (folder, path)
    }

    fn read(path: &Path, format: Format) -> Vec<serde_json::Value> {
        let file = DataFile { path: path.to_owned(), name: "x".to_owned(), format };
        let rows = Source::Files(Arc::from([file])).rows();
        rows.map(|row| serde_json::from_str(&row.unwrap().to_text().unwrap()).unwrap()).collect()
    }

    fn expected() -> Vec<serde_json::Value> {
        ROWS.iter().map(|row| serde_json::from_str(row).unwrap()).collect()
    }

    #[test]
    fn lines_of_json_are_the_rows_as_they_are() {
        let (_folder, path) = saved(Format::JsonLines, "a.jsonl");
        assert_eq!(fs::read_to_string(&path).unwrap(), format!("{}\n", ROWS.join("\n")));
    }

    #[test]
    fn parquet_comes_back_with_lists_and_objects() {
        let (_folder, path) = saved(Format::Parquet, "a.parquet");
        let mut expected = expected();
        expected[1]["f"] = 2.0.into();
        assert_eq!(read(&path, Format::Parquet), expected);
    }

    #[test]
    fn csv_has_a_line_of_names_and_json_where_a_cell_cannot_say_it() {
        let (_folder, path) = saved(Format::Csv, "a.csv");
        let text = fs::read_to_string(&path).unwrap();
        assert!(text.starts_with("n,t,f,b,ids,messages,none\n1,\"one, \"\"1\"\"\",0.5,True,\"[1,2,3]\","), "{text}");
        let rows = read(&path, Format::Csv);
        assert_eq!(rows.len(), 3);
        assert_eq!(rows[1]["t"], "two\nlines");
    }

    #[test]
    fn a_file_that_is_not_finished_leaves_nothing() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.jsonl");
        fs::write(&path, "old").unwrap();
        let mut saver = Saver::create(&path, Format::JsonLines).unwrap();
        saver.write("{}").unwrap();
        drop(saver);
        assert_eq!(fs::read_to_string(&path).unwrap(), "old");
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1);
    }
}
