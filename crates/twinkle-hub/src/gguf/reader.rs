//! What a GGUF file says about its network.

use std::cell::RefCell;
use std::fs::File;
use std::io::BufReader;
use std::path::{Path, PathBuf};

use candle_core::Device;
use candle_core::quantized::gguf_file::{Content, Value};
use twinkle_core::error::suggestion;
use twinkle_core::{Error, Result};

/// The architectures that can be loaded, as both GGUF and `config.json` call them.
const FAMILIES: &[&str] = &["llama", "qwen2", "qwen3"];

/// The number formats candle reads.
const FORMATS: &str = "F32, F16, BF16, Q4_0, Q4_1, Q5_0, Q5_1, Q8_0, Q8_1, Q2_K, Q3_K, Q4_K, Q5_K, Q6_K, Q8_K";

/// The most layers and the largest width that is believed.
const LARGEST: u32 = 1 << 20;

/// An open GGUF file.
pub(super) struct Gguf {
    path: PathBuf,
    file: RefCell<BufReader<File>>,
    content: Content,
}

/// The numbers of a network.
#[derive(Clone, Debug)]
pub(super) struct Architecture {
    /// `llama`, `qwen2` or `qwen3`.
    pub(super) family: String,
    pub(super) layers: u32,
    pub(super) hidden_size: u32,
    pub(super) intermediate_size: u32,
    pub(super) heads: u32,
    pub(super) key_value_heads: u32,
    /// Width of one attention head.
    pub(super) head_dim: u32,
    pub(super) context_length: u32,
    pub(super) rope_base: f64,
    pub(super) norm_epsilon: f64,
    /// Rows of the embedding.
    pub(super) vocabulary: usize,
    /// Whether the output head is the embedding.
    pub(super) tied: bool,
    /// Whether q, k, v and the output projection have biases.
    pub(super) attention_bias: bool,
}

/// A tensor as numbers.
pub(super) struct Dequantised {
    pub(super) shape: Vec<usize>,
    pub(super) values: Vec<f32>,
}

impl Gguf {
    /// Reads a file's header.
    pub(super) fn open(path: &Path) -> Result<Self> {
        let broken =
            |error: &dyn std::error::Error| Error::invalid(format!("cannot read `{}`: {error}", path.display()));
        let mut file = BufReader::new(File::open(path).map_err(|error| broken(&error))?);
        let content = Content::read(&mut file).map_err(|error| {
            unknown_format(path, &error.to_string())
                .unwrap_or_else(|| broken(&error).hint("it is no GGUF file, or was not downloaded whole"))
        })?;
        Ok(Self { path: path.to_owned(), file: RefCell::new(file), content })
    }

    /// A mistake in this file.
    pub(super) fn invalid(&self, what: &str) -> Error {
        Error::invalid(format!("`{}` {what}", self.path.display()))
    }

    /// Something in this file that is not handled.
    pub(super) fn unsupported(&self, what: &str) -> Error {
        Error::unsupported(format!("`{}` {what}", self.path.display()))
    }

    /// A metadata value, if it is there.
    pub(super) fn find(&self, key: &str) -> Option<&Value> {
        self.content.metadata.get(key)
    }

    /// A metadata value.
    pub(super) fn value(&self, key: &str) -> Result<&Value> {
        self.find(key).ok_or_else(|| self.invalid(&format!("has no `{key}`")))
    }

    /// A metadata value that is a text.
    pub(super) fn text(&self, key: &str) -> Result<String> {
        let text = self.value(key)?.to_string().map_err(|_| self.invalid(&format!("has no text at `{key}`")))?;
        Ok(text.clone())
    }

    /// A metadata value that is a list of texts.
    pub(super) fn texts(&self, key: &str) -> Result<Vec<String>> {
        let wrong = || self.invalid(&format!("has no list of texts at `{key}`"));
        let list = self.value(key)?.to_vec().map_err(|_| wrong())?;
        list.iter().map(|text| text.to_string().cloned().map_err(|_| wrong())).collect()
    }

    /// A metadata value that is a 32-bit number, if it is there.
    pub(super) fn number_if_any(&self, key: &str) -> Result<Option<u32>> {
        let wrong = |_| self.invalid(&format!("has no number at `{key}`"));
        self.find(key).map(|value| value.to_u32().map_err(wrong)).transpose()
    }

    /// A metadata value that is a 32-bit number.
    pub(super) fn number(&self, key: &str) -> Result<u32> {
        self.number_if_any(key)?.ok_or_else(|| self.invalid(&format!("has no `{key}`")))
    }

    /// Every tensor's name, in order.
    pub(super) fn tensor_names(&self) -> Vec<&str> {
        let mut names: Vec<&str> = self.content.tensor_infos.keys().map(String::as_str).collect();
        names.sort_unstable();
        names
    }

    /// A tensor's dimensions, rows first.
    pub(super) fn shape(&self, name: &str) -> Option<&[usize]> {
        self.content.tensor_infos.get(name).map(|info| info.shape.dims())
    }

