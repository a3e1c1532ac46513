//! Arrays as JSON numbers.

use std::fmt;

use serde::de::{Deserializer, SeqAccess, Visitor};
use serde::{Deserialize, Serialize};

/// An array; dense unless it has sparse indices.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct TensorData {
    /// The numbers, row-major; with sparse indices only those listed.
    #[serde(flatten)]
    pub data: TensorNumbers,
    /// Its shape; absent: one dimension.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub shape: Option<Vec<i64>>,
    /// Where each row of a sparse matrix starts in `data`; rows + 1 numbers.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub sparse_crow_indices: Option<Vec<i64>>,
    /// The column of each listed number of a sparse matrix.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub sparse_col_indices: Option<Vec<i64>>,
}

/// Numbers with their `dtype`.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(tag = "dtype", content = "data", rename_all = "snake_case")]
pub enum TensorNumbers {
    /// Floats.
    Float32(Vec<f32>),
    /// Integers.
    Int64(Vec<i64>),
}

impl TensorData {
    /// An array with all its numbers.
    #[must_use]
    pub fn dense(data: TensorNumbers, shape: Vec<i64>) -> Self {
        Self { data, shape: Some(shape), sparse_crow_indices: None, sparse_col_indices: None }
    }
}

impl<'de> Deserialize<'de> for TensorData {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        use serde::de::Error as _;

        #[derive(Deserialize)]
        struct Fields {
            data: Numbers,
            dtype: String,
            shape: Option<Vec<i64>>,
            sparse_crow_indices: Option<Vec<i64>>,
            sparse_col_indices: Option<Vec<i64>>,
        }

        let fields = Fields::deserialize(deserializer)?;
        let data = match (fields.dtype.as_str(), fields.data) {
            ("float32", Numbers::Integers(values)) => {
                TensorNumbers::Float32(values.iter().map(|v| *v as f32).collect())
            }
            ("float32", Numbers::Floats(values)) => TensorNumbers::Float32(values.iter().map(|v| *v as f32).collect()),
            ("int64", Numbers::Integers(values)) => TensorNumbers::Int64(values),
            ("int64", Numbers::Floats(_)) => return Err(D::Error::custom("an int64 tensor holds a fraction")),
            (other, _) => {
                return Err(D::Error::custom(format!("unknown dtype `{other}`, known are `float32` and `int64`")));
            }
        };
        Ok(Self {
            data,
            shape: fields.shape,
            sparse_crow_indices: fields.sparse_crow_indices,
            sparse_col_indices: fields.sparse_col_indices,
        })
    }
}

/// JSON numbers of either kind, eight bytes each: the `dtype` may come after them.
enum Numbers {
    Integers(Vec<i64>),
    Floats(Vec<f64>),
}

impl<'de> Deserialize<'de> for Numbers {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_seq(NumbersVisitor)
    }
}

struct NumbersVisitor;

impl<'de> Visitor<'de> for NumbersVisitor {
    type Value = Numbers;

    fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("a list of numbers")
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut sequence: A) -> Result<Numbers, A::Error> {
        #[derive(Deserialize)]
        #[serde(untagged, expecting = "a tensor holds something that is not a number")]
        enum Number {
            Integer(i64),
            Float(f64),
        }

        let mut integers: Vec<i64> = Vec::new();
        let mut floats: Option<Vec<f64>> = None;
        while let Some(number) = sequence.next_element()? {
            match (number, &mut floats) {
                (Number::Integer(value), None) => integers.push(value),
                (Number::Integer(value), Some(floats)) => floats.push(value as f64),
                (Number::Float(value), Some(floats)) => floats.push(value),
                (Number::Float(value), None) => {
                    let mut all: Vec<f64> = integers.iter().map(|integer| *integer as f64).collect();
                    all.push(value);
                    floats = Some(all);
                }
            }
        }
        Ok(floats.map_or(Numbers::Integers(integers), Numbers::Floats))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_take_the_type_that_is_stated_before_or_after_them() {
        let read = |json: &str| serde_json::from_str::<TensorData>(json).map(|tensor| tensor.data);
        let floats = TensorNumbers::Float32(vec![1.0, 0.5, 2.0]);
        assert_eq!(read(r#"{"data":[1,0.5,2],"dtype":"float32"}"#).unwrap(), floats);
        assert_eq!(read(r#"{"dtype":"float32","data":[1,0.5,2],"shape":null}"#).unwrap(), floats);
        let large = TensorNumbers::Int64(vec![i64::MAX, i64::MIN]);
        assert_eq!(read(r#"{"data":[9223372036854775807,-9223372036854775808],"dtype":"int64"}"#).unwrap(), large);
        assert_eq!(read(r#"{"data":[],"dtype":"int64"}"#).unwrap(), TensorNumbers::Int64(vec![]));
    }

    #[test]
    fn numbers_of_the_wrong_type_are_refused() {
        for json in [
            r#"{"data":[1.5],"dtype":"int64"}"#,
            r#"{"data":["1"],"dtype":"int64"}"#,
            r#"{"data":[null],"dtype":"float32"}"#,
            r#"{"data":[1],"dtype":"float64"}"#,
            r#"{"data":[1]}"#,
        ] {
            assert!(serde_json::from_str::<TensorData>(json).is_err(), "{json} was accepted");
        }
    }

    #[test]
    fn the_written_form_has_data_dtype_and_shape() {
        let tensor = TensorData::dense(TensorNumbers::Float32(vec![0.1]), vec![1]);
        let json = serde_json::to_value(&tensor).unwrap();
        assert_eq!(json["dtype"], "float32");
        assert_eq!(json["shape"], serde_json::json!([1]));
        assert_eq!(serde_json::from_value::<TensorData>(json).unwrap(), tensor);
    }
}
