//! GGUF files as `model_id`.

use std::fs;
use std::path::{Path, PathBuf};

use candle_core::quantized::gguf_file::{self, Value};
use candle_core::quantized::{GgmlDType, QTensor};
use candle_core::{Device, Tensor};
use half::bf16;
use safetensors::SafeTensors;
use tokenizers::Tokenizer;
use twinkle_core::ErrorCode;

use crate::stand_in::StandIn;
use crate::{Machine, names};

const HIDDEN: usize = 32;
const HEAD: usize = 16;
const MLP: usize = 64;
const TOKENS: usize = 260;

/// A GGUF file in the making: a network of one layer with two query heads and one key head.
struct Draft {
    metadata: Vec<(String, Value)>,
    tensors: Vec<(String, Tensor, GgmlDType)>,
}

impl Draft {
    fn new(family: &str, split: &str) -> Self {
        let mut draft = Self { metadata: Vec::new(), tensors: Vec::new() };
        draft.set("general.architecture", Value::String(family.to_owned()));
        let sizes = [
            ("block_count", 1),
            ("embedding_length", HIDDEN),
            ("feed_forward_length", MLP),
            ("attention.head_count", 2),
            ("attention.head_count_kv", 1),
            ("context_length", 512),
        ];
        for (key, size) in sizes {
            draft.set(&format!("{family}.{key}"), Value::U32(size as u32));
        }
        draft.set(&format!("{family}.rope.freq_base"), Value::F32(1e6));
        draft.set(&format!("{family}.attention.layer_norm_rms_epsilon"), Value::F32(1e-6));
        draft.vocabulary(split);
        draft.matrix("token_embd.weight", TOKENS, HIDDEN);
        draft.matrix("blk.0.attn_q.weight", 2 * HEAD, HIDDEN);
        draft.matrix("blk.0.attn_k.weight", HEAD, HIDDEN);
        draft.matrix("blk.0.attn_v.weight", HEAD, HIDDEN);
        draft.matrix("blk.0.attn_output.weight", HIDDEN, 2 * HEAD);
        draft.matrix("blk.0.ffn_gate.weight", MLP, HIDDEN);
        draft.matrix("blk.0.ffn_up.weight", MLP, HIDDEN);
        draft.matrix("blk.0.ffn_down.weight", HIDDEN, MLP);
        for name in ["output_norm.weight", "blk.0.attn_norm.weight", "blk.0.ffn_norm.weight"] {
            draft.vector(name, HIDDEN);
        }
        draft
    }

    fn set(&mut self, key: &str, value: Value) {
        self.metadata.retain(|(name, _)| name != key);
        self.metadata.push((key.to_owned(), value));
    }

    /// Bytes, one merge, and one token of each special kind.
    fn vocabulary(&mut self, split: &str) {
        let mut tokens: Vec<String> = alphabet().into_iter().map(String::from).collect();
        tokens.extend(["he", "<|end|>", "<tool>", "[PAD]"].map(str::to_owned));
        let mut kinds = vec![1; tokens.len()];
        for (place, kind) in [(257, 3), (258, 4), (259, 5)] {
            kinds[place] = kind;
        }
        let text = |text: &str| Value::String(text.to_owned());
        self.set("tokenizer.ggml.model", text("gpt2"));
        self.set("tokenizer.ggml.pre", text(split));
        self.set("tokenizer.ggml.tokens", Value::Array(tokens.iter().map(|token| text(token)).collect()));
        self.set("tokenizer.ggml.merges", Value::Array(vec![text("h e")]));
        self.set("tokenizer.ggml.token_type", Value::Array(kinds.into_iter().map(Value::I32).collect()));
        self.set("tokenizer.ggml.eos_token_id", Value::U32(257));
        self.set("tokenizer.chat_template", text("{{ messages }}"));
    }

    fn matrix(&mut self, name: &str, rows: usize, columns: usize) {
        let values = (0..rows * columns).map(|index| (index % 251) as f32).collect();
        let tensor = Tensor::from_vec(values, (rows, columns), &Device::Cpu).unwrap();
        self.tensors.push((name.to_owned(), tensor, GgmlDType::F32));
    }

