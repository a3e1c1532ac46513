//! Rows of logits as a loss wants them: divided by a temperature, capped, with their entropy and their mean.
//!
//! With logits z of a row, `s = cap · tanh(z / cap) / τ` are what probabilities are made of: `log p_j = s_j − N` with the
//! normaliser `N = ln Σ e^s`. Besides logprobs a loss may read N itself, the entropy `H = −Σ p_j log p_j` and the mean
//! logprob `M = Σ log p_j / V` of each row, and give its derivative by each:
//!
//! `dL/ds_j = Σ_k c_k (1[j = target_k] − p_j) + n p_j − h p_j (log p_j + H) + m (1/V − p_j)`
//!
//! with c, n, h and m the derivatives by the logprobs, N, H and M. Sums over a row are made on the host in one fixed
//! order, so that they do not depend on how many rows there are.

use std::ops::Range;

use tch::{Kind, Tensor};

use super::{Chunk, Normalised, Piece, Targets, blocks};
use crate::layers::native;
use crate::torch::{TorchResult, to_floats};

/// How logits become probabilities, and what is told of each row besides its targets' logprobs.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct HeadOptions {
    /// Logits are divided by it; above 0.
    pub temperature: f64,
    /// Logits are kept within ± so much by `cap · tanh(z / cap)`, before they are divided; `None`: they are not.
    pub softcap: Option<f64>,
    /// Whether the [`RowFacts`] of every row are computed.
    pub facts: bool,
    /// Whether all logits are kept, capped and divided: `[T × V]` numbers.
    pub logits: bool,
}

impl Default for HeadOptions {
    fn default() -> Self {
        Self { temperature: 1.0, softcap: None, facts: false, logits: false }
    }
}

impl HeadOptions {
    /// Whether nothing but the logprobs of the logits as they are is wanted.
    pub(super) fn is_plain(self) -> bool {
        self == Self::default()
    }

    /// Whether probabilities are made of the logits as they are.
    fn scales_nothing(self) -> bool {
        self.softcap.is_none() && self.temperature.to_bits() == 1.0_f64.to_bits()
    }

    /// Fp32 logits as probabilities are made of them; `logits` may be overwritten.
    fn scaled(self, mut logits: Tensor) -> TorchResult<Tensor> {
        if let Some(cap) = self.softcap {
            let _ = logits.f_div_scalar_(cap)?.f_tanh_()?.f_mul_scalar_(cap)?;
        }
        if self.temperature.to_bits() != 1.0_f64.to_bits() {
            let _ = logits.f_div_scalar_(self.temperature)?;
        }
        Ok(logits)
    }

    /// From derivatives by what [`HeadOptions::scaled`] gave to those by the logits, in place.
    fn pull_back(self, d_scaled: &mut Tensor, scaled: &Tensor) -> TorchResult<()> {
        let _ = d_scaled.f_div_scalar_(self.temperature)?;
        if let Some(cap) = self.softcap {
            let slope = scaled.f_mul_scalar(self.temperature / cap)?.f_square()?.f_neg()?.f_add_scalar(1.0)?;
            let _ = d_scaled.f_mul_(&slope)?;
        }
        Ok(())
    }
}

/// What a loss may know of a row's distribution; or its derivative by each.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct RowFacts {
    /// `N = ln Σ e^s`: a target's logit is its logprob plus this.
    pub normaliser: f32,
    /// `H = −Σ p log p`, in nats.
    pub entropy: f32,
    /// `M = Σ log p / V`.
    pub mean_logprob: f32,
}

/// What the head found for some rows.
#[derive(Clone, Copy, Debug)]
pub struct Scored<'a> {
    /// `[rows × K]`.
    pub logprobs: &'a [f32],
    /// One per row; empty if not asked for.
    pub facts: &'a [RowFacts],
}

