//! How rows are cut for the head.

use std::ops::Range;
use std::sync::Arc;

use super::Piece;
use crate::lora::{Adapter, Site};
use crate::pack::Span;

/// Row ranges of at most `limit` rows that cover the pack in order.
///
/// The gradient of a head, or of its `B`, is a sum over rows. For its bits not to depend on what else is in the pack, a sequence
/// is cut at multiples of `limit` counted from its own first row, and each piece goes into one chunk whole.
pub(super) fn chunks(
    spans: &[Span],
    limit: usize,
    adapters: &[Arc<Adapter>],
    trains_weights: bool,
) -> Vec<Range<usize>> {
    let total = spans.last().map_or(0, |span| span.rows().end);
    let is_trained = trains_weights || adapters.iter().any(|adapter| adapter.at(Site::Head).is_some());
    if !is_trained {
        return (0..total).step_by(limit).map(|start| start..(start + limit).min(total)).collect();
    }
    let mut chunks: Vec<Range<usize>> = Vec::new();
    for span in spans {
        let rows = span.rows();
        for start in rows.clone().step_by(limit) {
            let end = (start + limit).min(rows.end);
            match chunks.last_mut() {
                Some(last) if end - last.start <= limit => last.end = end,
                _ => chunks.push(start..end),
            }
        }
    }
    chunks
}

/// The sequences' parts that lie in a chunk.
pub(super) fn pieces<'a>(spans: &[Span], chunk: &Range<usize>, adapters: &'a [Arc<Adapter>]) -> Vec<Piece<'a>> {
    let mut pieces = Vec::new();
    for span in spans {
        let rows = span.rows();
        let (start, end) = (rows.start.max(chunk.start), rows.end.min(chunk.end));
        if start >= end {
            continue;
        }
        let pair = span.adapter.and_then(|index| Some((adapters.get(index)?.at(Site::Head)?, index)));
        let rows = (start - chunk.start) as i64..(end - chunk.start) as i64;
        pieces.push(Piece { rows, adapter: span.adapter, pair, shrunk: None });
    }
    pieces
}
