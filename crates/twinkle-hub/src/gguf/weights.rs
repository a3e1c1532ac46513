//! A GGUF file's tensors as bf16 safetensors under the names Hugging Face gives them.

use std::borrow::Cow;
use std::cell::RefCell;
use std::collections::HashMap;
use std::path::Path;

use half::bf16;
use safetensors::Dtype;
use safetensors::tensor::View;
use twinkle_core::{Error, Result};

use super::reader::{Architecture, Gguf};
use crate::download::{FileProgress, Progress, file_error};

/// The divisors of the rotation's frequencies: told in `config.json`, not among the weights.
pub(super) const ROTATION: &str = "rope_freqs.weight";

/// Converts every tensor and writes them as one safetensors file, one tensor in memory at a time. Blocks.
pub(super) fn write_safetensors(gguf: &Gguf, architecture: &Architecture, path: &Path) -> Result<()> {
    let names: Vec<&str> = gguf.tensor_names().into_iter().filter(|name| *name != ROTATION).collect();
    let bytes = names.iter().filter_map(|name| gguf.shape(name)).map(bytes_of).sum::<usize>();
    let shown = path.parent().unwrap_or(path).display().to_string();
    let progress = Progress::new("converting", &shown, names.len(), bytes as u64);
    let progress = progress.file("converting", bytes as u64);
    let conversion = Conversion { gguf, architecture, progress, done: RefCell::new(0), failure: RefCell::new(None) };
    let mut tensors = Vec::with_capacity(names.len());
    for name in names {
        let shape = gguf.shape(name).unwrap_or_default().to_vec();
        tensors.push((hugging_face_name(gguf, name)?, Converted { conversion: &conversion, name, shape }));
    }
    // transformers refuses a file that does not say for which framework it was written.
    let metadata = HashMap::from([("format".to_owned(), "pt".to_owned())]);
    let written = safetensors::serialize_to_file(tensors, Some(metadata), path);
    if let Some(error) = conversion.failure.take() {
        return Err(error);
    }
    written.map_err(|error| match error {
        safetensors::SafeTensorError::IoError(error) => file_error("write", path, &error),
        other => Error::internal(format!("cannot write `{}`: {other}", path.display())),
    })
}

struct Conversion<'a> {
    gguf: &'a Gguf,
    architecture: &'a Architecture,
    progress: FileProgress,
    done: RefCell<u64>,
    /// The first tensor that could not be converted; the writer cannot be told of it.
    failure: RefCell<Option<Error>>,
}

/// A tensor that is converted when it is written.
struct Converted<'a> {
    conversion: &'a Conversion<'a>,
    name: &'a str,
    shape: Vec<usize>,
}

impl View for Converted<'_> {
    fn dtype(&self) -> Dtype {
        Dtype::BF16
    }

    fn shape(&self) -> &[usize] {
        &self.shape
    }

    fn data(&self) -> Cow<'_, [u8]> {
        let conversion = self.conversion;
        let failed = conversion.failure.borrow().is_some();
        let bytes = if failed { Vec::new() } else { conversion.convert(self.name, &self.shape) };
        *conversion.done.borrow_mut() += bytes.len() as u64;
        conversion.progress.at(*conversion.done.borrow());
        Cow::Owned(bytes)
    }

    fn data_len(&self) -> usize {
        bytes_of(&self.shape)
    }
}

impl Conversion<'_> {
    /// A tensor's bytes, or none and a note of why.
    fn convert(&self, name: &str, shape: &[usize]) -> Vec<u8> {
        match self.try_convert(name, shape) {
            Ok(bytes) => bytes,
            Err(error) => {
                self.failure.replace(Some(error));
                Vec::new()
            }
        }
    }

    fn try_convert(&self, name: &str, shape: &[usize]) -> Result<Vec<u8>> {
        let tensor = self.gguf.tensor(name)?;
        if tensor.shape != shape {
            return Err(self.gguf.invalid(&format!("has a tensor `{name}` of two shapes")));
        }
        let values = if self.architecture.family == "llama" && is_rotated(name) {
            let width = shape.get(1).copied().unwrap_or(1);
            let head_dim = self.architecture.head_dim as usize;
            with_rotary_halves(&tensor.values, head_dim, width)
                .ok_or_else(|| self.gguf.invalid(&format!("has a tensor `{name}` that does not consist of heads")))?
        } else {
            tensor.values
        };
        Ok(values.iter().flat_map(|value| bf16::from_f32(*value).to_le_bytes()).collect())
    }
}

