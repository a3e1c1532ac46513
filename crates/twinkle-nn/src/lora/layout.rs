//! Where each module's `A` and `B` lie in an adapter's flat parameter vector.

use std::ops::Range;

use twinkle_core::call::{ExpertFactors, LoraSpec};
use twinkle_core::{Error, Result};

use super::projection::Projection;
use super::targets::Rules;
use crate::config::ModelConfig;

/// Which linear map of the model an adapter module sits on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Site {
    /// A projection of a decoder layer, counted from 0.
    Layer(usize, Projection),
    /// The output head. On a tied model the delta is added on the output side only.
    Head,
}

/// One adapted linear map, or one of every expert's.
#[derive(Clone, Debug, PartialEq)]
pub struct LoraModule {
    /// Where it sits.
    pub site: Site,
    /// The module's name in the base model: `model.layers.0.self_attn.q_proj`, `lm_head`.
    pub name: String,
    /// Input features; `A` is `[rank, inputs]`, of experts `[a_groups, rank, inputs]`.
    pub inputs: usize,
    /// Output features; `B` is `[outputs, rank]`, of experts `[b_groups, outputs, rank]`.
    pub outputs: usize,
    /// The rank.
    pub rank: usize,
    /// What `B A x` is multiplied by.
    pub scale: f64,
    /// How many `A` there are: 1, or one per expert.
    pub a_groups: usize,
    /// How many `B` there are: 1, or one per expert.
    pub b_groups: usize,
    /// Where `A` starts in the flat vector; `B` follows it.
    pub offset: usize,
}

impl LoraModule {
    /// Where `A`, row-major, lies in the flat vector.
    #[must_use]
    pub fn a_range(&self) -> Range<usize> {
        self.offset..self.offset + self.a_groups * self.rank * self.inputs
    }

    /// Where `B`, row-major, lies in the flat vector.
    #[must_use]
    pub fn b_range(&self) -> Range<usize> {
        let start = self.a_range().end;
        start..start + self.b_groups * self.outputs * self.rank
    }

    /// Whether the factors have the experts as their first dimension.
    #[must_use]
    pub fn is_expert(&self) -> bool {
        matches!(self.site, Site::Layer(_, projection) if projection.is_expert())
    }

    /// The shape of `A`: `[rank, inputs]`, of experts `[a_groups, rank, inputs]`.
    #[must_use]
    pub fn a_shape(&self) -> Vec<usize> {
        if self.is_expert() { vec![self.a_groups, self.rank, self.inputs] } else { vec![self.rank, self.inputs] }
    }

    /// The shape of `B`: `[outputs, rank]`, of experts `[b_groups, outputs, rank]`.
    #[must_use]
    pub fn b_shape(&self) -> Vec<usize> {
        if self.is_expert() { vec![self.b_groups, self.outputs, self.rank] } else { vec![self.outputs, self.rank] }
    }
}

/// The modules of an adapter and their places in one flat fp32 vector `[P]`:
/// layer by layer in the order of [`Projection::ALL`], the head last, in each module `A` before `B`.
#[derive(Clone, Debug, PartialEq)]
pub struct AdapterLayout {
    spec: LoraSpec,
    modules: Vec<LoraModule>,
    /// Per layer and projection its index in `modules`.
    layers: Vec<[Option<usize>; Projection::COUNT]>,
    head: Option<usize>,
    parameter_count: usize,
    model: ModelFacts,
}

/// What the files of an adapter depend on besides its modules.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct ModelFacts {
    /// Whether the text model's names have another model around them.
    pub(super) is_nested: bool,
    /// Experts per layer; 0 without.
    pub(super) expert_count: usize,
    /// Rows of queries, keys and values in `linear_attn.in_proj_qkv`.
    pub(super) qkv_rows: [usize; 3],
    /// Modules that could be adapted and are not.
    pub(super) left_out: Vec<Site>,
}

