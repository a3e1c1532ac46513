//! Python environments of the tests: `.venvs/<name>` from `tests/python/requirements-<name>.txt`.
//!
//! A file that begins with `-r requirements-<other>.txt` is an environment on top of another one, which it sees through
//! a `.pth` file. So eight releases of the Tinker SDK share one copy of what they all need, and each is made in a second.
//! For pip the same line means the same packages, so a file also works by hand, with `pip install --no-deps -r`.

use std::fs;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::Stdio;

use anyhow::{Context, Result, anyhow, bail};
use indicatif::{ProgressBar, ProgressStyle};
use sha2::{Digest, Sha256};

use super::stand_ins;
use crate::child;
use crate::clock::Stopwatch;
use crate::workspace::Workspace;

/// Environments that are made together, because the same step needs them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Environments {
    /// Every release of the Tinker SDK that the tests drive: 140 MB for all of them.
    Sdks,
    /// The cookbook with torch: 1.6 GB.
    Cookbook,
    /// Twinkle's own client, two releases, on top of the cookbook's torch: 15 MB.
    TwinkleKit,
    /// `OpenAI`'s own client on top of what the Tinker SDK needs: a few MB.
    OpenAi,
}

impl Environments {
    /// How the names of its requirements begin.
    const fn prefix(self) -> &'static str {
        match self {
            Self::Sdks => "tinker-",
            Self::Cookbook => "cookbook-",
            Self::TwinkleKit => "twinkle-kit-",
            Self::OpenAi => "openai-",
        }
    }
}

/// An environment and what belongs into it.
#[derive(Debug)]
struct Environment {
    name: String,
    requirements: String,
    folder: PathBuf,
    /// The environments whose packages it sees, nearest first.
    beneath: Vec<PathBuf>,
    stamp: String,
}

/// Makes the environments that are missing or out of date.
pub(crate) fn fetch(workspace: &Workspace, which: Environments) -> Result<()> {
    let _lock = workspace.lock()?;
    for name in names(workspace, which)? {
        make(workspace, &name)?;
    }
    Ok(())
}

/// The environments' names, sorted as versions are: `tinker-0.9.0` before `tinker-0.16.1`.
fn names(workspace: &Workspace, which: Environments) -> Result<Vec<String>> {
    let folder = workspace.path("tests/python");
    let mut names = Vec::new();
    let entries = fs::read_dir(&folder).with_context(|| format!("cannot read `{}`", folder.display()))?;
    for entry in entries {
        let file = entry?.file_name().to_string_lossy().into_owned();
        if let Some(name) = name_of(&file)
            && name.starts_with(which.prefix())
        {
            names.push(name.to_owned());
        }
    }
    let version = |name: &String| -> Vec<u32> { name.split(['-', '.']).filter_map(|part| part.parse().ok()).collect() };
    names.sort_by_key(version);
    Ok(names)
}

/// The environments of a step: their names, such as `tinker-0.38.0`, and their folders.
pub(crate) fn made(workspace: &Workspace, which: Environments) -> Result<Vec<(String, PathBuf)>> {
    fetch(workspace, which)?;
    Ok(names(workspace, which)?.into_iter().map(|name| (name.clone(), folder_of(workspace, &name))).collect())
}

/// The Python of the environment in `folder`.
pub(crate) fn interpreter(folder: &Path) -> PathBuf {
    let (folder_of_programs, program) = if cfg!(windows) { ("Scripts", "python.exe") } else { ("bin", "python") };
    folder.join(folder_of_programs).join(program)
}

fn folder_of(workspace: &Workspace, name: &str) -> PathBuf {
    workspace.path(".venvs").join(name)
}

fn name_of(file: &str) -> Option<&str> {
    file.strip_prefix("requirements-")?.strip_suffix(".txt")
}

