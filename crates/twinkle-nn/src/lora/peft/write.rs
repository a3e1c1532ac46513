//! From the factors of the modules here to the tensors of a file.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use safetensors::Dtype;
use tch::Tensor;
use twinkle_core::{Error, Result};

use super::keys::{FactorName, key, module_name};
use super::settings::{Described, Shape};
use super::{CONFIG_FILE, SPEC_KEY, WEIGHTS_FILE, distinct};
use crate::lora::layout::{AdapterLayout, LoraModule, Site};
use crate::lora::projection::Projection;
use crate::lora::targets::divisor;
use crate::tensor_file::{Entry, TensorFile, write_error};
use crate::torch::{device_error, to_floats};

const QKV: [Projection; 3] = [Projection::DeltaQuery, Projection::DeltaKey, Projection::DeltaValue];

/// How an adapter's files look. For models with neither experts nor linear attention the two differ in the head's name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// Every projection a module of two dimensions, every expert by itself, `in_proj_qkv` whole: for PEFT and vLLM.
    Peft,
    /// The experts' factors stacked, and shared ones once; `in_proj_qkv` in three parts: for Tinker's own tools.
    Tinker,
}

impl Format {
    /// The format that holds this layout without repeating what experts share or joining what was trained apart.
    fn of(layout: &AdapterLayout) -> Self {
        let is_apart = |module: &LoraModule| match module.site {
            Site::Layer(_, projection) => projection.is_expert() || QKV.contains(&projection),
            Site::Head => false,
        };
        if layout.modules().iter().any(is_apart) { Self::Tinker } else { Self::Peft }
    }
}

/// Writes an adapter, fp32, from its flat parameters `[P]`, in the format that holds it as it is.
pub fn write(directory: &Path, layout: &AdapterLayout, flat: &Tensor, base_model: &str) -> Result<()> {
    write_as(Format::of(layout), directory, layout, flat, base_model)
}

/// Writes an adapter, fp32, from its flat parameters `[P]`.
pub fn write_as(
    format: Format,
    directory: &Path,
    layout: &AdapterLayout,
    flat: &Tensor,
    base_model: &str,
) -> Result<()> {
    let values = to_floats(flat).map_err(device_error)?;
    if values.len() != layout.parameter_count() {
        return Err(Error::internal(format!(
            "an adapter of {} parameters was given {}",
            layout.parameter_count(),
            values.len()
        )));
    }
    let mut tensors = Vec::new();
    for module in filed(format, layout) {
        let name = |expert: Option<usize>| match expert {
            None => module.name.clone(),
            Some(expert) => module.name.replacen(".experts.", &format!(".experts.{expert}."), 1),
        };
        match module.content {
            Content::Whole(module) => {
                let (a, b) = (&values[module.a_range()], &values[module.b_range()]);
                tensors.push(Filed::new(key(&name(None), FactorName::A), module.a_shape(), Cow::Borrowed(a)));
                tensors.push(Filed::new(key(&name(None), FactorName::B), module.b_shape(), Cow::Borrowed(b)));
            }
            Content::PerExpert(module) => {
                let (a_size, b_size) = (module.rank * module.inputs, module.outputs * module.rank);
                let matrix = |size: usize, groups: usize, expert: usize| {
                    let group = if groups == 1 { 0 } else { expert };
                    group * size..(group + 1) * size
                };
                for expert in 0..layout.model().expert_count {
                    let (a, b) = (&values[module.a_range()], &values[module.b_range()]);
                    let a = &a[matrix(a_size, module.a_groups, expert)];
                    let b = &b[matrix(b_size, module.b_groups, expert)];
                    let name = name(Some(expert));
                    let (a_shape, b_shape) = (vec![module.rank, module.inputs], vec![module.outputs, module.rank]);
                    tensors.push(Filed::new(key(&name, FactorName::A), a_shape, Cow::Borrowed(a)));
                    tensors.push(Filed::new(key(&name, FactorName::B), b_shape, Cow::Borrowed(b)));
                }
            }
            Content::Joined(ref parts) => {
                let joined = join(parts, layout.model().qkv_rows, &values);
                let inputs = joined.a.len() / joined.rank;
                let outputs = joined.b.len() / joined.rank;
                let (a, b) = (Cow::Owned(joined.a), Cow::Owned(joined.b));
                tensors.push(Filed::new(key(&name(None), FactorName::A), vec![joined.rank, inputs], a));
                tensors.push(Filed::new(key(&name(None), FactorName::B), vec![outputs, joined.rank], b));
            }
        }
    }
    tensors.sort_by(|one, other| one.entry.name.cmp(&other.entry.name));

    let spec = serde_json::to_string(layout.spec())
        .map_err(|error| Error::internal(format!("the adapter's shape could not be encoded: {error}")))?;
    let metadata = BTreeMap::from([("format".to_owned(), "pt".to_owned()), (SPEC_KEY.to_owned(), spec)]);
    let entries = tensors.iter().map(|tensor| tensor.entry.clone()).collect();
    let mut file = TensorFile::create(&directory.join(WEIGHTS_FILE), &metadata, entries)?;
    for tensor in &tensors {
        file.append(bytemuck::cast_slice(&tensor.values))?;
    }
    file.finish()?;

    let config = serde_json::to_vec_pretty(&shape_in(format, layout, &values).to_json(base_model))
        .map_err(|error| Error::internal(format!("the adapter's description could not be encoded: {error}")))?;
    let path = directory.join(CONFIG_FILE);
    fs::write(&path, config).map_err(|error| write_error(&path, &error))
}