    /// Reads a tensor and undoes its quantisation.
    pub(super) fn tensor(&self, name: &str) -> Result<Dequantised> {
        let read = || -> candle_core::Result<Dequantised> {
            let tensor = self.content.tensor(&mut *self.file.borrow_mut(), name, &Device::Cpu)?;
            let tensor = tensor.dequantize(&Device::Cpu)?;
            Ok(Dequantised { shape: tensor.dims().to_vec(), values: tensor.flatten_all()?.to_vec1()? })
        };
        read().map_err(|error| {
            self.invalid(&format!("has a tensor `{name}` that cannot be read: {error}"))
                .hint("it was perhaps not downloaded whole")
        })
    }

    /// The network's shape.
    pub(super) fn architecture(&self) -> Result<Architecture> {
        let family = self.text("general.architecture")?;
        if !FAMILIES.contains(&family.as_str()) {
            return Err(self
                .unsupported(&format!("holds a `{family}` network, which is not computed here"))
                .hint(suggestion(&family, "architectures", FAMILIES)));
        }
        let key = |name: &str| format!("{family}.{name}");
        let size = |name: &str| match self.number(&key(name))? {
            size @ 1..=LARGEST => Ok(size),
            size => Err(self.invalid(&format!("has the impossible `{}` {size}", key(name)))),
        };
        let decimal = |name: &str| {
            let wrong = |_| self.invalid(&format!("has no number at `{}`", key(name)));
            self.find(&key(name)).map(|value| value.to_f32().map(as_written).map_err(wrong)).transpose()
        };
        let (heads, hidden_size) = (size("attention.head_count")?, size("embedding_length")?);
        let head_dim = match self.number_if_any(&key("attention.key_length"))? {
            Some(width) => width,
            None if hidden_size.is_multiple_of(heads) => hidden_size / heads,
            None => return Err(self.invalid(&format!("has {heads} heads for a hidden size of {hidden_size}"))),
        };
        if self.number_if_any(&key("attention.value_length"))?.is_some_and(|width| width != head_dim) {
            return Err(self.unsupported("has keys and values of different widths, which is not computed here"));
        }
        if let Some(scaling) = self.find(&key("rope.scaling.type")).and_then(|value| value.to_string().ok())
            && scaling != "none"
        {
            return Err(self
                .unsupported(&format!("scales its rotation by `{scaling}`, which is not converted"))
                .hint("use the model's safetensors"));
        }
        if self.find(&key("expert_count")).is_some_and(|value| value.to_u32().is_ok_and(|count| count > 0)) {
            return Err(self.unsupported("holds a mixture of experts, which is not computed here"));
        }
        let embedding = self.shape("token_embd.weight").and_then(|shape| shape.first().copied());
        Ok(Architecture {
            layers: size("block_count")?,
            hidden_size,
            intermediate_size: size("feed_forward_length")?,
            heads,
            key_value_heads: self.number_if_any(&key("attention.head_count_kv"))?.unwrap_or(heads),
            head_dim,
            context_length: self.number(&key("context_length"))?,
            rope_base: decimal("rope.freq_base")?.unwrap_or(10_000.0),
            norm_epsilon: decimal("attention.layer_norm_rms_epsilon")?
                .ok_or_else(|| self.invalid(&format!("has no `{}`", key("attention.layer_norm_rms_epsilon"))))?,
            vocabulary: embedding.ok_or_else(|| self.invalid("has no embedding"))?,
            tied: self.shape("output.weight").is_none(),
            attention_bias: self.shape("blk.0.attn_q.bias").is_some(),
            family,
        })
    }
}

/// The error for a number format that candle does not read, if that is what it complains of.
fn unknown_format(path: &Path, complaint: &str) -> Option<Error> {
    let number: u32 = complaint.split_once("unknown dtype for tensor ")?.1.split_whitespace().next()?.parse().ok()?;
    let name = match number {
        16 => "IQ2_XXS",
        17 => "IQ2_XS",
        18 => "IQ3_XXS",
        19 => "IQ1_S",
        20 => "IQ4_NL",
        21 => "IQ3_S",
        22 => "IQ2_S",
        23 => "IQ4_XS",
        29 => "IQ1_M",
        34 => "TQ1_0",
        35 => "TQ2_0",
        39 => "MXFP4",
        _ => "an unknown format",
    };
    let text = format!("`{}` has weights in `{name}` ({number}), which is not read", path.display());
    Some(Error::unsupported(text).hint(format!("take a file in one of: {FORMATS}")))
}

/// The short decimal number that was rounded to this float: 1e-5, not 9.999999747378752e-6.
fn as_written(value: f32) -> f64 {
    value.to_string().parse().unwrap_or_else(|_| f64::from(value))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn floats_are_written_as_they_were_meant() {
        assert_eq!(as_written(1e-5).to_string(), "0.00001");
        assert_eq!(as_written(100_000.0).to_string(), "100000");
    }

    #[test]
    fn an_unread_quantisation_is_named() {
        let error = unknown_format(Path::new("x.gguf"), "unknown dtype for tensor 20").unwrap();
        insta::assert_snapshot!(error, @"`x.gguf` has weights in `IQ4_NL` (20), which is not read (hint: take a file in one of: F32, F16, BF16, Q4_0, Q4_1, Q5_0, Q5_1, Q8_0, Q8_1, Q2_K, Q3_K, Q4_K, Q5_K, Q6_K, Q8_K)");
        assert!(unknown_format(Path::new("x.gguf"), "unknown magic").is_none());
    }
}
