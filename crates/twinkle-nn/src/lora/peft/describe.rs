//! The description of an adapter that is written: ranks, alphas and targets in PEFT's terms.

use super::distinct;
use super::join::is_of_one_a;
use super::keys::module_name;
use super::settings::{Described, Shape};
use super::write::{Content, FiledModule, Format, QKV, expert_scale, filed};
use crate::lora::layout::{AdapterLayout, LoraModule, Site};
use crate::lora::projection::Projection;
use crate::lora::targets::divisor;

/// Every description with which the files of this layout may have been written.
pub(super) fn shapes(layout: &AdapterLayout) -> Vec<Shape> {
    let mut shapes = Vec::new();
    for format in [Format::Tinker, Format::Peft, Format::PeftFused] {
        for has_one_a in [false, true] {
            shapes.push(shape(format, layout, |_| has_one_a));
        }
    }
    shapes
}

pub(super) fn shape_in(format: Format, layout: &AdapterLayout, values: &[f32]) -> Shape {
    shape(format, layout, |parts| is_of_one_a(parts, values))
}

fn shape(format: Format, layout: &AdapterLayout, has_one_a: impl Fn(&[&LoraModule]) -> bool) -> Shape {
    let spec = layout.spec();
    let filed = filed(format, layout);
    let usual_scale = spec.alpha / divisor(spec.rank, spec.use_rslora);
    // PEFT 0.21 joins the experts again with twice the rank `r`, whatever the patterns say, and knows no rsLoRA there:
    // so `r` is the experts' rank, the others get patterns, and the scale is written out.
    let scale_of_experts = expert_scale(&filed);
    let use_rslora = spec.use_rslora && scale_of_experts.is_none();
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
                Content::Joined(parts) | Content::Fused(parts) if !has_one_a(parts) => {
                    parts.iter().map(|part| part.rank).sum()
                }
                // Tinker divides by the rank of the whole adapter, whatever share of it experts have.
                Content::Whole(found) if found.is_expert() && found.scale == usual_scale => spec.rank as usize,
                _ => first.rank,
            };
            let scale = match module.content {
                Content::PerExpert(_) => scale_of_experts.unwrap_or(first.scale),
                _ => first.scale,
            };
            let name = match module.content {
                Content::Whole(found) if is_wrapped(format, found, layout) => format!("{}.weight", module.name),
                _ => module.described(),
            };
            Described { name, rank: rank as u32, scale }
        })
        .collect();
    let (modules, parameters) = targets(format, layout, &filed);
    Shape::new(rank, alpha, use_rslora, (modules, parameters), &described)
}

/// The leaves of the adapted modules, or their whole names where a leaf is not adapted everywhere; and the parameters that
/// PEFT is to wrap.
fn targets(format: Format, layout: &AdapterLayout, filed: &[FiledModule]) -> (Vec<String>, Vec<String>) {
    let is_tinker = format == Format::Tinker;
    let leaf = |name: &str| name.rsplit('.').next().unwrap_or(name).to_owned();
    let left_out: Vec<String> = layout
        .model()
        .left_out
        .iter()
        .filter(|site| !(format == Format::PeftFused && is_expert(**site)))
        .map(|site| match site {
            Site::Layer(_, projection) if QKV.contains(projection) && !is_tinker => "in_proj_qkv".to_owned(),
            site => leaf(&module_name(*site, is_tinker, false)),
        })
        .collect();
    let (mut modules, mut parameters) = (Vec::new(), Vec::new());
    for module in filed {
        let leaf = leaf(&module.name);
        let is_partial = left_out.contains(&leaf);
        match module.content {
            Content::Fused(_) => parameters.push(module.described()),
            Content::Whole(found) if is_wrapped(format, found, layout) => {
                parameters.push(format!("{}.weight", module.name));
            }
            Content::PerExpert(_) if is_partial => modules.extend(
                (0..layout.model().expert_count)
                    .map(|expert| module.name.replacen(".experts.", &format!(".experts.{expert}."), 1)),
            ),
            _ if is_partial => modules.push(module.name.clone()),
            _ => modules.push(leaf),
        }
    }
    let mut modules = distinct(modules.iter().map(String::as_str));
    // Leaves in the order of the projections, the head last.
    let order = |name: &String| Projection::ALL.iter().position(|projection| projection.leaf() == name.as_str());
    modules.sort_by_key(|name| (name == "lm_head" || name == "unembed_tokens", order(name)));
    (modules, distinct(parameters.iter().map(String::as_str)))
}

fn is_expert(site: Site) -> bool {
    matches!(site, Site::Layer(_, projection) if projection.is_expert())
}

/// Whether PEFT is to wrap a module's weight: beside experts PEFT 0.21 takes the names of a dense MLP for the experts' own,
/// unless they name a parameter.
fn is_wrapped(format: Format, module: &LoraModule, layout: &AdapterLayout) -> bool {
    let is_dense = matches!(module.site, Site::Layer(_, Projection::Gate | Projection::Up | Projection::Down));
    is_dense && layout.model().expert_count > 0 && format == Format::PeftFused
}
