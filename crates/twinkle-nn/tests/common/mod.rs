//! Reading the golden fixtures, and small comparisons.
#![allow(dead_code, unreachable_pub, reason = "each test file uses its own part")]

use std::collections::HashMap;
use std::ops::Range;
use std::path::PathBuf;
use std::sync::Arc;

use safetensors::{Dtype, SafeTensors};
use tch::{Device, Kind, Tensor};
use twinkle_nn::{Adapter, AdapterLayout, BaseModel, Gradients, LoadOptions, Pack, Precision, peft};

pub const VARIANTS: [&str; 13] = [
    "llama3",
    "llama3_tied",
    "qwen2",
    "qwen2_untied",
    "qwen3",
    "qwen3_yarn",
    "llama_linear",
    "qwen3_moe",
    "qwen3_moe_mixed",
    "qwen3_5",
    "qwen3_5_vl",
    "qwen3_5_moe",
    "smollm3",
];
/// Adapters in other formats, of which the fixtures have one gradient: rank-stabilised, and Tinker's layout.
pub const FORMATS: [&str; 2] = ["rslora", "tinker"];

/// The adapters for which a variant has every number.
pub fn adapters(variant: &str) -> &'static [&'static str] {
    let all: &[&str] = &["attn_mlp", "attn_mlp_unembed"];
    if fixture(variant).join(all[1]).is_dir() { all } else { &all[..1] }
}

/// The folder of a tiny model and its expected results; `TWINKLE_TEST_FIXTURES` names another folder of fixtures, for a
/// machine without this checkout.
pub fn fixture(variant: &str) -> PathBuf {
    let fixtures = std::env::var_os("TWINKLE_TEST_FIXTURES").map(PathBuf::from);
    let here = || PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../tests/golden/fixtures");
    fixtures.unwrap_or_else(here).join(variant)
}

/// Where the tests compute: on the CPU, or on the device that `TWINKLE_TEST_DEVICE` names (`cuda`).
pub fn device() -> Device {
    std::env::var("TWINKLE_TEST_DEVICE").map_or(Device::Cpu, |name| twinkle_torch::cuda::device(&name).unwrap())
}

pub fn load(variant: &str, precision: Precision) -> BaseModel {
    load_tiled(variant, precision, 64)
}

pub fn load_tiled(variant: &str, precision: Precision, row_tile: usize) -> BaseModel {
    let options = LoadOptions { precision, device: device(), row_tile };
    BaseModel::load(&fixture(variant), &options).unwrap()
}

/// An adapter of the fixtures: its layout, flat parameters and compute copy.
pub struct LoadedAdapter {
    pub layout: Arc<AdapterLayout>,
    pub flat: Tensor,
    pub adapter: Arc<Adapter>,
}

pub fn load_adapter(base: &BaseModel, variant: &str, name: &str) -> LoadedAdapter {
    let (spec, flat) = peft::read(&fixture(variant).join(name), base.config()).unwrap();
    let layout = Arc::new(AdapterLayout::new(base.config(), &spec).unwrap());
    let adapter = Arc::new(Adapter::from_parameters(&layout, &flat, base.kind(), base.device()));
    LoadedAdapter { layout, flat, adapter }
}

/// The tensors of a fixture's `golden.safetensors`.
pub struct Golden {
    tensors: HashMap<String, (Vec<usize>, Vec<f32>)>,
}

impl Golden {
    /// Everything computed with the variant, whichever file it is in.
    pub fn read(variant: &str) -> Self {
        let mut tensors = HashMap::new();
        for file in ["golden", "formats", "hidden"] {
            let bytes = std::fs::read(fixture(variant).join(format!("{file}.safetensors"))).unwrap();
            tensors.extend(Self::decode(&bytes));
        }
        Self { tensors }
    }

    fn decode(bytes: &[u8]) -> HashMap<String, (Vec<usize>, Vec<f32>)> {
        let file = SafeTensors::deserialize(bytes).unwrap();
        let tensors = file.iter().map(|(name, view)| {
            let words = view.data().chunks_exact(4).map(|bytes| [bytes[0], bytes[1], bytes[2], bytes[3]]);
            let values = match view.dtype() {
                Dtype::I32 => words.map(|word| i32::from_le_bytes(word) as f32).collect(),
                Dtype::F32 => words.map(f32::from_le_bytes).collect(),
                Dtype::BF16 => view
                    .data()
                    .chunks_exact(2)
                    .map(|bytes| half::bf16::from_le_bytes([bytes[0], bytes[1]]).to_f32())
                    .collect(),
                other => panic!("{name} is {other:?}"),
            };
            (name.to_owned(), (view.shape().to_vec(), values))
        });
        tensors.collect()
    }

    pub fn find(&self, name: &str) -> Option<&[f32]> {
        self.tensors.get(name).map(|(_, values)| values.as_slice())
    }

