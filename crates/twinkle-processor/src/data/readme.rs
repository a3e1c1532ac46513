//! What the README of a repository says about its files: `configs` in its YAML header.

use std::collections::BTreeMap;

use serde_json::Value;
use twinkle_core::error::Result;

use super::splits::unknown_subset;

/// The largest README that is looked at, in bytes.
const LARGEST: usize = 1 << 20;

/// What a README says about files.
#[derive(Clone, Debug, Default)]
pub(super) struct Readme {
    configs: Vec<Config>,
}

/// A subset.
#[derive(Clone, Debug)]
pub(super) struct Config {
    name: String,
    is_default: bool,
    folder: Option<String>,
    /// Patterns of paths by split; empty when the names of files tell.
    patterns: BTreeMap<String, Vec<String>>,
}

impl Readme {
    /// Reads the header; a README without one, or with one that is not YAML, says nothing.
    pub(super) fn read(text: &str) -> Self {
        let header = text.trim_start_matches('\u{feff}').strip_prefix("---").and_then(|rest| rest.split_once("\n---"));
        let Some((header, _)) = header.filter(|_| text.len() <= LARGEST) else { return Self::default() };
        let Ok(header) = serde_yaml::from_str::<Value>(header) else { return Self::default() };
        let configs = header.get("configs").and_then(Value::as_array).map_or(&[][..], Vec::as_slice);
        Self { configs: configs.iter().filter_map(Config::read).collect() }
    }

    /// The subset of this name; `default` also means the one marked so, or the only one. `None` when nothing is said.
    pub(super) fn config(&self, subset: &str) -> Result<Option<&Config>> {
        if self.configs.is_empty() {
            return Ok(None);
        }
        let named = self.configs.iter().find(|config| config.name == subset);
        let standard = || match self.configs.as_slice() {
            [only] => Some(only),
            several => several.iter().find(|config| config.is_default),
        };
        let known: Vec<&str> = self.configs.iter().map(|config| config.name.as_str()).collect();
        named
            .or_else(|| if subset == "default" { standard() } else { None })
            .map(Some)
            .ok_or_else(|| unknown_subset(subset, &known))
    }
}

impl Config {
    fn read(value: &Value) -> Option<Self> {
        let mut patterns: BTreeMap<String, Vec<String>> = BTreeMap::new();
        let files = value.get("data_files");
        match files {
            Some(Value::Array(entries)) if entries.iter().any(Value::is_object) => {
                for entry in entries {
                    let split = entry.get("split").and_then(Value::as_str).unwrap_or("train");
                    patterns.entry(split.to_owned()).or_default().extend(texts(entry.get("path")));
                }
            }
            Some(files) => {
                patterns.insert("train".to_owned(), texts(Some(files)));
            }
            None => {}
        }
        Some(Self {
            name: value.get("config_name")?.as_str()?.to_owned(),
            is_default: value.get("default").and_then(Value::as_bool) == Some(true),
            folder: value.get("data_dir").and_then(Value::as_str).map(|folder| folder.trim_matches('/').to_owned()),
            patterns,
        })
    }

    /// The files in its folder, or all.
    pub(super) fn within<'a>(&self, files: &[&'a str]) -> Vec<&'a str> {
        let is_within = |path: &&&str| match &self.folder {
            Some(folder) => path.strip_prefix(folder.as_str()).is_some_and(|rest| rest.starts_with('/')),
            None => true,
        };
        files.iter().filter(is_within).copied().collect()
    }

    /// Its files by split; `None` when their names tell.
    pub(super) fn splits(&self, files: &[&str]) -> Option<BTreeMap<String, Vec<String>>> {
        if self.patterns.is_empty() {
            return None;
        }
        let of = |patterns: &[String]| {
            let wanted = |path: &&&str| {
                patterns.iter().any(|pattern| match &self.folder {
                    Some(folder) => fits(path, &format!("{folder}/{pattern}")),
                    None => fits(path, pattern),
                })
            };
            files.iter().filter(wanted).map(|path| (*path).to_owned()).collect::<Vec<_>>()
        };
        let splits = self.patterns.iter().map(|(split, patterns)| (split.clone(), of(patterns)));
        Some(splits.filter(|(_, files)| !files.is_empty()).collect())
    }
}

