//! From the factors of the modules here to the tensors of a file.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use safetensors::Dtype;
use tch::Tensor;
use twinkle_core::{Error, Result};

use super::describe::shape_in;
use super::join::{Joined, fuse};
use super::keys::{FactorName, key, module_name};
use super::{CONFIG_FILE, SPEC_KEY, WEIGHTS_FILE};
use crate::lora::layout::{AdapterLayout, LoraModule, Site};
use crate::lora::projection::Projection;
use crate::tensor_file::{Entry, TensorFile, write_error};
use crate::torch::{device_error, to_floats};

pub(super) const QKV: [Projection; 3] = [Projection::DeltaQuery, Projection::DeltaKey, Projection::DeltaValue];

/// How an adapter's files look. For models with neither experts nor linear attention they differ in the head's name only.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// Every projection a module of two dimensions, every expert by itself, `in_proj_qkv` whole: for vLLM, and for PEFT
    /// where it joins experts itself (Qwen3-MoE).
    Peft,
    /// The experts fused as PEFT wraps the parameters of transformers 5, the rest as in [`Format::Peft`]: for PEFT.
    PeftFused,
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
    let filed = filed(format, layout);
    let scale_of_experts = expert_scale(&filed);
    for module in &filed {
        let name = |expert: Option<usize>| match expert {
            None => module.name.clone(),
            Some(expert) => module.name.replacen(".experts.", &format!(".experts.{expert}."), 1),
        };
        match &module.content {
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
                let ratio = scale_of_experts.map_or(1.0, |scale| module.scale / scale);
                for expert in 0..layout.model().expert_count {
                    let (a, b) = (&values[module.a_range()], &values[module.b_range()]);
                    let a = &a[matrix(a_size, module.a_groups, expert)];
                    let b = &b[matrix(b_size, module.b_groups, expert)];
                    let name = name(Some(expert));
                    let (a_shape, b_shape) = (vec![module.rank, module.inputs], vec![module.outputs, module.rank]);
                    tensors.push(Filed::new(key(&name, FactorName::A), a_shape, Cow::Borrowed(a)));
                    tensors.push(Filed::new(key(&name, FactorName::B), b_shape, scaled(b, ratio)));
                }
            }
            Content::Joined(parts) => {
                let slots: Vec<_> = QKV.into_iter().zip(layout.model().qkv_rows).collect();
                let joined = Joined::of(parts, &slots, &values, 0);
                let (inputs, outputs) = (parts[0].inputs, joined.b.len() / joined.rank);
                let (a, b) = (Cow::Owned(joined.a), Cow::Owned(joined.b));
                tensors.push(Filed::new(key(&name(None), FactorName::A), vec![joined.rank, inputs], a));
                tensors.push(Filed::new(key(&name(None), FactorName::B), vec![outputs, joined.rank], b));
            }
            Content::Fused(parts) => {
                let (a, b) = fuse(parts, layout.model().expert_count, &values);
                let (inputs, stacked) = (parts[0].inputs, a.len() / parts[0].inputs);
                let outputs = b.len() / stacked;
                tensors.push(Filed::new(key(&name(None), FactorName::A), vec![stacked, inputs], Cow::Owned(a)));
                tensors.push(Filed::new(key(&name(None), FactorName::B), vec![outputs, stacked], Cow::Owned(b)));
            }
        }
    }
    tensors.sort_by(|one, other| one.entry.name.cmp(&other.entry.name));

    let mut metadata = BTreeMap::from([("format".to_owned(), "pt".to_owned())]);
    // A `B` that took in a scale belongs to another shape than ours.
    if filed.iter().all(|module| has_its_scale(module, scale_of_experts)) {
        let spec = serde_json::to_string(layout.spec())
            .map_err(|error| Error::internal(format!("the adapter's shape could not be encoded: {error}")))?;
        metadata.insert(SPEC_KEY.to_owned(), spec);
    }
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

/// The scale that all experts' modules are given: PEFT joins gate and up to one module, which has one scale.
pub(super) fn expert_scale(filed: &[FiledModule]) -> Option<f64> {
    filed.iter().find(|module| matches!(module.content, Content::PerExpert(_))).map(|module| module.first().scale)
}

