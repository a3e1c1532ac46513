//! Adapters in the formats of PEFT and Tinker, and which modules PEFT's rules choose.

mod common;

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use common::{fixture, floats, max_abs};
use serde_json::{Value, json};
use tch::{Device, Tensor};
use twinkle_core::call::{ExpertFactors, LoraSpec, ModuleNames, Targets};
use twinkle_nn::Projection::{Key, Query, Value as ValueRows};
use twinkle_nn::peft::Format;
use twinkle_nn::{AdapterLayout, ModelConfig, Site, peft};

/// Every model of the fixtures: dense, with experts, with linear attention, nested.
const MODELS: [&str; 8] =
    ["llama3", "llama3_tied", "qwen2", "qwen3_moe", "qwen3_moe_mixed", "qwen3_5", "qwen3_5_vl", "qwen3_5_moe"];
const ADAPTERS: [&str; 3] = ["attn_mlp", "rslora", "tinker"];

/// An adapter with its layout.
struct Known {
    layout: AdapterLayout,
    flat: Tensor,
}

fn read(folder: &Path, config: &ModelConfig) -> Known {
    let (spec, flat) = peft::read(folder, config).unwrap_or_else(|error| panic!("{}: {error}", folder.display()));
    Known { layout: AdapterLayout::new(config, &spec).unwrap(), flat }
}

/// `s · B · A` of every matrix that is adapted: what the adapter is, however it is written.
fn deltas(known: &Known) -> BTreeMap<String, Vec<f32>> {
    let flat = floats(&known.flat);
    let mut deltas = BTreeMap::new();
    for module in known.layout.modules() {
        let tensor = |range: std::ops::Range<usize>, groups: usize, rows: usize| {
            Tensor::from_slice(&flat[range]).view([groups as i64, rows as i64, -1])
        };
        let a = tensor(module.a_range(), module.a_groups, module.rank);
        let b = tensor(module.b_range(), module.b_groups, module.outputs);
        deltas.insert(module.name.clone(), floats(&(b.matmul(&a) * module.scale)));
    }
    deltas
}

fn assert_same_deltas(one: &Known, other: &Known, what: &str) {
    let (one, other) = (deltas(one), deltas(other));
    assert_eq!(one.keys().collect::<Vec<_>>(), other.keys().collect::<Vec<_>>(), "{what}");
    for (name, delta) in &one {
        let largest = common::largest(delta);
        // One expert's matrix stands for all where both factors are shared by none.
        let error = max_abs(delta, &other[name]);
        assert!(error <= 1e-6 * largest.max(1e-6), "{what} {name}: off by {error} of {largest}");
    }
}

fn config_of(folder: &Path) -> Value {
    serde_json::from_slice(&fs::read(folder.join("adapter_config.json")).unwrap()).unwrap()
}

/// Every tensor's key with its shape.
fn shapes_in(folder: &Path) -> BTreeMap<String, Vec<usize>> {
    let bytes = fs::read(folder.join("adapter_model.safetensors")).unwrap();
    let file = safetensors::SafeTensors::deserialize(&bytes).unwrap();
    file.iter().map(|(name, view)| (name.to_owned(), view.shape().to_vec())).collect()
}

/// Writes the weights again without what only we understand.
fn forget_the_spec(folder: &Path) {
    let path = folder.join("adapter_model.safetensors");
    let bytes = fs::read(&path).unwrap();
    let file = safetensors::SafeTensors::deserialize(&bytes).unwrap();
    let plain = safetensors::serialize(file.iter().map(|(name, view)| (name.to_owned(), view)), None).unwrap();
    fs::write(path, plain).unwrap();
}

#[test]
fn every_format_gives_back_the_very_numbers() {
    for model in MODELS {
        let config = ModelConfig::read(&fixture(model)).unwrap();
        for adapter in ADAPTERS {
            let known = read(&fixture(model).join(adapter), &config);
            for format in [Format::Peft, Format::PeftFused, Format::Tinker] {
                let what = format!("{model} {adapter} {format:?}");
                let folder = tempfile::tempdir().unwrap();
                peft::write_as(format, folder.path(), &known.layout, &known.flat, "a/base").unwrap();
                let again = read(folder.path(), &config);
                // PEFT has one scale for gate and up of experts, which this adapter has two for: one `B` takes it in.
                if adapter == "rslora" && config.moe.is_some() && format != Format::Tinker {
                    assert_same_deltas(&known, &again, &what);
                    continue;
                }
                assert_eq!(known.layout, again.layout, "{what}");
                assert_eq!(floats(&known.flat), floats(&again.flat), "{what}");
                let as_asked = peft::read_as(folder.path(), &config, &known.layout).unwrap();
                assert_eq!(floats(&known.flat), floats(&as_asked), "{what}");
            }
        }
    }
}

