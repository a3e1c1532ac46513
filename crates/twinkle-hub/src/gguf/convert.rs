//! The files of a Hugging Face checkpoint, out of a GGUF file.

use std::fs;
use std::path::Path;

use serde_json::{Value, json};
use twinkle_core::Result;

use super::reader::{Architecture, Gguf};
use super::rotation;
use super::vocabulary::Vocabulary;
use super::weights::{ROTATION, write_safetensors};
use crate::download::file_error;

/// Writes the model in the GGUF file to a folder as `config.json`, `model.safetensors`, `tokenizer.json` and what
/// belongs to them. Weights become bf16. Blocks, for as long as it takes to read and write the weights.
///
/// Refused are architectures other than `llama`, `qwen2` and `qwen3`, number formats candle does not read, and
/// tokenizers that are not byte-level BPE.
pub fn convert(gguf: &Path, folder: &Path) -> Result<()> {
    let gguf = Gguf::open(gguf)?;
    let architecture = gguf.architecture()?;
    let vocabulary = Vocabulary::read(&gguf)?;
    let config = config(&architecture, &vocabulary, &rope_scaling(&gguf, &architecture)?);
    let template = gguf.find("tokenizer.chat_template").map(|_| gguf.text("tokenizer.chat_template")).transpose()?;

    fs::create_dir_all(folder).map_err(|error| file_error("create", folder, &error))?;
    let weights = folder.join("model.safetensors");
    write_safetensors(&gguf, &architecture, &weights)?;
    make_readable(&weights)?;
    write_json(folder, "config.json", &config)?;
    write_json(folder, "generation_config.json", &generation_config(&vocabulary))?;
    write_json(folder, "tokenizer.json", &vocabulary.tokenizer())?;
    let tokenizer_config = vocabulary.tokenizer_config(architecture.context_length, template.as_deref());
    write_json(folder, "tokenizer_config.json", &tokenizer_config)?;
    template.map_or(Ok(()), |template| write(folder, "chat_template.jinja", &template))
}

/// What `config.json` says of the rotation.
fn rope_scaling(gguf: &Gguf, architecture: &Architecture) -> Result<Value> {
    if gguf.shape(ROTATION).is_none() {
        return Ok(Value::Null);
    }
    let divisors = gguf.tensor(ROTATION)?.values;
    rotation::recognise(&divisors, architecture.rope_base).ok_or_else(|| {
        gguf.unsupported(&format!("stretches its rotation by a `{ROTATION}` that no known model has"))
            .hint("use the model's safetensors")
    })
}

/// The writer of safetensors keeps the file to its owner; a server may run as somebody else.
fn make_readable(path: &Path) -> Result<()> {
    #[cfg(unix)]
    {
        use std::os::unix::fs::PermissionsExt;
        fs::set_permissions(path, fs::Permissions::from_mode(0o644))
            .map_err(|error| file_error("change", path, &error))?;
    }
    Ok(())
}

fn config(architecture: &Architecture, vocabulary: &Vocabulary, rope_scaling: &Value) -> Value {
    let mut config = json!({
        "architectures": [class(&architecture.family)],
        "attention_dropout": 0.0,
        "bos_token_id": vocabulary.bos,
        "eos_token_id": vocabulary.eos,
        "head_dim": architecture.head_dim,
        "hidden_act": "silu",
        "hidden_size": architecture.hidden_size,
        "intermediate_size": architecture.intermediate_size,
        "max_position_embeddings": architecture.context_length,
        "model_type": architecture.family,
        "num_attention_heads": architecture.heads,
        "num_hidden_layers": architecture.layers,
        "num_key_value_heads": architecture.key_value_heads,
        "pad_token_id": vocabulary.padding,
        "rms_norm_eps": architecture.norm_epsilon,
        "rope_scaling": rope_scaling,
        "rope_theta": architecture.rope_base,
        "tie_word_embeddings": architecture.tied,
        "torch_dtype": "bfloat16",
        "use_cache": true,
        "vocab_size": architecture.vocabulary,
    });
    // Qwen2 always has biases there and no key for it.
    if architecture.family != "qwen2" {
        config["attention_bias"] = json!(architecture.attention_bias);
    }
    if architecture.family == "llama" {
        config["mlp_bias"] = json!(false);
    }
    config
}

fn class(family: &str) -> &'static str {
    match family {
        "qwen2" => "Qwen2ForCausalLM",
        "qwen3" => "Qwen3ForCausalLM",
        _ => "LlamaForCausalLM",
    }
}

fn generation_config(vocabulary: &Vocabulary) -> Value {
    json!({
        "_from_model_config": true,
        "bos_token_id": vocabulary.bos,
        "eos_token_id": vocabulary.eos,
        "pad_token_id": vocabulary.padding,
    })
}

fn write_json(folder: &Path, name: &str, value: &Value) -> Result<()> {
    // Sorted keys, whatever order this build's JSON library keeps.
    let mut sorted = value.clone();
    sorted.sort_all_objects();
    write(folder, name, &format!("{sorted:#}\n"))
}

fn write(folder: &Path, name: &str, text: &str) -> Result<()> {
    let path = folder.join(name);
    fs::write(&path, text).map_err(|error| file_error("write", &path, &error))
}
