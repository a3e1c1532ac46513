//! `cargo xtask learn`: shows that what is trained is learned, and writes it to `docs/learning.md`.

mod curve;
mod picture;
mod report;

use std::fs;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail, ensure};

use crate::child;
use crate::clock::Stopwatch;
use crate::server::{self, Server};
use crate::setup;
use crate::workspace::Workspace;

use curve::Curve;

/// Where the story goes.
const REPORT: &str = "docs/learning.md";
/// Where its pictures and numbers go.
const FOLDER: &str = "docs/learning";
/// The deployment that is started, on another port and with a state of its own.
const CONFIG: &str = "configs/quickstart.yaml";

/// Run two recipes against a server on this machine and write their curves to `docs/learning.md`.
///
/// Reinforcement learning on a reward that can be counted, and direct preference optimization with a gradient computed
/// by the client: both are examples of `twinkle-client` and run on SmolLM2-135M-Instruct, with fixed seeds. It took 14
/// minutes on two busy cores, and fails if the reward or the margin does not rise.
#[derive(clap::Args)]
pub(crate) struct Options {
    /// Run only these; the report is left as it is.
    #[arg(long, value_enum, value_delimiter = ',', value_name = "RECIPES")]
    only: Vec<Recipe>,
}

/// What is run.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
enum Recipe {
    /// Reinforcement learning: the letter `e`.
    RlLetter,
    /// Direct preference optimization: straight answers.
    Dpo,
}

impl Recipe {
    const ALL: [Self; 2] = [Self::RlLetter, Self::Dpo];

    /// The example of `twinkle-client`.
    const fn example(self) -> &'static str {
        match self {
            Self::RlLetter => "rl_letter",
            Self::Dpo => "dpo",
        }
    }

    /// Says what is wrong with a curve that does not rise.
    fn check(self, curve: &Curve) -> Result<()> {
        let (column, least) = match self {
            // A quarter more of the letter, and a margin that only a preference explains.
            Self::RlLetter => ("reward", curve.first_quarter("reward")? * 1.25),
            Self::Dpo => ("held_out_margin", 0.5),
        };
        let reached = curve.last_quarter(column)?;
        ensure!(
            reached >= least,
            "`{}` did not learn: the mean `{column}` of the last quarter is {reached:.3}, expected at least {least:.3}",
            self.example()
        );
        Ok(())
    }
}

/// Runs `cargo xtask learn`.
pub(crate) fn run(workspace: &Workspace, options: &Options) -> Result<()> {
    setup::libtorch(workspace)?;
    setup::demo_model(workspace)?;
    let program = server::build(workspace, ["--bin", "twinkle-server"])?;
    let folder = tempfile::tempdir_in(workspace.cache()?)?;
    let address = TcpListener::bind(("127.0.0.1", 0))?.local_addr()?;
    let config = configuration(workspace, address.port(), folder.path())?;
    let server = Server::start(workspace, &program, &config, address, folder.path().join("node.log"))?;

    let mut learned = Vec::new();
    for recipe in Recipe::ALL {
        if !options.only.is_empty() && !options.only.contains(&recipe) {
            continue;
        }
        let watch = Stopwatch::start();
        let example = server::build(workspace, ["--example", recipe.example()])?;
        let output = folder.path().join(recipe.example()).with_extension("json");
        run_example(workspace, &example, &format!("http://{address}"), &output)?;
        let curve = Curve::read(&output)?;
        recipe.check(&curve)?;
        eprintln!("{} learned in {:.0} s", recipe.example(), watch.seconds());
        learned.push((recipe, curve));
    }
    server.stop()?;
    if !options.only.is_empty() {
        eprintln!("`{REPORT}` is left as it is: only a part was run");
        return Ok(());
    }
    write(workspace, &learned)
}

/// The quickstart's deployment on a free port.
fn configuration(workspace: &Workspace, port: u16, folder: &Path) -> Result<PathBuf> {
    let original = workspace.path(CONFIG);
    let text = fs::read_to_string(&original).with_context(|| format!("cannot read `{}`", original.display()))?;
    let state = folder.join("state");
    let text = text
        .replace("port: 8000", &format!("port: {port}"))
        .replace("file_path: twinkle-state", &format!("file_path: {}", state.display()));
    let config = folder.join("node.yaml");
    fs::write(&config, text).with_context(|| format!("cannot write `{}`", config.display()))?;
    Ok(config)
}

/// Runs an example that draws its own progress bar and leaves its numbers in `output`.
fn run_example(workspace: &Workspace, program: &Path, url: &str, output: &Path) -> Result<()> {
    let mut example = Command::new(program);
    example.current_dir(workspace.root()).args(["--url", url, "--curve"]).arg(output);
    let shown = child::shown(&example);
    eprintln!("{shown}");
    if !child::run_to_stderr(&mut example)? {
        bail!("`{shown}` failed");
    }
    Ok(())
}

/// Writes the report, its pictures and its numbers.
fn write(workspace: &Workspace, learned: &[(Recipe, Curve)]) -> Result<()> {
    let folder = workspace.path(FOLDER);
    fs::create_dir_all(&folder).with_context(|| format!("cannot create `{}`", folder.display()))?;
    for (recipe, curve) in learned {
        let path = |extension: &str| folder.join(recipe.example()).with_extension(extension);
        fs::write(path("csv"), curve.csv())?;
        picture::draw(&path("svg"), &report::picture_of(*recipe), curve)?;
    }
    let path = workspace.path(REPORT);
    fs::write(&path, report::page(learned)?).with_context(|| format!("cannot write `{}`", path.display()))?;
    eprintln!("written to `{REPORT}` and `{FOLDER}`");
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_deployment_of_the_quickstart_is_moved_to_another_port_and_state() {
        let workspace = Workspace::at(None).unwrap();
        let folder = tempfile::tempdir().unwrap();
        let config = fs::read_to_string(configuration(&workspace, 12345, folder.path()).unwrap()).unwrap();
        assert!(config.contains("port: 12345") && !config.contains("port: 8000"), "{config}");
        assert!(config.contains(&format!("file_path: {}", folder.path().join("state").display())), "{config}");
    }

    #[test]
    fn a_flat_curve_is_not_learning() {
        let curve = |value: fn(usize) -> f64| {
            let steps: Vec<_> =
                (0..8).map(|step| serde_json::json!({ "step": step + 1, "reward": value(step), "held_out_margin": value(step) })).collect();
            Curve::from_json(&serde_json::json!({ "steps": steps })).unwrap()
        };
        for recipe in Recipe::ALL {
            assert!(recipe.check(&curve(|step| step as f64 + 1.0)).is_ok(), "{recipe:?}");
            assert!(recipe.check(&curve(|_| 0.25)).is_err(), "{recipe:?}");
        }
    }
}