/// Makes an environment and those beneath it, if they are missing or out of date.
fn make(workspace: &Workspace, name: &str) -> Result<Environment> {
    let file = workspace.path(&format!("tests/python/requirements-{name}.txt"));
    let text = fs::read_to_string(&file).with_context(|| format!("cannot read `{}`", file.display()))?;
    let (includes, pins): (Vec<&str>, Vec<&str>) =
        text.lines().map(str::trim).filter(|line| !line.is_empty()).partition(|line| line.starts_with("-r "));
    let mut beneath = Vec::new();
    let mut digest = Sha256::new();
    for include in includes {
        let include = include.trim_start_matches("-r ").trim();
        let other = name_of(include)
            .ok_or_else(|| anyhow!("`{}` includes `{include}`, not a `requirements-<name>.txt`", file.display()))?;
        let other = make(workspace, other)?;
        digest.update(&other.stamp);
        beneath.push(other.folder);
        beneath.extend(other.beneath);
    }
    let requirements = pins.join("\n");
    digest.update(&requirements);
    let stamp = hex::encode(digest.finalize());
    let environment =
        Environment { name: name.to_owned(), requirements, folder: folder_of(workspace, name), beneath, stamp };
    if !environment.is_made() {
        let watch = Stopwatch::start();
        environment.make()?;
        eprintln!("python: made environment `{name}` in {:.1} s", watch.seconds());
    }
    Ok(environment)
}

impl Environment {
    fn is_made(&self) -> bool {
        fs::read_to_string(self.stamp_file()).is_ok_and(|found| found == self.stamp)
    }

    fn stamp_file(&self) -> PathBuf {
        self.folder.join("requirements.sha256")
    }

    /// An environment knows its own path, so it is made in place; the stamp is written last.
    fn make(&self) -> Result<()> {
        if self.folder.exists() {
            fs::remove_dir_all(&self.folder).with_context(|| format!("cannot remove `{}`", self.folder.display()))?;
        }
        // The pip of the Python that makes it installs into it too: unpacking one for each would take longer than
        // most installs.
        let mut venv = child::python();
        let succeeded = child::run_to_stderr(venv.args(["-m", "venv", "--without-pip"]).arg(&self.folder))?;
        if !succeeded {
            bail!(
                "cannot make `{}`\nhint: `apt install python3-venv`, or name another Python with `PYTHON`",
                self.folder.display()
            );
        }
        self.install()?;
        stand_ins::make(&site_packages(&self.folder)?)?;
        if !self.beneath.is_empty() {
            let folders = self.beneath.iter().map(|folder| site_packages(folder)).collect::<Result<Vec<_>>>()?;
            let lines = folders.iter().fold(String::new(), |lines, folder| lines + &folder.to_string_lossy() + "\n");
            write(&site_packages(&self.folder)?.join("beneath.pth"), &lines)?;
            stand_ins::follow(&site_packages(&self.folder)?, &folders)?;
        }
        write(&self.stamp_file(), &self.stamp)
    }

    fn install(&self) -> Result<()> {
        let requirements = self.folder.join("requirements.txt");
        write(&requirements, &self.requirements)?;
        let mut pip = child::python();
        pip.args(["-m", "pip", "--python"])
            .arg(interpreter(&self.folder))
            // Byte code is written when a module is first imported; most never are.
            .args(["install", "--disable-pip-version-check", "--no-input", "--no-deps", "--no-compile"])
            .args(["--progress-bar", "off", "--requirement"])
            .arg(&requirements);
        let shown = child::shown(&pip);
        let mut process = pip.stdout(Stdio::piped()).spawn().with_context(|| format!("cannot start `{shown}`"))?;
        let bar = self.progress();
        if let Some(stdout) = process.stdout.take() {
            for line in BufReader::new(stdout).lines() {
                let Ok(line) = line else { break };
                let line = line.trim();
                if line.starts_with("Collecting ") {
                    bar.inc(1);
                }
                if ["Collecting ", "Downloading ", "Installing ", "Using cached "]
                    .iter()
                    .any(|word| line.starts_with(word))
                {
                    bar.set_message(line.split_whitespace().take(2).collect::<Vec<_>>().join(" "));
                }
            }
        }
        let status = process.wait().with_context(|| format!("lost `{shown}`"))?;
        bar.finish_and_clear();
        if !status.success() {
            bail!(
                "pip could not install environment `{}`; its reason is above\n\
                 hint: it needs Python 3.11 or later with pip 22.3 or later; name another Python with `PYTHON`",
                self.name
            );
        }
        Ok(())
    }

