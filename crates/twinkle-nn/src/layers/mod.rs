//! The pieces of a decoder layer, each a forward and its hand-written gradient.

pub(crate) mod attention;
pub(crate) mod decoder;
pub(crate) mod delta;
pub(crate) mod full;
pub(crate) mod gate;
pub(crate) mod linear;
pub(crate) mod load;
pub(crate) mod mlp;
pub(crate) mod moe;
pub(crate) mod native;
pub(crate) mod norm;
pub(crate) mod self_attention;
