//! Llama weights out of a GGUF file, as bf16 safetensors under the names Hugging Face gives them.
//!
//! GGUF: <https://github.com/ggml-org/ggml/blob/master/docs/gguf.md>. candle reads the container and undoes the
//! quantisation; what is ours is the naming and the order of the rows.

use std::collections::HashMap;
use std::fs::File;
use std::io::BufReader;
use std::path::Path;

use anyhow::{Context, Result, bail};
use candle_core::Device;
use candle_core::quantized::gguf_file::{Content, Value};
use half::bf16;
use safetensors::Dtype;
use safetensors::tensor::TensorView;

use super::wheels::bytes_bar;

/// An open GGUF file.
pub(crate) struct Gguf {
    file: BufReader<File>,
    content: Content,
}

/// The numbers of a Llama network.
#[derive(Clone, Debug)]
pub(crate) struct Architecture {
    pub(crate) layers: u32,
    pub(crate) hidden_size: u32,
    pub(crate) intermediate_size: u32,
    pub(crate) heads: u32,
    pub(crate) key_value_heads: u32,
    pub(crate) context_length: u32,
    pub(crate) rope_base: f64,
    pub(crate) norm_epsilon: f64,
    /// Whether the output head is the embedding.
    pub(crate) tied: bool,
}

impl Architecture {
    /// Width of one attention head.
    pub(crate) fn head_dim(&self) -> u32 {
        self.hidden_size / self.heads
    }
}

/// One tensor, converted.
struct Converted {
    shape: Vec<usize>,
    bytes: Vec<u8>,
}

impl Gguf {
    /// Reads a file's header.
    pub(crate) fn open(path: &Path) -> Result<Self> {
        let broken = || format!("cannot read `{}`", path.display());
        let mut file = BufReader::new(File::open(path).with_context(broken)?);
        let content = Content::read(&mut file).with_context(broken)?;
        Ok(Self { file, content })
    }

    /// A metadata value.
    pub(crate) fn value(&self, key: &str) -> Result<&Value> {
        self.content.metadata.get(key).with_context(|| format!("the GGUF file has no `{key}`"))
    }

    /// A metadata value that is a text.
    pub(crate) fn text(&self, key: &str) -> Result<String> {
        Ok(self.value(key)?.to_string()?.clone())
    }

    /// A metadata value that is a 32-bit number.
    pub(crate) fn number(&self, key: &str) -> Result<u32> {
        Ok(self.value(key)?.to_u32()?)
    }

    /// The network's shape.
    pub(crate) fn architecture(&self) -> Result<Architecture> {
        let family = self.text("general.architecture")?;
        if family != "llama" {
            bail!("the GGUF file holds a `{family}`, not a `llama`");
        }
        let heads = self.number("llama.attention.head_count")?;
        let hidden_size = self.number("llama.embedding_length")?;
        if heads == 0 || !hidden_size.is_multiple_of(heads) {
            bail!("the GGUF file has {heads} heads for a hidden size of {hidden_size}");
        }
        Ok(Architecture {
            layers: self.number("llama.block_count")?,
            hidden_size,
            intermediate_size: self.number("llama.feed_forward_length")?,
            heads,
            key_value_heads: self.number("llama.attention.head_count_kv")?,
            context_length: self.number("llama.context_length")?,
            rope_base: as_written(self.value("llama.rope.freq_base")?.to_f32()?),
            norm_epsilon: as_written(self.value("llama.attention.layer_norm_rms_epsilon")?.to_f32()?),
            tied: !self.content.tensor_infos.contains_key("output.weight"),
        })
    }

    /// Converts every tensor and writes them as one safetensors file.
    pub(crate) fn write_safetensors(&mut self, architecture: &Architecture, path: &Path) -> Result<()> {
        let infos = &self.content.tensor_infos;
        let bytes: usize = infos.values().map(|info| info.shape.elem_count() * size_of::<bf16>()).sum();
        let progress = bytes_bar(bytes as u64, "converting");
        let mut names: Vec<String> = infos.keys().cloned().collect();
        names.sort();
        let mut converted = Vec::with_capacity(names.len());
        for name in names {
            let tensor = self.convert(&name, architecture)?;
            progress.inc(tensor.bytes.len() as u64);
            converted.push((hugging_face_name(&name)?, tensor));
        }
        progress.finish_and_clear();
        let views = converted.iter().map(|(name, tensor)| {
            let view = TensorView::new(Dtype::BF16, tensor.shape.clone(), &tensor.bytes);
            view.map(|view| (name.as_str(), view)).with_context(|| format!("`{name}` has a wrong size"))
        });
        let views = views.collect::<Result<Vec<_>>>()?;
        // transformers refuses a file that does not say for which framework it was written.
        let metadata = HashMap::from([("format".to_owned(), "pt".to_owned())]);
        safetensors::serialize_to_file(views, Some(metadata), path)
            .with_context(|| format!("cannot write `{}`", path.display()))
    }