    fn vector(&mut self, name: &str, width: usize) {
        let values: Vec<f32> = (0..width).map(|index| index as f32).collect();
        self.tensors.push((name.to_owned(), Tensor::from_vec(values, width, &Device::Cpu).unwrap(), GgmlDType::F32));
    }

    fn quantise(&mut self, name: &str, format: GgmlDType) {
        self.tensors.iter_mut().find(|(tensor, ..)| tensor == name).unwrap().2 = format;
    }

    fn write(&self, machine: &Machine, path: &str) -> PathBuf {
        let tensors: Vec<(&str, QTensor)> = self
            .tensors
            .iter()
            .map(|(name, tensor, format)| (name.as_str(), QTensor::quantize(tensor, *format).unwrap()))
            .collect();
        let tensors: Vec<(&str, &QTensor)> = tensors.iter().map(|(name, tensor)| (*name, tensor)).collect();
        let metadata: Vec<(&str, &Value)> = self.metadata.iter().map(|(key, value)| (key.as_str(), value)).collect();
        let mut bytes = std::io::Cursor::new(Vec::new());
        gguf_file::write(&mut bytes, &metadata, &tensors).unwrap();
        machine.write(path, bytes.into_inner())
    }
}

/// The characters that stand for bytes 0 to 255 in byte-level vocabularies.
fn alphabet() -> Vec<char> {
    let mut next = 256;
    (0..256_u32)
        .map(|byte| {
            let shows = matches!(byte, 33..=126 | 161..=172 | 174..=255);
            let point = if shows { byte } else { next };
            next += u32::from(!shows);
            char::from_u32(point).unwrap()
        })
        .collect()
}

fn json(folder: &Path, name: &str) -> serde_json::Value {
    serde_json::from_slice(&fs::read(folder.join(name)).unwrap()).unwrap()
}

/// A tensor's shape and numbers.
fn tensor(folder: &Path, name: &str) -> (Vec<usize>, Vec<f32>) {
    let bytes = fs::read(folder.join("model.safetensors")).unwrap();
    let tensors = SafeTensors::deserialize(&bytes).unwrap();
    let view = tensors.tensor(name).unwrap();
    let numbers = view.data().chunks_exact(2).map(|pair| bf16::from_le_bytes([pair[0], pair[1]]).to_f32());
    (view.shape().to_vec(), numbers.collect())
}

async fn machine() -> Machine {
    Machine::with(&StandIn::start().await)
}

#[tokio::test]
async fn a_file_is_converted_once_and_again_when_it_changed() {
    let mut machine = machine().await;
    machine.set("TWINKLE_CACHE", &machine.path("cache").display().to_string());
    let mut draft = Draft::new("llama", "smollm");
    draft.write(&machine, "models/tiny model.gguf");
    let id = "./models/tiny model.gguf";

    let folder = machine.folder(id).await.unwrap();
    assert!(folder.starts_with(machine.path("cache/gguf")));
    let files = [
        "chat_template.jinja",
        "config.json",
        "generation_config.json",
        "model.safetensors",
        "tokenizer.json",
        "tokenizer_config.json",
    ];
    assert_eq!(names(&folder), files);
    let written = fs::metadata(folder.join("config.json")).unwrap().modified().unwrap();
    assert_eq!(machine.folder(id).await.unwrap(), folder);
    assert_eq!(fs::metadata(folder.join("config.json")).unwrap().modified().unwrap(), written);

    draft.set("llama.context_length", Value::U32(1024));
    draft.set("llama.comment", Value::String("longer than before".to_owned()));
    draft.write(&machine, "models/tiny model.gguf");
    let again = machine.folder(id).await.unwrap();
    assert_ne!(again, folder);
    assert_eq!(json(&again, "config.json")["max_position_embeddings"], 1024);
    assert!(!folder.exists(), "what an older version of the file left is removed");
}

#[tokio::test]
async fn two_at_once_convert_a_file_once() {
    let machine = machine().await;
    Draft::new("llama", "smollm").write(&machine, "tiny.gguf");
    let (one, other) = tokio::join!(machine.folder("tiny.gguf"), machine.folder("tiny.gguf"));
    assert_eq!(one.unwrap(), other.unwrap());
}

