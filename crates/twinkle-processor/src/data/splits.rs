//! Which files of a folder or repository are a subset's split.
//!
//! As the hubs' own tools have it: what the repository's README says (`configs`), else what the names of files and
//! folders say, else everything is `train`.

use std::collections::{BTreeMap, BTreeSet};

use twinkle_core::error::{Error, Result, suggestion};

use super::format::Format;
use super::readme::Readme;

/// Names of files that have a format but no rows.
const NOT_ROWS: &[&str] = &[
    "dataset_info.json",
    "dataset_infos.json",
    "dataset_dict.json",
    "dataset.json",
    "state.json",
    "config.json",
    "configuration.json",
    "metadata.json",
    "license.txt",
    "readme.txt",
    "requirements.txt",
    "notice.txt",
];

/// Words of names that tell a split.
const WORDS: &[(&str, &[&str])] = &[
    ("train", &["train", "training"]),
    ("validation", &["validation", "valid", "val", "dev"]),
    ("test", &["test", "testing", "eval", "evaluation"]),
];

/// Folders that are no subsets.
const PLAIN_FOLDERS: &[&str] = &["data", "default"];

/// Files with the rows of one split.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Selection {
    /// Relative to the folder, with `/`, sorted.
    pub(super) paths: Vec<String>,
    pub(super) format: Format,
}

/// Selects the files of a split among all files of a folder.
pub(super) fn select(paths: &[String], readme: &Readme, subset: &str, split: &str) -> Result<Selection> {
    let files: Vec<&str> = paths.iter().map(String::as_str).filter(|path| has_rows(path)).collect();
    if files.is_empty() {
        return Err(Error::invalid("there is no file with rows in it")
            .hint(format!("files end in {}", Format::endings().join(", "))));
    }
    let mut splits = match readme.config(subset)? {
        Some(config) => config.splits(&files).unwrap_or_else(|| by_name(&config.within(&files))),
        None => by_name(&of_subset(&files, subset)?),
    };
    let known: Vec<String> = splits.keys().cloned().collect();
    let Some(paths) = splits.remove(split).or_else(|| splits.remove(canonical(split)?)) else {
        let known: Vec<&str> = known.iter().map(String::as_str).collect();
        let error = Error::invalid(format!("there is no split `{split}`"));
        return Err(if split.contains('[') || split.contains('+') {
            error.hint("name one split, and take a part of it with `data_slice`")
        } else {
            error.hint(suggestion(split, "splits", &known))
        });
    };
    Ok(of_one_format(paths))
}

fn has_rows(path: &str) -> bool {
    let name = path.rsplit('/').next().unwrap_or(path);
    let is_hidden = path.split('/').any(|part| part.starts_with(['.', '_']));
    !is_hidden && !NOT_ROWS.contains(&name.to_ascii_lowercase().as_str()) && Format::of_name(name).is_some()
}

/// The files of a subset, which is a folder.
fn of_subset<'a>(files: &[&'a str], subset: &str) -> Result<Vec<&'a str>> {
    let is_within = |path: &&str, folder: &str| path.split('/').rev().skip(1).any(|part| part == folder);
    let named: Vec<&str> = files.iter().copied().filter(|path| is_within(path, subset)).collect();
    if !named.is_empty() {
        return Ok(named);
    }
    let first = |path: &&'a str| path.split_once('/').map(|(folder, _)| folder);
    let is_plain = |folder: &str| PLAIN_FOLDERS.contains(&folder) || canonical(folder).is_some();
    let plain: Vec<&str> = files.iter().copied().filter(|path| first(path).is_none_or(is_plain)).collect();
    let subsets: BTreeSet<&str> = files.iter().filter_map(first).filter(|folder| !is_plain(folder)).collect();
    match subset {
        "default" if !plain.is_empty() => Ok(plain),
        "default" if subsets.len() == 1 => Ok(files.to_vec()),
        _ => {
            let known: Vec<&str> = subsets.into_iter().collect();
            Err(unknown_subset(subset, &known))
        }
    }
}

pub(super) fn unknown_subset(subset: &str, known: &[&str]) -> Error {
    let error = Error::invalid(format!("there is no subset `{subset}`"));
    if known.is_empty() {
        error.hint("leave `subset_name` out")
    } else {
        error.hint(suggestion(subset, "subsets", known))
    }
}

/// Files by the split that their names tell; without any such name, all are `train`.
fn by_name(files: &[&str]) -> BTreeMap<String, Vec<String>> {
    let mut splits: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for file in files {
        if let Some(split) = split_of(file) {
            splits.entry(split).or_default().push((*file).to_owned());
        }
    }
    if splits.is_empty() && !files.is_empty() {
        splits.insert("train".to_owned(), files.iter().map(|file| (*file).to_owned()).collect());
    }
    splits
}