fn texts(value: Option<&Value>) -> Vec<String> {
    match value {
        Some(Value::String(text)) => vec![text.clone()],
        Some(Value::Array(list)) => list.iter().filter_map(Value::as_str).map(str::to_owned).collect(),
        _ => Vec::new(),
    }
}

/// Whether a path fits a pattern: `?` is one letter, `*` is any within one folder, `**` any at all.
fn fits(path: &str, pattern: &str) -> bool {
    fn step(path: &[u8], pattern: &[u8], fuel: &mut u32) -> bool {
        let Some(left) = fuel.checked_sub(1) else { return false };
        *fuel = left;
        match pattern {
            [] => path.is_empty(),
            [b'*', b'*', b'/', rest @ ..] if step(path, rest, fuel) => true,
            [b'*', b'*', rest @ ..] => (0..=path.len()).any(|count| step(&path[count..], rest, fuel)),
            [b'*', rest @ ..] => {
                let most = path.iter().position(|byte| *byte == b'/').unwrap_or(path.len());
                (0..=most).any(|count| step(&path[count..], rest, fuel))
            }
            [b'?', rest @ ..] => {
                matches!(path, [first, tail @ ..] if *first != b'/' && step(tail, rest, fuel))
            }
            [letter, rest @ ..] => matches!(path, [first, tail @ ..] if first == letter && step(tail, rest, fuel)),
        }
    }
    // A pattern of many stars must not take for ever.
    step(path.as_bytes(), pattern.trim_start_matches("./").as_bytes(), &mut 100_000)
}

#[cfg(test)]
mod tests {
    use super::*;

    const GSM8K: &str = "---
license: mit
configs:
- config_name: main
  data_files:
  - split: train
    path: main/train-*
  - split: test
    path: [\"main/test-*\"]
- config_name: socratic
  data_dir: socratic
---
# A card";

    #[test]
    fn a_readme_names_subsets_and_splits() {
        let readme = Readme::read(GSM8K);
        let files = ["main/test-0.parquet", "main/train-0.parquet", "socratic/train-0.parquet"];
        let main = readme.config("main").unwrap().unwrap().splits(&files).unwrap();
        assert_eq!(main.get("train").unwrap(), &["main/train-0.parquet"]);
        assert_eq!(main.get("test").unwrap(), &["main/test-0.parquet"]);
        let socratic = readme.config("socratic").unwrap().unwrap();
        assert!(socratic.splits(&files).is_none());
        assert_eq!(socratic.within(&files), ["socratic/train-0.parquet"]);
        let error = readme.config("default").unwrap_err().to_string();
        assert_eq!(error, "there is no subset `default` (hint: known subsets: `main`, `socratic`)");
    }

    #[test]
    fn a_readme_that_says_nothing_leaves_it_to_names() {
        for text in ["# A card", "---\nlicense: mit\n---\n", "---\n: [\n---\n", "---\nno end"] {
            assert!(Readme::read(text).config("default").unwrap().is_none(), "{text}");
        }
        let only = Readme::read("---\nconfigs:\n- config_name: x\n  data_files: '*.csv'\n---\n");
        let splits = only.config("default").unwrap().unwrap().splits(&["a.csv", "b/c.csv"]).unwrap();
        assert_eq!(splits.get("train").unwrap(), &["a.csv"]);
    }

    #[test]
    fn patterns_fit_as_in_a_shell() {
        assert!(fits("data/train-1.parquet", "data/train-*"));
        assert!(!fits("data/x/train-1.parquet", "data/*"));
        assert!(fits("data/x/train-1.parquet", "data/**"));
        assert!(fits("train.csv", "**/train.csv") && fits("a/b/train.csv", "**/train.csv"));
        assert!(fits("a1.csv", "a?.csv") && !fits("a/.csv", "a?.csv"));
    }
}
