//! The linear maps of a decoder layer that an adapter can sit on.

use std::ops::Range;

use crate::config::{DeltaConfig, LayerKind, MixerKind, MlpKind, ModelConfig, MoeConfig};

/// A linear map inside a decoder layer. Routers and the shared expert's gate are none: they are never adapted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Projection {
    /// `self_attn.q_proj`; with the gate's rows where the attention has one.
    Query,
    /// `self_attn.k_proj`.
    Key,
    /// `self_attn.v_proj`.
    Value,
    /// `self_attn.o_proj`.
    Output,
    /// The rows of the queries in `linear_attn.in_proj_qkv`.
    DeltaQuery,
    /// The rows of the keys in `linear_attn.in_proj_qkv`.
    DeltaKey,
    /// The rows of the values in `linear_attn.in_proj_qkv`.
    DeltaValue,
    /// `linear_attn.in_proj_z`, the output gate.
    DeltaGate,
    /// `linear_attn.in_proj_b`, the strength of writing.
    DeltaBeta,
    /// `linear_attn.in_proj_a`, the decay.
    DeltaDecay,
    /// `linear_attn.out_proj`.
    DeltaOutput,
    /// `mlp.gate_proj`.
    Gate,
    /// `mlp.up_proj`.
    Up,
    /// `mlp.down_proj`.
    Down,
    /// `mlp.shared_expert.gate_proj`.
    SharedGate,
    /// `mlp.shared_expert.up_proj`.
    SharedUp,
    /// `mlp.shared_expert.down_proj`.
    SharedDown,
    /// `mlp.experts.{e}.gate_proj` of every expert.
    ExpertGate,
    /// `mlp.experts.{e}.up_proj` of every expert.
    ExpertUp,
    /// `mlp.experts.{e}.down_proj` of every expert.
    ExpertDown,
}

impl Projection {
    /// All projections, in the order of the flat vector.
    pub const ALL: [Self; Self::COUNT] = [
        Self::Query,
        Self::Key,
        Self::Value,
        Self::Output,
        Self::DeltaQuery,
        Self::DeltaKey,
        Self::DeltaValue,
        Self::DeltaGate,
        Self::DeltaBeta,
        Self::DeltaDecay,
        Self::DeltaOutput,
        Self::Gate,
        Self::Up,
        Self::Down,
        Self::SharedGate,
        Self::SharedUp,
        Self::SharedDown,
        Self::ExpertGate,
        Self::ExpertUp,
        Self::ExpertDown,
    ];

    pub(crate) const COUNT: usize = 20;

    /// Those that layer `layer` of the model has, in the order of the flat vector.
    pub fn of_layer(config: &ModelConfig, layer: usize) -> impl Iterator<Item = Self> + use<> {
        let kind = config.layers.get(layer).copied();
        let has_shared_expert = config.moe.as_ref().is_some_and(|moe| moe.shared_intermediate_size.is_some());
        let is_there = move |projection: &Self| {
            let Some(LayerKind { mixer, mlp }) = kind else { return false };
            match projection.part() {
                Part::SelfAttention => mixer == MixerKind::FullAttention,
                Part::LinearAttention => mixer == MixerKind::GatedDeltaNet,
                Part::Mlp => mlp == MlpKind::Dense,
                Part::SharedExpert => mlp == MlpKind::Sparse && has_shared_expert,
                Part::Experts => mlp == MlpKind::Sparse,
            }
        };
        Self::ALL.into_iter().filter(is_there)
    }

