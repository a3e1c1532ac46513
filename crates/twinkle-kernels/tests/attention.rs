//! Attention against its formula in fp64, and the independence of a row from what follows it.

mod common;

use common::random;
use half::bf16;
use proptest::prelude::*;
use twinkle_kernels::{Attended, HeadShape, Sequence, attention, attention_backward, has_bf16_products};

/// Queries, keys, values and the gradient of the output of one sequence.
struct Rows {
    q: Vec<bf16>,
    k: Vec<bf16>,
    v: Vec<bf16>,
    d_out: Vec<bf16>,
}

impl Rows {
    fn new(rows: usize, shape: HeadShape, seed: u64) -> Self {
        let (wide, narrow) = (rows * shape.query_width(), rows * shape.kv_width());
        let (q, d_out) = (random(wide, seed), random(wide, seed ^ 3));
        Self { q, k: random(narrow, seed ^ 1), v: random(narrow, seed ^ 2), d_out }
    }

    fn sequence(&self) -> Sequence<'_> {
        Sequence { q: &self.q, k: &self.k, v: &self.v }
    }
}

fn run(sequences: &[Sequence], shape: HeadShape) -> (Vec<bf16>, Vec<f32>) {
    let rows: usize = sequences.iter().map(|sequence| sequence.q.len() / shape.query_width()).sum();
    let mut out = vec![bf16::ZERO; rows * shape.query_width()];
    let mut log_sum_exp = vec![0.0; rows * shape.kv * shape.group];
    attention(sequences, shape, &mut out, &mut log_sum_exp);
    (out, log_sum_exp)
}

/// Outputs and gradients of q, k and v by the formulas.
fn formulas(rows: &Rows, shape: HeadShape) -> [Vec<f64>; 4] {
    let HeadShape { kv, group, dim } = shape;
    let (wide, narrow) = (shape.query_width(), shape.kv_width());
    let n = rows.q.len() / wide;
    let scale = 1.0 / (dim as f64).sqrt();
    let (mut out, mut dq) = (vec![0.0; n * wide], vec![0.0; n * wide]);
    let (mut dk, mut dv) = (vec![0.0; n * narrow], vec![0.0; n * narrow]);
    for head in 0..kv * group {
        let query = |values: &[bf16], row: usize, i: usize| values[row * wide + head * dim + i].to_f64();
        let key = |values: &[bf16], row: usize, i: usize| values[row * narrow + head / group * dim + i].to_f64();
        for row in 0..n {
            let dot = |left: &[bf16], right: &[bf16], other: usize| -> f64 {
                (0..dim).map(|i| query(left, row, i) * key(right, other, i)).sum()
            };
            let weights: Vec<f64> = (0..=row).map(|other| (scale * dot(&rows.q, &rows.k, other)).exp()).collect();
            let sum: f64 = weights.iter().sum();
            let p: Vec<f64> = weights.iter().map(|weight| weight / sum).collect();
            let dp: Vec<f64> = (0..=row).map(|other| dot(&rows.d_out, &rows.v, other)).collect();
            let delta: f64 = p.iter().zip(&dp).map(|(p, dp)| p * dp).sum();
            for other in 0..=row {
                let ds = p[other] * (dp[other] - delta) * scale;
                for i in 0..dim {
                    out[row * wide + head * dim + i] += p[other] * key(&rows.v, other, i);
                    dq[row * wide + head * dim + i] += ds * key(&rows.k, other, i);
                    dk[other * narrow + head / group * dim + i] += ds * query(&rows.q, row, i);
                    dv[other * narrow + head / group * dim + i] += p[other] * query(&rows.d_out, row, i);
                }
            }
        }
    }
    [out, dq, dk, dv]
}

fn assert_close(found: &[bf16], expected: &[f64], what: &str) {
    let largest = expected.iter().fold(0.0_f64, |largest, value| largest.max(value.abs()));
    for (place, (found, expected)) in found.iter().zip(expected).enumerate() {
        let difference = (found.to_f64() - expected).abs();
        assert!(difference <= 0.015 * largest + 1e-6, "{what} {place}: {found}, not {expected}");
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, ..ProptestConfig::default() })]

    #[test]
    fn attention_is_its_formula_and_a_row_does_not_see_what_follows(
        rows in 1_usize..150, kv in 1_usize..3, group in 1_usize..4, half in 1_usize..70, other in 1_usize..80, seed: u64,
    ) {
        if !has_bf16_products() {
            return Ok(());
        }
        let shape = HeadShape { kv, group, dim: 2 * half };
        let (own, neighbour) = (Rows::new(rows, shape, seed), Rows::new(other, shape, seed ^ 9));
        let (wide, heads) = (shape.query_width(), kv * group);
        let (out, lse) = run(&[neighbour.sequence(), own.sequence()], shape);
        let (alone, alone_lse) = run(&[own.sequence()], shape);
        prop_assert!(out[other * wide..] == alone && lse[other * heads..] == alone_lse);
        let [expected, expected_dq, expected_dk, expected_dv] = formulas(&own, shape);
        assert_close(&alone, &expected, "output");

        // In pieces, as a prompt and a step at a time.
        for (start, end) in [(0, rows / 2), (rows / 2, rows), (rows - 1, rows)] {
            let (q, narrow) = (&own.q[start * wide..end * wide], end * shape.kv_width());
            let (piece, _) = run(&[Sequence { q, k: &own.k[..narrow], v: &own.v[..narrow] }], shape);
            prop_assert!(piece == alone[start * wide..end * wide], "rows {start}..{end}");
        }

        let (n_out, n_lse) = run(&[neighbour.sequence()], shape);
        let attended = |rows, out, log_sum_exp| {
            let rows: &Rows = rows;
            Attended { sequence: rows.sequence(), out, log_sum_exp, d_out: &rows.d_out }
        };
        let gradients = |sequences: &[Attended]| {
            let count: usize = sequences.iter().map(|attended| attended.d_out.len() / wide).sum();
            let narrow = count * shape.kv_width();
            let mut found = [vec![bf16::ZERO; count * wide], vec![bf16::ZERO; narrow], vec![bf16::ZERO; narrow]];
            let [dq, dk, dv] = &mut found;
            attention_backward(sequences, shape, dq, dk, dv);
            found
        };
        let own_part = attended(&own, &alone, &alone_lse);
        let [dq, dk, dv] = gradients(&[own_part]);
        assert_close(&dq, &expected_dq, "dq");
        assert_close(&dk, &expected_dk, "dk");
        assert_close(&dv, &expected_dv, "dv");
        let beside = gradients(&[attended(&neighbour, &n_out, &n_lse), own_part]);
        prop_assert!(beside[0][other * wide..] == dq && beside[1][other * shape.kv_width()..] == dk);
        prop_assert!(beside[2][other * shape.kv_width()..] == dv);
    }
}