    fn progress(&self) -> ProgressBar {
        let packages = self.requirements.lines().filter(|line| !line.starts_with('#')).count();
        let bar = ProgressBar::new(packages as u64).with_prefix(self.name.clone());
        match ProgressStyle::with_template("  {prefix:18} {bar:30} {pos:>3} of {len} {msg}") {
            Ok(style) => bar.with_style(style),
            Err(_) => bar,
        }
    }
}

fn write(path: &Path, text: &str) -> Result<()> {
    fs::write(path, text).with_context(|| format!("cannot write `{}`", path.display()))
}

/// Where an environment's packages lie: `lib/python3.11/site-packages`.
pub(crate) fn site_packages(environment: &Path) -> Result<PathBuf> {
    let libraries = environment.join("lib");
    let missing = || format!("no Python packages below `{}`", libraries.display());
    for entry in fs::read_dir(&libraries).with_context(missing)? {
        let packages = entry.with_context(missing)?.path().join("site-packages");
        if packages.is_dir() {
            return Ok(packages);
        }
    }
    bail!(missing())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn workspace(files: &[(&str, &str)]) -> (tempfile::TempDir, Workspace) {
        let root = tempfile::tempdir().unwrap();
        let workspace = Workspace::at(Some(root.path().to_path_buf())).unwrap();
        let folder = workspace.path("tests/python");
        fs::create_dir_all(&folder).unwrap();
        for (file, text) in files {
            fs::write(folder.join(file), text).unwrap();
        }
        (root, workspace)
    }

    #[test]
    fn a_step_gets_its_own_environments_in_the_order_of_their_versions() {
        let files = ["tinker-0.16.1", "tinker-0.9.0", "tinker-1.0.0", "cookbook-0.6.1", "twinkle-kit-0.5.1", "shared"];
        let files = files.map(|name| format!("requirements-{name}.txt"));
        let files: Vec<(&str, &str)> = files.iter().map(|file| (file.as_str(), "x==1")).collect();
        let (_root, workspace) = workspace(&files);
        assert_eq!(names(&workspace, Environments::Sdks).unwrap(), ["tinker-0.9.0", "tinker-0.16.1", "tinker-1.0.0"]);
        assert_eq!(names(&workspace, Environments::Cookbook).unwrap(), ["cookbook-0.6.1"]);
        assert_eq!(names(&workspace, Environments::TwinkleKit).unwrap(), ["twinkle-kit-0.5.1"]);
    }

    #[test]
    fn an_environment_sees_those_beneath_it_and_an_edit_of_theirs_makes_it_anew() {
        // Nothing is pinned, so pip has nothing to fetch.
        let (_root, workspace) = workspace(&[
            ("requirements-low.txt", "# nothing\n"),
            ("requirements-middle.txt", "-r requirements-low.txt\n"),
            ("requirements-tinker-1.txt", "-r requirements-middle.txt\n"),
        ]);
        let made = make(&workspace, "tinker-1").unwrap();
        let pth = fs::read_to_string(site_packages(&made.folder).unwrap().join("beneath.pth")).unwrap();
        let names = ["middle", "low"].map(|name| site_packages(&folder_of(&workspace, name)).unwrap());
        assert_eq!(pth.lines().map(PathBuf::from).collect::<Vec<_>>(), names);
        assert!(made.is_made());
        fs::write(workspace.path("tests/python/requirements-low.txt"), "# edited\n").unwrap();
        assert_ne!(make(&workspace, "tinker-1").unwrap().stamp, made.stamp);
    }

    #[test]
    fn an_include_of_something_else_is_refused() {
        let (_root, workspace) = workspace(&[("requirements-tinker-1.txt", "-r other.txt\n")]);
        let error = make(&workspace, "tinker-1").unwrap_err().to_string();
        assert!(error.ends_with("includes `other.txt`, not a `requirements-<name>.txt`"), "{error}");
    }
}
