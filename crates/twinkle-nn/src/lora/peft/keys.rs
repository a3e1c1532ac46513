//! The names of an adapter's tensors, in every format that is read.

use twinkle_core::{Error, Result};

use crate::config::ModelConfig;
use crate::lora::layout::Site;
use crate::lora::projection::Projection;

/// What every key begins with.
pub(super) const PREFIX: &str = "base_model.model.";

/// What a tensor of an adapter belongs to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Place {
    /// One module, or a projection of all experts in one tensor of three dimensions.
    Module(Site),
    /// One expert's projection.
    Expert(usize, Projection, usize),
    /// `linear_attn.in_proj_qkv` of a layer as one module.
    JointQkv(usize),
    /// The inner of PEFT's two wrappers around the experts of a layer.
    InnerExperts(usize),
    /// The outer of PEFT's two wrappers around the experts of a layer, or the only one.
    OuterExperts(usize),
}

/// The two factors of a module.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum FactorName {
    A,
    B,
}

/// Where the tensor `key` of an adapter's file belongs.
pub(super) fn parse(key: &str, config: &ModelConfig) -> Result<(Place, FactorName)> {
    let unknown = || Error::unsupported(format!("the adapter has a tensor `{key}`, which is not a LoRA factor"));
    let name = key.strip_prefix(PREFIX).and_then(|name| name.strip_suffix(".weight")).ok_or_else(unknown)?;
    let (name, factor) = match (name.strip_suffix(".lora_A"), name.strip_suffix(".lora_B")) {
        (Some(name), _) => (name, FactorName::A),
        (_, Some(name)) => (name, FactorName::B),
        _ => return Err(unknown()),
    };
    let place = place(name, config).ok_or_else(|| {
        Error::unsupported(format!("the adapter has a tensor for `{name}`, which this model cannot adapt"))
    })?;
    Ok((place, factor))
}

fn place(name: &str, config: &ModelConfig) -> Option<Place> {
    // The text model may be nested in another one.
    let name = name.replacen("model.language_model.", "model.", 1).replacen("language_model.model.", "model.", 1);
    if name == "lm_head" || name == "model.unembed_tokens" {
        return Some(Place::Module(Site::Head));
    }
    let (layer, rest) = name.strip_prefix("model.layers.")?.split_once('.')?;
    let layer: usize = layer.parse().ok()?;
    let has = |projection: Projection| Projection::of_layer(config, layer).any(|found| found == projection);
    let place = match rest {
        "linear_attn.in_proj_qkv" if has(Projection::DeltaQuery) => Place::JointQkv(layer),
        "mlp.experts.base_layer" if has(Projection::ExpertGate) => Place::InnerExperts(layer),
        "mlp.experts" if has(Projection::ExpertGate) => Place::OuterExperts(layer),
        _ => {
            let Some(rest) = rest.strip_prefix("mlp.experts.") else {
                let projection = Projection::of_layer(config, layer).find(|projection| projection.suffix() == rest)?;
                return Some(Place::Module(Site::Layer(layer, projection)));
            };
            let (expert, leaf) = match rest.split_once('.') {
                Some((expert, leaf)) => (Some(expert.parse::<usize>().ok()?), leaf),
                None => (None, rest),
            };
            let projection = expert_projection(leaf).filter(|projection| has(*projection))?;
            let count = config.moe.as_ref().map_or(0, |moe| moe.expert_count);
            match expert {
                Some(expert) if expert >= count => return None,
                Some(expert) => Place::Expert(layer, projection, expert),
                None => Place::Module(Site::Layer(layer, projection)),
            }
        }
    };
    Some(place)
}

/// `w1`, `w2` and `w3` are Tinker's names.
fn expert_projection(leaf: &str) -> Option<Projection> {
    match leaf {
        "gate_proj" | "w1" => Some(Projection::ExpertGate),
        "up_proj" | "w3" => Some(Projection::ExpertUp),
        "down_proj" | "w2" => Some(Projection::ExpertDown),
        _ => None,
    }
}

/// The name of the module at `site` in files of PEFT, or of Tinker; of experts without their number.
pub(super) fn module_name(site: Site, is_tinker: bool, is_nested: bool) -> String {
    let model = if is_nested { "model.language_model" } else { "model" };
    match site {
        Site::Head if is_tinker => format!("{model}.unembed_tokens"),
        Site::Head => "lm_head".to_owned(),
        Site::Layer(layer, projection) => {
            let suffix = match projection {
                Projection::ExpertGate if is_tinker => "mlp.experts.w1",
                Projection::ExpertUp if is_tinker => "mlp.experts.w3",
                Projection::ExpertDown if is_tinker => "mlp.experts.w2",
                other => other.suffix(),
            };
            format!("{model}.layers.{layer}.{suffix}")
        }
    }
}

/// The key of a factor of the module `name`.
pub(super) fn key(name: &str, factor: FactorName) -> String {
    format!("{PREFIX}{name}.lora_{factor:?}.weight")
}