/// The split a path tells: `train-00000-of-00002.parquet`, `my_test.csv`, `dev/a.jsonl`.
fn split_of(path: &str) -> Option<String> {
    let (folders, name) = path.rsplit_once('/').unwrap_or(("", path));
    let stem = name.split('.').next().unwrap_or(name);
    if let Some(before) = without_shard(stem) {
        return Some(canonical(before).unwrap_or(before).to_owned());
    }
    let words = stem.split(|letter: char| !letter.is_alphanumeric());
    words.chain(folders.rsplit('/')).find_map(canonical).map(str::to_owned)
}

/// `train` of `train-00000-of-00002`.
fn without_shard(stem: &str) -> Option<&str> {
    let is_number = |part: &str| part.len() == 5 && part.bytes().all(|byte| byte.is_ascii_digit());
    let (rest, count) = stem.rsplit_once("-of-")?;
    let (before, number) = rest.rsplit_once('-')?;
    (is_number(count) && is_number(number) && !before.is_empty()).then_some(before)
}

/// The split that a word means.
fn canonical(word: &str) -> Option<&'static str> {
    let word = word.to_ascii_lowercase();
    WORDS.iter().find(|(_, words)| words.contains(&word.as_str())).map(|(split, _)| *split)
}

/// Those files that have the format most of them have.
fn of_one_format(mut paths: Vec<String>) -> Selection {
    let mut counts: BTreeMap<Format, usize> = BTreeMap::new();
    for format in paths.iter().filter_map(|path| Format::of_name(path)) {
        *counts.entry(format).or_default() += 1;
    }
    // Of equally frequent ones the later in the order of formats: Parquet before the others.
    let format = counts.into_iter().max_by_key(|(_, count)| *count).map_or(Format::JsonLines, |(format, _)| format);
    paths.retain(|path| Format::of_name(path) == Some(format));
    paths.sort();
    Selection { paths, format }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn selected(paths: &[&str], subset: &str, split: &str) -> Result<Vec<String>> {
        let paths: Vec<String> = paths.iter().map(|path| (*path).to_owned()).collect();
        select(&paths, &Readme::default(), subset, split).map(|selection| selection.paths)
    }

    #[test]
    fn names_of_files_and_folders_tell_the_split() {
        let paths = [
            "data/train-00001-of-00002.parquet",
            "data/train-00000-of-00002.parquet",
            "data/test-00000-of-00001.parquet",
            "data/human_eval-00000-of-00001.parquet",
            "README.md",
            "dataset_infos.json",
        ];
        assert_eq!(
            selected(&paths, "default", "train").unwrap(),
            ["data/train-00000-of-00002.parquet", "data/train-00001-of-00002.parquet"]
        );
        assert_eq!(selected(&paths, "default", "human_eval").unwrap(), ["data/human_eval-00000-of-00001.parquet"]);
        let error = selected(&paths, "default", "tets").unwrap_err().to_string();
        assert!(error.contains("did you mean `test`?"), "{error}");
        assert_eq!(selected(&["dev/a.jsonl", "train/a.jsonl"], "default", "validation").unwrap(), ["dev/a.jsonl"]);
        assert_eq!(selected(&["my_valid.csv", "my_train.csv"], "default", "dev").unwrap(), ["my_valid.csv"]);
    }

    #[test]
    fn without_such_names_everything_is_train_and_one_format_is_read() {
        assert_eq!(selected(&["b.jsonl", "a.jsonl", "c.csv"], "default", "train").unwrap(), ["a.jsonl", "b.jsonl"]);
        assert!(selected(&["b.jsonl"], "default", "test").is_err());
        assert!(selected(&["b.jsonl"], "default", "train[:3]").unwrap_err().to_string().contains("data_slice"));
        assert!(selected(&["README.md", ".hidden/a.jsonl"], "default", "train").is_err());
    }

    #[test]
    fn a_subset_is_a_folder_and_must_be_named_where_there_are_several() {
        let paths = ["main/train-00000-of-00001.parquet", "socratic/train-00000-of-00001.parquet"];
        assert_eq!(selected(&paths, "main", "train").unwrap(), ["main/train-00000-of-00001.parquet"]);
        let error = selected(&paths, "default", "train").unwrap_err().to_string();
        assert_eq!(error, "there is no subset `default` (hint: known subsets: `main`, `socratic`)");
        assert_eq!(selected(&paths[..1], "default", "train").unwrap().len(), 1);
        assert!(selected(&["a.jsonl"], "main", "train").unwrap_err().to_string().contains("leave `subset_name` out"));
    }
}