    /// The sequences that are compared in bf16, with their fp32 logits. With experts it is one in which bf16 sends no
    /// token to another expert.
    pub fn rounded(&self) -> Vec<(Vec<u32>, &[f32])> {
        if let Some(logits) = self.find("clear.logits") {
            return vec![(self.ids("clear.tokens"), logits)];
        }
        let with_logits = |(i, tokens)| Some((tokens, self.find(&format!("logits.{i}"))?));
        self.sequences().into_iter().enumerate().filter_map(with_logits).collect()
    }

    /// The residual stream after each layer, and the sequence it is of.
    pub fn hidden(&self) -> (usize, Vec<Vec<f32>>) {
        let i = (0..self.sequences().len()).find(|i| self.tensors.contains_key(&format!("hidden.{i}"))).unwrap();
        let (shape, values) = &self.tensors[&format!("hidden.{i}")];
        (i, values.chunks(shape[1] * shape[2]).map(<[f32]>::to_vec).collect())
    }

    pub fn floats(&self, name: &str) -> &[f32] {
        &self.tensors.get(name).unwrap_or_else(|| panic!("the fixture has no `{name}`")).1
    }

    pub fn shape(&self, name: &str) -> &[usize] {
        &self.tensors[name].0
    }

    pub fn ids(&self, name: &str) -> Vec<u32> {
        self.floats(name).iter().map(|id| *id as u32).collect()
    }

    pub fn sequences(&self) -> Vec<Vec<u32>> {
        (0..)
            .map_while(|i| self.tensors.contains_key(&format!("tokens.{i}")).then(|| self.ids(&format!("tokens.{i}"))))
            .collect()
    }
}

/// The JSON half of a fixture.
pub fn golden_json(variant: &str) -> serde_json::Value {
    serde_json::from_slice(&std::fs::read(fixture(variant).join("golden.json")).unwrap()).unwrap()
}

pub fn floats(tensor: &Tensor) -> Vec<f32> {
    Vec::<f32>::try_from(tensor.to_kind(Kind::Float).contiguous().view([-1])).unwrap()
}

pub fn max_abs(left: &[f32], right: &[f32]) -> f32 {
    assert_eq!(left.len(), right.len());
    left.iter().zip(right).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max)
}

pub fn largest(values: &[f32]) -> f32 {
    values.iter().fold(0.0, |largest, value| largest.max(value.abs()))
}

/// The logits of every row of one sequence, `[n · V]`.
pub fn logits_of(base: &BaseModel, tokens: &[u32], adapter: Option<&Arc<Adapter>>) -> Vec<f32> {
    let adapters: Vec<Arc<Adapter>> = adapter.cloned().into_iter().collect();
    let pack = Pack::single(tokens, adapter.map(|_| 0));
    let hidden = base.forward(&pack, &adapters).unwrap();
    floats(&base.logits(&hidden, &vec![adapter; tokens.len()]).unwrap())
}

/// What a loss needs per row, and what it gives.
pub type RowLoss<'a> = dyn Fn(usize, f32) -> (f64, f32) + 'a;

/// Runs forward and backward of a pack; returns the loss's sum and the logprobs.
pub fn forward_backward(
    base: &BaseModel,
    pack: &Pack,
    adapters: &[Arc<Adapter>],
    targets: &[u32],
    loss: &RowLoss,
    gradients: &mut [&mut Gradients],
) -> (f64, Vec<f32>) {
    let mut sum = 0.0;
    let (hidden, tape) = base.forward_training(pack, adapters).unwrap();
    let mut fill = |rows: Range<usize>, logprobs: &[f32], derivatives: &mut [f32]| {
        for (place, row) in rows.enumerate() {
            let (value, derivative) = loss(row, logprobs[place]);
            sum += value;
            derivatives[place] = derivative;
        }
    };
    let head = base.head_loss(&hidden, pack, adapters, targets, &mut fill, Some(gradients)).unwrap();
    base.backward(tape, head.d_hidden.unwrap(), pack, adapters, gradients).unwrap();
    (sum, head.logprobs)
}

/// The three datums of a fixture, end to end.
pub struct Datums {
    pub pack: Pack,
    pub targets: Vec<u32>,
    pub weights: Vec<f32>,
    pub advantages: Vec<f32>,
    pub old_logprobs: Vec<f32>,
    pub scored: Vec<f32>,
}

pub fn datums(golden: &Golden, adapter: &str) -> Datums {
    let mut all = Datums {
        pack: Pack::new(),
        targets: vec![],
        weights: vec![],
        advantages: vec![],
        old_logprobs: vec![],
        scored: vec![],
    };
    for j in 0..3 {
        all.pack.push(&golden.ids(&format!("datum.{j}.tokens")), Some(0));
        all.targets.extend(golden.ids(&format!("datum.{j}.target_tokens")));
        all.weights.extend(golden.floats(&format!("datum.{j}.weights")));
        all.advantages.extend(golden.floats(&format!("datum.{j}.advantages")));
        all.old_logprobs.extend(golden.floats(&format!("{adapter}.datum.{j}.logprobs")));
        all.scored.extend(golden.floats(&format!("{adapter}.datum.{j}.scored")));
    }
    all
}
