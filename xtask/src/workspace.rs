//! Where things lie in a checkout.

use std::fs::{self, File};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

/// The checkout a command works on.
#[derive(Clone, Debug)]
pub(crate) struct Workspace {
    root: PathBuf,
}

/// Held while a command changes what is shared by all commands of a checkout.
pub(crate) struct Lock {
    _file: File,
}

impl Workspace {
    /// The checkout at `root`, by default the one this program was built from.
    pub(crate) fn at(root: Option<PathBuf>) -> Result<Self> {
        let root = root.unwrap_or_else(Self::built_from);
        fs::create_dir_all(&root).with_context(|| format!("cannot create `{}`", root.display()))?;
        let root = fs::canonicalize(&root).with_context(|| format!("cannot open `{}`", root.display()))?;
        Ok(Self { root })
    }

    /// The checkout this program was built from.
    pub(crate) fn built_from() -> PathBuf {
        let manifest = Path::new(env!("CARGO_MANIFEST_DIR"));
        manifest.parent().unwrap_or(manifest).to_path_buf()
    }

    /// The root folder.
    pub(crate) fn root(&self) -> &Path {
        &self.root
    }

    /// A path below the root.
    pub(crate) fn path(&self, relative: &str) -> PathBuf {
        self.root.join(relative)
    }

    /// Git-ignored room for unfinished work, on the same file system as everything that is renamed into place.
    pub(crate) fn cache(&self) -> Result<PathBuf> {
        let cache = self.path(".cache");
        fs::create_dir_all(&cache).with_context(|| format!("cannot create `{}`", cache.display()))?;
        Ok(cache)
    }

    /// Waits until no other command changes this checkout's fetched parts.
    pub(crate) fn lock(&self) -> Result<Lock> {
        let path = self.cache()?.join("lock");
        let file = File::create(&path).with_context(|| format!("cannot create `{}`", path.display()))?;
        if file.try_lock().is_err() {
            eprintln!("another `cargo xtask` is setting up this checkout, waiting for it");
            file.lock().with_context(|| format!("cannot lock `{}`", path.display()))?;
        }
        Ok(Lock { _file: file })
    }

    /// A folder for unfinished work that is removed when dropped. Call with the lock held: leftovers of killed
    /// commands are removed first.
    pub(crate) fn scratch(&self, _lock: &Lock) -> Result<tempfile::TempDir> {
        let cache = self.cache()?;
        for entry in fs::read_dir(&cache)? {
            let entry = entry?;
            if entry.file_name().to_string_lossy().starts_with("scratch-") {
                fs::remove_dir_all(entry.path())
                    .with_context(|| format!("cannot remove `{}`", entry.path().display()))?;
            }
        }
        let scratch = tempfile::Builder::new().prefix("scratch-").tempdir_in(&cache);
        scratch.with_context(|| format!("cannot create a folder in `{}`", cache.display()))
    }
}

/// Puts the finished folder `from` at `to`; what was there is moved into `scratch` first, so that `to` is
/// never half of one and half of the other.
pub(crate) fn replace_folder(from: &Path, to: &Path, scratch: &Path) -> Result<()> {
    if let Some(parent) = to.parent() {
        fs::create_dir_all(parent).with_context(|| format!("cannot create `{}`", parent.display()))?;
    }
    if to.exists() {
        let old = scratch.join("replaced");
        fs::rename(to, &old).with_context(|| format!("cannot move `{}` away", to.display()))?;
    }
    fs::rename(from, to).with_context(|| format!("cannot put `{}` in place", to.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn leftovers_of_a_killed_command_are_removed() {
        let root = tempfile::tempdir().unwrap();
        let workspace = Workspace::at(Some(root.path().to_path_buf())).unwrap();
        let leftover = workspace.path(".cache/scratch-killed");
        fs::create_dir_all(leftover.join("half")).unwrap();
        let lock = workspace.lock().unwrap();
        let scratch = workspace.scratch(&lock).unwrap();
        assert!(!leftover.exists());
        assert!(scratch.path().exists());
    }

    #[test]
    fn a_folder_is_replaced_as_a_whole() {
        let root = tempfile::tempdir().unwrap();
        let [old, new, scratch] = ["old", "new", "scratch"].map(|name| root.path().join(name));
        for folder in [&old, &new, &scratch] {
            fs::create_dir(folder).unwrap();
        }
        fs::write(old.join("stale"), "").unwrap();
        fs::write(new.join("fresh"), "").unwrap();
        replace_folder(&new, &old, &scratch).unwrap();
        assert!(old.join("fresh").exists() && !old.join("stale").exists() && !new.exists());
    }
}