/// Whether a module is written with the scale it has, so that no `B` is multiplied by another.
fn has_its_scale(module: &FiledModule, scale_of_experts: Option<f64>) -> bool {
    match &module.content {
        Content::Whole(_) => true,
        Content::PerExpert(module) => scale_of_experts == Some(module.scale),
        Content::Joined(parts) | Content::Fused(parts) => parts.iter().all(|part| part.scale == parts[0].scale),
    }
}

pub(super) fn scaled(values: &[f32], ratio: f64) -> Cow<'_, [f32]> {
    if ratio == 1.0 {
        return Cow::Borrowed(values);
    }
    Cow::Owned(values.iter().map(|value| (f64::from(*value) * ratio) as f32).collect())
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
pub(super) struct FiledModule<'a> {
    /// Its name; of experts without their number.
    pub(super) name: String,
    pub(super) content: Content<'a>,
}

pub(super) enum Content<'a> {
    Whole(&'a LoraModule),
    PerExpert(&'a LoraModule),
    /// Some of the three parts of `in_proj_qkv`.
    Joined(Vec<&'a LoraModule>),
    /// Gate, up or both of all experts, or down.
    Fused(Vec<&'a LoraModule>),
}

impl FiledModule<'_> {
    pub(super) fn first(&self) -> &LoraModule {
        match &self.content {
            Content::Whole(module) | Content::PerExpert(module) => module,
            Content::Joined(parts) | Content::Fused(parts) => parts[0],
        }
    }

    /// What PEFT calls it when it looks for patterns: a wrapped parameter has the parameter's name.
    pub(super) fn described(&self) -> String {
        match &self.content {
            Content::Fused(parts) => {
                let below = self.name.trim_end_matches(".base_layer");
                let is_down = matches!(parts[0].site, Site::Layer(_, Projection::ExpertDown));
                format!("{below}.{}", if is_down { "down_proj" } else { "gate_up_proj" })
            }
            _ => self.name.clone(),
        }
    }
}

pub(super) fn filed(format: Format, layout: &AdapterLayout) -> Vec<FiledModule<'_>> {
    let (is_tinker, is_nested) = (format == Format::Tinker, layout.model().is_nested);
    let mut filed: Vec<FiledModule> = Vec::new();
    for module in layout.modules() {
        let name = module_name(module.site, is_tinker, is_nested);
        let Site::Layer(layer, projection) = module.site else {
            filed.push(FiledModule { name, content: Content::Whole(module) });
            continue;
        };
        let is_qkv = QKV.contains(&projection) && !is_tinker;
        let is_fused = projection.is_expert() && format == Format::PeftFused;
        if !is_qkv && !is_fused {
            let is_alone = projection.is_expert() && format == Format::Peft;
            let content = if is_alone { Content::PerExpert(module) } else { Content::Whole(module) };
            filed.push(FiledModule { name, content });
            continue;
        }
        // The parts of a joined module follow each other.
        match filed.last_mut().map(|last| (last.first().site, &mut last.content)) {
            Some((Site::Layer(found, first), Content::Joined(parts)))
                if is_qkv && found == layer && QKV.contains(&first) =>
            {
                parts.push(module);
            }
            Some((Site::Layer(found, Projection::ExpertGate), Content::Fused(parts)))
                if projection == Projection::ExpertUp && found == layer =>
            {
                parts.push(module);
            }
            _ if is_qkv => {
                let name = name.replace(projection.leaf(), "in_proj_qkv");
                filed.push(FiledModule { name, content: Content::Joined(vec![module]) });
            }
            _ => {
                // PEFT wraps the second parameter around the first.
                let has_both = layout.module_at(Site::Layer(layer, Projection::ExpertDown)).is_some();
                let is_inner = projection != Projection::ExpertDown && has_both;
                let below = name.trim_end_matches(projection.leaf()).trim_end_matches('.');
                let name = if is_inner { format!("{below}.base_layer") } else { below.to_owned() };
                filed.push(FiledModule { name, content: Content::Fused(vec![module]) });
            }
        }
    }
    filed
}
