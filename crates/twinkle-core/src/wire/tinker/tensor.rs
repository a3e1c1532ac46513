//! Arrays: little-endian bytes and JSON numbers into [`TensorData`] and back.

use bytes::Bytes;

use super::json;
use super::proto;
use crate::data::{TensorData, TensorValues};
use crate::error::{Error, Result};

/// Most cells a sparse tensor may have when written out densely: 64 MiB of float32.
pub const MAX_DENSE_CELLS: usize = 16 << 20;

// === impl numbers ===

/// Reads a float32 array.
pub fn floats(bytes: &[u8]) -> Result<Vec<f32>> {
    let (numbers, rest) = bytes.as_chunks();
    whole(rest, "float32")?;
    Ok(numbers.iter().map(|number| f32::from_le_bytes(*number)).collect())
}

/// Reads an int64 array.
pub fn longs(bytes: &[u8]) -> Result<Vec<i64>> {
    let (numbers, rest) = bytes.as_chunks();
    whole(rest, "int64")?;
    Ok(numbers.iter().map(|number| i64::from_le_bytes(*number)).collect())
}

/// Reads int32 token ids; a negative one is an error.
pub fn tokens(bytes: &[u8]) -> Result<Vec<u32>> {
    let (numbers, rest) = bytes.as_chunks();
    whole(rest, "int32")?;
    numbers
        .iter()
        .map(|number| {
            let token = i32::from_le_bytes(*number);
            u32::try_from(token).map_err(|_| Error::invalid(format!("token id {token} is negative")))
        })
        .collect()
}

fn ints(bytes: &[u8]) -> Result<Vec<i64>> {
    let (numbers, rest) = bytes.as_chunks();
    whole(rest, "int32")?;
    Ok(numbers.iter().map(|number| i64::from(i32::from_le_bytes(*number))).collect())
}

/// A bfloat16 is the upper half of a float32.
fn widened(bytes: &[u8]) -> Result<Vec<f32>> {
    let (numbers, rest) = bytes.as_chunks();
    whole(rest, "bfloat16")?;
    Ok(numbers.iter().map(|number| f32::from_bits(u32::from(u16::from_le_bytes(*number)) << 16)).collect())
}

fn whole(rest: &[u8], format: &str) -> Result<()> {
    if rest.is_empty() {
        return Ok(());
    }
    Err(Error::invalid(format!("an array of {format} ends in the middle of a number")))
}

/// Writes a float32 array.
#[must_use]
pub fn float_bytes(values: &[f32]) -> Bytes {
    values.iter().flat_map(|value| value.to_le_bytes()).collect::<Vec<u8>>().into()
}

/// Writes an int64 array.
#[must_use]
pub fn long_bytes(values: &[i64]) -> Bytes {
    values.iter().flat_map(|value| value.to_le_bytes()).collect::<Vec<u8>>().into()
}

/// Writes token ids as int32.
#[must_use]
pub fn token_bytes(values: &[u32]) -> Bytes {
    values.iter().flat_map(|value| value.to_le_bytes()).collect::<Vec<u8>>().into()
}

// === impl protobuf ===

/// Reads a tensor, writing out a sparse one densely.
///
/// int32 is widened to int64 and bfloat16 to float32. Errors: an unknown format, a shape that does not
/// match the number of values, a sparse layout that contradicts itself or has over [`MAX_DENSE_CELLS`].
pub fn from_proto(tensor: &proto::Tensor) -> Result<TensorData> {
    match &tensor.encoding {
        None => dense(values_of(&[], tensor.dtype())?, &tensor.shape),
        Some(proto::tensor::Encoding::Dense(bytes)) => dense(values_of(bytes, tensor.dtype())?, &tensor.shape),
        Some(proto::tensor::Encoding::SparseCsr(sparse)) => {
            let rows = longs(&sparse.crow_indices)?;
            let columns = longs(&sparse.col_indices)?;
            from_sparse(values_of(&sparse.values, tensor.dtype())?, &rows, &columns, &tensor.shape)
        }
    }
}

/// Writes a tensor densely.
#[must_use]
pub fn to_proto(tensor: &TensorData) -> proto::Tensor {
    let (bytes, dtype) = match &tensor.values {
        TensorValues::Float32(values) => (float_bytes(values), proto::Dtype::Float32),
        TensorValues::Int64(values) => (long_bytes(values), proto::Dtype::Int64),
    };
    proto::Tensor {
        encoding: Some(proto::tensor::Encoding::Dense(bytes)),
        dtype: dtype.into(),
        shape: tensor.shape.iter().map(|dim| *dim as i64).collect(),
    }
}

