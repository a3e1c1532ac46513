//! Training data as a client sends it: token ids and small dense tensors.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

/// Token ids of one sequence.
pub type TokenIds = Vec<u32>;

/// A small dense tensor that travels with a datum, row-major.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct TensorData {
    /// The numbers, row-major.
    pub values: TensorValues,
    /// Its shape; the product equals the number of values.
    pub shape: Vec<usize>,
}

/// The numbers of a [`TensorData`].
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum TensorValues {
    /// Weights, advantages, logprobs.
    #[serde(with = "packed_f32")]
    Float32(Vec<f32>),
    /// Token ids.
    #[serde(with = "packed_i64")]
    Int64(Vec<i64>),
}

impl TensorData {
    /// A vector of floats.
    #[must_use]
    pub fn floats(values: Vec<f32>) -> Self {
        Self { shape: vec![values.len()], values: TensorValues::Float32(values) }
    }

    /// A vector of token ids.
    #[must_use]
    pub fn ints(values: Vec<i64>) -> Self {
        Self { shape: vec![values.len()], values: TensorValues::Int64(values) }
    }

    /// How many numbers it holds.
    #[must_use]
    pub fn len(&self) -> usize {
        match &self.values {
            TensorValues::Float32(values) => values.len(),
            TensorValues::Int64(values) => values.len(),
        }
    }

    /// Whether it holds no number.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// One training example. `loss_inputs` are aligned to `tokens`: position `i` predicts `target_tokens[i]`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Datum {
    /// The model's input.
    #[serde(with = "packed_u32")]
    pub tokens: TokenIds,
    /// What the loss needs, by name (`target_tokens`, `weights`, …).
    pub loss_inputs: BTreeMap<String, TensorData>,
}

macro_rules! packed {
    ($module:ident, $number:ty) => {
        /// Numbers as one little-endian byte string: the journal holds millions of them.
        pub(crate) mod $module {
            use serde::{Deserializer, Serializer, de::Error as _};

            const WIDTH: usize = size_of::<$number>();

            pub(crate) fn serialize<S: Serializer>(values: &[$number], serializer: S) -> Result<S::Ok, S::Error> {
                let bytes: Vec<u8> = values.iter().flat_map(|value| value.to_le_bytes()).collect();
                serializer.serialize_bytes(&bytes)
            }

            pub(crate) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<$number>, D::Error> {
                let bytes: serde_bytes::ByteBuf = serde_bytes::deserialize(deserializer)?;
                let (numbers, rest) = bytes.as_chunks::<WIDTH>();
                if !rest.is_empty() {
                    return Err(D::Error::custom("a packed array has a broken length"));
                }
                Ok(numbers.iter().map(|number| <$number>::from_le_bytes(*number)).collect())
            }
        }
    };
}
packed!(packed_f32, f32);
packed!(packed_i64, i64);
packed!(packed_u32, u32);
