//! Losses, gradients and optimizer steps against what PEFT and torch computed (`tests/golden/`), and the bits that must
//! not depend on how a batch is cut.

mod bits;
mod fixture;
mod native;
mod reference;

/// Enough for every batch here in one pass.
const ROWS_PER_PASS: usize = 2048;

/// Models with inputs made to go wrong, and the adapter they were computed with.
const HARD_CASES: [(&str, &str); 2] = [("llama3_tied", "attn_mlp_unembed"), ("qwen3", "attn_mlp")];
