//! Which slots belong to which group of rows, expert by expert.

use std::ops::Range;

use super::dispatch::Dispatch;
use crate::layers::linear::{Routing, Rows};
use crate::torch::TorchResult;

/// Slots one after the other, of one expert and of rows of one group.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Piece {
    pub(super) expert: usize,
    pub(super) slots: Range<usize>,
}

/// The pieces of each group of the routing, ascending. A sequence, whose rows follow each other, has one per expert.
pub(super) fn pieces_of(dispatch: &Dispatch, routing: &Routing) -> TorchResult<Vec<Vec<Piece>>> {
    let rows = dispatch.row_of.len().checked_div(dispatch.top_k).unwrap_or(0);
    let mut group_of: Vec<Option<usize>> = vec![None; rows];
    for (place, group) in routing.groups.iter().enumerate() {
        for row in row_numbers(&group.rows)? {
            group_of[row] = Some(place);
        }
    }
    let mut pieces: Vec<Vec<Piece>> = vec![Vec::new(); routing.groups.len()];
    for range in &dispatch.ranges {
        for slot in range.slots() {
            let Some(group) = group_of[dispatch.row_of[slot]] else { continue };
            match pieces[group].last_mut() {
                Some(last) if last.expert == range.expert && last.slots.end == slot => last.slots.end += 1,
                _ => pieces[group].push(Piece { expert: range.expert, slots: slot..slot + 1 }),
            }
        }
    }
    Ok(pieces)
}

fn row_numbers(rows: &Rows) -> TorchResult<Vec<usize>> {
    match rows {
        Rows::Range { start, length } => Ok((*start as usize..(start + length) as usize).collect()),
        Rows::List(list) => {
            let numbers: Vec<i64> = Vec::try_from(list)?;
            Ok(numbers.into_iter().map(|number| number as usize).collect())
        }
    }
}
