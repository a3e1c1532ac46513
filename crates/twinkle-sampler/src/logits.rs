//! From a row of logits to a token and its logprob. Pure: a row, settings and a noise source in, a draw out.
//!
//! The order is vLLM's: biases, penalties, temperature, then top-k, then top-p, then the draw. The draw is the Gumbel-max trick (Gumbel 1954;
//! Maddison et al. 2014): `argmax (x + g)` with independent Gumbel noise `g` is distributed as `softmax(x)`. The noise is
//! counter-based, keyed by the request and counted by position and token, so a draw does not depend on the batch, on
//! what was drawn before, or on how the row was cut into blocks.

use std::num::NonZeroUsize;
use std::sync::Arc;
use std::thread;

use twinkle_core::call::LogprobsMode;
use twinkle_nn::philox::Philox;

use crate::bias::Bias;
use crate::likeliest::likeliest;
use crate::penalties::Seen;

/// Below this temperature the largest logit wins, as in vLLM.
pub(crate) const GREEDY_BELOW: f32 = 1e-5;
/// Tokens whose noise is decided by one threshold; a multiple of Philox's four words.
const BLOCK: usize = 256;
/// Sorting starts with this many of the likeliest tokens when looking for the nucleus.
const FIRST_NUCLEUS: usize = 64;
/// Rows are shared between threads when a batch has at least this many logits.
const PARALLEL_FROM: usize = 1 << 16;

/// How a token is drawn. Made by [`crate::params`], hence in range.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct DrawParams {
    /// Logits are divided by it; below 1e-5 the draw is greedy.
    pub temperature: f32,
    /// Keep the `k` largest logits and their ties; `None` keeps all.
    pub top_k: Option<NonZeroUsize>,
    /// Keep the likeliest tokens until their probability reaches this, in `(0, 1]`.
    pub top_p: f32,
}

impl DrawParams {
    /// Whether the largest logit simply wins.
    #[must_use]
    pub fn is_greedy(&self) -> bool {
        self.temperature < GREEDY_BELOW
    }
}

/// The noise of one token position of one sample.
#[derive(Clone, Copy, Debug)]
pub struct Noise(Philox);

impl Noise {
    /// Noise for the token at `position` (prompt included) of the sample whose key this is.
    #[must_use]
    pub const fn new(sample_key: u64, position: u64) -> Self {
        Self(Philox::new(sample_key, position))
    }

    fn word(self, token: usize) -> u32 {
        self.0.block((token / 4) as u64)[token % 4]
    }

    fn gumbel(self, token: usize) -> f64 {
        gumbel(self.word(token))
    }
}

/// Gumbel noise of a random word: `u = (word + ½) / 2³²` lies strictly inside `(0, 1)`, and in fp64 `1 − u` is exact.
fn gumbel(word: u32) -> f64 {
    let uniform = (f64::from(word) + 0.5) / 4_294_967_296.0;
    -(-uniform.ln()).ln()
}

/// A drawn token.
#[derive(Clone, Debug, PartialEq)]
pub struct Draw {
    /// Its id.
    pub token: u32,
    /// The number that the task wants beside it, by default its natural-log probability under
    /// `softmax(logits / temperature)` before truncation; unscaled when greedy.
    pub logprob: f32,
    /// The likeliest tokens of the row with the same kind of number, as many as the task wants.
    pub likeliest: Vec<(u32, f32)>,
}

/// A row of logits that holds a NaN or an infinity.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the model's logits are not finite")]
pub struct NonFinite;

/// How one row is drawn from.
#[derive(Clone, Debug)]
pub struct RowTask {
    /// How to draw.
    pub params: DrawParams,
    /// The noise of this row.
    pub noise: Noise,
    /// How many of the row's likeliest tokens are wanted beside the drawn one.
    pub top: usize,
    /// What is added to the logits of tokens, if anything is.
    pub bias: Option<Bias>,
    /// The tokens that are held back, if any are.
    pub seen: Option<Arc<Seen>>,
    /// Which numbers are wanted beside tokens.
    pub numbers: LogprobsMode,
}

/// Draws one token from a row of fp32 logits `[V]`.
///
/// # Errors
/// [`NonFinite`] when a logit is NaN or infinite, or the row is empty.
pub fn draw(logits: &[f32], task: &RowTask) -> Result<Draw, NonFinite> {
    if task.bias.is_none() && task.seen.is_none() {
        return draw_from(logits, logits, task);
    }
    largest(logits)?;
    let mut changed = logits.to_vec();
    if let Some(bias) = &task.bias {
        bias.add(&mut changed);
    }
    if let Some(seen) = &task.seen {
        seen.hold_back(&mut changed);
    }
    draw_from(&changed, logits, task)
}

