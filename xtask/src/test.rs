//! `cargo xtask test`: everything a change must pass, in the order in which it fails fastest.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};

use anyhow::Result;

use crate::child;
use crate::clock::Stopwatch;
use crate::report::{self, Counts, Line};
use crate::setup;
use crate::workspace::Workspace;

/// Names the file in which a test notes that it was skipped, for want of a program that it needs.
const SKIPS_VARIABLE: &str = "TWINKLE_TEST_SKIPS";
/// The package of the whole-node tests.
const WHOLE_NODE: &str = "twinkle-tests";
/// How the names of its tests begin that take too long for every run.
const LONG: &str = "cookbook::all::";
/// Names the folder in which the cookbook's recipes leave their figures.
const COOKBOOK_RESULTS_VARIABLE: &str = "TWINKLE_COOKBOOK_RESULTS";

/// Format, lint and test everything; ends with a table and `N passed, N failed`.
///
/// Fetches libtorch and makes the Python environments of the whole-node tests if they are missing. Tests run under
/// `cargo nextest` where it is installed (`cargo install cargo-nextest --locked`), else under `cargo test`.
#[derive(clap::Args)]
pub(crate) struct Options {
    /// Run only these steps.
    #[arg(long, value_enum, value_delimiter = ',', value_name = "STEPS")]
    only: Vec<Step>,
    /// Run what takes longer, too: all recipes of the cookbook instead of the shorter ones.
    #[arg(long)]
    all: bool,
    /// Run only tests whose name contains this text.
    filter: Option<String>,
}

/// One line of the table.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
enum Step {
    /// `cargo fmt --check`.
    Format,
    /// `cargo clippy` on all targets; warnings are errors.
    Lint,
    /// Tests of single crates.
    Unit,
    /// Examples in the documentation.
    Doc,
    /// A real server process with the real Python SDKs.
    Node,
}

impl Step {
    const ALL: [Self; 5] = [Self::Format, Self::Lint, Self::Unit, Self::Doc, Self::Node];

    const fn name(self) -> &'static str {
        match self {
            Self::Format => "format",
            Self::Lint => "lint",
            Self::Unit => "unit",
            Self::Doc => "doc",
            Self::Node => "node",
        }
    }
}