/// Where a loss puts its derivatives by what was [`Scored`], in the same shapes.
#[derive(Debug)]
pub struct Slopes<'a> {
    /// `[rows × K]`.
    pub logprobs: &'a mut [f32],
    /// One per row; empty if not asked for.
    pub facts: &'a mut [RowFacts],
}

/// From what the head found for a range of rows to a loss: fills in its derivatives.
pub type RowsFunction<'a> = dyn FnMut(Range<usize>, Scored<'_>, Slopes<'_>) + 'a;

/// What the head found for a chunk of rows.
pub(super) struct ChunkRows {
    pub(super) logprobs: Vec<f32>,
    pub(super) facts: Vec<RowFacts>,
    /// `[rows × V]`, if asked for.
    pub(super) logits: Vec<f32>,
    pub(super) normalised: Normalised,
}

impl Chunk<'_> {
    /// The targets' logprobs and whatever else the options ask for.
    pub(super) fn forward_rows(
        &self,
        targets: Targets,
        options: HeadOptions,
        pieces: &mut [Piece],
    ) -> TorchResult<ChunkRows> {
        if options.is_plain() {
            let (logprobs, normalised) = self.forward(targets, pieces)?;
            return Ok(ChunkRows { logprobs, facts: Vec::new(), logits: Vec::new(), normalised });
        }
        let logits = self.logits(pieces)?;
        let targets = targets.tensor(self.base.device)?;
        // The kernel's own, so that a logprob is the same number whatever else is asked for.
        let known = if options.scales_nothing() && native::is_plain(&logits) {
            Some(Tensor::f_from_slice(&native::log_sum_exp(&logits)?)?.f_unsqueeze(1)?)
        } else {
            None
        };
        let (mut picked, mut normalisers, mut facts, mut kept) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
        for (start, count) in blocks(logits.size()[0]) {
            let scaled = options.scaled(logits.f_narrow(0, start, count)?.f_to_dtype(Kind::Float, false, true)?)?;
            let targets = targets.f_narrow(0, start, count)?;
            let (log_softmax, normaliser) = if let Some(known) = &known {
                let normaliser = known.f_narrow(0, start, count)?;
                (scaled.f_sub(&normaliser)?, normaliser)
            } else {
                let log_softmax = scaled.f_log_softmax(-1, Kind::Float)?;
                let pick = |rows: &Tensor| rows.f_gather(1, &targets.f_narrow(1, 0, 1)?, false);
                let normaliser = pick(&scaled)?.f_sub(&pick(&log_softmax)?)?;
                (log_softmax, normaliser)
            };
            let logprobs = log_softmax.f_gather(1, &targets, false)?;
            if options.facts {
                facts.extend(row_facts(&log_softmax, &normaliser)?);
            }
            if options.logits {
                kept.extend(to_floats(&scaled)?);
            }
            normalisers.push(normaliser);
            picked.push(logprobs);
        }
        let logprobs = to_floats(&Tensor::f_cat(&picked, 0)?.f_view([-1])?)?;
        let normalised = Normalised { logits, log_sum_exp: Tensor::f_cat(&normalisers, 0)? };
        Ok(ChunkRows { logprobs, facts, logits: kept, normalised })
    }

    /// The gradient of the loss by the logits, in their place and dtype.
    pub(super) fn differentiate_rows(
        &self,
        targets: Targets,
        options: HeadOptions,
        normalised: Normalised,
        (mut slopes, entropies): (ChunkSlopes, &[RowFacts]),
    ) -> TorchResult<Tensor> {
        if options.is_plain() {
            return self.differentiate_logits(targets, normalised, slopes.logprobs);
        }
        let device = self.base.device;
        targets.merge_repeated(&mut slopes.logprobs);
        let sums = targets.row_sums(&slopes.logprobs);
        let column = |values: Vec<f32>| Tensor::f_from_slice(&values)?.f_unsqueeze(1)?.f_to_device(device);
        // p is multiplied by `a − h log p`, and `m / V` is added.
        let vocabulary = self.base.config.vocab_size as f32;
        let (mut by_p, mut by_p_log_p, mut everywhere) = (Vec::new(), Vec::new(), Vec::new());
        for (row, sum) in sums.iter().enumerate() {
            let slope = slopes.facts.get(row).copied().unwrap_or_default();
            let entropy = entropies.get(row).map_or(0.0, |facts| facts.entropy);
            by_p.push(slope.normaliser - sum - slope.mean_logprob - slope.entropy * entropy);
            by_p_log_p.push(slope.entropy);
            everywhere.push(slope.mean_logprob / vocabulary);
        }
        let (by_p, by_p_log_p, everywhere) = (column(by_p)?, column(by_p_log_p)?, column(everywhere)?);
        let c = Tensor::f_from_slice(&slopes.logprobs)?.f_view([-1, targets.width as i64])?.f_to_device(device)?;
        let targets = targets.tensor(device)?;
        let Normalised { logits: d_logits, log_sum_exp } = normalised;
        for (start, count) in blocks(d_logits.size()[0]) {
            let rows = |tensor: &Tensor| tensor.f_narrow(0, start, count);
            let scaled = options.scaled(rows(&d_logits)?.f_to_dtype(Kind::Float, false, true)?)?;
            let log_p = scaled.f_sub(&rows(&log_sum_exp)?)?;
            let factor = rows(&by_p)?.f_sub(&log_p.f_mul(&rows(&by_p_log_p)?)?)?;
            let mut block = log_p.f_exp()?.f_mul(&factor)?;
            let _ = block.f_add_(&rows(&everywhere)?)?.f_scatter_add_(1, &rows(&targets)?, &rows(&c)?)?;
            options.pull_back(&mut block, &scaled)?;
            rows(&d_logits)?.f_copy_(&block)?;
        }
        Ok(d_logits)
    }
}

