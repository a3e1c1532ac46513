//! `model_id`: where a model's files are, as the operator wrote it.
//!
//! Here it is only read. Looking for the files, downloading and converting them is `twinkle-hub`'s job.

use std::fmt;
use std::path::PathBuf;

use serde::Serialize;

use super::choices::choices;
use crate::error::{Error, Result, suggestion};

/// The schemes of a `model_id`, besides none.
const SCHEMES: &[&str] = &["ms", "hf", "file"];

/// The longest part of a hub's id and the longest revision, in bytes: they become names of folders.
const LONGEST_NAME: usize = 120;

/// Where a model's files are, as the operator wrote it.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(transparent)]
pub struct ModelSource(String);

/// Where a [`ModelSource`] says that the files are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ModelLocation {
    /// A folder or a `.gguf` file: `./m`, `/m`, `file:///m`, `m`; relative ones are below the current directory.
    Local(PathBuf),
    /// `ms://org/name` or `hf://org/name`, perhaps with `@revision`.
    Hub(Hub, HubModel),
    /// `org/name`: a folder of that name, else a model of a hub.
    LocalOrHub(PathBuf, HubModel),
}

/// A model hub.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub enum Hub {
    /// `ms://`, and the hub of ids without a scheme.
    #[serde(rename = "ms")]
    ModelScope,
    /// `hf://`.
    #[serde(rename = "hf")]
    HuggingFace,
}
choices!(Hub { ModelScope = "ms", HuggingFace = "hf" });

/// A model as a hub names it. Its parts are safe to use as names of folders.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HubModel {
    /// Who published it.
    pub organisation: String,
    /// Its name there.
    pub name: String,
    /// A branch, a tag or a commit; the hub's main branch if not given.
    pub revision: Option<String>,
}

impl ModelSource {
    /// Wraps a `model_id`: a folder or `.gguf` file (`./m`, `/m`, `file:///m`, `m`), `ms://org/name`,
    /// `hf://org/name` or `org/name`, the latter three perhaps with `@revision`.
    #[must_use]
    pub fn new(model_id: impl Into<String>) -> Self {
        Self(model_id.into())
    }

    /// As written.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The id without its scheme and revision: `org/name` of `ms://org/name@v1`.
    #[must_use]
    pub fn public_name(&self) -> String {
        match self.location() {
            Ok(ModelLocation::Hub(_, model) | ModelLocation::LocalOrHub(_, model)) => model.id(),
            Ok(ModelLocation::Local(_)) | Err(_) => {
                self.0.split_once("://").map_or(self.0.as_str(), |(_, rest)| rest).to_owned()
            }
        }
    }

    /// What it means. Fails for an unknown scheme and for an id no hub can have.
    pub fn location(&self) -> Result<ModelLocation> {
        let (scheme, rest) = self.0.split_once("://").unwrap_or(("", &self.0));
        if rest.is_empty() {
            return Err(Error::invalid(format!("model_id `{}` names no model", self.0)));
        }
        match scheme {
            "" => Ok(without_scheme(rest)),
            "file" => Ok(ModelLocation::Local(local(rest))),
            "ms" => Ok(ModelLocation::Hub(Hub::ModelScope, HubModel::read(rest)?)),
            "hf" => Ok(ModelLocation::Hub(Hub::HuggingFace, HubModel::read(rest)?)),
            other => Err(Error::invalid(format!("unknown scheme `{other}://` in model_id `{}`", self.0))
                .hint(format!("{}, or a folder or `.gguf` file", suggestion(other, "schemes", SCHEMES)))),
        }
    }
}

impl fmt::Display for ModelSource {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(&self.0)
    }
}

impl Hub {
    /// The scheme of its ids.
    #[must_use]
    pub const fn scheme(self) -> &'static str {
        match self {
            Self::ModelScope => "ms",
            Self::HuggingFace => "hf",
        }
    }

    /// As people call it.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::ModelScope => "ModelScope",
            Self::HuggingFace => "Hugging Face",
        }
    }
}

impl HubModel {
    /// `org/name`.
    #[must_use]
    pub fn id(&self) -> String {
        format!("{}/{}", self.organisation, self.name)
    }

    fn read(text: &str) -> Result<Self> {
        let wrong = |what: &str| {
            Error::invalid(format!("`{text}` is not a model on a hub: {what}"))
                .hint("write `org/name`, or `org/name@revision`; letters, digits, `-`, `_` and `.` are allowed")
        };
        let (id, revision) = match text.split_once('@') {
            Some((id, revision)) => (id, Some(revision)),
            None => (text, None),
        };
        let Some((organisation, name)) = id.split_once('/') else {
            return Err(wrong("it has no organisation"));
        };
        if !is_safe_name(organisation) || !is_safe_name(name) {
            return Err(wrong("its id has a part no hub allows"));
        }
        if let Some(revision) = revision
            && !(revision.len() <= LONGEST_NAME && revision.split('/').all(is_safe_name))
        {
            return Err(wrong("its revision is not a branch, tag or commit"));
        }
        Ok(Self { organisation: organisation.to_owned(), name: name.to_owned(), revision: revision.map(str::to_owned) })
    }
}