#[test]
fn every_format_says_the_same_to_a_reader_that_knows_nothing_of_us() {
    for model in MODELS {
        let config = ModelConfig::read(&fixture(model)).unwrap();
        for adapter in ADAPTERS {
            let known = read(&fixture(model).join(adapter), &config);
            for format in [Format::Peft, Format::PeftFused, Format::Tinker] {
                let folder = tempfile::tempdir().unwrap();
                peft::write_as(format, folder.path(), &known.layout, &known.flat, "a/base").unwrap();
                forget_the_spec(folder.path());
                let mut again = read(folder.path(), &config);
                if format != Format::Tinker {
                    again = as_laid_out(again, &known.layout, folder.path(), &config);
                }
                assert_same_deltas(&known, &again, &format!("{model} {adapter} {format:?}"));
            }
        }
    }
}

/// With each expert a module, nothing is shared: the layout that was written is taken where the function is the same.
fn as_laid_out(again: Known, layout: &AdapterLayout, folder: &Path, config: &ModelConfig) -> Known {
    if again.layout.spec().expert_factors == layout.spec().expert_factors {
        return again;
    }
    let flat = peft::read_as(folder, config, layout).unwrap();
    Known { layout: layout.clone(), flat }
}

#[test]
fn what_was_written_twice_is_the_same_bytes() {
    let config = ModelConfig::read(&fixture("qwen3_5_moe")).unwrap();
    let known = read(&fixture("qwen3_5_moe").join("tinker"), &config);
    let bytes = || {
        let folder = tempfile::tempdir().unwrap();
        peft::write(folder.path(), &known.layout, &known.flat, "a/base").unwrap();
        fs::read(folder.path().join("adapter_model.safetensors")).unwrap()
    };
    assert!(bytes() == bytes());
}

#[test]
fn experts_of_an_adapter_that_begins_here_share_the_side_that_all_of_them_see() {
    let config = ModelConfig::read(&fixture("qwen3_moe")).unwrap();
    let experts = config.moe.as_ref().unwrap().expert_count;
    let used = config.moe.as_ref().unwrap().experts_per_token;
    let spec = LoraSpec { rank: 8, ..LoraSpec::default() };
    let layout = AdapterLayout::new(&config, &spec).unwrap();
    let module =
        |leaf: &str| layout.modules().iter().find(|module| module.name.ends_with(&format!("experts.{leaf}"))).unwrap();
    let (gate, down) = (module("gate_proj"), module("down_proj"));
    assert_eq!((gate.a_groups, gate.b_groups), (1, experts));
    assert_eq!((down.a_groups, down.b_groups), (experts, 1));
    assert_eq!(gate.rank, 8 / used);
    assert!((gate.scale - 4.0).abs() < 1e-12, "the scale is that of the whole rank, not {}", gate.scale);
    let apart = LoraSpec { expert_factors: ExpertFactors::PerExpert, expert_rank: Some(3), ..spec };
    let layout = AdapterLayout::new(&config, &apart).unwrap();
    let gate = layout.modules().iter().find(|module| module.name.ends_with("experts.gate_proj")).unwrap();
    assert_eq!((gate.a_groups, gate.b_groups, gate.rank), (experts, experts, 3));
    assert_eq!(gate.a_shape(), [experts, 3, config.hidden_size]);
}

