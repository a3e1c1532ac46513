//! Several modules as one: a block-diagonal `B` over the stacked `A`, or over the one `A` that they have in common.

use super::write::scaled;
use crate::lora::layout::{LoraModule, Site};
use crate::lora::projection::Projection;

/// Modules as one module with the scale of the first.
pub(super) struct Joined {
    pub(super) rank: usize,
    /// `[rank, inputs]`.
    pub(super) a: Vec<f32>,
    /// `[outputs, rank]`.
    pub(super) b: Vec<f32>,
}

impl Joined {
    /// Joins `parts`, of which each has its slot of so many rows of `B`; a slot without a part is zero. Of experts those of
    /// one.
    pub(super) fn of(parts: &[&LoraModule], slots: &[(Projection, usize)], values: &[f32], expert: usize) -> Self {
        let has_one_a = is_of_one_a(parts, values);
        let rank = if has_one_a { parts[0].rank } else { parts.iter().map(|part| part.rank).sum() };
        let a_of = |part: &LoraModule| {
            let size = part.rank * part.inputs;
            let start = part.a_range().start + expert.min(part.a_groups - 1) * size;
            values[start..start + size].to_vec()
        };
        let a = if has_one_a { a_of(parts[0]) } else { parts.iter().flat_map(|part| a_of(part)).collect() };
        let mut b = Vec::with_capacity(slots.iter().map(|(_, rows)| rows).sum::<usize>() * rank);
        let mut column = 0;
        for (slot, rows) in slots {
            let is_it = |part: &&&LoraModule| matches!(part.site, Site::Layer(_, found) if found == *slot);
            let Some(part) = parts.iter().find(is_it) else {
                b.extend(std::iter::repeat_n(0.0, rows * rank));
                continue;
            };
            let size = part.outputs * part.rank;
            let start = part.b_range().start + expert.min(part.b_groups - 1) * size;
            for row in scaled(&values[start..start + size], part.scale / parts[0].scale).chunks_exact(part.rank) {
                let mut whole = vec![0.0; rank];
                whole[column..column + part.rank].copy_from_slice(row);
                b.extend(whole);
            }
            if !has_one_a {
                column += part.rank;
            }
        }
        Self { rank, a, b }
    }
}

/// Whether the parts have one `A`, as when an adapter came in with one: then no rank is added.
pub(super) fn is_of_one_a(parts: &[&LoraModule], values: &[f32]) -> bool {
    let first = &values[parts[0].a_range()];
    parts.iter().all(|part| part.rank == parts[0].rank && values[part.a_range()] == *first)
}

/// All experts as PEFT wraps them: `A` `[E · rank, inputs]` expert by expert, `B` `[outputs, rank · E]` with the experts
/// innermost.
pub(super) fn fuse(parts: &[&LoraModule], expert_count: usize, values: &[f32]) -> (Vec<f32>, Vec<f32>) {
    let slots: Vec<(Projection, usize)> = match parts[0].site {
        Site::Layer(_, Projection::ExpertDown) => vec![(Projection::ExpertDown, parts[0].outputs)],
        _ => vec![(Projection::ExpertGate, parts[0].outputs), (Projection::ExpertUp, parts[0].outputs)],
    };
    let outputs: usize = slots.iter().map(|(_, rows)| rows).sum();
    let (mut a, mut b) = (Vec::new(), Vec::new());
    for expert in 0..expert_count {
        let joined = Joined::of(parts, &slots, values, expert);
        let rank = joined.rank;
        a.extend(joined.a);
        b.resize(outputs * rank * expert_count, 0.0);
        for (row, numbers) in joined.b.chunks_exact(rank).enumerate() {
            for (component, value) in numbers.iter().enumerate() {
                b[(row * rank + component) * expert_count + expert] = *value;
            }
        }
    }
    (a, b)
}
