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
    /// Asks for the configuration; sends JSON, reads either.
    V0_18_2,
    /// Protobuf requests where the server asks for them; another transport.
    V0_22_7,
    /// The last that knows `forward`; creates from a checkpoint in one request where the server asks for it.
    V0_24_1,
    /// Protobuf only, dynamic configuration.
    V0_25_0,
    /// Sessions that finish, ids of sampled sequences.
    V0_30_4,
    /// The last that downloads archives.
    V0_33_1,
    /// Answers futures of clients.
    V0_38_0,
}

impl SdkVersion {
    /// Every release, oldest first.
    pub const ALL: [Self; 8] = [
        Self::V0_16_1,
        Self::V0_18_2,
        Self::V0_22_7,
        Self::V0_24_1,
        Self::V0_25_0,
        Self::V0_30_4,
        Self::V0_33_1,
        Self::V0_38_0,
    ];

    const fn environment(self) -> &'static str {
        match self {
            Self::V0_16_1 => "tinker-0.16.1",
            Self::V0_18_2 => "tinker-0.18.2",
            Self::V0_22_7 => "tinker-0.22.7",
            Self::V0_24_1 => "tinker-0.24.1",
            Self::V0_25_0 => "tinker-0.25.0",
            Self::V0_30_4 => "tinker-0.30.4",
            Self::V0_33_1 => "tinker-0.33.1",
            Self::V0_38_0 => "tinker-0.38.0",
        }
    }
}

/// Runs `tests/python/<script>` with the SDK; its output is part of the error when it fails.
pub async fn run_script(version: SdkVersion, script: &str, arguments: &[&str]) -> Result<()> {
    run_in(version.environment(), "--python", script, arguments).await
}

/// Runs `tests/python/<script>` with the newest SDK and torch, which the cookbook's environment has.
pub async fn run_with_torch(script: &str, arguments: &[&str]) -> Result<()> {
    run_in("cookbook-0.6.1", "--cookbook", script, arguments).await
}

/// Runs `tests/python/<script>` with Twinkle's own client.
pub async fn run_with_kit(script: &str, arguments: &[&str]) -> Result<()> {
    run_in("twinkle-kit-0.5.1", "--twinkle-kit", script, arguments).await
}

/// The same with the last release of the client's first generation.
pub async fn run_with_first_kit(script: &str, arguments: &[&str]) -> Result<()> {
    run_in("twinkle-kit-0.1.3", "--twinkle-kit", script, arguments).await
}

/// Runs `tests/python/<script>` with `OpenAI`'s own client.
pub async fn run_with_openai(script: &str, arguments: &[&str]) -> Result<()> {
    run_in("openai-3.51.0", "--openai", script, arguments).await
}

async fn run_in(environment: &str, made_by: &str, script: &str, arguments: &[&str]) -> Result<()> {
    let root = workspace_root();
    let python = root.join(".venvs").join(environment).join("bin/python");
    if !python.exists() {
        bail!("`{}` is missing: run `cargo xtask setup {made_by}`", python.display());
    }
    // Some packages leave files where they are started.
    let folder = tempfile::tempdir()?;
    let run = tokio::process::Command::new(python)
        .current_dir(folder.path())
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
            "{script} with {environment} failed with {}:\n{}\n{}",
            output.status,
            String::from_utf8_lossy(&output.stdout),
            String::from_utf8_lossy(&output.stderr)
        );
    }
    Ok(())
}
