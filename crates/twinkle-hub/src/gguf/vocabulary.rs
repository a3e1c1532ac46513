//! `tokenizer.json` out of the vocabulary inside a GGUF file.
//!
//! GGUF keeps tokens, merges and the *name* of the rule that splits text before the merges are applied.

use serde_json::{Map, Value, json};
use twinkle_core::Result;
use twinkle_core::error::suggestion;

use super::reader::Gguf;

/// GGUF's mark of an ordinary token.
const NORMAL: i32 = 1;
/// GGUF's mark of a control token such as `<|im_end|>`.
const CONTROL: i32 = 3;
/// GGUF's mark of a token that is never split but not hidden, such as `<tool_call>`.
const USER_DEFINED: i32 = 4;
/// GGUF's mark of a place in the vocabulary without a token.
const UNUSED: i32 = 5;

/// The rules for splitting that are known, by GGUF's names.
const SPLITS: &[&str] = &["smollm", "qwen2", "llama-bpe"];

/// A byte-level BPE vocabulary.
pub(super) struct Vocabulary {
    tokens: Vec<String>,
    merges: Vec<(String, String)>,
    /// Tokens that are looked for in the text before it is split, and whether they are hidden.
    added: Vec<(usize, bool)>,
    /// Places without a token.
    unused: Vec<usize>,
    split: Split,
    /// Whether every text begins with `bos`.
    adds_bos: bool,
    /// Begin of sequence.
    pub(super) bos: Option<u32>,
    /// End of sequence.
    pub(super) eos: u32,
    /// Padding.
    pub(super) padding: Option<u32>,
    /// For text no token spells.
    unknown: Option<u32>,
}

/// How text is split before merging.
#[derive(Clone, Copy)]
enum Split {
    /// Every digit on its own, then GPT-2's split.
    SmolLm,
    /// Qwen's pattern, after normalisation to composed characters.
    Qwen2,
    /// Llama 3's pattern, and whole words that are tokens are not merged together.
    Llama3,
}

impl Vocabulary {
    /// Reads the vocabulary, refusing kinds that would need another `tokenizer.json`.
    pub(super) fn read(gguf: &Gguf) -> Result<Self> {
        let model = gguf.text("tokenizer.ggml.model")?;
        if model != "gpt2" {
            return Err(gguf
                .unsupported(&format!("has a `{model}` tokenizer, which is not converted"))
                .hint("only byte-level BPE (`gpt2`) is; use the model's safetensors with their `tokenizer.json`"));
        }
        let split = match gguf.text("tokenizer.ggml.pre")?.as_str() {
            "smollm" => Split::SmolLm,
            "qwen2" => Split::Qwen2,
            "llama-bpe" | "llama3" | "llama-v3" => Split::Llama3,
            other => {
                return Err(gguf
                    .unsupported(&format!("splits text by the rule `{other}`, which is not converted"))
                    .hint(suggestion(other, "rules", SPLITS)));
            }
        };
        let tokens = gguf.texts("tokenizer.ggml.tokens")?;
        let mut merges = Vec::new();
        for merge in gguf.texts("tokenizer.ggml.merges")? {
            let (left, right) = merge
                .split_once(' ')
                .ok_or_else(|| gguf.invalid(&format!("has a merge `{merge}`, which is not one of two tokens")))?;
            merges.push((left.to_owned(), right.to_owned()));
        }
        let mut vocabulary = Self {
            tokens,
            merges,
            added: Vec::new(),
            unused: Vec::new(),
            split,
            adds_bos: gguf.find("tokenizer.ggml.add_bos_token").is_some_and(|flag| flag.to_bool().unwrap_or(false)),
            bos: gguf.number_if_any("tokenizer.ggml.bos_token_id")?,
            eos: gguf.number("tokenizer.ggml.eos_token_id")?,
            padding: gguf.number_if_any("tokenizer.ggml.padding_token_id")?,
            unknown: gguf.number_if_any("tokenizer.ggml.unknown_token_id")?,
        };
        vocabulary.read_kinds(gguf)?;
        let marks = [vocabulary.bos, Some(vocabulary.eos), vocabulary.padding, vocabulary.unknown];
        match marks.into_iter().flatten().find(|id| vocabulary.token(*id).is_none()) {
            Some(id) => Err(gguf.invalid(&format!("names the token {id}, which is outside its vocabulary"))),
            None => Ok(vocabulary),
        }
    }

    fn read_kinds(&mut self, gguf: &Gguf) -> Result<()> {
        let wrong = |_| gguf.invalid("has no list of numbers at `tokenizer.ggml.token_type`");
        for (id, kind) in gguf.value("tokenizer.ggml.token_type")?.to_vec().map_err(wrong)?.iter().enumerate() {
            match kind.to_i32().map_err(wrong)? {
                NORMAL => {}
                CONTROL => self.added.push((id, true)),
                USER_DEFINED => self.added.push((id, false)),
                UNUSED => self.unused.push(id),
                other => {
                    return Err(gguf.unsupported(&format!("has a token {id} of kind {other}, which is not converted")));
                }
            }
        }
        Ok(())
    }