/// Draws from `logits`; `raw` are those before biases and penalties.
fn draw_from(logits: &[f32], raw: &[f32], task: &RowTask) -> Result<Draw, NonFinite> {
    let RowTask { params, noise, top, numbers, .. } = task;
    let (best, largest) = largest(logits)?;
    let temperature = if params.is_greedy() { 1.0 } else { params.temperature };
    let token = if params.is_greedy() {
        best
    } else if let Some(kept) = truncated(logits, params, largest) {
        draw_of_few(logits, &kept, temperature, *noise)
    } else {
        draw_of_all(logits, best, temperature, *noise)
    };
    let token = token as u32;
    Ok(match numbers {
        LogprobsMode::Processed => with_logprobs(token, logits, (largest, temperature), *top),
        LogprobsMode::Raw => with_logprobs(token, raw, (self::largest(raw)?.1, 1.0), *top),
        LogprobsMode::ProcessedLogits => with_numbers(token, logits, *top, |logit| logit / temperature),
        LogprobsMode::RawLogits => with_numbers(token, raw, *top, |logit| logit),
    })
}

/// A drawn token with logprobs under `softmax(row / temperature)`, of which the largest logit is known.
fn with_logprobs(token: u32, row: &[f32], (largest, temperature): (f32, f32), top: usize) -> Draw {
    let normaliser = log_sum(row, largest, temperature);
    with_numbers(token, row, top, |logit| (scaled(logit, largest, temperature) - normaliser) as f32)
}

/// A drawn token with a number made of each logit.
fn with_numbers(token: u32, row: &[f32], top: usize, number: impl Fn(f32) -> f32) -> Draw {
    let number = |token: u32| number(row.get(token as usize).copied().unwrap_or(f32::NEG_INFINITY));
    let likeliest = likeliest(row, top).into_iter().map(|token| (token, number(token))).collect();
    Draw { token, logprob: number(token), likeliest }
}

/// Draws one token per row of `[rows, V]` logits; a bad row fails alone. Large batches are shared between threads.
#[must_use]
pub fn draw_rows(logits: &[f32], vocabulary: usize, tasks: &[RowTask]) -> Vec<Result<Draw, NonFinite>> {
    let rows = |logits: &[f32], tasks: &[RowTask]| -> Vec<_> {
        let rows = logits.chunks(vocabulary.max(1)).zip(tasks);
        rows.map(|(row, task)| draw(row, task)).collect()
    };
    let threads = thread::available_parallelism().map_or(1, NonZeroUsize::get).min(tasks.len());
    if threads < 2 || logits.len() < PARALLEL_FROM {
        return rows(logits, tasks);
    }
    let share = tasks.len().div_ceil(threads);
    thread::scope(|scope| {
        let shares: Vec<_> = logits
            .chunks(share * vocabulary.max(1))
            .zip(tasks.chunks(share))
            .map(|(logits, tasks)| (tasks.len(), scope.spawn(move || rows(logits, tasks))))
            .collect();
        shares
            .into_iter()
            .flat_map(|(count, share)| share.join().unwrap_or_else(|_| vec![Err(NonFinite); count]))
            .collect()
    })
}

/// The tokens that top-k and top-p leave, ascending; `None` when they leave all. Greedy draws are never truncated.
#[must_use]
pub fn kept(logits: &[f32], params: &DrawParams) -> Option<Vec<usize>> {
    let (_, largest) = largest(logits).ok()?;
    if params.is_greedy() {
        return None;
    }
    truncated(logits, params, largest)
}

/// The lowest id among the largest logits, and that logit.
fn largest(logits: &[f32]) -> Result<(usize, f32), NonFinite> {
    let mut best = 0;
    let mut largest = *logits.first().ok_or(NonFinite)?;
    let mut all_finite = true;
    for (token, logit) in logits.iter().enumerate() {
        all_finite &= logit.is_finite();
        if *logit > largest {
            largest = *logit;
            best = token;
        }
    }
    if all_finite { Ok((best, largest)) } else { Err(NonFinite) }
}

/// `(logit − largest) / temperature`, at most 0.
fn scaled(logit: f32, largest: f32, temperature: f32) -> f64 {
    (f64::from(logit) - f64::from(largest)) / f64::from(temperature)
}

