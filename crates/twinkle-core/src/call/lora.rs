//! What a LoRA adapter covers, and with which rank and scale.

use serde::{Deserialize, Serialize};

/// The shape and start of a LoRA adapter (Hu et al. 2021): `y = W x + s · B A x`, `s = alpha / rank`.
///
/// The journal and checkpoints keep it: fields may be added with a default, never renamed.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[expect(clippy::struct_excessive_bools, reason = "three of them are Tinker's, and all are independent of each other")]
pub struct LoraSpec {
    /// Rows of `A`, columns of `B`.
    pub rank: u32,
    /// The numerator of the scale; 32 for Tinker clients unless the operator sets another.
    pub alpha: f64,
    /// Seed of the initial `A`; `B` starts at zero.
    pub seed: u64,
    /// Adapters on the attention projections, those of linear attention among them.
    pub train_attn: bool,
    /// Adapters on the MLP projections, those of experts among them, never on a router.
    pub train_mlp: bool,
    /// An adapter on the output head.
    pub train_unembed: bool,
    /// Whether the scale is `alpha / √rank` (Kalajdzievski 2023).
    #[serde(default, skip_serializing_if = "is_default")]
    pub use_rslora: bool,
    /// Which modules, by PEFT's rules; these then count instead of the three `train_…` fields.
    #[serde(default, skip_serializing_if = "is_default")]
    pub targets: Option<Targets>,
    /// Ranks of modules whose name ends with a pattern, PEFT's `rank_pattern`; the first that matches counts.
    #[serde(default, skip_serializing_if = "is_default")]
    pub rank_pattern: Vec<(String, u32)>,
    /// Alphas of modules whose name ends with a pattern, PEFT's `alpha_pattern`; the first that matches counts.
    #[serde(default, skip_serializing_if = "is_default")]
    pub alpha_pattern: Vec<(String, f64)>,
    /// The rank on experts that no pattern names; `None`: `rank` divided by the experts that a token uses, at least 1.
    /// Their scale stays `alpha / rank`.
    #[serde(default, skip_serializing_if = "is_default")]
    pub expert_rank: Option<u32>,
    /// Which factors the experts of a layer have in common.
    #[serde(default, skip_serializing_if = "is_default")]
    pub expert_factors: ExpertFactors,
    /// All weights are trained instead of an adapter; nothing else counts then.
    #[serde(default, skip_serializing_if = "is_default")]
    pub full: bool,
}

impl Default for LoraSpec {
    /// What a Tinker client gets that names nothing.
    fn default() -> Self {
        Self {
            rank: 32,
            alpha: 32.0,
            seed: 0,
            train_attn: true,
            train_mlp: true,
            train_unembed: true,
            use_rslora: false,
            targets: None,
            rank_pattern: Vec::new(),
            alpha_pattern: Vec::new(),
            expert_rank: None,
            expert_factors: ExpertFactors::default(),
            full: false,
        }
    }
}

/// Which modules are adapted, by the rules of PEFT's `LoraConfig`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Targets {
    /// `target_modules`.
    pub modules: ModuleNames,
    /// `exclude_modules`.
    #[serde(default, skip_serializing_if = "is_default")]
    pub exclude: Option<ModuleNames>,
    /// `layers_to_transform`: with a list of `modules`, only these layers.
    #[serde(default, skip_serializing_if = "is_default")]
    pub layers: Option<Vec<u32>>,
}

/// Names of modules as PEFT understands them.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum ModuleNames {
    /// A module whose dotted name is one of these, or ends with one of them after a dot.
    Suffixes(Vec<String>),
    /// A regular expression that matches the whole name; `all-linear` is every projection but the head.
    Pattern(String),
}

/// Which factors the experts of a layer have in common.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ExpertFactors {
    /// Tinker's: gate and up share `A`, down shares `B`, so that a large number of experts stays affordable.
    #[default]
    Shared,
    /// Each expert has both factors of its own.
    PerExpert,
}

fn is_default<T: Default + PartialEq>(value: &T) -> bool {
    *value == T::default()
}

#[cfg(all(test, feature = "node"))]
mod tests {
    use super::*;

    #[test]
    fn what_was_stored_before_there_were_targets_is_read() {
        let old = r#"{"rank":8,"alpha":32.0,"seed":1,"train_attn":true,"train_mlp":true,"train_unembed":false}"#;
        let spec: LoraSpec = serde_json::from_str(old).unwrap();
        assert_eq!(spec, LoraSpec { rank: 8, seed: 1, train_unembed: false, ..LoraSpec::default() });
        assert_eq!(serde_json::to_string(&spec).unwrap(), old, "and is written as it was");
    }

    #[test]
    fn every_setting_survives_the_store() {
        let spec = LoraSpec {
            use_rslora: true,
            targets: Some(Targets {
                modules: ModuleNames::Suffixes(vec!["q_proj".to_owned()]),
                exclude: Some(ModuleNames::Pattern(r".*\.0\..*".to_owned())),
                layers: Some(vec![1]),
            }),
            rank_pattern: vec![("q_proj".to_owned(), 4)],
            alpha_pattern: vec![("q_proj".to_owned(), 0.1)],
            expert_rank: Some(2),
            expert_factors: ExpertFactors::PerExpert,
            ..LoraSpec::default()
        };
        let bytes = rmp_serde::to_vec_named(&spec).unwrap();
        assert_eq!(rmp_serde::from_slice::<LoraSpec>(&bytes).unwrap(), spec);
    }
}