impl AdapterLayout {
    /// The layout of an adapter that changes nothing: of a run that trains all weights itself.
    #[must_use]
    pub fn without_modules(config: &ModelConfig) -> Self {
        Self {
            spec: LoraSpec::default(),
            modules: Vec::new(),
            layers: vec![[None; Projection::COUNT]; config.layer_count],
            head: None,
            parameter_count: 0,
            model: ModelFacts {
                is_nested: config.nested,
                expert_count: config.moe.as_ref().map_or(0, |moe| moe.expert_count),
                qkv_rows: [Projection::DeltaQuery, Projection::DeltaKey, Projection::DeltaValue]
                    .map(|part| part.shape(config).0),
                left_out: Vec::new(),
            },
        }
    }

    /// Lays out the adapter `spec` asks for on a model of this shape.
    pub fn new(config: &ModelConfig, spec: &LoraSpec) -> Result<Self> {
        let rules = Rules::new(config, spec)?;
        let mut layout = Self { spec: spec.clone(), ..Self::without_modules(config) };
        for layer in 0..config.layer_count {
            for projection in Projection::of_layer(config, layer) {
                let site = Site::Layer(layer, projection);
                if rules.wants(site)? {
                    let index = layout.add(config, &rules, site)?;
                    layout.layers[layer][projection.index()] = Some(index);
                } else {
                    layout.model.left_out.push(site);
                }
            }
        }
        if rules.wants(Site::Head)? {
            layout.head = Some(layout.add(config, &rules, Site::Head)?);
        }
        if layout.modules.is_empty() {
            return Err(Error::invalid("the adapter's targets match no module of the model")
                .hint("targets are the ends of names such as `model.layers.0.self_attn.q_proj`, a regular expression that matches the whole name, or `all-linear`"));
        }
        Ok(layout)
    }

    fn add(&mut self, config: &ModelConfig, rules: &Rules, site: Site) -> Result<usize> {
        let (outputs, inputs) = match site {
            Site::Layer(_, projection) => projection.shape(config),
            Site::Head => (config.vocab_size, config.hidden_size),
        };
        let (a_groups, b_groups) = self.groups(config, site);
        let (rank, scale) = rules.rank_and_scale(site)?;
        let name = site_name(site);
        let module =
            LoraModule { site, name, inputs, outputs, rank, scale, a_groups, b_groups, offset: self.parameter_count };
        self.parameter_count = module.b_range().end;
        self.modules.push(module);
        Ok(self.modules.len() - 1)
    }

    /// How many `A` and how many `B` a module has.
    fn groups(&self, config: &ModelConfig, site: Site) -> (usize, usize) {
        let Site::Layer(_, projection) = site else { return (1, 1) };
        let experts = config.moe.as_ref().map_or(1, |moe| moe.expert_count);
        match (projection, self.spec.expert_factors) {
            (projection, _) if !projection.is_expert() => (1, 1),
            (_, ExpertFactors::PerExpert) => (experts, experts),
            // All experts read the same input and add to the same output: that side is what they share.
            (Projection::ExpertDown, ExpertFactors::Shared) => (experts, 1),
            (_, ExpertFactors::Shared) => (1, experts),
        }
    }

    /// What was asked for.
    #[must_use]
    pub fn spec(&self) -> &LoraSpec {
        &self.spec
    }

    /// The adapted modules, in the order of the flat vector.
    #[must_use]
    pub fn modules(&self) -> &[LoraModule] {
        &self.modules
    }

    pub(super) fn model(&self) -> &ModelFacts {
        &self.model
    }

    /// How many numbers the flat vector has, `P`.
    #[must_use]
    pub fn parameter_count(&self) -> usize {
        self.parameter_count
    }

    /// The index in [`AdapterLayout::modules`] of the module at `site`, if it is adapted.
    #[must_use]
    pub fn module_at(&self, site: Site) -> Option<usize> {
        match site {
            Site::Layer(layer, projection) => self.layers.get(layer)?[projection.index()],
            Site::Head => self.head,
        }
    }

    /// Whether anything in decoder layer `layer` is adapted.
    #[must_use]
    pub fn adapts_layer(&self, layer: usize) -> bool {
        self.layers.get(layer).is_some_and(|projections| projections.iter().any(Option::is_some))
    }
}

/// The name of the module at `site`: `model.layers.0.self_attn.q_proj`, `lm_head`.
pub(super) fn site_name(site: Site) -> String {
    match site {
        Site::Layer(layer, projection) => format!("model.layers.{layer}.{}", projection.suffix()),
        Site::Head => "lm_head".to_owned(),
    }
}
