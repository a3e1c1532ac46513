//! Rows out of JSON.

use std::io::{BufRead, Read};

use serde_json::de::IoRead;
use serde_json::{Deserializer, StreamDeserializer};
use twinkle_core::error::{Error, ErrorCode, Result};

use super::row::Row;

/// The longest line, in bytes.
const LONGEST_LINE: u64 = 64 << 20;
/// The largest file that is one array, in bytes: it is read whole.
const LARGEST_ARRAY: u64 = 1 << 30;

/// Lines with an object each; empty lines are passed over.
pub(super) struct Lines<R> {
    reader: R,
    line: Vec<u8>,
    number: u64,
}

impl<R: BufRead> Lines<R> {
    pub(super) const fn new(reader: R) -> Self {
        Self { reader, line: Vec::new(), number: 0 }
    }

    fn next_row(&mut self) -> Result<Option<Row>> {
        loop {
            self.line.clear();
            let mut limited = Read::take(&mut self.reader, LONGEST_LINE + 1);
            let read = limited.read_until(b'\n', &mut self.line);
            let bytes = read.map_err(|error| Error::invalid(format!("it cannot be read: {error}")))?;
            if bytes == 0 {
                return Ok(None);
            }
            self.number += 1;
            if bytes as u64 > LONGEST_LINE {
                let text = format!("line {} is longer than {} MiB", self.number, LONGEST_LINE >> 20);
                return Err(Error::new(ErrorCode::TooLarge, text));
            }
            let start = if self.number == 1 && self.line.starts_with(b"\xef\xbb\xbf") { 3 } else { 0 };
            let line = self.line.get(start..).unwrap_or_default().trim_ascii();
            if line.is_empty() {
                continue;
            }
            let row = serde_json::from_slice(line)
                .map_err(|error| Error::invalid(format!("line {} is not a JSON object: {error}", self.number)))?;
            return Ok(Some(row));
        }
    }
}

impl<R: BufRead> Iterator for Lines<R> {
    type Item = Result<Row>;

    fn next(&mut self) -> Option<Self::Item> {
        self.next_row().transpose()
    }
}

/// Objects one after another, on any number of lines.
struct Objects<R: Read> {
    stream: StreamDeserializer<'static, IoRead<R>, Row>,
    failed: bool,
}

impl<R: Read> Iterator for Objects<R> {
    type Item = Result<Row>;

    fn next(&mut self) -> Option<Self::Item> {
        // After a mistake the stream would tell it again and again.
        if self.failed {
            return None;
        }
        let row = self.stream.next()?;
        self.failed = row.is_err();
        Some(row.map_err(|error| Error::invalid(format!("it is not made of JSON objects: {error}"))))
    }
}

/// An array of objects, or objects one after another.
pub(super) fn values(mut reader: impl BufRead + Send + 'static) -> Result<super::source::Rows> {
    let unreadable = |error: std::io::Error| Error::invalid(format!("it cannot be read: {error}"));
    loop {
        let buffer = reader.fill_buf().map_err(unreadable)?;
        let space = buffer.iter().take_while(|byte| byte.is_ascii_whitespace()).count();
        if buffer.get(space) == Some(&b'[') {
            break;
        }
        if buffer.is_empty() || space < buffer.len() {
            let stream = Deserializer::from_reader(reader).into_iter();
            return Ok(Box::new(Objects { stream, failed: false }));
        }
        reader.consume(space);
    }
    let mut text = String::new();
    reader.take(LARGEST_ARRAY + 1).read_to_string(&mut text).map_err(unreadable)?;
    if text.len() as u64 > LARGEST_ARRAY {
        let error = format!("it is one array of more than {} MiB", LARGEST_ARRAY >> 20);
        return Err(Error::new(ErrorCode::TooLarge, error).hint("write one object a line, with the ending `.jsonl`"));
    }
    let rows: Vec<Row> = serde_json::from_str(&text)
        .map_err(|error| Error::invalid(format!("it is not an array of JSON objects: {error}")))?;
    Ok(Box::new(rows.into_iter().map(Ok)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn texts(rows: impl Iterator<Item = Result<Row>>) -> Result<Vec<String>> {
        rows.map(|row| row?.to_text()).collect()
    }

    #[test]
    fn lines_are_rows_and_a_bad_one_is_told_by_its_number() {
        let lines = |text: &'static str| texts(Lines::new(text.as_bytes()));
        assert_eq!(lines("\u{feff}{\"a\": 1}\r\n\n{\"b\":\"ü\"}").unwrap(), ["{\"a\":1}", "{\"b\":\"ü\"}"]);
        let error = lines("{\"a\":1}\n\n[1]\n").unwrap_err().message;
        assert!(error.starts_with("line 3 is not a JSON object: "), "{error}");
        assert!(lines("{\"a\":NaN}").is_err());
    }

    #[test]
    fn an_array_and_objects_on_many_lines_are_rows() {
        let values = |text: &'static str| texts(values(text.as_bytes())?);
        assert_eq!(values(" [{\"a\":1},\n{\"a\":2}]").unwrap(), ["{\"a\":1}", "{\"a\":2}"]);
        assert_eq!(values("{\n \"a\": 1\n}\n{\"a\":2}").unwrap(), ["{\"a\":1}", "{\"a\":2}"]);
        assert_eq!(values("").unwrap(), [""; 0]);
        assert!(values("[1, 2]").is_err());
        assert!(values("{\"a\":1} nonsense").is_err());
    }
}
