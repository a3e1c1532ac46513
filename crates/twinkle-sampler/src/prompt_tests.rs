use proptest::prelude::*;
use twinkle_core::call::{CellLayout, SparseLayout};
use twinkle_core::data::TokenIds;

use super::*;

const VOCABULARY: usize = 12;

/// Logprobs that tell their row and token.
fn row(index: usize) -> Vec<f32> {
    (0..VOCABULARY).map(|token| -((index * 100 + (token * 7 + index) % VOCABULARY) as f32)).collect()
}

/// What is found of a prompt whose rows are these, computed in tiles of this size.
fn found(wants: &PromptWants, prompt: &[u32], row: impl Fn(usize) -> Vec<f32>, tile: usize) -> SampleOutcome {
    let mut findings = PromptFindings::default();
    for start in (0..prompt.len()).step_by(tile) {
        let wanted = wants.of_tile(prompt, &(start..(start + tile).min(prompt.len())));
        if wanted.whole {
            for index in wanted.rows.clone() {
                findings.take_row(wants, index, &row(index));
            }
        }
        let score = |pick: &Pick| row(wanted.rows.start + pick.row)[pick.token as usize];
        let scores: Vec<f32> = wanted.picks.iter().map(score).collect();
        findings.take_picks(wants, &wanted, &scores).unwrap();
    }
    let mut outcome = SampleOutcome::default();
    findings.tell(wants, prompt.len(), &mut outcome);
    outcome
}

fn dense(rows: usize, columns: usize, cells: &[i64]) -> Arc<TargetTokens> {
    let cells = cells.iter().map(|cell| u32::try_from(*cell).ok()).collect();
    Arc::new(TargetTokens { layout: CellLayout { rows, columns, sparse: None }, cells })
}

fn sparse_of(dense: &TargetTokens) -> Arc<TargetTokens> {
    let (mut row_starts, mut columns, mut cells) = (vec![0], vec![], vec![]);
    for row in 0..dense.layout.rows {
        for (column, cell) in dense.cells[dense.layout.row(row)].iter().enumerate() {
            if cell.is_some() {
                columns.push(column);
                cells.push(*cell);
            }
        }
        row_starts.push(cells.len());
    }
    let layout = CellLayout { sparse: Some(SparseLayout { row_starts, columns }), ..dense.layout.clone() };
    Arc::new(TargetTokens { layout, cells })
}

#[test]
fn only_the_rows_that_something_is_wanted_of_go_through_the_head() {
    let logprobs = PromptWants { logprobs: true, ..PromptWants::default() };
    assert_eq!(PromptWants::default().rows(10), 9..9);
    assert_eq!(logprobs.rows(10), 0..9);
    assert_eq!(logprobs.rows(1), 0..0);
    assert_eq!(PromptWants { from: 6, ..logprobs.clone() }.rows(10), 6..9);
    assert_eq!(PromptWants { alternatives: 1, from: 6, ..logprobs.clone() }.rows(10), 0..9);
    let late = dense(9, 2, &[[-1, -1]; 9].concat());
    assert_eq!(PromptWants { targets: Some(late), ..PromptWants::default() }.rows(10), 9..9);
    let mut cells = [-1; 18];
    cells[9] = 3;
    let late = dense(9, 2, &cells);
    for targets in [sparse_of(&late), late] {
        assert_eq!(PromptWants { targets: Some(targets), from: 6, ..logprobs.clone() }.rows(10), 4..9);
    }
}

#[test]
fn nothing_is_picked_before_the_last_ones_that_were_asked_for() {
    let prompt: TokenIds = (0..10).collect();
    let wants = PromptWants { logprobs: true, likeliest: 2, from: 7, ..PromptWants::default() };
    assert_eq!(wants.of_tile(&prompt, &(0..4)), TileWants::default());
    let picks = vec![Pick { row: 0, token: 8 }];
    assert_eq!(wants.of_tile(&prompt, &(4..8)), TileWants { rows: 7..8, picks, whole: true });
    let outcome = found(&wants, &prompt, row, 4);
    let logprobs = outcome.prompt_logprobs.unwrap();
    assert_eq!(logprobs.iter().position(Option::is_some), Some(8));
    assert_eq!(logprobs.len(), 10);
    let top = outcome.topk_prompt_logprobs.unwrap().rows;
    assert_eq!(top.iter().map(Vec::len).collect::<Vec<_>>(), [0, 0, 0, 0, 0, 0, 0, 0, 2, 2]);
}

