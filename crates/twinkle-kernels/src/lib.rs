//! The processor's kernels: what a network spends its time in, behind safe functions over slices.
//!
//! * [`multiply`] and [`accumulate_outer`]: bf16 matrix products with AVX512-BF16, where there is no such unit number by
//!   number; a row's bits never depend on its neighbours, on threads or on blocking;
//! * [`attention()`]: causal attention of whole sequences, pieces of prompts and decoding steps, with the same bits;
//! * [`delta_scan`]: the gated delta rule in fp32, with the convolution before it, token by token;
//! * [`rms_norm`], [`swiglu`], [`rotate`], [`log_sum_exp`] and their gradients: each reads and writes its rows once, in
//!   fp32 between, with the roundings that transformers makes; compiled for AVX-512, AVX2 and any processor.
//!
//! Nothing here knows tensors. All kernels share one pool of threads, one per core, whoever calls them.
#![expect(unsafe_code, reason = "vector instructions, and tasks that write parts of one slice")]
#![expect(clippy::inline_always, reason = "a body must be compiled into the function of each kind of processor")]
#![expect(clippy::too_many_arguments, reason = "a loop over rows is given the rows one by one")]

mod attention;
#[cfg(target_arch = "x86_64")]
mod blocked;
mod delta;
mod features;
#[cfg(target_arch = "x86_64")]
mod heads;
mod mirror;
mod norm;
mod numbers;
#[cfg(target_arch = "x86_64")]
mod outer;
#[cfg(target_arch = "x86_64")]
mod panel;
mod pool;
mod product;
#[cfg(test)]
#[path = "../tests/common/mod.rs"]
mod random;
mod rotary;
mod softmax;
mod swiglu;

pub use attention::{Attended, HeadShape, Sequence, attention, attention_backward};
pub use delta::{
    DeltaGradients, DeltaRows, DeltaShape, DeltaWeightGradients, DeltaWeights, delta_scan, delta_scan_backward,
};
pub use features::has_bf16_products;
pub use norm::{NormFlavour, rms_norm, rms_norm_backward};
pub use product::{Finish, Layout, Right, Segment, Term, accumulate_outer, multiply};
pub use rotary::rotate;
pub use softmax::{log_softmax_backward, log_sum_exp};
pub use swiglu::{swiglu, swiglu_backward};