    fn convert(&mut self, name: &str, architecture: &Architecture) -> Result<Converted> {
        let broken = || format!("cannot convert `{name}`");
        let tensor = self.content.tensor(&mut self.file, name, &Device::Cpu).with_context(broken)?;
        let tensor = tensor.dequantize(&Device::Cpu).with_context(broken)?;
        let shape = tensor.dims().to_vec();
        let values: Vec<f32> = tensor.flatten_all()?.to_vec1().with_context(broken)?;
        let head_dim = architecture.head_dim() as usize;
        let values = if name.ends_with("attn_q.weight") || name.ends_with("attn_k.weight") {
            with_rotary_halves(&values, head_dim, architecture.hidden_size as usize).with_context(broken)?
        } else {
            values
        };
        let bytes = values.iter().flat_map(|value| bf16::from_f32(*value).to_le_bytes()).collect();
        Ok(Converted { shape, bytes })
    }
}

/// Hugging Face's name of a tensor.
fn hugging_face_name(name: &str) -> Result<String> {
    let whole = match name {
        "token_embd.weight" => Some("model.embed_tokens.weight"),
        "output_norm.weight" => Some("model.norm.weight"),
        "output.weight" => Some("lm_head.weight"),
        _ => None,
    };
    if let Some(whole) = whole {
        return Ok(whole.to_owned());
    }
    let unknown = || format!("the GGUF file has an unknown tensor `{name}`");
    let (layer, part) = name.strip_prefix("blk.").and_then(|rest| rest.split_once('.')).with_context(unknown)?;
    let part = match part {
        "attn_norm.weight" => "input_layernorm.weight",
        "attn_q.weight" => "self_attn.q_proj.weight",
        "attn_k.weight" => "self_attn.k_proj.weight",
        "attn_v.weight" => "self_attn.v_proj.weight",
        "attn_output.weight" => "self_attn.o_proj.weight",
        "ffn_norm.weight" => "post_attention_layernorm.weight",
        "ffn_gate.weight" => "mlp.gate_proj.weight",
        "ffn_up.weight" => "mlp.up_proj.weight",
        "ffn_down.weight" => "mlp.down_proj.weight",
        _ => bail!(unknown()),
    };
    Ok(format!("model.layers.{layer}.{part}"))
}

/// Undoes the order GGUF gives to the rows of Llama's query and key projections.
///
/// Rotary embedding turns pairs of a head's rows. GGUF keeps a pair in neighbouring rows (2i, 2i + 1),
/// Hugging Face keeps it half a head apart (i, i + head width / 2).
fn with_rotary_halves(rows: &[f32], head_dim: usize, width: usize) -> Result<Vec<f32>> {
    if head_dim == 0 || width == 0 || !head_dim.is_multiple_of(2) || !rows.len().is_multiple_of(head_dim * width) {
        bail!("{} numbers are not heads of {head_dim} rows of {width}", rows.len());
    }
    let mut ordered = Vec::with_capacity(rows.len());
    for head in rows.chunks_exact(head_dim * width) {
        for half in 0..2 {
            for index in 0..head_dim / 2 {
                let start = (2 * index + half) * width;
                ordered.extend_from_slice(&head[start..start + width]);
            }
        }
    }
    Ok(ordered)
}

/// The short decimal number that was rounded to this float: 1e-5, not 9.999999747378752e-6.
fn as_written(value: f32) -> f64 {
    value.to_string().parse().unwrap_or_else(|_| f64::from(value))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_of_a_pair_end_up_half_a_head_apart() {
        // Two heads of four rows of one number, as GGUF holds them: pairs side by side.
        let rows = [0.0, 2.0, 1.0, 3.0, 4.0, 6.0, 5.0, 7.0];
        assert_eq!(with_rotary_halves(&rows, 4, 1).unwrap(), [0.0, 1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0]);
        assert!(with_rotary_halves(&rows, 4, 3).is_err());
    }

    #[test]
    fn names_are_those_of_hugging_face_and_unknown_ones_are_refused() {
        assert_eq!(hugging_face_name("blk.12.attn_q.weight").unwrap(), "model.layers.12.self_attn.q_proj.weight");
        assert_eq!(hugging_face_name("token_embd.weight").unwrap(), "model.embed_tokens.weight");
        assert!(hugging_face_name("blk.0.attn_q.bias").is_err());
        assert!(hugging_face_name("rope_freqs.weight").is_err());
    }

    #[test]
    fn floats_are_written_as_they_were_meant() {
        assert_eq!(as_written(1e-5).to_string(), "0.00001");
        assert_eq!(as_written(100_000.0).to_string(), "100000");
    }
}