fn values_of(bytes: &[u8], dtype: proto::Dtype) -> Result<TensorValues> {
    match dtype {
        proto::Dtype::Float32 => floats(bytes).map(TensorValues::Float32),
        proto::Dtype::Bfloat16 => widened(bytes).map(TensorValues::Float32),
        proto::Dtype::Int64 => longs(bytes).map(TensorValues::Int64),
        proto::Dtype::Int32 => ints(bytes).map(TensorValues::Int64),
        proto::Dtype::Unspecified => Err(Error::invalid("a tensor does not state its dtype")),
    }
}

// === impl JSON ===

/// Reads a tensor, writing out a sparse one densely; errors as [`from_proto`].
pub fn from_json(tensor: json::TensorData) -> Result<TensorData> {
    let values = match tensor.data {
        json::TensorNumbers::Float32(values) => TensorValues::Float32(values),
        json::TensorNumbers::Int64(values) => TensorValues::Int64(values),
    };
    let shape = tensor.shape.unwrap_or_default();
    match (tensor.sparse_crow_indices, tensor.sparse_col_indices) {
        (None, None) => dense(values, &shape),
        (Some(rows), Some(columns)) => from_sparse(values, &rows, &columns, &shape),
        _ => Err(Error::invalid("a sparse tensor needs both `sparse_crow_indices` and `sparse_col_indices`")),
    }
}

/// Writes a tensor densely.
#[must_use]
pub fn to_json(tensor: &TensorData) -> json::TensorData {
    let data = match &tensor.values {
        TensorValues::Float32(values) => json::TensorNumbers::Float32(values.clone()),
        TensorValues::Int64(values) => json::TensorNumbers::Int64(values.clone()),
    };
    json::TensorData::dense(data, tensor.shape.iter().map(|dim| *dim as i64).collect())
}

// === impl shapes ===

/// Checks the shape; an absent one means one dimension.
fn dense(values: TensorValues, shape: &[i64]) -> Result<TensorData> {
    let tensor = TensorData { values, shape: Vec::new() };
    let len = tensor.len();
    let dims = if shape.is_empty() { vec![len] } else { checked_shape(shape)? };
    if dims.iter().product::<usize>() != len {
        return Err(Error::invalid(format!("a tensor of shape {dims:?} has {len} values")));
    }
    Ok(TensorData { shape: dims, ..tensor })
}

/// Refuses negative dimensions and products that overflow.
fn checked_shape(shape: &[i64]) -> Result<Vec<usize>> {
    let mut cells: usize = 1;
    let mut dims = Vec::with_capacity(shape.len());
    for dim in shape {
        let dim = usize::try_from(*dim).map_err(|_| Error::invalid(format!("tensor shape {shape:?} is negative")))?;
        cells = cells
            .checked_mul(dim.max(1))
            .ok_or_else(|| Error::invalid(format!("a tensor of shape {shape:?} is too large")))?;
        dims.push(dim);
    }
    Ok(dims)
}

/// Writes out compressed sparse rows; cells that are not listed are 0.
fn from_sparse(values: TensorValues, rows: &[i64], columns: &[i64], shape: &[i64]) -> Result<TensorData> {
    let dims = checked_shape(shape)?;
    let [row_count, column_count] = dims[..] else {
        return Err(Error::invalid(format!("a sparse tensor has two dimensions, not {shape:?}")));
    };
    let cells = row_count * column_count;
    if cells > MAX_DENSE_CELLS {
        return Err(Error::invalid(format!("a sparse tensor of shape {dims:?} has over {MAX_DENSE_CELLS} cells")));
    }
    let places = Places::new(rows, columns, row_count, column_count)?;
    let values = match values {
        TensorValues::Float32(listed) => TensorValues::Float32(places.scatter(&listed, 0.0, cells)?),
        TensorValues::Int64(listed) => TensorValues::Int64(places.scatter(&listed, 0, cells)?),
    };
    Ok(TensorData { values, shape: dims })
}

/// Where the listed values of a sparse matrix belong in the dense one.
struct Places(Vec<usize>);

impl Places {
    fn new(rows: &[i64], columns: &[i64], row_count: usize, column_count: usize) -> Result<Self> {
        let broken =
            |what: &str| Error::invalid(format!("the row or column indices of a sparse tensor are broken: {what}"));
        if rows.len() != row_count + 1 {
            return Err(broken("one row index more than rows is needed"));
        }
        if rows.first() != Some(&0) || rows.last() != i64::try_from(columns.len()).ok().as_ref() {
            return Err(broken("row indices must run from 0 to the number of values"));
        }
        let mut places = Vec::with_capacity(columns.len());
        for (row, bounds) in rows.windows(2).enumerate() {
            let [start, end] = [bounds[0], bounds[1]].map(usize::try_from);
            let (Ok(start), Ok(end)) = (start, end) else {
                return Err(broken("a row index is negative"));
            };
            let listed = columns.get(start..end).ok_or_else(|| broken("row indices must not fall"))?;
            for column in listed {
                let column = usize::try_from(*column).ok().filter(|column| *column < column_count);
                let column = column.ok_or_else(|| broken("a column index is outside the shape"))?;
                places.push(row * column_count + column);
            }
        }
        Ok(Self(places))
    }

