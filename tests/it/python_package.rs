//! The package in `python/`: built as a wheel, unpacked, and used as an installation would use it.

use std::env;
use std::path::{Path, PathBuf};
use std::process::Output;

use anyhow::{Result, bail};
use tokio::process::Command;

#[tokio::test]
async fn the_python_package_lends_its_names_starts_the_server_and_trains() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("a workspace").to_path_buf();
    let folder = tempfile::tempdir().expect("a folder");
    let (wheels, unpacked) = (folder.path().join("wheels"), folder.path().join("unpacked"));
    let mut pip = python();
    pip.args(["-m", "pip", "wheel", "--quiet", "--disable-pip-version-check", "--no-deps", "--wheel-dir"]);
    run(pip.arg(&wheels).arg(root.join("python"))).await.expect("the wheel");
    let wheel = one_file(&wheels).expect("one wheel");
    run(python().args(["-m", "zipfile", "-e"]).arg(wheel).arg(&unpacked)).await.expect("unpacked");

    let mut script = python();
    script.arg(root.join("tests/python/package.py")).arg("--wheel").arg(&unpacked);
    script.arg("--server").arg(env!("CARGO_BIN_EXE_node"));
    script.arg("--model").arg(root.join("tests/golden/fixtures/qwen3"));
    script.arg("--kit").arg(root.join(".venvs/twinkle-kit-0.5.1"));
    run(&mut script).await.expect("the script");
}

/// The Python that makes the environments, too.
fn python() -> Command {
    let mut command = Command::new(env::var_os("PYTHON").unwrap_or_else(|| "python3".into()));
    command.kill_on_drop(true);
    command
}

async fn run(command: &mut Command) -> Result<()> {
    let Output { status, stdout, stderr } = command.output().await?;
    if !status.success() {
        let (stdout, stderr) = (String::from_utf8_lossy(&stdout), String::from_utf8_lossy(&stderr));
        bail!("{command:?} ended with {status}:\n{stdout}\n{stderr}");
    }
    Ok(())
}

fn one_file(folder: &Path) -> Result<PathBuf> {
    let mut files = std::fs::read_dir(folder)?;
    match (files.next(), files.next()) {
        (Some(file), None) => Ok(file?.path()),
        _ => bail!("`{}` has not one file", folder.display()),
    }
}