impl fmt::Display for HubModel {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{}/{}", self.organisation, self.name)?;
        if let Some(revision) = &self.revision {
            write!(formatter, "@{revision}")?;
        }
        Ok(())
    }
}

/// A path, or something that can be both a path and a hub's id.
fn without_scheme(text: &str) -> ModelLocation {
    let path = local(text);
    let is_path = text.starts_with(['.', '/', '~']) || is_gguf(text);
    match HubModel::read(text) {
        Ok(model) if !is_path => ModelLocation::LocalOrHub(path, model),
        _ => ModelLocation::Local(path),
    }
}

fn local(text: &str) -> PathBuf {
    PathBuf::from(text.strip_prefix("./").unwrap_or(text))
}

fn is_gguf(text: &str) -> bool {
    text.rsplit_once('.').is_some_and(|(_, extension)| extension.eq_ignore_ascii_case("gguf"))
}

/// What both hubs allow in an id, and what can lead nowhere else as the name of a folder.
fn is_safe_name(part: &str) -> bool {
    (1..=LONGEST_NAME).contains(&part.len())
        && !part.starts_with(['.', '-'])
        && part.chars().all(|letter| letter.is_ascii_alphanumeric() || "-_.".contains(letter))
}

/// The name clients use for a model: what follows `/model/`, `/models/` or `/sampler/` in the route prefix, else the
/// model id without its scheme and revision.
pub(super) fn public_name(route_prefix: &str, marks: &[&str], source: &ModelSource) -> String {
    for mark in marks {
        if let Some((_, name)) = route_prefix.split_once(mark)
            && !name.is_empty()
        {
            return name.to_owned();
        }
    }
    source.public_name()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What a `model_id` means, in one line.
    fn meaning(id: &str) -> String {
        match ModelSource::new(id).location() {
            Ok(ModelLocation::Local(path)) => format!("local {}", path.display()),
            Ok(ModelLocation::Hub(hub, model)) => format!("{} {model}", hub.scheme()),
            Ok(ModelLocation::LocalOrHub(path, model)) => format!("local {} or hub {model}", path.display()),
            Err(error) => error.to_string(),
        }
    }

    #[test]
    fn every_form_of_a_model_id_is_told_apart() {
        assert_eq!(meaning("./org/name"), "local org/name");
        assert_eq!(meaning("/org/name"), "local /org/name");
        assert_eq!(meaning("~/name"), "local ~/name");
        assert_eq!(meaning("file:///org/name@1"), "local /org/name@1");
        assert_eq!(meaning("name"), "local name");
        assert_eq!(meaning("a/b/c"), "local a/b/c");
        assert_eq!(meaning("org/name.GGUF"), "local org/name.GGUF");
        assert_eq!(meaning("org/name"), "local org/name or hub org/name");
        assert_eq!(meaning("Qwen/Qwen2.5-0.5B@v1"), "local Qwen/Qwen2.5-0.5B@v1 or hub Qwen/Qwen2.5-0.5B@v1");
        assert_eq!(meaning("ms://org/name"), "ms org/name");
        assert_eq!(meaning("hf://org/name@refs/pr/1"), "hf org/name@refs/pr/1");
    }

    #[test]
    fn what_is_no_model_says_what_it_should_be() {
        insta::assert_snapshot!(meaning("s3://bucket/name"), @"unknown scheme `s3://` in model_id `s3://bucket/name` (hint: known schemes: `ms`, `hf`, `file`, or a folder or `.gguf` file)");
        insta::assert_snapshot!(meaning("hf://name"), @"`name` is not a model on a hub: it has no organisation (hint: write `org/name`, or `org/name@revision`; letters, digits, `-`, `_` and `.` are allowed)");
        insta::assert_snapshot!(meaning("ms://org/../name"), @"`org/../name` is not a model on a hub: its id has a part no hub allows (hint: write `org/name`, or `org/name@revision`; letters, digits, `-`, `_` and `.` are allowed)");
        insta::assert_snapshot!(meaning("ms://org/name@../x"), @"`org/name@../x` is not a model on a hub: its revision is not a branch, tag or commit (hint: write `org/name`, or `org/name@revision`; letters, digits, `-`, `_` and `.` are allowed)");
        insta::assert_snapshot!(meaning("ms://"), @"model_id `ms://` names no model");
    }

    #[test]
    fn the_public_name_has_neither_scheme_nor_revision() {
        let name = |id: &str| ModelSource::new(id).public_name();
        assert_eq!(name("ms://org/name@v1"), "org/name");
        assert_eq!(name("org/name"), "org/name");
        assert_eq!(name("file:///m/x"), "/m/x");
        assert_eq!(name("./m"), "./m");
    }
}
