//! The pieces of a decoder layer, each a forward and its hand-written gradient.

pub(crate) mod attention;
pub(crate) mod linear;
pub(crate) mod mlp;
pub(crate) mod norm;