#[test]
fn an_export_for_peft_has_two_dimensions_everywhere_and_the_names_of_the_checkpoint() {
    let config = ModelConfig::read(&fixture("qwen3_5_moe")).unwrap();
    let layout = AdapterLayout::new(&config, &LoraSpec { rank: 8, ..LoraSpec::default() }).unwrap();
    let folder = tempfile::tempdir().unwrap();
    peft::write_as(Format::Peft, folder.path(), &layout, &layout.initialise(Device::Cpu), "a/base").unwrap();
    let shapes = shapes_in(folder.path());
    assert!(shapes.values().all(|shape| shape.len() == 2));
    let below = "base_model.model.model.language_model.layers";
    assert!(shapes.contains_key(&format!("{below}.0.mlp.experts.5.down_proj.lora_B.weight")));
    assert!(shapes.contains_key(&format!("{below}.0.mlp.shared_expert.gate_proj.lora_A.weight")));
    assert!(shapes.contains_key(&format!("{below}.1.linear_attn.in_proj_qkv.lora_A.weight")));
    assert!(shapes.contains_key("base_model.model.lm_head.lora_A.weight"));
    let written = config_of(folder.path());
    // Of three parts with an `A` each; the scale stays.
    assert_eq!(written["rank_pattern"]["in_proj_qkv"], json!(24));
    let folder = tempfile::tempdir().unwrap();
    peft::write_as(Format::Tinker, folder.path(), &layout, &layout.initialise(Device::Cpu), "a/base").unwrap();
    let shapes = shapes_in(folder.path());
    assert_eq!(shapes[&format!("{below}.0.mlp.experts.w1.lora_A.weight")][0], 1);
    assert!(shapes.contains_key(&format!("{below}.1.linear_attn.in_proj_q.lora_A.weight")));
    assert!(shapes.contains_key("base_model.model.model.language_model.unembed_tokens.lora_B.weight"));
}

/// The names of the modules that a request adapts.
fn chosen(model: &str, spec: &LoraSpec) -> Vec<String> {
    let config = ModelConfig::read(&fixture(model)).unwrap();
    let layout = AdapterLayout::new(&config, spec).unwrap();
    layout.modules().iter().map(|module| module.name.clone()).collect()
}

fn targets(modules: ModuleNames, exclude: Option<ModuleNames>, layers: Option<Vec<u32>>) -> LoraSpec {
    LoraSpec { rank: 4, targets: Some(Targets { modules, exclude, layers }), ..LoraSpec::default() }
}

fn suffixes(names: &[&str]) -> ModuleNames {
    ModuleNames::Suffixes(names.iter().map(|name| (*name).to_owned()).collect())
}

fn pattern(text: &str) -> ModuleNames {
    ModuleNames::Pattern(text.to_owned())
}

#[test]
fn a_list_matches_whole_ends_of_names() {
    let found = chosen("llama3", &targets(suffixes(&["q_proj", "layers.1.mlp.up_proj"]), None, None));
    let expected = ["model.layers.0.self_attn.q_proj", "model.layers.1.self_attn.q_proj", "model.layers.1.mlp.up_proj"];
    assert_eq!(found, expected);
    let config = ModelConfig::read(&fixture("llama3")).unwrap();
    // Only after a dot.
    let error = AdapterLayout::new(&config, &targets(suffixes(&["proj"]), None, None)).unwrap_err();
    assert!(error.message.contains("match no module"), "{error}");
    let head = chosen("llama3", &targets(suffixes(&["lm_head"]), None, None));
    assert_eq!(head, ["lm_head"]);
}

#[test]
fn a_pattern_matches_whole_names() {
    let found = chosen("llama3", &targets(pattern(r".*\.0\.self_attn\.(q|v)_proj"), None, None));
    assert_eq!(found, ["model.layers.0.self_attn.q_proj", "model.layers.0.self_attn.v_proj"]);
    let config = ModelConfig::read(&fixture("llama3")).unwrap();
    assert!(AdapterLayout::new(&config, &targets(pattern("q_proj"), None, None)).is_err());
    let error = AdapterLayout::new(&config, &targets(pattern("(?=x)"), None, None)).unwrap_err();
    assert!(error.message.contains("regular expression"), "{error}");
}

#[test]
fn modules_are_left_out_and_layers_chosen_as_in_peft() {
    let q_and_v = || suffixes(&["q_proj", "v_proj"]);
    let found = chosen("llama3", &targets(q_and_v(), Some(suffixes(&["layers.0.self_attn.q_proj"])), None));
    let expected =
        ["model.layers.0.self_attn.v_proj", "model.layers.1.self_attn.q_proj", "model.layers.1.self_attn.v_proj"];
    assert_eq!(found, expected);
    let found = chosen("llama3", &targets(q_and_v(), Some(pattern(r".*\.q_proj")), Some(vec![1])));
    assert_eq!(found, ["model.layers.1.self_attn.v_proj"]);
    let found = chosen("llama3", &targets(pattern(r".*q_proj"), None, Some(vec![1])));
    assert_eq!(found.len(), 2, "beside a pattern, layers are not heeded");
}

