//! What a sampling request may ask for beside its tokens, and how it is answered: likeliest tokens, given tokens, drawn
//! tokens, the weights that were used.

use super::json;
use super::proto;
use super::tensor::{float_bytes, floats, long_bytes, longs, token_bytes, tokens};
use crate::call::{
    AltTokens, CellLayout, SampleExtras, SparseLayout, TargetLogprobs, TargetTokens, TopLogprobs, WeightVersion,
};
use crate::error::{Error, Result};

/// The logprob of a cell of [`TopLogprobs`] that holds no token; its id is 0.
const NO_TOKEN: f32 = -99999.0;

/// Reads what a request wants beside its tokens.
///
/// Errors: a tensor of targets that is not int64, not two-dimensional or contradicts itself; a token id below -1.
pub fn extras(wanted: &json::Sample) -> Result<SampleExtras> {
    Ok(SampleExtras {
        prompt_logprobs_last_n: wanted.prompt_logprobs_last_n,
        topk_prompt_logprobs: wanted.topk_prompt_logprobs.unwrap_or(0),
        topk_sample_logprobs: wanted.topk_sample_logprobs.unwrap_or(0),
        target_prompt_logprobs: wanted.target_prompt_logprobs.as_ref().map(target_tokens).transpose()?,
        prompt_alt_tokens_k: wanted.prompt_alt_tokens_k.unwrap_or(0),
    })
}

// === impl target tokens ===

fn target_tokens(tensor: &json::TensorData) -> Result<TargetTokens> {
    let json::TensorNumbers::Int64(ids) = &tensor.data else {
        return Err(broken("it is not an int64 tensor"));
    };
    let shape: Vec<usize> = tensor.shape.iter().flatten().filter_map(|size| usize::try_from(*size).ok()).collect();
    let ([rows, columns], Some(2)) = (&shape[..], tensor.shape.as_ref().map(Vec::len)) else {
        return Err(broken("its shape is not [prompt length - 1, k]"));
    };
    let layout = CellLayout { rows: *rows, columns: *columns, sparse: sparse_layout(tensor, *rows, *columns)? };
    let listed = layout.sparse.as_ref().map_or(rows.checked_mul(*columns), |sparse| Some(sparse.columns.len()));
    if listed != Some(ids.len()) {
        return Err(broken(&format!("it has {} values", ids.len())));
    }
    let cells = ids.iter().map(|id| match id {
        -1 => Ok(None),
        id => u32::try_from(*id).map(Some).map_err(|_| broken(&format!("`{id}` is neither a token id nor -1"))),
    });
    Ok(TargetTokens { layout, cells: cells.collect::<Result<_>>()? })
}

fn sparse_layout(tensor: &json::TensorData, rows: usize, columns: usize) -> Result<Option<SparseLayout>> {
    let (starts, indices) = match (&tensor.sparse_crow_indices, &tensor.sparse_col_indices) {
        (None, None) => return Ok(None),
        (Some(starts), Some(indices)) => (starts, indices),
        _ => return Err(broken("it has only one of `sparse_crow_indices` and `sparse_col_indices`")),
    };
    let counts = |numbers: &[i64]| numbers.iter().map(|number| usize::try_from(*number)).collect::<Result<Vec<_>, _>>();
    let (Ok(row_starts), Ok(indices)) = (counts(starts), counts(indices)) else {
        return Err(broken("a sparse index is negative"));
    };
    let runs = row_starts.len().checked_sub(1) == Some(rows)
        && row_starts.first() == Some(&0)
        && row_starts.last() == Some(&indices.len())
        && row_starts.is_sorted();
    if !runs {
        return Err(broken(
            "`sparse_crow_indices` must rise from 0 to the number of values, one more than there are rows",
        ));
    }
    if indices.iter().any(|column| *column >= columns) {
        return Err(broken("a column of `sparse_col_indices` is outside the shape"));
    }
    Ok(Some(SparseLayout { row_starts, columns: indices }))
}

fn broken(what: &str) -> Error {
    Error::invalid(format!("`target_prompt_logprobs` is broken: {what}"))
}

// === impl target logprobs ===

pub(super) fn targets_to_proto(targets: &TargetLogprobs) -> proto::Tensor {
    let values = float_bytes(&targets.logprobs);
    let encoding = match &targets.layout.sparse {
        None => proto::tensor::Encoding::Dense(values),
        Some(sparse) => proto::tensor::Encoding::SparseCsr(proto::SparseCsr {
            values,
            crow_indices: long_bytes(&signed(&sparse.row_starts)),
            col_indices: long_bytes(&signed(&sparse.columns)),
        }),
    };
    proto::Tensor {
        encoding: Some(encoding),
        dtype: proto::Dtype::Float32.into(),
        shape: signed(&[targets.layout.rows, targets.layout.columns]),
    }
}

pub(super) fn targets_to_json(targets: &TargetLogprobs) -> json::TensorData {
    let sparse = targets.layout.sparse.as_ref();
    json::TensorData {
        data: json::TensorNumbers::Float32(targets.logprobs.clone()),
        shape: Some(signed(&[targets.layout.rows, targets.layout.columns])),
        sparse_crow_indices: sparse.map(|sparse| signed(&sparse.row_starts)),
        sparse_col_indices: sparse.map(|sparse| signed(&sparse.columns)),
    }
}