/// A tensor that is to be written.
struct Filed<'a> {
    entry: Entry,
    values: Cow<'a, [f32]>,
}

impl<'a> Filed<'a> {
    fn new(name: String, shape: Vec<usize>, values: Cow<'a, [f32]>) -> Self {
        Self { entry: Entry { name, dtype: Dtype::F32, shape }, values }
    }
}

/// A module as the file has it.
struct FiledModule<'a> {
    /// Its name; of experts without their number.
    name: String,
    content: Content<'a>,
}

enum Content<'a> {
    Whole(&'a LoraModule),
    PerExpert(&'a LoraModule),
    /// Some of the three parts of `in_proj_qkv`.
    Joined(Vec<&'a LoraModule>),
}

impl FiledModule<'_> {
    fn first(&self) -> &LoraModule {
        match &self.content {
            Content::Whole(module) | Content::PerExpert(module) => module,
            Content::Joined(parts) => parts[0],
        }
    }
}

fn filed(format: Format, layout: &AdapterLayout) -> Vec<FiledModule<'_>> {
    let (is_tinker, is_nested) = (format == Format::Tinker, layout.model().is_nested);
    let mut filed: Vec<FiledModule> = Vec::new();
    for module in layout.modules() {
        let name = module_name(module.site, is_tinker, is_nested);
        let content = match module.site {
            Site::Layer(_, projection) if projection.is_expert() && !is_tinker => Content::PerExpert(module),
            Site::Layer(layer, projection) if QKV.contains(&projection) && !is_tinker => {
                // The parts follow each other.
                let is_same_layer = |last: &&mut FiledModule| matches!(last.first().site, Site::Layer(found, first) if found == layer && QKV.contains(&first));
                if let Some(FiledModule { content: Content::Joined(parts), .. }) =
                    filed.last_mut().filter(is_same_layer)
                {
                    parts.push(module);
                    continue;
                }
                let name = name.replace(projection.leaf(), "in_proj_qkv");
                filed.push(FiledModule { name, content: Content::Joined(vec![module]) });
                continue;
            }
            _ => Content::Whole(module),
        };
        filed.push(FiledModule { name, content });
    }
    filed
}

/// Parts of `in_proj_qkv` as one module with the scale of the first.
struct Joined {
    rank: usize,
    a: Vec<f32>,
    b: Vec<f32>,
}

fn join(parts: &[&LoraModule], rows: [usize; 3], values: &[f32]) -> Joined {
    let first = parts[0];
    let a_of = |module: &LoraModule| &values[module.a_range()];
    let all: Vec<Option<&LoraModule>> = QKV
        .iter()
        .map(|wanted| {
            let is_it = |module: &&&LoraModule| matches!(module.site, Site::Layer(_, found) if found == *wanted);
            parts.iter().find(is_it).copied()
        })
        .collect();
    // All of one `A`, as when an adapter came in with one: then no rank is added.
    let has_one_a = is_of_one_a(parts, values);
    let rank = if has_one_a { first.rank } else { parts.iter().map(|part| part.rank).sum() };
    let a = if has_one_a { a_of(first).to_vec() } else { parts.iter().flat_map(|part| a_of(part)).copied().collect() };
    let mut b = Vec::with_capacity(rows.iter().sum::<usize>() * rank);
    let mut column = 0;
    for (part, rows) in all.into_iter().zip(rows) {
        let Some(part) = part else {
            b.extend(std::iter::repeat_n(0.0, rows * rank));
            continue;
        };
        // The file's module has one scale.
        let ratio = (part.scale / first.scale) as f32;
        for row in values[part.b_range()].chunks_exact(part.rank) {
            let mut whole = vec![0.0; rank];
            for (value, found) in whole[column..].iter_mut().zip(row) {
                *value = if part.scale == first.scale { *found } else { found * ratio };
            }
            b.extend(whole);
        }
        if !has_one_a {
            column += part.rank;
        }
    }
    Joined { rank, a, b }
}

