//! `tokenizer.json` out of the vocabulary inside a GGUF file.
//!
//! GGUF keeps tokens, merges and the *name* of the rule that splits text before the merges are applied. The rule
//! called `smollm` is: every digit on its own, then GPT-2's byte-level split.

use anyhow::{Context, Result, bail};
use candle_core::quantized::gguf_file::Value;
use serde_json::{Map, json};

use super::gguf::Gguf;

/// GGUF's mark of a control token such as `<|im_end|>`.
const CONTROL: i32 = 3;
/// GGUF's mark of an ordinary token.
const NORMAL: i32 = 1;

/// A byte-level BPE vocabulary.
pub(crate) struct Vocabulary {
    tokens: Vec<String>,
    merges: Vec<(String, String)>,
    /// Ids of the control tokens.
    control: Vec<usize>,
    /// Begin of sequence.
    pub(crate) bos: u32,
    /// End of sequence.
    pub(crate) eos: u32,
    /// Padding.
    pub(crate) padding: u32,
    /// For text no token spells.
    unknown: u32,
}

impl Vocabulary {
    /// Reads the vocabulary, refusing kinds that would need another `tokenizer.json`.
    pub(crate) fn read(gguf: &Gguf) -> Result<Self> {
        let model = gguf.text("tokenizer.ggml.model")?;
        let split = gguf.text("tokenizer.ggml.pre")?;
        if (model.as_str(), split.as_str()) != ("gpt2", "smollm") {
            bail!("the GGUF file has a `{model}` tokenizer with `{split}` splitting, expected `gpt2` with `smollm`");
        }
        let tokens = texts(gguf.value("tokenizer.ggml.tokens")?)?;
        let mut merges = Vec::new();
        for merge in texts(gguf.value("tokenizer.ggml.merges")?)? {
            let (left, right) =
                merge.split_once(' ').with_context(|| format!("`{merge}` is not a merge of two tokens"))?;
            merges.push((left.to_owned(), right.to_owned()));
        }
        let mut control = Vec::new();
        for (id, kind) in gguf.value("tokenizer.ggml.token_type")?.to_vec()?.iter().enumerate() {
            match kind.to_i32()? {
                CONTROL => control.push(id),
                NORMAL => {}
                other => bail!("token {id} is of kind {other}, which this conversion does not know"),
            }
        }
        let vocabulary = Self {
            tokens,
            merges,
            control,
            bos: gguf.number("tokenizer.ggml.bos_token_id")?,
            eos: gguf.number("tokenizer.ggml.eos_token_id")?,
            padding: gguf.number("tokenizer.ggml.padding_token_id")?,
            unknown: gguf.number("tokenizer.ggml.unknown_token_id")?,
        };
        for id in [vocabulary.bos, vocabulary.eos, vocabulary.padding, vocabulary.unknown] {
            vocabulary.token(id)?;
        }
        Ok(vocabulary)
    }

    /// How many tokens there are.
    pub(crate) fn len(&self) -> usize {
        self.tokens.len()
    }

    fn token(&self, id: u32) -> Result<&str> {
        let token = self.tokens.get(id as usize);
        token.map(String::as_str).with_context(|| format!("token {id} is outside the vocabulary"))
    }

    /// The content of `tokenizer.json`.
    pub(crate) fn tokenizer(&self) -> serde_json::Value {
        let mut ids = Map::new();
        for (id, token) in self.tokens.iter().enumerate() {
            ids.insert(token.clone(), json!(id));
        }
        let byte_level =
            json!({ "type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": true });
        json!({
            "version": "1.0",
            "truncation": null,
            "padding": null,
            "added_tokens": self.control.iter().map(|id| self.added_token(*id, true)).collect::<Vec<_>>(),
            "normalizer": null,
            "pre_tokenizer": {
                "type": "Sequence",
                "pretokenizers": [{ "type": "Digits", "individual_digits": true }, byte_level],
            },
            "post_processor": null,
            "decoder": { "type": "ByteLevel", "add_prefix_space": true, "trim_offsets": true, "use_regex": true },
            "model": {
                "type": "BPE",
                "dropout": null,
                "unk_token": null,
                "continuing_subword_prefix": null,
                "end_of_word_suffix": null,
                "fuse_unk": false,
                "byte_fallback": false,
                "ignore_merges": false,
                "vocab": ids,
                "merges": self.merges,
            },
        })
    }

    /// The content of `tokenizer_config.json`.
    pub(crate) fn tokenizer_config(&self, context_length: u32, chat_template: &str) -> Result<serde_json::Value> {
        let mut added = Map::new();
        for id in &self.control {
            added.insert(id.to_string(), self.added_token(*id, false));
        }
        Ok(json!({
            "add_prefix_space": false,
            "added_tokens_decoder": added,
            "additional_special_tokens": [self.token(self.bos)?, self.token(self.eos)?],
            "bos_token": self.token(self.bos)?,
            "chat_template": chat_template,
            "clean_up_tokenization_spaces": false,
            "eos_token": self.token(self.eos)?,
            "model_max_length": context_length,
            "pad_token": self.token(self.padding)?,
            "tokenizer_class": "PreTrainedTokenizerFast",
            "unk_token": self.token(self.unknown)?,
            "vocab_size": self.len(),
        }))
    }

    fn added_token(&self, id: usize, with_id: bool) -> serde_json::Value {
        let mut token = json!({
            "content": self.tokens.get(id),
            "single_word": false,
            "lstrip": false,
            "rstrip": false,
            "normalized": false,
            "special": true,
        });
        if with_id {
            token["id"] = json!(id);
        }
        token
    }
}

fn texts(value: &Value) -> Result<Vec<String>> {
    let mut texts = Vec::new();
    for text in value.to_vec()? {
        texts.push(text.to_string()?.clone());
    }
    Ok(texts)
}