pub(super) fn targets_from_proto(tensor: &proto::Tensor) -> Result<TargetLogprobs> {
    let [rows, columns] = unsigned(&tensor.shape)?[..] else {
        return Err(Error::invalid(format!("scored tokens have the shape {:?}", tensor.shape)));
    };
    let (values, sparse) = match &tensor.encoding {
        Some(proto::tensor::Encoding::SparseCsr(csr)) => {
            let row_starts = unsigned(&longs(&csr.crow_indices)?)?;
            let columns = unsigned(&longs(&csr.col_indices)?)?;
            (floats(&csr.values)?, Some(SparseLayout { row_starts, columns }))
        }
        Some(proto::tensor::Encoding::Dense(bytes)) => (floats(bytes)?, None),
        None => (Vec::new(), None),
    };
    Ok(TargetLogprobs { layout: CellLayout { rows, columns, sparse }, logprobs: values })
}

fn signed(numbers: &[usize]) -> Vec<i64> {
    numbers.iter().map(|number| *number as i64).collect()
}

fn unsigned(numbers: &[i64]) -> Result<Vec<usize>> {
    let read = |number: &i64| {
        usize::try_from(*number)
            .map_err(|_| Error::invalid(format!("a shape or index holds the negative number {number}")))
    };
    numbers.iter().map(read).collect()
}

// === impl likeliest tokens ===

/// Rows that hold fewer than `k` tokens are filled up; one that holds none reads as absent.
pub(super) fn top_to_proto(top: &TopLogprobs) -> proto::TopkLogprobs {
    let cells = top.k * top.rows.len();
    let (mut ids, mut logprobs) = (Vec::with_capacity(cells), Vec::with_capacity(cells));
    for row in &top.rows {
        let padding = std::iter::repeat(&(0, NO_TOKEN));
        for (id, logprob) in row.iter().chain(padding).take(top.k) {
            ids.push(*id);
            logprobs.push(*logprob);
        }
    }
    proto::TopkLogprobs {
        token_ids: token_bytes(&ids),
        logprobs: float_bytes(&logprobs),
        k: top.k as u32,
        length: top.rows.len() as u32,
    }
}

pub(super) fn top_from_proto(top: &proto::TopkLogprobs) -> Result<TopLogprobs> {
    let k = top.k as usize;
    let cells: Vec<(u32, f32)> = tokens(&top.token_ids)?.into_iter().zip(floats(&top.logprobs)?).collect();
    if k == 0 || cells.len() != k * top.length as usize {
        return Err(Error::invalid(format!("{} rows of {k} likeliest tokens have {} cells", top.length, cells.len())));
    }
    let held = |row: &[(u32, f32)]| row.iter().copied().filter(|cell| *cell != (0, NO_TOKEN)).collect();
    Ok(TopLogprobs { k, rows: cells.chunks(k).map(held).collect() })
}

pub(super) fn top_to_json(top: &TopLogprobs) -> Vec<Option<Vec<(u32, f32)>>> {
    top.rows.iter().map(|row| (!row.is_empty()).then(|| row.clone())).collect()
}

// === impl drawn tokens ===

pub(super) fn alternatives_to_proto(drawn: &AltTokens) -> proto::PromptAltTokens {
    let tensor = |dtype: proto::Dtype, bytes| proto::Tensor {
        encoding: Some(proto::tensor::Encoding::Dense(bytes)),
        dtype: dtype.into(),
        shape: alternatives_shape(drawn),
    };
    proto::PromptAltTokens {
        tokens: Some(tensor(proto::Dtype::Int32, token_bytes(&drawn.tokens))),
        logprobs: Some(tensor(proto::Dtype::Float32, float_bytes(&drawn.logprobs))),
    }
}

pub(super) fn alternatives_to_json(drawn: &AltTokens) -> json::PromptAltTokens {
    let ids = drawn.tokens.iter().map(|token| i64::from(*token)).collect();
    let tensor = |numbers| json::TensorData::dense(numbers, alternatives_shape(drawn));
    json::PromptAltTokens {
        tokens: tensor(json::TensorNumbers::Int64(ids)),
        logprobs: tensor(json::TensorNumbers::Float32(drawn.logprobs.clone())),
    }
}

pub(super) fn alternatives_from_proto(drawn: &proto::PromptAltTokens) -> Result<AltTokens> {
    let dense = |tensor: Option<&proto::Tensor>| match tensor.and_then(|tensor| tensor.encoding.as_ref()) {
        Some(proto::tensor::Encoding::Dense(bytes)) => Ok(bytes.clone()),
        _ => Err(Error::invalid("drawn tokens are not a dense tensor")),
    };
    let shape = unsigned(&drawn.tokens.as_ref().map(|tensor| tensor.shape.clone()).unwrap_or_default())?;
    Ok(AltTokens {
        k: shape.get(1).copied().unwrap_or(0),
        tokens: tokens(&dense(drawn.tokens.as_ref())?)?,
        logprobs: floats(&dense(drawn.logprobs.as_ref())?)?,
    })
}

fn alternatives_shape(drawn: &AltTokens) -> Vec<i64> {
    let rows = drawn.tokens.len() / drawn.k.max(1);
    signed(&[rows, drawn.k])
}

// === impl weights ===

pub(super) fn weights_to_proto(weights: &WeightVersion, length: usize) -> Vec<proto::WeightSpan> {
    vec![proto::WeightSpan {
        length: length as u32,
        adapter: weights.adapter.clone(),
        operation: weights.operation,
        optimizer_steps: weights.optimizer_steps,
    }]
}

pub(super) fn weights_from_proto(spans: &[proto::WeightSpan]) -> WeightVersion {
    let span = spans.first().cloned().unwrap_or_default();
    WeightVersion { adapter: span.adapter, operation: span.operation, optimizer_steps: span.optimizer_steps }
}

pub(super) fn weights_to_json(weights: &WeightVersion, length: usize) -> Vec<json::WeightSpan> {
    vec![json::WeightSpan { length: length as u32, weights: weights.clone() }]
}

#[cfg(test)]
#[path = "scores_tests.rs"]
mod tests;
