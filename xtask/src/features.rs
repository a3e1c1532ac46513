//! That every way to build the server asks for the same features, so that one build serves running, testing and measuring.

use std::collections::BTreeSet;

use crate::child;
use crate::workspace::Workspace;

/// `name version [features]` of every package that `cargo` would build with these arguments.
fn packages(arguments: &[&str]) -> BTreeSet<String> {
    let mut cargo = child::cargo(&Workspace::at(None).expect("this checkout"));
    cargo.args(["tree", "--locked", "--prefix", "none", "--format", "{p} [{f}]"]).args(arguments);
    let output = cargo.output().expect("cargo answers");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let text = String::from_utf8(output.stdout).expect("cargo writes UTF-8");
    // ` (*)` ends what was listed above; ` (/folder)` follows a package of this workspace.
    let line = |line: &str| {
        let line = line.trim_end_matches(" (*)");
        match (line.split_once(" ("), line.split_once('[')) {
            (Some((name, _)), Some((_, features))) => format!("{name} [{features}"),
            _ => line.to_owned(),
        }
    };
    text.lines().map(line).collect()
}

#[test]
fn what_is_run_is_what_is_tested() {
    let tested = packages(&["--workspace", "--edges", "all"]);
    for package in ["twinkle-server", "twinkle-benches"] {
        let run = packages(&["--package", package, "--edges", "normal,build"]);
        let apart: Vec<&String> = run.difference(&tested).collect();
        assert!(
            apart.is_empty(),
            "`cargo build -p {package}` compiles these with other features than the tests do, and so everything \
             above them once more; let `[workspace.dependencies]` name the features: {apart:#?}"
        );
    }
}
