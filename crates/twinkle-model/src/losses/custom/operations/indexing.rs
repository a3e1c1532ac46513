//! Values picked by place.

use tch::{Kind, Tensor};

use super::{Cost, Operation};
use crate::losses::custom::arguments::Arguments;
use crate::losses::custom::arguments::whole;
use crate::losses::custom::limits::Budget;
use crate::losses::custom::value::{Fault, Value, broadcast_volume, volume};

pub(super) const INDEXING: &[Operation] = &[
    Operation::new("gather", "input:T dim:I index:T sparse_grad:B? out:N?", Cost::Inputs, |a| {
        Ok(a.tensor(0)?.f_gather(a.int(1)?, a.tensor(2)?, false)?.into())
    }),
    Operation::new("index_select", "input:T dim:I index:T out:N?", Cost::Own, |a| {
        let (input, dim, index) = (a.tensor(0)?, a.int(1)?, a.tensor(2)?);
        a.budget.reserve((input.numel() as u64).checked_mul(index.numel() as u64 + 1))?;
        Ok(input.f_index_select(dim, index)?.into())
    }),
    Operation::new("take", "input:T index:T", Cost::Inputs, |a| Ok(a.tensor(0)?.f_take(a.tensor(1)?)?.into())),
    Operation::new("take_along_dim", "input:T indices:T dim:I? out:N?", Cost::Own, |a| {
        let (input, indices) = (a.tensor(0)?, a.tensor(1)?);
        a.budget.reserve(broadcast_volume(&[input.size(), indices.size()]))?;
        Ok(input.f_take_along_dim(indices, a.int_or_none(2)?)?.into())
    }),
    Operation::new("masked_select", "input:T mask:T out:N?", Cost::Broadcast, |a| {
        Ok(a.tensor(0)?.f_masked_select(a.tensor(1)?)?.into())
    }),
    Operation::new("masked_scatter", "input:T mask:T source:T", Cost::Broadcast, |a| {
        Ok(a.tensor(0)?.f_masked_scatter(a.tensor(1)?, a.tensor(2)?)?.into())
    }),
    Operation::new("nonzero argwhere", "input:T", Cost::Own, |a| {
        let input = a.tensor(0)?;
        a.budget.reserve((input.numel() as u64).checked_mul(input.dim() as u64 + 1))?;
        Ok(input.f_nonzero()?.into())
    }),
    Operation::new("scatter", "input:T dim:I index:T src:O? value:O?", Cost::Inputs, |a| {
        let (input, index) = (a.tensor(0)?, a.tensor(2)?);
        let place = if a.given(3) { 3 } else { 4 };
        Ok(match a.value(place) {
            Value::Tensor(source) => input.f_scatter(a.int(1)?, index, source)?,
            _ => input.f_scatter_value(a.int(1)?, index, a.number(place)?)?,
        }
        .into())
    }),
    Operation::new("scatter_add", "input:T dim:I index:T src:T", Cost::Inputs, |a| {
        Ok(a.tensor(0)?.f_scatter_add(a.int(1)?, a.tensor(2)?, a.tensor(3)?)?.into())
    }),
    Operation::new("index_add", "input:T dim:I index:T source:T", Cost::Inputs, |a| {
        Ok(a.tensor(0)?.f_index_add(a.int(1)?, a.tensor(2)?, a.tensor(3)?)?.into())
    }),
    Operation::new("index_fill", "input:T dim:I index:T value:F", Cost::Inputs, |a| {
        Ok(a.tensor(0)?.f_index_fill(a.int(1)?, a.tensor(2)?, a.number(3)?)?.into())
    }),
    Operation::new("index_copy", "input:T dim:I index:T source:T", Cost::Inputs, |a| {
        Ok(a.tensor(0)?.f_index_copy(a.int(1)?, a.tensor(2)?, a.tensor(3)?)?.into())
    }),
];

/// `value[index]`, as Python does it.
pub(super) fn get_item(a: &Arguments) -> Result<Value, Fault> {
    let index = a.value(1);
    match a.value(0) {
        Value::Tensor(tensor) => pick(tensor, index, a.budget).map(Value::Tensor),
        value => {
            let items = value.items().ok_or_else(|| Fault::new(format!("{} has no items", value.kind_name())))?;
            if let Value::Slice(bounds) = index {
                let picked = slice_of(items, bounds)?;
                return Ok(if matches!(value, Value::List(_)) { Value::List(picked) } else { Value::Tuple(picked) });
            }
            let place = whole(index).ok_or_else(|| Fault::new(format!("{} is no index", index.kind_name())))?;
            let found = usize::try_from(if place < 0 { place + items.len() as i64 } else { place }).ok();
            let item = found.and_then(|place| items.get(place));
            item.cloned().ok_or_else(|| Fault::new(format!("there is no item {place} of {}", items.len())))
        }
    }
}