    fn scatter<N: Copy>(&self, listed: &[N], zero: N, cells: usize) -> Result<Vec<N>> {
        if listed.len() != self.0.len() {
            return Err(Error::invalid(format!(
                "a sparse tensor lists {} values and {} columns",
                listed.len(),
                self.0.len()
            )));
        }
        let mut dense = vec![zero; cells];
        for (place, value) in self.0.iter().zip(listed) {
            dense[*place] = *value;
        }
        Ok(dense)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sparse(values: &[f32], rows: &[i64], columns: &[i64], shape: &[i64]) -> proto::Tensor {
        proto::Tensor {
            encoding: Some(proto::tensor::Encoding::SparseCsr(proto::SparseCsr {
                values: float_bytes(values),
                crow_indices: long_bytes(rows),
                col_indices: long_bytes(columns),
            })),
            dtype: proto::Dtype::Float32.into(),
            shape: shape.to_vec(),
        }
    }

    #[test]
    fn dense_tensors_survive_the_wire() {
        for tensor in [TensorData::floats(vec![0.5, -1.0, f32::MIN_POSITIVE]), TensorData::ints(vec![i64::MAX, -3])] {
            assert_eq!(from_proto(&to_proto(&tensor)).unwrap(), tensor);
            assert_eq!(from_json(to_json(&tensor)).unwrap(), tensor);
        }
    }

    #[test]
    fn an_absent_shape_means_one_dimension() {
        let tensor = proto::Tensor { shape: Vec::new(), ..to_proto(&TensorData::ints(vec![1, 2, 3])) };
        assert_eq!(from_proto(&tensor).unwrap().shape, [3]);
    }

    #[test]
    fn narrow_formats_are_widened() {
        let tensor = |dtype: proto::Dtype, bytes: &[u8]| proto::Tensor {
            encoding: Some(proto::tensor::Encoding::Dense(Bytes::copy_from_slice(bytes))),
            dtype: dtype.into(),
            shape: Vec::new(),
        };
        let narrow = tensor(proto::Dtype::Int32, &(-7_i32).to_le_bytes());
        assert_eq!(from_proto(&narrow).unwrap(), TensorData::ints(vec![-7]));
        let half = tensor(proto::Dtype::Bfloat16, &[0x80, 0x3f, 0x20, 0xc0]);
        assert_eq!(from_proto(&half).unwrap(), TensorData::floats(vec![1.0, -2.5]));
    }

    #[test]
    fn sparse_rows_become_dense_with_zeros() {
        let tensor = sparse(&[1.5, 2.5, 3.5], &[0, 2, 2, 3], &[0, 3, 1], &[3, 4]);
        let dense = from_proto(&tensor).unwrap();
        assert_eq!(dense.shape, [3, 4]);
        let expected = vec![1.5, 0.0, 0.0, 2.5, 0.0, 0.0, 0.0, 0.0, 0.0, 3.5, 0.0, 0.0];
        assert_eq!(dense.values, TensorValues::Float32(expected));
    }

    #[test]
    fn contradictory_sparse_layouts_are_refused() {
        let cases = [
            sparse(&[1.0], &[0, 1], &[0], &[2, 2]),
            sparse(&[1.0], &[0, 1, 1], &[2], &[2, 2]),
            sparse(&[1.0], &[0, 1, 1], &[-1], &[2, 2]),
            sparse(&[1.0], &[0, 2, 1], &[0], &[2, 2]),
            sparse(&[1.0], &[1, 1, 1], &[0], &[2, 2]),
            sparse(&[1.0, 2.0], &[0, 1, 1], &[0], &[2, 2]),
            sparse(&[1.0], &[0, 1], &[0], &[4]),
            sparse(&[], &[0, 0], &[], &[1, i64::MAX]),
            sparse(&[], &[0, 0], &[], &[i64::MAX, i64::MAX]),
            sparse(&[], &[0], &[], &[0, 1 << 40]),
        ];
        for tensor in &cases[..9] {
            assert!(from_proto(tensor).is_err(), "{tensor:?} was accepted");
        }
        assert!(from_proto(&cases[9]).unwrap().is_empty());
    }

    #[test]
    fn shapes_that_do_not_fit_are_refused() {
        for shape in [vec![2], vec![-3], vec![i64::MAX, 2], vec![3, 2]] {
            let tensor = proto::Tensor { shape, ..to_proto(&TensorData::floats(vec![1.0, 2.0, 3.0])) };
            assert!(from_proto(&tensor).is_err(), "{tensor:?} was accepted");
        }
        assert!(floats(&[0, 0, 0]).is_err());
        assert!(tokens(&(-1_i32).to_le_bytes()).is_err());
    }
}