#[test]
fn all_linear_is_every_projection_but_head_and_routers() {
    let all = chosen("qwen3_5_moe", &targets(pattern("all-linear"), None, None));
    let switches = LoraSpec { rank: 4, train_unembed: false, ..LoraSpec::default() };
    assert_eq!(all, chosen("qwen3_5_moe", &switches));
    for part in ["experts.gate_proj", "shared_expert.down_proj", "in_proj_v", "in_proj_a", "self_attn.o_proj"] {
        assert!(all.iter().any(|name| name.ends_with(part)), "{part}");
    }
    assert!(!all.iter().any(|name| name.ends_with("mlp.gate") || name.ends_with("shared_expert_gate")));
}

#[test]
fn names_of_other_layouts_choose_what_they_mean_here() {
    let found = chosen("qwen3_5_moe", &targets(suffixes(&["in_proj_qkv"]), None, None));
    assert!(found.iter().all(|name| name.contains(".in_proj_")) && found.len() == 3, "{found:?}");
    let found =
        chosen("qwen3_5_moe", &targets(pattern(r"model\.language_model\..*\.experts\.gate_up_proj"), None, None));
    assert!(found.iter().all(|name| name.ends_with("experts.gate_proj") || name.ends_with("experts.up_proj")));
    let found = chosen("qwen3_moe", &targets(pattern(r".*\.experts\.\d+\.down_proj"), None, None));
    assert!(!found.is_empty() && found.iter().all(|name| name.ends_with("experts.down_proj")));
    let config = ModelConfig::read(&fixture("qwen3_moe")).unwrap();
    let error = AdapterLayout::new(&config, &targets(suffixes(&["experts.0.down_proj"]), None, None)).unwrap_err();
    assert!(error.message.contains("experts"), "{error}");
}

#[test]
fn ranks_and_alphas_follow_the_first_pattern_that_matches() {
    let config = ModelConfig::read(&fixture("llama3")).unwrap();
    let spec = LoraSpec {
        rank: 4,
        alpha: 8.0,
        use_rslora: true,
        rank_pattern: vec![(r"layers\.1\.self_attn\.q_proj".to_owned(), 9), ("q_proj".to_owned(), 2)],
        alpha_pattern: vec![("(k|q)_proj".to_owned(), 3.0)],
        ..LoraSpec::default()
    };
    let layout = AdapterLayout::new(&config, &spec).unwrap();
    let of = |layer, projection| &layout.modules()[layout.module_at(Site::Layer(layer, projection)).unwrap()];
    for (layer, projection, rank, alpha) in
        [(0, Query, 2, 3.0), (1, Query, 9, 3.0), (1, Key, 4, 3.0), (1, ValueRows, 4, 8.0)]
    {
        let module = of(layer, projection);
        assert_eq!(module.rank, rank);
        assert!((module.scale - alpha / (rank as f64).sqrt()).abs() < 1e-12);
    }
}

#[test]
fn a_joint_module_of_linear_attention_is_cut_and_joined_again() {
    let config = ModelConfig::read(&fixture("qwen3_5")).unwrap();
    // PEFT has one `A` for queries, keys and values, which no part's rank is added for.
    let known = read(&fixture("qwen3_5").join("attn_mlp"), &config);
    let folder = tempfile::tempdir().unwrap();
    peft::write_as(Format::Peft, folder.path(), &known.layout, &known.flat, "a/base").unwrap();
    assert_eq!(shapes_in(folder.path()), shapes_in(&fixture("qwen3_5").join("attn_mlp")));
    assert_eq!(config_of(folder.path())["rank_pattern"], json!({}));
}

#[test]
fn a_description_that_was_changed_by_hand_is_believed() {
    let config = ModelConfig::read(&fixture("qwen2")).unwrap();
    let known = read(&fixture("qwen2").join("attn_mlp"), &config);
    let folder = tempfile::tempdir().unwrap();
    peft::write(folder.path(), &known.layout, &known.flat, "a/base").unwrap();
    let mut written = config_of(folder.path());
    written["lora_alpha"] = json!(2);
    fs::write(folder.path().join("adapter_config.json"), written.to_string()).unwrap();
    let again = read(folder.path(), &config);
    assert!((again.layout.modules()[0].scale - 0.5).abs() < 1e-12);
}