#[test]
fn a_row_that_is_not_finite_fails() {
    let wants = PromptWants { likeliest: 1, ..PromptWants::default() };
    let mut findings = PromptFindings::default();
    findings.take_row(&wants, 0, &[0.0, f32::NAN]);
    assert_eq!(findings.take_picks(&wants, &TileWants::default(), &[]), Err(NonFinite));
    let picked = TileWants { rows: 0..1, picks: vec![Pick { row: 0, token: 1 }], whole: false };
    assert_eq!(PromptFindings::default().take_picks(&wants, &picked, &[f32::NAN]), Err(NonFinite));
}

proptest! {
    /// Everything together, in tiles of any size, is what the rows say.
    #[test]
    fn findings_are_what_the_rows_say_whatever_the_tiles(
        length in 2_usize..20, tile in 1_usize..8, likeliest in 0_usize..4, alternatives in 0_usize..3, cut in 0_usize..20,
        with_logprobs: bool, cells in prop::collection::vec(-1_i64..VOCABULARY as i64, 60), in_csr: bool,
    ) {
        let prompt: TokenIds = (0..length).map(|index| (index * 5 % VOCABULARY) as u32).collect();
        let from = cut.min(length - 2);
        let targets = dense(length - 1, 3, &cells[..3 * (length - 1)]);
        let targets = if in_csr { sparse_of(&targets) } else { targets };
        let wants = PromptWants {
            logprobs: with_logprobs, likeliest, from, targets: Some(Arc::clone(&targets)), alternatives, temperature: 1.0, seed: 4,
        };
        let outcome = found(&wants, &prompt, row, tile);
        prop_assert_eq!(&outcome, &found(&wants, &prompt, row, 100));

        prop_assert_eq!(outcome.prompt_logprobs.is_some(), with_logprobs);
        for (position, logprob) in outcome.prompt_logprobs.iter().flatten().enumerate() {
            let expected = (position > from).then(|| row(position - 1)[prompt[position] as usize]);
            prop_assert_eq!(*logprob, expected);
        }
        let found = outcome.target_prompt_logprobs.unwrap();
        prop_assert_eq!(&found.layout, &targets.layout);
        for index in 0..length - 1 {
            for place in targets.layout.row(index) {
                let expected = targets.cells[place].map_or(0.0, |token| row(index)[token as usize]);
                prop_assert_eq!(found.logprobs[place].to_bits(), expected.to_bits());
            }
        }
        if let Some(drawn) = outcome.prompt_alt_tokens {
            prop_assert_eq!(drawn.tokens.len(), alternatives * (length - 1));
            for (place, (token, logprob)) in drawn.tokens.iter().zip(&drawn.logprobs).enumerate() {
                prop_assert_eq!(logprob.to_bits(), row(place / alternatives)[*token as usize].to_bits());
            }
        }
        if let Some(top) = outcome.topk_prompt_logprobs {
            prop_assert_eq!(top.rows.len(), length);
            for (position, cells) in top.rows.iter().enumerate() {
                let expected = if position > from { likeliest } else { 0 };
                prop_assert_eq!(cells.len(), expected);
                let falls = cells.is_sorted_by(|left, right| left.1 > right.1 || (left.1 >= right.1 && left.0 < right.0));
                prop_assert!(falls);
                if let Some((token, logprob)) = cells.first() {
                    let largest = row(position - 1).into_iter().fold(f32::NEG_INFINITY, f32::max);
                    prop_assert_eq!((*logprob, row(position - 1)[*token as usize]), (largest, largest));
                }
            }
        }
    }
}