/// Bytes of a tensor of this shape in bf16.
fn bytes_of(shape: &[usize]) -> usize {
    shape.iter().product::<usize>() * size_of::<bf16>()
}

/// Whether the rows of a tensor are turned in pairs.
fn is_rotated(name: &str) -> bool {
    ["attn_q.weight", "attn_k.weight", "attn_q.bias", "attn_k.bias"].iter().any(|part| name.ends_with(part))
}

/// Hugging Face's name of a tensor.
fn hugging_face_name(gguf: &Gguf, name: &str) -> Result<String> {
    translate(name).ok_or_else(|| gguf.unsupported(&format!("has a tensor `{name}`, which no known network has")))
}

fn translate(name: &str) -> Option<String> {
    let whole = match name {
        "token_embd.weight" => Some("model.embed_tokens.weight"),
        "output_norm.weight" => Some("model.norm.weight"),
        "output.weight" => Some("lm_head.weight"),
        _ => None,
    };
    if let Some(whole) = whole {
        return Some(whole.to_owned());
    }
    let (layer, part) = name.strip_prefix("blk.")?.split_once('.')?;
    let layer: u32 = layer.parse().ok()?;
    let (part, kind) = part.rsplit_once('.')?;
    let part = match (part, kind) {
        ("attn_q", "weight" | "bias") => "self_attn.q_proj",
        ("attn_k", "weight" | "bias") => "self_attn.k_proj",
        ("attn_v", "weight" | "bias") => "self_attn.v_proj",
        ("attn_output", "weight" | "bias") => "self_attn.o_proj",
        ("attn_norm", "weight") => "input_layernorm",
        ("attn_q_norm", "weight") => "self_attn.q_norm",
        ("attn_k_norm", "weight") => "self_attn.k_norm",
        ("ffn_norm", "weight") => "post_attention_layernorm",
        ("ffn_gate", "weight" | "bias") => "mlp.gate_proj",
        ("ffn_up", "weight" | "bias") => "mlp.up_proj",
        ("ffn_down", "weight" | "bias") => "mlp.down_proj",
        _ => return None,
    };
    Some(format!("model.layers.{layer}.{part}.{kind}"))
}

/// Undoes the order GGUF gives to the rows of Llama's query and key projections.
///
/// Rotary embedding turns pairs of a head's rows. GGUF keeps a pair in neighbouring rows (2i, 2i + 1),
/// Hugging Face keeps it half a head apart (i, i + head width / 2). Nothing if the rows are not whole heads.
fn with_rotary_halves(rows: &[f32], head_dim: usize, width: usize) -> Option<Vec<f32>> {
    if head_dim == 0 || width == 0 || !head_dim.is_multiple_of(2) || !rows.len().is_multiple_of(head_dim * width) {
        return None;
    }
    let mut ordered = Vec::with_capacity(rows.len());
    for head in rows.chunks_exact(head_dim * width) {
        for half in 0..2 {
            for index in 0..head_dim / 2 {
                let start = (2 * index + half) * width;
                ordered.extend_from_slice(head.get(start..start + width)?);
            }
        }
    }
    Some(ordered)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_of_a_pair_end_up_half_a_head_apart() {
        // Two heads of four rows of one number, as GGUF holds them: pairs side by side.
        let rows = [0.0, 2.0, 1.0, 3.0, 4.0, 6.0, 5.0, 7.0];
        assert_eq!(with_rotary_halves(&rows, 4, 1).unwrap(), [0.0, 1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0]);
        assert!(with_rotary_halves(&rows, 4, 3).is_none());
    }

    #[test]
    fn names_are_those_of_hugging_face_and_unknown_ones_are_refused() {
        let name = |name: &str| translate(name).unwrap_or_default();
        assert_eq!(name("blk.12.attn_q.weight"), "model.layers.12.self_attn.q_proj.weight");
        assert_eq!(name("blk.0.attn_v.bias"), "model.layers.0.self_attn.v_proj.bias");
        assert_eq!(name("blk.1.attn_k_norm.weight"), "model.layers.1.self_attn.k_norm.weight");
        assert_eq!(name("token_embd.weight"), "model.embed_tokens.weight");
        assert_eq!(name("blk.0.attn_norm.bias"), "");
        assert_eq!(name("blk.x.attn_q.weight"), "");
        assert_eq!(name("rope_freqs.weight"), "");
    }
}