    fn token(&self, id: u32) -> Option<&str> {
        self.tokens.get(id as usize).map(String::as_str)
    }

    /// The content of `tokenizer.json`.
    pub(super) fn tokenizer(&self) -> Value {
        let mut ids = Map::new();
        let mut unused = self.unused.iter().peekable();
        for (id, token) in self.tokens.iter().enumerate() {
            if unused.next_if(|unused| **unused == id).is_none() {
                ids.insert(token.clone(), json!(id));
            }
        }
        json!({
            "version": "1.0",
            "truncation": null,
            "padding": null,
            "added_tokens": self.added.iter().map(|added| self.added_token(*added, true)).collect::<Vec<_>>(),
            "normalizer": self.normalizer(),
            "pre_tokenizer": self.pre_tokenizer(),
            "post_processor": self.post_processor(),
            "decoder": { "type": "ByteLevel", "add_prefix_space": true, "trim_offsets": true, "use_regex": true },
            "model": {
                "type": "BPE",
                "dropout": null,
                "unk_token": null,
                "continuing_subword_prefix": null,
                "end_of_word_suffix": null,
                "fuse_unk": false,
                "byte_fallback": false,
                "ignore_merges": matches!(self.split, Split::Llama3),
                "vocab": ids,
                "merges": self.merges,
            },
        })
    }

    fn normalizer(&self) -> Value {
        match self.split {
            Split::Qwen2 => json!({ "type": "NFC" }),
            Split::SmolLm | Split::Llama3 => Value::Null,
        }
    }

    fn pre_tokenizer(&self) -> Value {
        let first = match self.split {
            Split::SmolLm => json!({ "type": "Digits", "individual_digits": true }),
            Split::Qwen2 => split_by(&pattern(r"\p{N}")),
            Split::Llama3 => split_by(&pattern(r"\p{N}{1,3}")),
        };
        let by_gpt2 = matches!(self.split, Split::SmolLm);
        let bytes =
            json!({ "type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": by_gpt2 });
        json!({ "type": "Sequence", "pretokenizers": [first, bytes] })
    }

    fn post_processor(&self) -> Value {
        let Some((bos, token)) = self.bos.filter(|_| self.adds_bos).and_then(|bos| Some((bos, self.token(bos)?)))
        else {
            return Value::Null;
        };
        let begin = |sequence: u8| json!({ "SpecialToken": { "id": token, "type_id": sequence } });
        let text = |name: &str, sequence: u8| json!({ "Sequence": { "id": name, "type_id": sequence } });
        let mut special = Map::new();
        special.insert(token.to_owned(), json!({ "id": token, "ids": [bos], "tokens": [token] }));
        json!({
            "type": "TemplateProcessing",
            "single": [begin(0), text("A", 0)],
            "pair": [begin(0), text("A", 0), begin(1), text("B", 1)],
            "special_tokens": special,
        })
    }

    /// The content of `tokenizer_config.json`.
    pub(super) fn tokenizer_config(&self, context_length: u32, chat_template: Option<&str>) -> Value {
        let mut added = Map::new();
        for token in &self.added {
            added.insert(token.0.to_string(), self.added_token(*token, false));
        }
        let token = |id: Option<u32>| id.and_then(|id| self.token(id));
        let special: Vec<&str> = [token(self.bos), token(Some(self.eos))].into_iter().flatten().collect();
        let mut config = json!({
            "add_prefix_space": false,
            "added_tokens_decoder": added,
            "additional_special_tokens": special,
            "bos_token": token(self.bos),
            "clean_up_tokenization_spaces": false,
            "eos_token": token(Some(self.eos)),
            "model_max_length": context_length,
            "pad_token": token(self.padding),
            "tokenizer_class": "PreTrainedTokenizerFast",
            "unk_token": token(self.unknown),
            "vocab_size": self.tokens.len(),
        });
        if let Some(template) = chat_template {
            config["chat_template"] = json!(template);
        }
        config
    }

    fn added_token(&self, (id, special): (usize, bool), with_id: bool) -> Value {
        let mut token = json!({
            "content": self.tokens.get(id),
            "single_word": false,
            "lstrip": false,
            "rstrip": false,
            "normalized": false,
            "special": special,
        });
        if with_id {
            token["id"] = json!(id);
        }
        token
    }
}

/// The pattern Qwen and Llama 3 share; they differ in how many digits go together.
fn pattern(digits: &str) -> String {
    [
        r"(?i:'s|'t|'re|'ve|'m|'ll|'d)",
        r"[^\r\n\p{L}\p{N}]?\p{L}+",
        digits,
        r" ?[^\s\p{L}\p{N}]+[\r\n]*",
        r"\s*[\r\n]+",
        r"\s+(?!\S)",
        r"\s+",
    ]
    .join("|")
}

fn split_by(pattern: &str) -> Value {
    json!({ "type": "Split", "pattern": { "Regex": pattern }, "behavior": "Isolated", "invert": false })
}
