//! The other side: Python programs with torch, transformers and PEFT.

use std::ffi::OsStr;
use std::path::Path;
use std::process::Stdio;

use anyhow::{Context, Result, bail};
use serde_json::Value;

/// Runs a script of `benches/reference`, whose last line is one JSON object.
pub(crate) async fn script<I, S>(python: &Path, name: &str, arguments: I) -> Result<Value>
where
    I: IntoIterator<Item = S>,
    S: AsRef<OsStr>,
{
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("reference").join(name);
    let output = tokio::process::Command::new(python)
        .arg(script)
        .args(arguments)
        // Its own default, which is the faster one for a process that has the machine to itself.
        .env_remove("GOMP_SPINCOUNT")
        .stdin(Stdio::null())
        .stderr(Stdio::inherit())
        .output()
        .await
        .with_context(|| format!("starting {}", python.display()))?;
    if !output.status.success() {
        bail!("{name} ended with {}", output.status);
    }
    let text = String::from_utf8_lossy(&output.stdout);
    let line = text.lines().last().with_context(|| format!("{name} printed nothing"))?;
    serde_json::from_str(line).with_context(|| format!("{name} printed `{line}`"))
}