fn is_of_one_a(parts: &[&LoraModule], values: &[f32]) -> bool {
    let first = &values[parts[0].a_range()];
    parts.iter().all(|part| values[part.a_range()] == *first)
}

/// Every description with which the files of this layout may have been written.
pub(super) fn shapes(layout: &AdapterLayout) -> [Shape; 3] {
    let joined = |has_one_a: bool| shape(Format::Peft, layout, |_| has_one_a);
    [shape(Format::Tinker, layout, |_| false), joined(false), joined(true)]
}

fn shape_in(format: Format, layout: &AdapterLayout, values: &[f32]) -> Shape {
    shape(format, layout, |parts| is_of_one_a(parts, values))
}

fn shape(format: Format, layout: &AdapterLayout, has_one_a: impl Fn(&[&LoraModule]) -> bool) -> Shape {
    let spec = layout.spec();
    let filed = filed(format, layout);
    let has_experts = filed.iter().any(|module| matches!(module.content, Content::PerExpert(_)));
    // PEFT 0.21 joins the experts again with twice the rank `r`, whatever the patterns say, and knows no rsLoRA there:
    // so `r` is the experts' rank, the others get patterns, and the scale is written out.
    let use_rslora = spec.use_rslora && !has_experts;
    let expert = filed.iter().find(|module| matches!(module.content, Content::PerExpert(_))).map(FiledModule::first);
    let (rank, alpha) = match expert {
        Some(expert) => (expert.rank as u32, expert.scale * divisor(expert.rank as u32, use_rslora)),
        None => (spec.rank, spec.alpha),
    };
    let described: Vec<Described> = filed
        .iter()
        .map(|module| {
            let first = module.first();
            let rank = match &module.content {
                Content::Joined(parts) if !has_one_a(parts) => parts.iter().map(|part| part.rank).sum(),
                // Tinker divides by the rank of the whole adapter, whatever share of it experts have.
                Content::Whole(found) if found.is_expert() && found.scale == usual_scale(layout) => spec.rank as usize,
                _ => first.rank,
            };
            Described { name: module.name.clone(), rank: rank as u32, scale: first.scale }
        })
        .collect();
    Shape::new(rank, alpha, use_rslora, targets(format, layout, &filed), &described)
}

fn usual_scale(layout: &AdapterLayout) -> f64 {
    let spec = layout.spec();
    spec.alpha / divisor(spec.rank, spec.use_rslora)
}

/// The leaves of the adapted modules, or their whole names where a leaf is not adapted everywhere.
fn targets(format: Format, layout: &AdapterLayout, filed: &[FiledModule]) -> Vec<String> {
    let is_tinker = format == Format::Tinker;
    let leaf = |name: &str| name.rsplit('.').next().unwrap_or(name).to_owned();
    let left_out: Vec<String> = layout
        .model()
        .left_out
        .iter()
        .map(|site| match site {
            Site::Layer(_, projection) if QKV.contains(projection) && !is_tinker => "in_proj_qkv".to_owned(),
            site => leaf(&module_name(*site, is_tinker, false)),
        })
        .collect();
    let names: Vec<String> = filed
        .iter()
        .flat_map(|module| {
            let leaf = leaf(&module.name);
            let is_partial = left_out.contains(&leaf);
            match module.content {
                Content::PerExpert(_) if is_partial => (0..layout.model().expert_count)
                    .map(|expert| module.name.replacen(".experts.", &format!(".experts.{expert}."), 1))
                    .collect(),
                _ if is_partial => vec![module.name.clone()],
                _ => vec![leaf],
            }
        })
        .collect();
    let mut names = distinct(names.iter().map(String::as_str));
    // Leaves in the order of the projections, the head last.
    let order = |name: &String| Projection::ALL.iter().position(|projection| projection.leaf() == name.as_str());
    names.sort_by_key(|name| (name == "lm_head" || name == "unembed_tokens", order(name)));
    names
}
