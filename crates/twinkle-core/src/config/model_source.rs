//! `model_id`: where a model's files are.

use std::path::{Path, PathBuf};

use serde::Serialize;

use crate::error::{Error, Result};

/// Where a model's files are, as the operator wrote it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(transparent)]
pub struct ModelSource(String);

impl ModelSource {
    /// Wraps a `model_id`: a folder (`./m`, `/m`, `file:///m`, `m`), `ms://org/name`, `hf://org/name` or `org/name`.
    #[must_use]
    pub fn new(model_id: impl Into<String>) -> Self {
        Self(model_id.into())
    }

    /// As written.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The id without its scheme: `org/name` of `ms://org/name`.
    #[must_use]
    pub fn without_scheme(&self) -> &str {
        self.0.split_once("://").map_or(self.0.as_str(), |(_, rest)| rest)
    }

    /// The folder with the model's files; relative ones are below the current directory.
    pub fn folder(&self) -> Result<PathBuf> {
        let current = std::env::current_dir()
            .map_err(|error| Error::internal(format!("the current directory cannot be found: {error}")))?;
        self.folder_below(&current)
    }

    /// As [`ModelSource::folder`], with relative folders below `current`.
    pub fn folder_below(&self, current: &Path) -> Result<PathBuf> {
        let (scheme, rest) = self.0.split_once("://").unwrap_or(("", &self.0));
        match scheme {
            "" | "file" => {}
            "ms" | "hf" => {
                return Err(Error::unsupported(format!(
                    "`{}` is on a hub, and downloading is not available yet",
                    self.0
                ))
                .hint("download the model and give its folder as `model_id`"));
            }
            other => {
                return Err(Error::invalid(format!("unknown scheme `{other}://` in model_id `{}`", self.0))
                    .hint("known schemes: `ms://`, `hf://`, `file://`, or a folder"));
            }
        }
        let folder = current.join(rest.strip_prefix("./").unwrap_or(rest));
        if folder.is_dir() {
            return Ok(folder);
        }
        let error =
            Error::not_found(format!("model_id `{}` is not a folder: looked at `{}`", self.0, folder.display()));
        let may_be_on_a_hub = scheme.is_empty() && rest.split('/').count() == 2 && !rest.starts_with(['.', '/']);
        Err(if may_be_on_a_hub {
            error.hint("downloading from a hub is not available yet: download the model and give its folder")
        } else {
            error.hint("give the folder that holds `config.json`")
        })
    }
}

/// The name clients use for a model: what follows `/model/`, `/models/` or `/sampler/` in the route prefix, else the
/// model id without its scheme.
pub(super) fn public_name(route_prefix: &str, marks: &[&str], source: &ModelSource) -> String {
    for mark in marks {
        if let Some((_, name)) = route_prefix.split_once(mark)
            && !name.is_empty()
        {
            return name.to_owned();
        }
    }
    source.without_scheme().to_owned()
}