/// Runs `cargo xtask test`.
pub(crate) fn run(workspace: &Workspace, options: &Options) -> Result<ExitCode> {
    let chosen = |step: &Step| options.only.is_empty() || options.only.contains(step);
    let steps: Vec<Step> = Step::ALL.into_iter().filter(chosen).collect();
    if steps.iter().any(|step| *step != Step::Format) {
        setup::libtorch(workspace)?;
    }
    let runner = Runner::find(workspace);
    let (mut lines, skips) = (Vec::new(), Skips::new()?);
    for step in steps {
        eprintln!("\n== {} ==", step.name());
        let watch = Stopwatch::start();
        let before = skips.read().len() as u64;
        let Counts { passed, failed } = run_step(workspace, step, runner, &skips, options)?;
        // A test that skips itself returns early, which its runner counts as passed.
        let skipped = skips.read().len() as u64 - before;
        let passed = passed.saturating_sub(skipped);
        lines.push(Line { step: step.name(), passed, failed, skipped, seconds: watch.seconds() });
    }
    let all_passed = report::print(&lines, &skips.read())?;
    Ok(if all_passed { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// Runs every recipe of the cookbook, which leave their figures in the folder `results`.
pub(crate) fn cookbook(workspace: &Workspace, results: &Path) -> Result<Counts> {
    setup::libtorch(workspace)?;
    node_environments(workspace)?;
    let mut cargo = child::cargo(workspace);
    cargo.env(COOKBOOK_RESULTS_VARIABLE, results);
    tests(Runner::find(workspace).node(&mut cargo, true, Some("cookbook::")))
}

fn run_step(
    workspace: &Workspace,
    step: Step,
    runner: Runner,
    skips: &Skips,
    Options { all, filter, .. }: &Options,
) -> Result<Counts> {
    let filter = filter.as_deref();
    let mut cargo = child::cargo(workspace);
    cargo.env(SKIPS_VARIABLE, skips.path());
    let counts = match step {
        Step::Format => whole(cargo.args(["fmt", "--all", "--check"])),
        Step::Lint => whole(cargo.args(["clippy", "--workspace", "--all-targets", "--", "-D", "warnings"])),
        Step::Unit => tests(runner.unit(&mut cargo, filter)),
        // rustdoc builds its programs in a temporary folder, from where the path to libtorch that is linked into ours
        // leads nowhere.
        Step::Doc => tests(
            cargo
                .env("LD_LIBRARY_PATH", setup::libtorch_libraries(workspace))
                .args(["test", "--workspace", "--doc", "--no-fail-fast"])
                .args(filter),
        ),
        Step::Node => match node_environments(workspace) {
            Ok(()) => tests(runner.node(&mut cargo, *all, filter)),
            Err(error) => {
                eprintln!("error: {error:#}");
                Ok(Counts { passed: 0, failed: 1 })
            }
        },
    };
    if let Ok(Counts { failed: 1.., .. }) = counts {
        eprintln!("hint: to run this step alone: `cargo xtask test --only {}`", step.name());
    }
    counts
}

fn node_environments(workspace: &Workspace) -> Result<()> {
    setup::python_environments(workspace, setup::Environments::Sdks)?;
    setup::python_environments(workspace, setup::Environments::Cookbook)?;
    setup::python_environments(workspace, setup::Environments::TwinkleKit)?;
    setup::python_environments(workspace, setup::Environments::OpenAi)
}

/// Where tests note that they were skipped, and why: one line each.
struct Skips(PathBuf);

impl Skips {
    fn new() -> Result<Self> {
        let path = std::env::temp_dir().join(format!("twinkle-skipped-tests-{}", std::process::id()));
        fs::write(&path, "")?;
        Ok(Self(path))
    }

    fn path(&self) -> &Path {
        &self.0
    }

    fn read(&self) -> Vec<String> {
        fs::read_to_string(&self.0).unwrap_or_default().lines().map(str::to_owned).collect()
    }
}

impl Drop for Skips {
    fn drop(&mut self) {
        // A file left behind in the temporary folder does no harm.
        let _ = fs::remove_file(&self.0);
    }
}

/// A step that passes or fails as a whole.
fn whole(command: &mut Command) -> Result<Counts> {
    eprintln!("{}", child::shown(command));
    let succeeded = child::run_to_stderr(command)?;
    Ok(Counts { passed: u64::from(succeeded), failed: u64::from(!succeeded) })
}

/// A step that runs counted tests.
fn tests(command: &mut Command) -> Result<Counts> {
    eprintln!("{}", child::shown(command));
    let mut counts = Counts::default();
    let succeeded = child::run_watched(command, &mut |line| counts.watch(line))?;
    if !succeeded && counts.failed == 0 {
        // It did not compile, or a test ended the process.
        counts.failed = 1;
    }
    Ok(counts)
}

/// What runs the tests.
#[derive(Clone, Copy)]
enum Runner {
    Nextest,
    CargoTest,
}

impl Runner {
    fn find(workspace: &Workspace) -> Self {
        let mut nextest = child::cargo(workspace);
        let answer = nextest.args(["nextest", "--version"]).stdout(Stdio::null()).stderr(Stdio::null()).status();
        if answer.is_ok_and(|status| status.success()) { Self::Nextest } else { Self::CargoTest }
    }

    fn unit<'a>(self, cargo: &'a mut Command, filter: Option<&str>) -> &'a mut Command {
        match self {
            Self::Nextest => nextest(cargo, &format!("not package({WHOLE_NODE})"), filter),
            Self::CargoTest => cargo
                .args(["test", "--workspace", "--exclude", WHOLE_NODE, "--lib", "--bins", "--tests", "--examples"])
                .arg("--no-fail-fast")
                .args(filter),
        }
    }

    /// Each whole-node test starts servers of its own, so they run one after another.
    fn node<'a>(self, cargo: &'a mut Command, all: bool, filter: Option<&str>) -> &'a mut Command {
        match self {
            Self::Nextest if all => nextest(cargo, &format!("package({WHOLE_NODE})"), filter),
            Self::Nextest => nextest(cargo, &format!("package({WHOLE_NODE}) & not test(/^{LONG}/)"), filter),
            Self::CargoTest => cargo
                .args(["test", "--package", WHOLE_NODE, "--no-fail-fast"])
                .args(filter)
                .args(["--", "--test-threads=1"])
                .args(if all { &[][..] } else { &["--skip", LONG] }),
        }
    }
}

/// Both steps build the whole workspace, so that they build each dependency with the same features, once.
fn nextest<'a>(cargo: &'a mut Command, packages: &str, filter: Option<&str>) -> &'a mut Command {
    let arguments = ["nextest", "run", "--workspace", "--no-fail-fast", "--no-tests=pass", "--filterset"];
    cargo.args(arguments).arg(packages).args(filter)
}
