//! Python environments of the whole-node tests: one per file `tests/python/requirements-<name>.txt`.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use sha2::{Digest, Sha256};

use crate::child;
use crate::workspace::Workspace;

/// An environment and what belongs into it.
struct Environment {
    name: String,
    requirements: PathBuf,
    folder: PathBuf,
}

/// Makes the environments that are missing or out of date.
pub(crate) fn fetch(workspace: &Workspace) -> Result<()> {
    let _lock = workspace.lock()?;
    for environment in environments(workspace)? {
        let stamp = environment.stamp()?;
        if fs::read_to_string(environment.stamp_file()).is_ok_and(|found| found == stamp) {
            eprintln!("python: environment `{}` is in `{}`", environment.name, environment.folder.display());
            continue;
        }
        eprintln!("python: making environment `{}`", environment.name);
        environment.make(&stamp)?;
    }
    Ok(())
}

fn environments(workspace: &Workspace) -> Result<Vec<Environment>> {
    let folder = workspace.path("tests/python");
    let mut environments = Vec::new();
    let entries = fs::read_dir(&folder).with_context(|| format!("cannot read `{}`", folder.display()))?;
    for entry in entries {
        let requirements = entry?.path();
        let file = requirements.file_name().unwrap_or_default().to_string_lossy();
        let Some(name) = file.strip_prefix("requirements-").and_then(|rest| rest.strip_suffix(".txt")) else {
            continue;
        };
        let folder = workspace.path(".venvs").join(name);
        environments.push(Environment { name: name.to_owned(), requirements: requirements.clone(), folder });
    }
    environments.sort_by(|one, other| one.name.cmp(&other.name));
    Ok(environments)
}

impl Environment {
    /// Changes whenever the environment would.
    fn stamp(&self) -> Result<String> {
        let text =
            fs::read(&self.requirements).with_context(|| format!("cannot read `{}`", self.requirements.display()))?;
        Ok(hex::encode(Sha256::digest(&text)))
    }

    fn stamp_file(&self) -> PathBuf {
        self.folder.join("requirements.sha256")
    }

    /// An environment knows its own path, so it is made in place; the stamp is written last.
    fn make(&self, stamp: &str) -> Result<()> {
        if self.folder.exists() {
            fs::remove_dir_all(&self.folder).with_context(|| format!("cannot remove `{}`", self.folder.display()))?;
        }
        let mut venv = child::python();
        let succeeded = child::run_to_stderr(venv.args(["-m", "venv"]).arg(&self.folder))?;
        if !succeeded {
            bail!(
                "cannot make `{}`\nhint: `apt install python3-venv`, or name another Python with `PYTHON`",
                self.folder.display()
            );
        }
        let mut pip = std::process::Command::new(self.interpreter());
        pip.args(["-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-deps", "--requirement"])
            .arg(&self.requirements);
        if !child::run_to_stderr(&mut pip)? {
            bail!("pip could not install `{}`; its reason is above", self.requirements.display());
        }
        fs::write(self.stamp_file(), stamp).with_context(|| format!("cannot write `{}`", self.stamp_file().display()))
    }

    fn interpreter(&self) -> PathBuf {
        let folder: &Path = if cfg!(windows) { Path::new("Scripts") } else { Path::new("bin") };
        self.folder.join(folder).join("python")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_requirements_file_is_an_environment_and_an_edit_changes_its_stamp() {
        let root = tempfile::tempdir().unwrap();
        let workspace = Workspace::at(Some(root.path().to_path_buf())).unwrap();
        let folder = workspace.path("tests/python");
        fs::create_dir_all(&folder).unwrap();
        for (file, text) in [("requirements-b.txt", "x==1"), ("requirements-a.txt", "y==1"), ("script.py", "")] {
            fs::write(folder.join(file), text).unwrap();
        }
        let found = environments(&workspace).unwrap();
        assert_eq!(found.iter().map(|one| one.name.as_str()).collect::<Vec<_>>(), ["a", "b"]);
        let before = found[0].stamp().unwrap();
        fs::write(folder.join("requirements-a.txt"), "y==2").unwrap();
        assert_ne!(found[0].stamp().unwrap(), before);
    }
}