/// `ln Σ exp((logit − largest) / temperature)`: fp32 terms, summed in order in fp64.
fn log_sum(logits: &[f32], largest: f32, temperature: f32) -> f64 {
    let mut sum = 0.0;
    for logit in logits {
        sum += f64::from(((logit - largest) / temperature).exp());
    }
    sum.ln()
}

fn truncated(logits: &[f32], params: &DrawParams, largest: f32) -> Option<Vec<usize>> {
    let top_k = params.top_k.map(NonZeroUsize::get).filter(|k| *k < logits.len());
    let mut kept: Vec<usize> = match top_k {
        Some(k) => {
            let smallest_kept = kth_largest(logits, k);
            (0..logits.len()).filter(|token| logits[*token] >= smallest_kept).collect()
        }
        None if params.top_p < 1.0 => (0..logits.len()).collect(),
        None => return None,
    };
    if params.top_p < 1.0 {
        keep_nucleus(logits, &mut kept, params, largest);
        kept.sort_unstable();
    }
    Some(kept)
}

/// The `k`-th largest logit, `1 ≤ k ≤ V`.
fn kth_largest(logits: &[f32], k: usize) -> f32 {
    let mut copy = logits.to_vec();
    let (_, kth, _) = copy.select_nth_unstable_by(k - 1, |left, right| right.total_cmp(left));
    *kth
}

/// Keeps a token iff the tokens likelier than it hold less than `top_p` of the kept probability (Holtzman et al. 2020);
/// among equals the lower id is the likelier. Only as many tokens are sorted as the nucleus needs.
fn keep_nucleus(logits: &[f32], kept: &mut Vec<usize>, params: &DrawParams, largest: f32) {
    let weight = |token: usize| f64::from(((logits[token] - largest) / params.temperature).exp());
    let total: f64 = kept.iter().map(|token| weight(*token)).sum();
    let goal = f64::from(params.top_p) * total;
    let likelier_first = |left: &usize, right: &usize| logits[*right].total_cmp(&logits[*left]).then(left.cmp(right));

    let mut sorted = 0;
    let mut before = 0.0;
    while sorted < kept.len() {
        let window = (sorted * 8).max(FIRST_NUCLEUS).min(kept.len());
        let rest = &mut kept[sorted..];
        if window - sorted < rest.len() {
            rest.select_nth_unstable_by(window - sorted, likelier_first);
        }
        rest[..window - sorted].sort_unstable_by(likelier_first);
        for place in sorted..window {
            if place > 0 && before >= goal {
                kept.truncate(place);
                return;
            }
            before += weight(kept[place]);
        }
        sorted = window;
    }
}

fn draw_of_few(logits: &[f32], kept: &[usize], temperature: f32, noise: Noise) -> usize {
    let mut best = (f64::NEG_INFINITY, 0);
    for token in kept {
        let score = f64::from(logits[*token]) / f64::from(temperature) + noise.gumbel(*token);
        if score > best.0 {
            best = (score, *token);
        }
    }
    best.1
}

/// The draw over the whole row. A token can only win if its noise exceeds `best − x`; per block that is one threshold on
/// the random word, so almost no token needs a logarithm. The result is the plain argmax.
fn draw_of_all(logits: &[f32], start: usize, temperature: f32, noise: Noise) -> usize {
    let temperature = f64::from(temperature);
    let score = |token: usize, word: u32| f64::from(logits[token]) / temperature + gumbel(word);
    let mut best = (score(start, noise.word(start)), start);
    for (block, values) in logits.chunks(BLOCK).enumerate() {
        let mut highest = f32::NEG_INFINITY;
        for value in values {
            highest = highest.max(*value);
        }
        let least_word = least_winning_word(best.0 - f64::from(highest) / temperature);
        let first = block * BLOCK;
        for quad in 0..values.len().div_ceil(4) {
            let words = noise.0.block((first / 4 + quad) as u64);
            let tokens = first + quad * 4..(first + quad * 4 + 4).min(first + values.len());
            for (token, word) in tokens.zip(words) {
                if word < least_word {
                    continue;
                }
                let candidate = (score(token, word), token);
                if candidate.0 > best.0 || (candidate.0 >= best.0 && token < best.1) {
                    best = candidate;
                }
            }
        }
    }
    best.1
}

/// A word below this gives noise below `needed`; one word of slack covers the rounding of `exp`.
fn least_winning_word(needed: f64) -> u32 {
    let uniform = (-(-needed).exp()).exp();
    // Saturates to 0 below and stays under 2³² above.
    (uniform * 4_294_967_296.0 - 16.0) as u32
}

#[cfg(test)]
#[path = "logits_tests.rs"]
mod tests;
