//! `torch_dtype`, `mixed_precision` and `dtype`: the number format of the frozen weights and of the computation.

use serde::Serialize;

use super::choices::choices;
use super::section::{Located, Section};
use super::tree::{Node, Value};

/// The number format of the frozen weights and of the computation.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Precision {
    /// As the weights are stored.
    Auto,
    /// IEEE single precision.
    Float32,
    /// bfloat16.
    Bfloat16,
}

/// A number format as a file may name it, also one we do not compute in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Dtype {
    Auto,
    Float32,
    Bfloat16,
    Float16,
    Fp8,
}
choices!(Dtype {
    Auto = "auto",
    Float32 = "float32" | "fp32" | "float" | "no" | "torch.float32",
    Bfloat16 = "bfloat16" | "bf16" | "torch.bfloat16",
    Float16 = "float16" | "fp16" | "half" | "torch.float16",
    Fp8 = "fp8",
});

impl Dtype {
    /// Reads one key; half precisions whose range is too small for training are refused at start.
    pub(super) fn read(section: &mut Section<'_>, key: &'static str) -> Option<Located<Precision>> {
        if let Some(Node { value: Value::Boolean(false), place }) = section.node(key) {
            // YAML reads a bare `no` as false.
            return Some(Located { value: Precision::Float32, place: *place });
        }
        let given = section.choice::<Self>(key)?;
        let value = match given.value {
            Self::Auto => Precision::Auto,
            Self::Float32 => Precision::Float32,
            Self::Bfloat16 => Precision::Bfloat16,
            Self::Float16 | Self::Fp8 => {
                section.unavailable_value(key);
                Precision::Bfloat16
            }
        };
        Some(Located { value, place: given.place })
    }
}