    /// The name below `model.layers.{i}.`. The parts of `in_proj_qkv` have names of their own, as Tinker has them, and
    /// the experts' projections one name for all experts.
    #[must_use]
    pub const fn suffix(self) -> &'static str {
        match self {
            Self::Query => "self_attn.q_proj",
            Self::Key => "self_attn.k_proj",
            Self::Value => "self_attn.v_proj",
            Self::Output => "self_attn.o_proj",
            Self::DeltaQuery => "linear_attn.in_proj_q",
            Self::DeltaKey => "linear_attn.in_proj_k",
            Self::DeltaValue => "linear_attn.in_proj_v",
            Self::DeltaGate => "linear_attn.in_proj_z",
            Self::DeltaBeta => "linear_attn.in_proj_b",
            Self::DeltaDecay => "linear_attn.in_proj_a",
            Self::DeltaOutput => "linear_attn.out_proj",
            Self::Gate => "mlp.gate_proj",
            Self::Up => "mlp.up_proj",
            Self::Down => "mlp.down_proj",
            Self::SharedGate => "mlp.shared_expert.gate_proj",
            Self::SharedUp => "mlp.shared_expert.up_proj",
            Self::SharedDown => "mlp.shared_expert.down_proj",
            Self::ExpertGate => "mlp.experts.gate_proj",
            Self::ExpertUp => "mlp.experts.up_proj",
            Self::ExpertDown => "mlp.experts.down_proj",
        }
    }

    /// The last part of the name: `q_proj`.
    #[must_use]
    pub fn leaf(self) -> &'static str {
        let suffix = self.suffix();
        suffix.rsplit('.').next().unwrap_or(suffix)
    }

    /// Whether it belongs to the attention, linear or not; otherwise to the MLP.
    #[must_use]
    pub const fn is_attention(self) -> bool {
        matches!(self.part(), Part::SelfAttention | Part::LinearAttention)
    }

    /// Whether every expert has one, so that factors have the experts as their first dimension.
    #[must_use]
    pub const fn is_expert(self) -> bool {
        matches!(self.part(), Part::Experts)
    }

    /// `(out, in)` features, of one expert for the experts' projections; `(0, 0)` for what the model does not have.
    #[must_use]
    pub fn shape(self, config: &ModelConfig) -> (usize, usize) {
        let hidden = config.hidden_size;
        let delta = |width: fn(&DeltaConfig) -> usize| config.delta.as_ref().map_or(0, width);
        let moe = |width: fn(&MoeConfig) -> usize| config.moe.as_ref().map_or(0, width);
        let shared = || moe(|moe| moe.shared_intermediate_size.unwrap_or(0));
        let (outputs, inputs) = match self {
            Self::Query => (config.query_width() * if config.attention_gate { 2 } else { 1 }, hidden),
            Self::Key | Self::Value => (config.kv_width(), hidden),
            Self::Output => (hidden, config.query_width()),
            Self::DeltaQuery | Self::DeltaKey => (delta(DeltaConfig::key_width), hidden),
            Self::DeltaValue | Self::DeltaGate => (delta(DeltaConfig::value_width), hidden),
            Self::DeltaBeta | Self::DeltaDecay => (delta(|delta| delta.value_head_count), hidden),
            Self::DeltaOutput => (hidden, delta(DeltaConfig::value_width)),
            Self::Gate | Self::Up => (config.intermediate_size, hidden),
            Self::Down => (hidden, config.intermediate_size),
            Self::SharedGate | Self::SharedUp => (shared(), hidden),
            Self::SharedDown => (hidden, shared()),
            Self::ExpertGate | Self::ExpertUp => (moe(|moe| moe.intermediate_size), hidden),
            Self::ExpertDown => (hidden, moe(|moe| moe.intermediate_size)),
        };
        if outputs == 0 || inputs == 0 { (0, 0) } else { (outputs, inputs) }
    }

    /// For the parts of `linear_attn.in_proj_qkv`: their rows in it.
    #[must_use]
    pub fn rows_in_qkv(self, config: &ModelConfig) -> Option<Range<usize>> {
        let delta = config.delta.as_ref()?;
        let (key, value) = (delta.key_width(), delta.value_width());
        match self {
            Self::DeltaQuery => Some(0..key),
            Self::DeltaKey => Some(key..2 * key),
            Self::DeltaValue => Some(2 * key..2 * key + value),
            _ => None,
        }
    }

    /// The place in [`Projection::ALL`].
    pub(crate) const fn index(self) -> usize {
        self as usize
    }

    const fn part(self) -> Part {
        match self {
            Self::Query | Self::Key | Self::Value | Self::Output => Part::SelfAttention,
            Self::DeltaQuery
            | Self::DeltaKey
            | Self::DeltaValue
            | Self::DeltaGate
            | Self::DeltaBeta
            | Self::DeltaDecay
            | Self::DeltaOutput => Part::LinearAttention,
            Self::Gate | Self::Up | Self::Down => Part::Mlp,
            Self::SharedGate | Self::SharedUp | Self::SharedDown => Part::SharedExpert,
            Self::ExpertGate | Self::ExpertUp | Self::ExpertDown => Part::Experts,
        }
    }
}

/// The part of a decoder layer that a projection is in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Part {
    SelfAttention,
    LinearAttention,
    Mlp,
    SharedExpert,
    Experts,
}