#[tokio::test]
async fn llamas_rows_are_put_in_order_and_qwens_are_in_order() {
    let machine = machine().await;
    let values = |rows: &[usize]| -> Vec<f32> {
        rows.iter().flat_map(|row| (0..HIDDEN).map(move |column| ((row * HIDDEN + column) % 251) as f32)).collect()
    };
    let in_file: Vec<usize> = (0..HEAD).collect();
    let halves: Vec<usize> = (0..HEAD).step_by(2).chain((1..HEAD).step_by(2)).collect();
    for (family, split, rows) in
        [("llama", "llama-bpe", &halves), ("qwen2", "qwen2", &in_file), ("qwen3", "qwen2", &in_file)]
    {
        Draft::new(family, split).write(&machine, "tiny.gguf");
        let folder = machine.folder("tiny.gguf").await.unwrap();
        let (shape, numbers) = tensor(&folder, "model.layers.0.self_attn.k_proj.weight");
        assert_eq!(shape, [HEAD, HIDDEN]);
        assert!(numbers == values(rows), "{family}");
        let (_, unchanged) = tensor(&folder, "model.layers.0.self_attn.v_proj.weight");
        assert!(unchanged == values(&in_file), "{family}");
        assert_eq!(json(&folder, "config.json")["model_type"], family);
        fs::remove_file(machine.path("tiny.gguf")).unwrap();
    }
}

#[tokio::test]
async fn the_configuration_is_the_networks() {
    let machine = machine().await;
    let mut draft = Draft::new("qwen3", "qwen2");
    draft.set("qwen3.attention.key_length", Value::U32(HEAD as u32));
    draft.set("qwen3.attention.value_length", Value::U32(HEAD as u32));
    draft.matrix("output.weight", TOKENS, HIDDEN);
    draft.quantise("output.weight", GgmlDType::Q4_0);
    draft.vector("blk.0.attn_q_norm.weight", HEAD);
    draft.vector("blk.0.attn_k_norm.weight", HEAD);
    draft.write(&machine, "tiny.gguf");
    let folder = machine.folder("tiny.gguf").await.unwrap();
    assert_eq!(tensor(&folder, "lm_head.weight").0, [TOKENS, HIDDEN]);
    assert_eq!(tensor(&folder, "model.layers.0.self_attn.q_norm.weight").0, [HEAD]);
    insta::assert_snapshot!(fs::read_to_string(folder.join("config.json")).unwrap());
}

#[tokio::test]
async fn the_tokenizer_splits_and_marks_as_the_file_says() {
    let machine = machine().await;
    for (split, digits) in [("smollm", 3), ("qwen2", 3), ("llama-bpe", 3)] {
        Draft::new("llama", split).write(&machine, "tiny.gguf");
        let folder = machine.folder("tiny.gguf").await.unwrap();
        let tokenizer = Tokenizer::from_file(folder.join("tokenizer.json")).unwrap();
        let encoded = tokenizer.encode("he<|end|><tool>123", false).unwrap();
        assert_eq!(encoded.get_tokens().first().map(String::as_str), Some("he"), "{split}");
        assert_eq!(encoded.get_ids()[1..3], [257, 258], "{split}");
        assert_eq!(encoded.get_ids().len(), 3 + digits, "{split}");
        assert_eq!(tokenizer.decode(encoded.get_ids(), true).unwrap(), "he<tool>123", "{split}");
        assert_eq!(tokenizer.token_to_id("[PAD]"), None, "{split}");
        assert_eq!(json(&folder, "tokenizer_config.json")["eos_token"], "<|end|>");
        fs::remove_file(machine.path("tiny.gguf")).unwrap();
    }
}

