//! Where each module's `A` and `B` lie in an adapter's flat parameter vector.

use std::ops::Range;

use twinkle_core::call::LoraSpec;
use twinkle_core::{Error, Result};

use crate::config::ModelConfig;

/// A linear map inside a decoder layer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Projection {
    /// `self_attn.q_proj`.
    Query,
    /// `self_attn.k_proj`.
    Key,
    /// `self_attn.v_proj`.
    Value,
    /// `self_attn.o_proj`.
    Output,
    /// `mlp.gate_proj`.
    Gate,
    /// `mlp.up_proj`.
    Up,
    /// `mlp.down_proj`.
    Down,
}

impl Projection {
    /// All projections of a layer, in the order of the flat vector.
    pub const ALL: [Self; 7] = [Self::Query, Self::Key, Self::Value, Self::Output, Self::Gate, Self::Up, Self::Down];

    /// The name below `model.layers.{i}.`.
    #[must_use]
    pub const fn suffix(self) -> &'static str {
        match self {
            Self::Query => "self_attn.q_proj",
            Self::Key => "self_attn.k_proj",
            Self::Value => "self_attn.v_proj",
            Self::Output => "self_attn.o_proj",
            Self::Gate => "mlp.gate_proj",
            Self::Up => "mlp.up_proj",
            Self::Down => "mlp.down_proj",
        }
    }

    /// Whether it belongs to the attention; otherwise to the MLP.
    #[must_use]
    pub const fn is_attention(self) -> bool {
        matches!(self, Self::Query | Self::Key | Self::Value | Self::Output)
    }

    /// `(out, in)` features.
    #[must_use]
    pub fn shape(self, config: &ModelConfig) -> (usize, usize) {
        let (hidden, wide) = (config.hidden_size, config.intermediate_size);
        match self {
            Self::Query => (config.query_width(), hidden),
            Self::Key | Self::Value => (config.kv_width(), hidden),
            Self::Output => (hidden, config.query_width()),
            Self::Gate | Self::Up => (wide, hidden),
            Self::Down => (hidden, wide),
        }
    }

    /// The place in [`Projection::ALL`].
    pub(crate) const fn index(self) -> usize {
        self as usize
    }
}

/// Which linear map of the model an adapter module sits on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Site {
    /// A projection of a decoder layer, counted from 0.
    Layer(usize, Projection),
    /// The output head. On a tied model the delta is added on the output side only.
    Head,
}

/// One adapted linear map.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LoraModule {
    /// Where it sits.
    pub site: Site,
    /// The module's name in the base model: `model.layers.0.self_attn.q_proj`, `lm_head`.
    pub name: String,
    /// Input features; `A` is `[rank, inputs]`.
    pub inputs: usize,
    /// Output features; `B` is `[outputs, rank]`.
    pub outputs: usize,
    /// The rank.
    pub rank: usize,
    /// Where `A` starts in the flat vector; `B` follows it.
    pub offset: usize,
}

impl LoraModule {
    /// Where `A`, row-major, lies in the flat vector.
    #[must_use]
    pub fn a_range(&self) -> Range<usize> {
        self.offset..self.offset + self.rank * self.inputs
    }

    /// Where `B`, row-major, lies in the flat vector.
    #[must_use]
    pub fn b_range(&self) -> Range<usize> {
        let start = self.offset + self.rank * self.inputs;
        start..start + self.outputs * self.rank
    }
}

/// The modules of an adapter and their places in one flat fp32 vector `[P]`:
/// layer by layer in the order of [`Projection::ALL`], the head last, in each module `A` before `B`.
#[derive(Clone, Debug, PartialEq)]
pub struct AdapterLayout {
    spec: LoraSpec,
    modules: Vec<LoraModule>,
    /// Per layer and projection its index in `modules`.
    layers: Vec<[Option<usize>; 7]>,
    head: Option<usize>,
    parameter_count: usize,
}

impl AdapterLayout {
    /// Lays out the adapter `spec` asks for on a model of this shape.
    pub fn new(config: &ModelConfig, spec: &LoraSpec) -> Result<Self> {
        let rank = spec.rank as usize;
        let limit = config.hidden_size.min(4096);
        if rank == 0 || rank > limit {
            return Err(Error::invalid(format!("the adapter's rank is `{rank}`, but must be from 1 to {limit}")));
        }
        if !spec.alpha.is_finite() || spec.alpha <= 0.0 {
            return Err(Error::invalid(format!("the adapter's alpha is `{}`, but must be above 0", spec.alpha)));
        }
        if !(spec.train_attn || spec.train_mlp || spec.train_unembed) {
            return Err(Error::invalid("the adapter trains nothing")
                .hint("turn on at least one of `train_attn`, `train_mlp`, `train_unembed`"));
        }

        let mut layout = Self {
            spec: spec.clone(),
            modules: Vec::new(),
            layers: vec![[None; 7]; config.layer_count],
            head: None,
            parameter_count: 0,
        };
        for layer in 0..config.layer_count {
            for projection in Projection::ALL {
                let wanted = if projection.is_attention() { spec.train_attn } else { spec.train_mlp };
                if !wanted {
                    continue;
                }
                let name = format!("model.layers.{layer}.{}", projection.suffix());
                let index = layout.add(Site::Layer(layer, projection), name, projection.shape(config));
                layout.layers[layer][projection.index()] = Some(index);
            }
        }
        if spec.train_unembed {
            let shape = (config.vocab_size, config.hidden_size);
            layout.head = Some(layout.add(Site::Head, "lm_head".to_owned(), shape));
        }
        Ok(layout)
    }

    fn add(&mut self, site: Site, name: String, (outputs, inputs): (usize, usize)) -> usize {
        let rank = self.spec.rank as usize;
        let module = LoraModule { site, name, inputs, outputs, rank, offset: self.parameter_count };
        self.parameter_count = module.b_range().end;
        self.modules.push(module);
        self.modules.len() - 1
    }

    /// What was asked for.
    #[must_use]
    pub fn spec(&self) -> &LoraSpec {
        &self.spec
    }

    /// The factor `α / r` of every module.
    #[must_use]
    pub fn scale(&self) -> f64 {
        self.spec.alpha / f64::from(self.spec.rank)
    }

    /// The adapted modules, in the order of the flat vector.
    #[must_use]
    pub fn modules(&self) -> &[LoraModule] {
        &self.modules
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
}
