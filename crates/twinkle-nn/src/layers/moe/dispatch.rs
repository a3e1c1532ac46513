//! Rows to their experts and back.
//!
//! A row that is given to `k` experts has `k` slots. Slots lie in the order of their experts, and those of one expert in
//! the order of their rows, so that each expert multiplies one range of slots.

use std::ops::Range;

use tch::{Device, Kind, Tensor};

use super::router::Choice;
use crate::torch::TorchResult;

/// Rows that are put together at once, so that the fp32 sums stay in the processor's cache.
const BLOCK: i64 = 64;

/// Where the slots of a pass come from and go to.
#[derive(Debug)]
pub(super) struct Dispatch {
    /// The row of each slot, `[S]`.
    pub(super) row_of: Vec<usize>,
    /// The slots of each row, in the order of the row's experts, `[T, k]`.
    pub(super) slots_of: Vec<usize>,
    /// The slots of each expert that has any, ascending.
    pub(super) ranges: Vec<ExpertRange>,
    /// How many experts a row has, `k`.
    pub(super) top_k: usize,
    /// `row_of` and `slots_of` on the device.
    rows: Tensor,
    slots: Tensor,
    /// What a slot counts, fp32 `[S, 1]`, rounded to the model's dtype.
    weights: Tensor,
}

/// The slots of one expert.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct ExpertRange {
    pub(super) expert: usize,
    pub(super) start: i64,
    pub(super) length: i64,
}

impl ExpertRange {
    /// The numbers of its slots.
    pub(super) fn slots(&self) -> Range<usize> {
        self.start as usize..(self.start + self.length) as usize
    }

    /// These slots of a tensor that has one row per slot: a view.
    pub(super) fn of(&self, slots: &Tensor) -> TorchResult<Tensor> {
        slots.f_narrow(0, self.start, self.length)
    }
}

impl Dispatch {
    pub(super) fn new(choice: &Choice, kind: Kind, device: Device) -> TorchResult<Self> {
        let top_k = choice.top_k;
        // A stable sort: within an expert the places, and with them the rows, stay ascending.
        let mut order: Vec<usize> = (0..choice.experts.len()).collect();
        order.sort_by_key(|place| choice.experts[*place]);
        let mut slots_of = vec![0; order.len()];
        let mut ranges: Vec<ExpertRange> = Vec::new();
        for (slot, place) in order.iter().enumerate() {
            slots_of[*place] = slot;
            let expert = choice.experts[*place];
            match ranges.last_mut() {
                Some(range) if range.expert == expert => range.length += 1,
                _ => ranges.push(ExpertRange { expert, start: slot as i64, length: 1 }),
            }
        }
        let row_of: Vec<usize> = order.iter().map(|place| place / top_k).collect();
        let weights: Vec<f32> = order.iter().map(|place| choice.weights[*place]).collect();
        let weights = Tensor::f_from_slice(&weights)?.f_unsqueeze(1)?.f_to_kind(kind)?.f_to_kind(Kind::Float)?;
        Ok(Self {
            rows: indices(&row_of, device)?,
            slots: indices(&slots_of, device)?.f_view([-1, top_k as i64])?,
            weights: weights.f_to_device(device)?,
            row_of,
            slots_of,
            ranges,
            top_k,
        })
    }

    /// Each slot's row of `x`, `[S, H]`.
    pub(super) fn gather(&self, x: &Tensor) -> TorchResult<Tensor> {
        x.f_index_select(0, &self.rows)
    }

    /// Each slot's row of `x` times the slot's weight, `[S, H]`.
    pub(super) fn gather_weighted(&self, x: &Tensor) -> TorchResult<Tensor> {
        let gathered = self.gather(x)?;
        let slots = gathered.size()[0];
        for_blocks(slots, |start, count| {
            let mut block = gathered.f_narrow(0, start, count)?;
            let product = block.f_to_kind(Kind::Float)?.f_mul(&self.weights.f_narrow(0, start, count)?)?;
            block.f_copy_(&product)
        })?;
        Ok(gathered)
    }

    /// The sum of each row's slots, `[T, H]`: in the order of the experts, in fp32, rounded once. The rows of `extra` are
    /// added last.
    pub(super) fn sum(&self, slots: &Tensor, weighted: bool, extra: &[&Tensor]) -> TorchResult<Tensor> {
        let rows = self.slots.size()[0];
        let y = Tensor::f_empty([rows, slots.size()[1]], (slots.kind(), slots.device()))?;
        for_blocks(rows, |start, count| {
            let mut total: Option<Tensor> = None;
            for place in 0..self.top_k as i64 {
                let own = self.slots.f_narrow(0, start, count)?.f_select(1, place)?;
                let mut share = slots.f_index_select(0, &own)?.f_to_kind(Kind::Float)?;
                if weighted {
                    share = share.f_mul(&self.weights.f_index_select(0, &own)?)?;
                }
                total = Some(match total {
                    Some(mut total) => total.f_add_(&share)?,
                    None => share,
                });
            }
            let Some(mut total) = total else { return Ok(()) };
            for extra in extra {
                let _ = total.f_add_(&extra.f_narrow(0, start, count)?)?;
            }
            y.f_narrow(0, start, count)?.f_copy_(&total)
        })?;
        Ok(y)
    }
}

/// Numbers of rows or slots, as libtorch's `index_select` takes them.
pub(super) fn indices(numbers: &[usize], device: Device) -> TorchResult<Tensor> {
    let numbers: Vec<i64> = numbers.iter().map(|number| *number as i64).collect();
    Tensor::f_from_slice(&numbers)?.f_to_device(device)
}

/// Does `work` for every block of rows.
fn for_blocks(rows: i64, mut work: impl FnMut(i64, i64) -> TorchResult<()>) -> TorchResult<()> {
    let mut start = 0;
    while start < rows {
        let count = BLOCK.min(rows - start);
        work(start, count)?;
        start += count;
    }
    Ok(())
}
