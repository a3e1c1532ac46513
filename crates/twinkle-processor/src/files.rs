//! Small text files of a model folder.

use std::fs::File;
use std::io::{ErrorKind, Read};
use std::path::Path;

use serde_json::{Map, Value};
use twinkle_core::error::{Error, Result};

/// No tokenizer or template file of a real model comes near it.
const LARGEST_FILE: u64 = 256 << 20;

/// The bytes of a file; `None` when it is not there.
pub(crate) fn read_if_present(path: &Path) -> Result<Option<Vec<u8>>> {
    let unreadable = |error: std::io::Error| Error::invalid(format!("`{}` cannot be read: {error}", path.display()));
    let file = match File::open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(unreadable(error)),
    };
    let mut bytes = Vec::new();
    file.take(LARGEST_FILE + 1).read_to_end(&mut bytes).map_err(unreadable)?;
    if bytes.len() as u64 > LARGEST_FILE {
        return Err(Error::invalid(format!("`{}` is larger than {LARGEST_FILE} bytes", path.display())));
    }
    Ok(Some(bytes))
}

/// The text of a file; `None` when it is not there.
pub(crate) fn read_text_if_present(path: &Path) -> Result<Option<String>> {
    let Some(bytes) = read_if_present(path)? else { return Ok(None) };
    let text =
        String::from_utf8(bytes).map_err(|_| Error::invalid(format!("`{}` is not UTF-8 text", path.display())))?;
    Ok(Some(text))
}

/// The object of a JSON file; empty when the file is not there.
pub(crate) fn read_json_object(path: &Path) -> Result<Map<String, Value>> {
    let Some(bytes) = read_if_present(path)? else { return Ok(Map::new()) };
    match serde_json::from_slice(&bytes) {
        Ok(Value::Object(object)) => Ok(object),
        Ok(_) => Err(Error::invalid(format!("`{}` is not a JSON object", path.display()))),
        Err(error) => Err(Error::invalid(format!("`{}` is not valid JSON: {error}", path.display()))),
    }
}
