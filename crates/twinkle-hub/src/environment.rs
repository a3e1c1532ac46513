//! The environment variables this crate obeys, read once.

use std::collections::BTreeMap;
use std::path::PathBuf;

/// The variables, as they were when this was made. Tests make their own.
#[derive(Clone, Default)]
pub struct Environment {
    variables: BTreeMap<String, String>,
    home: Option<PathBuf>,
}

impl Environment {
    /// Those of this process.
    #[must_use]
    pub fn of_process() -> Self {
        Self { home: std::env::home_dir(), ..Self::new(std::env::vars_os().filter_map(as_text)) }
    }

    /// These, and no home folder unless `HOME` is among them.
    #[must_use]
    pub fn new(variables: impl IntoIterator<Item = (String, String)>) -> Self {
        Self { variables: variables.into_iter().collect(), home: None }
    }

    /// The same, with hubs never asked.
    #[must_use]
    pub fn offline(mut self) -> Self {
        self.variables.insert("TWINKLE_OFFLINE".to_owned(), "1".to_owned());
        self
    }

    /// A variable that is set and not empty.
    pub(crate) fn text(&self, name: &str) -> Option<&str> {
        self.variables.get(name).map(|value| value.trim()).filter(|value| !value.is_empty())
    }

    /// Whether a variable says yes, as the hubs' tools understand it.
    pub(crate) fn is_on(&self, name: &str) -> bool {
        self.text(name).is_some_and(|value| matches!(value.to_lowercase().as_str(), "1" | "true" | "yes" | "on"))
    }

    /// A variable that is a path.
    pub(crate) fn path(&self, name: &str) -> Option<PathBuf> {
        self.text(name).map(|path| self.expand(path.into()))
    }

    /// The path with a leading `~` replaced by the home folder.
    pub(crate) fn expand(&self, path: PathBuf) -> PathBuf {
        match path.strip_prefix("~") {
            Ok(rest) => self.home().join(rest),
            Err(_) => path,
        }
    }

    /// The folder caches are below: `XDG_CACHE_HOME`, else `~/.cache`.
    pub(crate) fn caches(&self) -> PathBuf {
        self.path("XDG_CACHE_HOME").unwrap_or_else(|| self.home().join(".cache"))
    }

    /// The home folder; the current one for a user who has none.
    pub(crate) fn home(&self) -> PathBuf {
        let home = self.variables.get("HOME").map(PathBuf::from).filter(|home| home.is_absolute());
        home.or_else(|| self.home.clone()).unwrap_or_else(|| PathBuf::from("."))
    }
}

/// A variable whose name and value are text; no other matters here.
fn as_text((name, value): (std::ffi::OsString, std::ffi::OsString)) -> Option<(String, String)> {
    Some((name.into_string().ok()?, value.into_string().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_may_begin_at_home_and_empty_variables_are_not_set() {
        let variables = [("HOME", "/home/a"), ("HF_HOME", "~/models"), ("HF_TOKEN", " "), ("HF_HUB_OFFLINE", "YES")];
        let environment = Environment::new(variables.map(|(name, value)| (name.to_owned(), value.to_owned())));
        assert_eq!(environment.path("HF_HOME"), Some(PathBuf::from("/home/a/models")));
        assert_eq!(environment.caches(), PathBuf::from("/home/a/.cache"));
        assert_eq!(environment.text("HF_TOKEN"), None);
        assert!(environment.is_on("HF_HUB_OFFLINE"));
        assert!(!environment.is_on("TRANSFORMERS_OFFLINE"));
    }
}
