//! What native losses read of a target, and how a mask becomes weights.

use twinkle_core::{Error, Result};

use crate::batch::Example;
use crate::losses::Column;

/// 0 or 1 as sent; from [`Loss::prepare`](crate::losses::Loss::prepare) on the weight of the position. Always first.
pub(super) const MASK: Column = Column { name: "mask", default: Some(1.0) };
/// Its place among the columns.
pub(super) const WEIGHT: usize = 0;

/// An input that may be left out; it is NaN then.
pub(super) const fn optional(name: &'static str) -> Column {
    Column { name, default: Some(f32::NAN) }
}

/// A number that [`Loss::prepare`](crate::losses::Loss::prepare) writes. No input of a client has such a name.
pub(super) const fn prepared(name: &'static str) -> Column {
    Column { name, default: Some(0.0) }
}

/// Refuses a mask of anything but 0 and 1.
pub(super) fn check_mask(example: &Example, columns: usize) -> Result<()> {
    let position = example.inputs.chunks(columns).position(|inputs| !matches!(inputs[WEIGHT], 0.0 | 1.0));
    match position {
        None => Ok(()),
        Some(position) => Err(Error::invalid(format!(
            "`mask` is {} at place {position}, but must be 0 or 1",
            example.inputs[position * columns + WEIGHT]
        ))),
    }
}

/// How many targets of an example count: the sum of its mask.
pub(super) fn counted(example: &Example, columns: usize) -> f64 {
    example.inputs.chunks(columns).map(|inputs| f64::from(inputs[WEIGHT])).sum()
}

/// How many targets of all examples count, at least 1.
pub(super) fn counted_in_all(examples: &[Example], columns: usize) -> f64 {
    examples.iter().map(|example| counted(example, columns)).sum::<f64>().max(1.0)
}

/// Turns the mask of an example into weights: each target that counts is divided by `divisor`.
pub(super) fn divide(example: &mut Example, columns: usize, divisor: f64) {
    for inputs in example.inputs.chunks_mut(columns) {
        inputs[WEIGHT] = (f64::from(inputs[WEIGHT]) / divisor) as f32;
    }
}

/// The same for every example.
pub(super) fn divide_all(examples: &mut [Example], columns: usize, divisor: f64) {
    for example in examples {
        divide(example, columns, divisor);
    }
}
