//! Adapters on disk: `adapter_config.json` and `adapter_model.safetensors`.
//!
//! Read are the layouts of PEFT (every projection a module, with each expert by itself or with fused experts) and of
//! Tinker (experts stacked, `in_proj_qkv` in three parts, the head as `unembed_tokens`). Written is one of [`Format`].
//! [`keys`] knows the names, [`factors`] cuts the numbers and [`join`] joins them, [`settings`] is the description that is
//! read and [`describe`] makes one.
#![expect(clippy::float_cmp, reason = "scales are equal or not: those of a file are to be the very numbers")]

mod describe;
mod factors;
mod join;
mod keys;
mod settings;
mod write;

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;

use safetensors::tensor::TensorView;
use safetensors::{Dtype, SafeTensors};
use serde_json::Value;
use tch::Tensor;
use twinkle_core::call::{ExpertFactors, LoraSpec, ModuleNames, Targets};
use twinkle_core::{Error, Result};

use self::factors::{Pair, Raw, by_site, place_into};
use self::settings::Settings;
pub use self::write::{Format, write, write_as};
use super::layout::{AdapterLayout, Site, site_name};
use super::projection::Projection;
use super::targets::{Rules, divisor};
use crate::config::{ModelConfig, read_json};

const CONFIG_FILE: &str = "adapter_config.json";
const WEIGHTS_FILE: &str = "adapter_model.safetensors";
/// In the metadata of the weights' file: the [`LoraSpec`], which PEFT's settings cannot express in full.
const SPEC_KEY: &str = "twinkle_lora";

/// Reads an adapter of any format. Returns its shape and its flat fp32 parameters `[P]` on the CPU.
pub fn read(directory: &Path, config: &ModelConfig) -> Result<(LoraSpec, Tensor)> {
    let settings = Settings::read(directory)?;
    let bytes = read_weights(directory)?;
    let file = parse(directory, &bytes)?;
    if let Some(spec) = stored_spec(&bytes) {
        let layout = AdapterLayout::new(config, &spec)?;
        // Whoever changed the description by hand means the description.
        if describe::shapes(&layout).iter().any(|shape| shape.agrees_with(&settings)) {
            let flat = assemble(directory, &layout, by_site(tensors(&file, config)?, config, Some(&layout))?)?;
            return Ok((spec, flat));
        }
    }
    let pairs = by_site(tensors(&file, config)?, config, None)?;
    let spec = spec_of(&pairs, &settings, config)?;
    let layout = AdapterLayout::new(config, &spec)?;
    Ok((spec, assemble(directory, &layout, pairs)?))
}

/// Reads an adapter whose shape is known. Modules that it lacks are zero, which changes nothing they are added to.
pub fn read_as(directory: &Path, config: &ModelConfig, layout: &AdapterLayout) -> Result<Tensor> {
    Settings::read(directory)?;
    let bytes = read_weights(directory)?;
    let file = parse(directory, &bytes)?;
    assemble(directory, layout, by_site(tensors(&file, config)?, config, Some(layout))?)
}

/// The base model that an adapter's description names; empty if it names none.
pub fn base_model(directory: &Path) -> Result<String> {
    let settings = read_json(&directory.join(CONFIG_FILE))?;
    Ok(settings.get("base_model_name_or_path").and_then(Value::as_str).unwrap_or_default().to_owned())
}

fn read_weights(directory: &Path) -> Result<Vec<u8>> {
    let path = directory.join(WEIGHTS_FILE);
    fs::read(&path).map_err(|error| Error::invalid(format!("cannot read `{}`: {error}", path.display())))
}

fn parse<'a>(directory: &Path, bytes: &'a [u8]) -> Result<SafeTensors<'a>> {
    SafeTensors::deserialize(bytes).map_err(|error| {
        Error::invalid(format!("`{}` is damaged or cut off: {error}", directory.join(WEIGHTS_FILE).display()))
    })
}

/// The spec in the file's metadata, if we wrote it.
fn stored_spec(bytes: &[u8]) -> Option<LoraSpec> {
    let (_, header) = SafeTensors::read_metadata(bytes).ok()?;
    serde_json::from_str(header.metadata().as_ref()?.get(SPEC_KEY)?).ok()
}

fn tensors(file: &SafeTensors, config: &ModelConfig) -> Result<BTreeMap<(keys::Place, keys::FactorName), Raw>> {
    let mut tensors = BTreeMap::new();
    for (key, view) in file.iter() {
        let values = floats(key, &view)?;
        if tensors.insert(keys::parse(key, config)?, Raw { shape: view.shape().to_vec(), values }).is_some() {
            return Err(Error::invalid(format!("the adapter has the tensor `{key}` twice")));
        }
    }
    Ok(tensors)
}

fn assemble(directory: &Path, layout: &AdapterLayout, mut pairs: BTreeMap<Site, Pair>) -> Result<Tensor> {
    let mut flat = vec![0.0_f32; layout.parameter_count()];
    for module in layout.modules() {
        if let Some(pair) = pairs.remove(&module.site) {
            place_into(module, &pair, &mut flat)?;
        }
    }
    if let Some((site, _)) = pairs.first_key_value() {
        return Err(Error::invalid(format!(
            "the adapter has factors for `{}`, which its description does not name",
            site_name(*site)
        )));
    }
    if flat.iter().any(|value| !value.is_finite()) {
        return Err(Error::invalid(format!(
            "`{}` holds numbers that are not finite",
            directory.join(WEIGHTS_FILE).display()
        )));
    }
    Ok(Tensor::from_slice(&flat))
}

