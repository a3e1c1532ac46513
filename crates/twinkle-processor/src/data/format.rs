//! The formats of files with rows.

use std::path::Path;

use twinkle_core::error::{Error, Result, suggestion};

/// A format of files with rows.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Format {
    /// An object a line.
    JsonLines,
    /// An array of objects, or objects one after another.
    Json,
    /// Comma-separated values below a line of names; types are found by looking at all values of a column.
    Csv,
    /// A row a line, in the column `text`.
    Text,
    /// Apache Parquet.
    Parquet,
}

/// The endings of names of files, without the dot.
const ENDINGS: &[(&str, Format)] = &[
    ("jsonl", Format::JsonLines),
    ("ndjson", Format::JsonLines),
    ("json", Format::Json),
    ("csv", Format::Csv),
    ("tsv", Format::Csv),
    ("txt", Format::Text),
    ("parquet", Format::Parquet),
    ("pq", Format::Parquet),
];

impl Format {
    /// The format that a file's name tells; `.gz` and `.zst` are looked through.
    #[must_use]
    pub fn of_name(name: &str) -> Option<Self> {
        let name = name.strip_suffix(".gz").or_else(|| name.strip_suffix(".zst")).unwrap_or(name);
        let ending = Path::new(name).extension()?.to_str()?.to_ascii_lowercase();
        ENDINGS.iter().find(|(known, _)| *known == ending).map(|(_, format)| *format)
    }

    /// The format to save in: the named one, else the one that the file's name tells, else lines of JSON.
    ///
    /// `json` means lines of JSON, as the original writes it.
    pub fn to_save(named: Option<&str>, file: &str) -> Result<Self> {
        match named {
            None => Ok(match Self::of_name(file) {
                Some(format @ (Self::Csv | Self::Parquet)) => format,
                _ => Self::JsonLines,
            }),
            Some("jsonl" | "json") => Ok(Self::JsonLines),
            Some("csv") => Ok(Self::Csv),
            Some("parquet") => Ok(Self::Parquet),
            Some(other) => Err(Error::invalid(format!("rows cannot be saved as `{other}`")).hint(suggestion(
                other,
                "formats",
                &["jsonl", "json", "csv", "parquet"],
            ))),
        }
    }

    /// The endings of names that are understood.
    #[must_use]
    pub fn endings() -> Vec<&'static str> {
        ENDINGS.iter().map(|(ending, _)| *ending).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_tells_the_format_also_of_a_compressed_file() {
        for (name, format) in [
            ("a/train.jsonl", Some(Format::JsonLines)),
            ("a.JSON", Some(Format::Json)),
            ("a.jsonl.gz", Some(Format::JsonLines)),
            ("a.csv.zst", Some(Format::Csv)),
            ("train-00000-of-00001.parquet", Some(Format::Parquet)),
            ("README.md", None),
            ("a", None),
            ("a.py", None),
        ] {
            assert_eq!(Format::of_name(name), format, "{name}");
        }
    }

    #[test]
    fn what_is_saved_follows_the_named_format_and_then_the_name() {
        assert_eq!(Format::to_save(None, "a.json"), Ok(Format::JsonLines));
        assert_eq!(Format::to_save(None, "a.pq"), Ok(Format::Parquet));
        assert_eq!(Format::to_save(Some("csv"), "a.json"), Ok(Format::Csv));
        assert!(Format::to_save(Some("cvs"), "a").unwrap_err().to_string().contains("did you mean `csv`?"));
    }
}