/// A loss's derivatives by what was found for a chunk of rows.
pub(super) struct ChunkSlopes {
    pub(super) logprobs: Vec<f32>,
    pub(super) facts: Vec<RowFacts>,
}

impl ChunkSlopes {
    /// Nothing yet.
    pub(super) fn of(found: &ChunkRows) -> Self {
        Self { logprobs: vec![0.0; found.logprobs.len()], facts: vec![RowFacts::default(); found.facts.len()] }
    }

    pub(super) fn are_zero(&self) -> bool {
        self.logprobs.iter().all(|slope| *slope == 0.0) && self.facts.iter().all(|slope| *slope == RowFacts::default())
    }
}

/// The facts of rows of logprobs, `[rows, V]`.
fn row_facts(log_softmax: &Tensor, normaliser: &Tensor) -> TorchResult<Vec<RowFacts>> {
    let vocabulary = log_softmax.size()[1] as usize;
    let weighted = to_floats(&log_softmax.f_exp()?.f_mul(log_softmax)?)?;
    let (logprobs, normalisers) = (to_floats(log_softmax)?, to_floats(normaliser)?);
    let rows = weighted.chunks_exact(vocabulary).zip(logprobs.chunks_exact(vocabulary)).zip(normalisers);
    Ok(rows
        .map(|((weighted, logprobs), normaliser)| RowFacts {
            normaliser,
            entropy: -sum(weighted) as f32,
            mean_logprob: (sum(logprobs) / vocabulary as f64) as f32,
        })
        .collect())
}

/// The sum in fp64, of eight interleaved parts.
fn sum(values: &[f32]) -> f64 {
    let (eights, rest) = values.as_chunks::<8>();
    let mut parts = [0.0_f64; 8];
    for eight in eights {
        for (part, value) in parts.iter_mut().zip(eight) {
            *part += f64::from(*value);
        }
    }
    parts.iter().sum::<f64>() + rest.iter().map(|value| f64::from(*value)).sum::<f64>()
}