#[tokio::test]
async fn a_text_begins_with_the_token_the_file_asks_for() {
    let machine = machine().await;
    let mut draft = Draft::new("llama", "llama-bpe");
    draft.set("tokenizer.ggml.add_bos_token", Value::Bool(true));
    draft.set("tokenizer.ggml.bos_token_id", Value::U32(257));
    draft.write(&machine, "tiny.gguf");
    let folder = machine.folder("tiny.gguf").await.unwrap();
    let tokenizer = Tokenizer::from_file(folder.join("tokenizer.json")).unwrap();
    assert_eq!(tokenizer.encode("he", true).unwrap().get_ids(), [257, 256]);
    assert_eq!(tokenizer.encode("he", false).unwrap().get_ids(), [256]);
}

#[tokio::test]
async fn what_is_not_converted_is_refused_and_leaves_nothing() {
    let machine = machine().await;
    let text = |text: &str| Value::String(text.to_owned());
    let refusal = async |draft: Draft| {
        draft.write(&machine, "tiny.gguf");
        let error = machine.folder("tiny.gguf").await.err().unwrap();
        assert_eq!(error.code, ErrorCode::Unsupported);
        error.to_string().replace(&machine.path("").display().to_string(), "<home>")
    };
    insta::assert_snapshot!(refusal(Draft::new("gemma3", "smollm")).await, @r"`<home>/tiny.gguf` holds a `gemma3` network, which is not computed here (hint: known architectures: `llama`, `qwen2`, `qwen3`)");

    let mut spoken = Draft::new("llama", "smollm");
    spoken.set("tokenizer.ggml.model", text("llama"));
    insta::assert_snapshot!(refusal(spoken).await, @r"`<home>/tiny.gguf` has a `llama` tokenizer, which is not converted (hint: only byte-level BPE (`gpt2`) is; use the model's safetensors with their `tokenizer.json`)");

    insta::assert_snapshot!(refusal(Draft::new("llama", "deepseek-coder")).await, @r"`<home>/tiny.gguf` splits text by the rule `deepseek-coder`, which is not converted (hint: known rules: `smollm`, `qwen2`, `llama-bpe`)");

    let mut stretched = Draft::new("qwen2", "qwen2");
    stretched.set("qwen2.rope.scaling.type", text("yarn"));
    insta::assert_snapshot!(refusal(stretched).await, @r"`<home>/tiny.gguf` scales its rotation by `yarn`, which is not converted (hint: use the model's safetensors)");

    let mut experts = Draft::new("llama", "smollm");
    experts.set("llama.expert_count", Value::U32(8));
    insta::assert_snapshot!(refusal(experts).await, @r"`<home>/tiny.gguf` holds a mixture of experts, which is not computed here");

    let mut odd = Draft::new("llama", "smollm");
    odd.vector("rope_freqs.weight", 8);
    insta::assert_snapshot!(refusal(odd).await, @r"`<home>/tiny.gguf` stretches its rotation by a `rope_freqs.weight` that no known model has (hint: use the model's safetensors)");

    let mut unknown = Draft::new("llama", "smollm");
    unknown.vector("blk.0.ssm_a", 8);
    insta::assert_snapshot!(refusal(unknown).await, @r"`<home>/tiny.gguf` has a tensor `blk.0.ssm_a`, which no known network has");

    let left = names(&machine.path(".cache/twinkle/gguf"));
    assert!(left.iter().all(|name| Path::new(name).extension() == Some("lock".as_ref())), "{left:?}");
}

#[tokio::test]
async fn a_file_that_is_cut_short_or_no_gguf_is_an_error_of_that_file() {
    let machine = machine().await;
    let path = Draft::new("llama", "smollm").write(&machine, "tiny.gguf");
    let whole = fs::read(&path).unwrap();
    for length in [whole.len() - 1_000, 200, 3] {
        fs::write(&path, &whole[..length]).unwrap();
        let error = machine.folder("tiny.gguf").await.err().unwrap();
        assert_eq!(error.code, ErrorCode::InvalidArgument);
        assert!(error.message.contains("tiny.gguf"), "{error}");
    }
    machine.write("notes.txt", "hello");
    let text = machine.refusal("./notes.txt", "-").await;
    insta::assert_snapshot!(text, @r"`<home>/notes.txt` is a file, and not a `.gguf` one (hint: give the folder that holds `config.json`, or a GGUF file)");
}