/// What these modules are as a whole: Tinker's three switches if they say it, else a list of names.
fn spec_of(pairs: &BTreeMap<Site, Pair>, settings: &Settings, config: &ModelConfig) -> Result<LoraSpec> {
    let nominal = settings.spec();
    let rules = Rules::new(config, &nominal)?;
    let mut modules = Vec::with_capacity(pairs.len());
    for (site, pair) in pairs {
        let wanted = rules.nominal(*site)?;
        if pair.is_peft && wanted.rank as usize != pair.file_rank {
            return Err(Error::invalid(format!(
                "the adapter on `{}` has rank `{}`, but `{CONFIG_FILE}` says `{}`: their shapes do not fit",
                site_name(*site),
                pair.file_rank,
                wanted.rank
            )));
        }
        modules.push((*site, pair.rank() as u32, wanted.scale));
    }
    let touches = |wanted: fn(Projection) -> bool| {
        pairs.keys().any(|site| matches!(site, Site::Layer(_, projection) if wanted(*projection)))
    };
    let of_experts = pairs.iter().filter(|(site, _)| matches!(site, Site::Layer(_, found) if found.is_expert()));
    let is_shared = |(site, pair): (&Site, &Pair)| match site {
        Site::Layer(_, Projection::ExpertDown) => pair.b.groups == 1,
        _ => pair.a.groups == 1,
    };
    let switches = LoraSpec {
        rank: settings.rank,
        alpha: settings.alpha,
        seed: 0,
        train_attn: touches(Projection::is_attention),
        train_mlp: touches(|projection| !projection.is_attention()),
        train_unembed: pairs.contains_key(&Site::Head),
        use_rslora: settings.use_rslora,
        expert_rank: of_experts.clone().map(|(_, pair)| pair.rank() as u32).next(),
        expert_factors: if of_experts.clone().count() > 0 && !of_experts.clone().all(is_shared) {
            ExpertFactors::PerExpert
        } else {
            ExpertFactors::Shared
        },
        ..LoraSpec::default()
    };
    // The rank that experts get anyway needs no mention.
    let unmentioned = LoraSpec { expert_rank: None, ..switches.clone() };
    for spec in [&unmentioned, &switches] {
        if computes(spec, &modules, config) {
            return Ok(spec.clone());
        }
    }
    Ok(named(&switches, &modules))
}

/// Whether `spec` asks for exactly these modules with these ranks and scales.
fn computes(spec: &LoraSpec, modules: &[(Site, u32, f64)], config: &ModelConfig) -> bool {
    let Ok(layout) = AdapterLayout::new(config, spec) else { return false };
    let mut found: Vec<_> =
        layout.modules().iter().map(|module| (module.site, module.rank as u32, module.scale)).collect();
    found.sort_by_key(|(site, ..)| *site);
    found == modules
}

/// A spec that names every module, with patterns for ranks and scales that are not the usual ones.
fn named(spec: &LoraSpec, modules: &[(Site, u32, f64)]) -> LoraSpec {
    let mut names = Vec::new();
    let (mut rank_pattern, mut alpha_pattern) = (Vec::new(), Vec::new());
    for (site, rank, scale) in modules {
        let name = site_name(*site);
        let pattern = name.replace('.', r"\.");
        let is_expert = matches!(site, Site::Layer(_, projection) if projection.is_expert());
        // An expert's rank is no pattern's business unless the scale is made of it.
        let takes_share = is_expert && *scale == spec.alpha / divisor(spec.rank, spec.use_rslora);
        let is_usual = if takes_share { spec.expert_rank == Some(*rank) } else { *rank == spec.rank && !is_expert };
        if !is_usual {
            rank_pattern.push((pattern.clone(), *rank));
        }
        let of = if is_usual { spec.rank } else { *rank };
        if *scale != spec.alpha / divisor(of, spec.use_rslora) {
            alpha_pattern.push((pattern, scale * divisor(of, spec.use_rslora)));
        }
        names.push(name);
    }
    let targets = Some(Targets { modules: ModuleNames::Suffixes(names), exclude: None, layers: None });
    LoraSpec { targets, rank_pattern, alpha_pattern, ..spec.clone() }
}

fn floats(key: &str, view: &TensorView) -> Result<Vec<f32>> {
    let data = view.data();
    Ok(match view.dtype() {
        Dtype::F32 => data.as_chunks::<4>().0.iter().map(|bytes| f32::from_le_bytes(*bytes)).collect(),
        Dtype::BF16 => data.as_chunks::<2>().0.iter().map(|bytes| half::bf16::from_le_bytes(*bytes).to_f32()).collect(),
        Dtype::F16 => data.as_chunks::<2>().0.iter().map(|bytes| half::f16::from_le_bytes(*bytes).to_f32()).collect(),
        other => return Err(Error::unsupported(format!("the adapter's tensor `{key}` has dtype {other:?}"))),
    })
}

/// The leaves of `names`, each once, in order.
fn distinct<'a>(names: impl Iterator<Item = &'a str>) -> Vec<String> {
    let mut seen = BTreeSet::new();
    names.filter(|name| seen.insert(*name)).map(str::to_owned).collect()
}
