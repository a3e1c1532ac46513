//! The official Python SDKs, unmodified, in environments of their own.

use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context, Result, bail};

use crate::node::workspace_root;

/// A pinned release of the `tinker` package.
#[derive(Clone, Copy, Debug)]
pub enum SdkVersion {
    /// JSON only, no configuration routes.
    V0_16_1,
    /// Protobuf.
    V0_38_0,
}

impl SdkVersion {
    const fn environment(self) -> &'static str {
        match self {
            Self::V0_16_1 => "tinker-0.16.1",
            Self::V0_38_0 => "tinker-0.38.0",
        }
    }
}

/// Runs `tests/python/<script>` with the SDK; its output is part of the error when it fails.
pub async fn run_script(version: SdkVersion, script: &str, arguments: &[&str]) -> Result<()> {
    let root = workspace_root();
    let python = root.join(".venvs").join(version.environment()).join("bin/python");
    if !python.exists() {
        bail!("`{}` is missing: run `cargo xtask setup --python`", python.display());
    }
    let run = tokio::process::Command::new(python)
        .arg(root.join("tests/python").join(script))
        .args(arguments)
        .env("TINKER_TELEMETRY", "0")
        .stdin(Stdio::null())
        .kill_on_drop(true)
        .output();
    let output = tokio::time::timeout(Duration::from_mins(5), run)
        .await
        .with_context(|| format!("{script} did not finish within five minutes"))??;
    if !output.status.success() {
        bail!(
            "{script} with {} failed with {}:\n{}\n{}",
            version.environment(),
            output.status,
            String::from_utf8_lossy(&output.stdout),
            String::from_utf8_lossy(&output.stderr)
        );
    }
    Ok(())
}