fn slice_of(items: &[Value], [start, end, step]: &[Value; 3]) -> Result<Vec<Value>, Fault> {
    if !matches!(step, Value::None | Value::Int(1)) {
        return Err(Fault::new("a slice of a tuple with a step is not supported"));
    }
    let length = items.len() as i64;
    let bound = |value: &Value, default: i64| match value {
        Value::None => Ok::<i64, Fault>(default),
        value => {
            let place = whole(value).ok_or_else(|| Fault::new("a bound of a slice is no int"))?;
            Ok((if place < 0 { place + length } else { place }).clamp(0, length))
        }
    };
    let (start, end) = (bound(start, 0)?, bound(end, length)?);
    Ok(items.iter().skip(start as usize).take((end - start).max(0) as usize).cloned().collect())
}

/// Applies each part of an index to its dimension, tensors last and all at once.
fn pick(tensor: &Tensor, index: &Value, budget: &Budget) -> Result<Tensor, Fault> {
    let one = std::slice::from_ref(index);
    // A list is an index by tensor; a tuple has a part for each dimension.
    let parts = if let Value::Tuple(parts) = index { parts.as_slice() } else { one };
    let named: usize = parts.iter().map(dimensions_of).sum();
    let mut result = tensor.shallow_clone();
    let mut dim = 0_i64;
    let mut tensors: Vec<Option<Tensor>> = Vec::new();
    for part in parts {
        match part {
            Value::None => {
                result = result.f_unsqueeze(dim)?;
                dim += 1;
            }
            Value::Ellipsis => dim += (tensor.dim() as i64 - named as i64).max(0),
            Value::Int(place) => result = result.f_select(dim, *place)?,
            Value::Slice(bounds) => {
                let bound = |value: &Value| match value {
                    Value::None => Ok(None),
                    value => whole(value).map(Some).ok_or_else(|| Fault::new("a bound of a slice is no int")),
                };
                let [start, end, step] = bounds.as_ref();
                result = result.f_slice(dim, bound(start)?, bound(end)?, bound(step)?.unwrap_or(1))?;
                dim += 1;
            }
            Value::Tensor(place) if place.dim() == 0 && place.kind() != Kind::Bool => {
                let place = whole(part).ok_or_else(|| Fault::new("a tensor that is an index must hold ints"))?;
                result = result.f_select(dim, place)?;
            }
            Value::Tensor(_) | Value::List(_) => {
                let skipped = usize::try_from(dim).unwrap_or_default();
                tensors.resize_with(tensors.len().max(skipped), || None);
                tensors.push(Some(index_tensor(part)?));
                dim += 1;
            }
            other => return Err(Fault::new(format!("{} is no index of a tensor", other.kind_name()))),
        }
    }
    if tensors.is_empty() {
        return Ok(result);
    }
    pick_by_tensors(&result, &tensors, budget)
}

/// How many of the tensor's dimensions a part of an index is for.
fn dimensions_of(part: &Value) -> usize {
    match part {
        Value::None | Value::Ellipsis => 0,
        Value::Tensor(tensor) if tensor.kind() == Kind::Bool => tensor.dim(),
        _ => 1,
    }
}

fn index_tensor(part: &Value) -> Result<Tensor, Fault> {
    match part {
        Value::Tensor(tensor) => Ok(tensor.shallow_clone()),
        Value::List(items) if items.iter().all(|item| matches!(item, Value::Bool(_))) && !items.is_empty() => {
            let values: Vec<bool> = items.iter().map(|item| matches!(item, Value::Bool(true))).collect();
            Ok(Tensor::f_from_slice(&values)?)
        }
        other => {
            let places = other.items().and_then(|items| items.iter().map(whole).collect::<Option<Vec<i64>>>());
            let places = places.ok_or_else(|| Fault::new("a list that is an index must hold ints"))?;
            Ok(Tensor::f_from_slice(&places)?)
        }
    }
}

fn pick_by_tensors(tensor: &Tensor, by: &[Option<Tensor>], budget: &Budget) -> Result<Tensor, Fault> {
    let shapes = by.iter().flatten().map(|index| {
        // A mask picks at most as many places as it has.
        if index.kind() == Kind::Bool { vec![index.numel() as i64] } else { index.size() }
    });
    let picked = broadcast_volume(&shapes.collect::<Vec<_>>());
    let mut taken = Vec::new();
    for index in by {
        let dims = index.as_ref().filter(|index| index.kind() == Kind::Bool).map_or(1, Tensor::dim);
        taken.extend(std::iter::repeat_n(index.is_some(), dims));
    }
    let size = tensor.size();
    let rest = size.iter().enumerate().filter(|(dim, _)| !taken.get(*dim).copied().unwrap_or(false));
    let rest = volume(&rest.map(|(_, size)| *size).collect::<Vec<_>>());
    budget.reserve(picked.zip(rest).and_then(|(picked, rest)| picked.checked_mul(rest)))?;
    Ok(tensor.f_index(by)?)
}
