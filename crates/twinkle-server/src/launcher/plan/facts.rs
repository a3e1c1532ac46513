//! The plan as data and as a page.

use std::fmt;

use serde::Serialize;
use twinkle_core::ByteSize;
use twinkle_core::config::{Device, TrainMode};
use twinkle_model::rehearsal::Rehearsed;
use twinkle_nn::memory::Recompute;
use twinkle_nn::memory::rate::SHARE_OF_PRODUCTS;

use super::speed::{LENGTH, Speeds};
use crate::launcher::memory::{DevicePlan, MemoryPlan, SamplerPlan, TrainerPlan, device_name};

/// Everything `plan` says. Sizes are in bytes, speeds in tokens per second.
#[derive(Debug, Serialize)]
pub(crate) struct PlanFacts {
    devices: Vec<DeviceFacts>,
    trainers: Vec<TrainerFacts>,
    samplers: Vec<SamplerFacts>,
}

#[derive(Debug, Serialize)]
struct DeviceFacts {
    device: Device,
    total: Option<u64>,
    free: Option<u64>,
    weights: u64,
}

#[derive(Debug, Serialize)]
struct TrainerFacts {
    application: String,
    model: String,
    dtype: String,
    weights: u64,
    weight_count: u64,
    memory_limit: Option<u64>,
    memory_limit_is_given: bool,
    runs_limit: Option<u64>,
    max_loras: usize,
    max_rank: u32,
    train_mode: TrainMode,
    largest_run: u64,
    largest_runs_in_memory: Option<u64>,
    pass_limit: Option<u64>,
    undo: u64,
    rows_per_pass: usize,
    full_pass: u64,
    full_pass_recomputed: u64,
    max_length: usize,
    longest_datum: usize,
    longest_datum_without_recompute: Option<usize>,
    tokens_per_second: Option<f64>,
    tokens_per_second_of_products_alone: Option<f64>,
    measured: Option<MeasuredFacts>,
}

#[derive(Debug, Serialize)]
struct MeasuredFacts {
    tokens_per_second: f64,
    run: u64,
    run_predicted: u64,
    pass: u64,
    pass_predicted: u64,
}

#[derive(Debug, Serialize)]
struct SamplerFacts {
    application: String,
    model: String,
    dtype: String,
    caches: Option<u64>,
    bytes_per_token: u64,
    bytes_per_sequence: u64,
    gpu_memory_utilization: f64,
    tokens: Option<usize>,
    context: usize,
    full_sequences: Option<usize>,
    max_num_seqs: usize,
    tokens_per_second_alone: Option<f64>,
}

impl PlanFacts {
    pub(super) fn of(memory: &MemoryPlan, speeds: &Speeds) -> Self {
        let measured = speeds.measured.iter().copied().chain(std::iter::repeat(None));
        Self {
            devices: memory.devices.iter().map(DeviceFacts::of).collect(),
            trainers: memory
                .trainers
                .iter()
                .zip(measured)
                .map(|(trainer, measured)| TrainerFacts::of(trainer, speeds, measured))
                .collect(),
            samplers: memory.samplers.iter().map(|sampler| SamplerFacts::of(sampler, speeds)).collect(),
        }
    }
}

impl DeviceFacts {
    fn of(plan: &DevicePlan) -> Self {
        Self {
            device: plan.device,
            total: plan.memory.map(|memory| memory.total),
            free: plan.memory.map(|memory| memory.available),
            weights: plan.weight_bytes(),
        }
    }
}

impl TrainerFacts {
    fn of(plan: &TrainerPlan, speeds: &Speeds, measured: Option<Rehearsed>) -> Self {
        let cost = &plan.cost;
        let limits = plan.limit.map(|_| plan.limits);
        let rate = speeds.rate(plan.kind).filter(|_| plan.is_on_cpu());
        let alone = rate.map(|rate| rate.training_of_products_alone(cost, LENGTH));
        let alone_in_a_pass = |rows| plan.pass(rows, usize::MAX);
        let whole = |bytes: u64| {
            let rows = cost.rows_within(bytes.saturating_sub(plan.undo), Recompute::NOTHING, alone_in_a_pass);
            rows.min(plan.max_length)
        };
        Self {
            application: plan.application.clone(),
            model: plan.model.clone(),
            dtype: format!("{:?}", plan.kind),
            weights: cost.weight_bytes(),
            weight_count: cost.weight_count(),
            memory_limit: plan.limit,
            memory_limit_is_given: plan.limit_is_given,
            runs_limit: limits.map(|limits| limits.runs),
            max_loras: plan.max_loras,
            max_rank: plan.max_rank,
            train_mode: plan.train_mode,
            largest_run: plan.largest_run,
            largest_runs_in_memory: limits.map(|limits| (limits.runs / plan.largest_run).min(plan.max_loras as u64)),
            pass_limit: limits.map(|limits| limits.pass),
            undo: plan.undo,
            rows_per_pass: plan.rows_per_pass,
            full_pass: plan.pass_bytes(plan.rows_per_pass, Recompute::NOTHING),
            full_pass_recomputed: plan.pass_bytes(plan.rows_per_pass, plan.recompute_most()),
            max_length: plan.max_length,
            longest_datum: plan.longest,
            longest_datum_without_recompute: limits.map(|limits| whole(limits.pass)),
            tokens_per_second: alone.map(|alone| alone * SHARE_OF_PRODUCTS),
            tokens_per_second_of_products_alone: alone,
            measured: measured.map(|Rehearsed { run, pass, tokens_per_second, .. }| MeasuredFacts {
                tokens_per_second,
                run: run.measured,
                run_predicted: run.predicted,
                pass: pass.measured,
                pass_predicted: pass.predicted,
            }),
        }
    }
}

impl SamplerFacts {
    fn of(plan: &SamplerPlan, speeds: &Speeds) -> Self {
        let rate = speeds.rate(plan.kind).filter(|_| plan.is_on_cpu());
        Self {
            application: plan.application.clone(),
            model: plan.model.clone(),
            dtype: format!("{:?}", plan.kind),
            caches: plan.caches.map(|caches| caches.bytes),
            bytes_per_token: plan.cost.cache_bytes_per_token(),
            bytes_per_sequence: plan.cost.cache_bytes(0),
            gpu_memory_utilization: plan.utilization,
            tokens: plan.caches.map(|caches| caches.tokens()),
            context: plan.context,
            full_sequences: plan.caches.map(|caches| caches.sequences_of(plan.context).min(plan.sequences)),
            max_num_seqs: plan.sequences,
            tokens_per_second_alone: rate.map(|rate| rate.decoding_alone(&plan.cost)),
        }
    }
}

// --- the page ---

/// A size, or that nobody knows.
struct Known(Option<u64>);

impl fmt::Display for Known {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            Some(bytes) => ByteSize(bytes).fmt(formatter),
            None => formatter.write_str("unknown"),
        }
    }
}

impl fmt::Display for PlanFacts {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        for device in &self.devices {
            writeln!(
                formatter,
                "{}: {} of {} free, {} of weights",
                device_name(device.device),
                Known(device.free),
                Known(device.total),
                ByteSize(device.weights)
            )?;
        }
        for trainer in &self.trainers {
            trainer.write(formatter)?;
        }
        for sampler in &self.samplers {
            sampler.write(formatter)?;
        }
        Ok(())
    }
}

/// One line: what, how much, and why.
fn line(formatter: &mut fmt::Formatter<'_>, what: &str, amount: &dyn fmt::Display, why: &str) -> fmt::Result {
    writeln!(formatter, "  {what:<22}{:>10}  {why}", amount.to_string())
}

impl TrainerFacts {
    fn write(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(formatter, "\nmodel `{}`: {} in {}", self.application, self.model, self.dtype)?;
        let millions = self.weight_count / 1_000_000;
        line(
            formatter,
            "weights",
            &ByteSize(self.weights),
            &format!("{millions} million, read-only, each model once"),
        )?;
        let is_full = self.train_mode == TrainMode::Full;
        let why = match (self.memory_limit_is_given, is_full) {
            (true, _) => "`memory_limit`",
            (false, true) => "what weights leave free, but for a quarter and caches",
            (false, false) => "half of what weights leave free",
        };
        line(formatter, "runs and passes", &Known(self.memory_limit), why)?;
        let fitting = self.largest_runs_in_memory.map_or_else(|| "any number".to_owned(), |runs| runs.to_string());
        let why = if is_full {
            format!("one that trains all weights takes {}", ByteSize(self.largest_run))
        } else {
            format!("{fitting} of rank {} stay in memory, at {} each", self.max_rank, ByteSize(self.largest_run))
        };
        line(formatter, "  runs", &Known(self.runs_limit), &why)?;
        let why = format!(
            "{} rows take {}, with layers recomputed {}, to take them back {}",
            self.rows_per_pass,
            ByteSize(self.full_pass),
            ByteSize(self.full_pass_recomputed),
            ByteSize(self.undo)
        );
        line(formatter, "  a pass", &Known(self.pass_limit), &why)?;
        let why = match self.longest_datum_without_recompute {
            Some(rows) if rows < self.longest_datum => format!("above {rows} layers are recomputed"),
            _ => "no layer is recomputed".to_owned(),
        };
        let of = if self.longest_datum < self.max_length { format!(", of {}", self.max_length) } else { String::new() };
        line(formatter, "longest datum", &format!("{} tok", self.longest_datum), &format!("{why}{of}"))?;
        if let (Some(speed), Some(alone)) = (self.tokens_per_second, self.tokens_per_second_of_products_alone) {
            let share = SHARE_OF_PRODUCTS * 100.0;
            let why = format!("estimate: {share:.0} % of the {alone:.0} that matrix products alone would allow here");
            line(formatter, "training", &format!("{speed:.0} tok/s"), &why)?;
        } else {
            line(formatter, "training", &"unknown", "speeds are estimated for the CPU; measure with `--measure`")?;
        }
        let Some(measured) = &self.measured else { return Ok(()) };
        let why = format!(
            "a small batch; its pass took {}, predicted {}; its run {}, predicted {}",
            ByteSize(measured.pass),
            ByteSize(measured.pass_predicted),
            ByteSize(measured.run),
            ByteSize(measured.run_predicted)
        );
        line(formatter, "measured", &format!("{:.0} tok/s", measured.tokens_per_second), &why)
    }
}

impl SamplerFacts {
    fn write(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(formatter, "\nsampler `{}`: {} in {}", self.application, self.model, self.dtype)?;
        let mut why = format!("{} a token", ByteSize(self.bytes_per_token));
        if self.bytes_per_sequence > 0 {
            why = format!("{why}, {} a sequence", ByteSize(self.bytes_per_sequence));
        }
        if let Some(tokens) = self.tokens {
            why = format!("{why}, with room to grow {tokens} tokens");
            why = format!("{why}; `gpu_memory_utilization` {}", self.gpu_memory_utilization);
        }
        line(formatter, "caches", &Known(self.caches), &why)?;
        if let Some(sequences) = self.full_sequences {
            let why = format!("of {} tokens at once; {} may run", self.context, self.max_num_seqs);
            line(formatter, "full sequences", &sequences, &why)?;
        }
        let Some(speed) = self.tokens_per_second_alone else { return Ok(()) };
        line(
            formatter,
            "decoding",
            &format!("{speed:.0} tok/s"),
            "at most, one sequence alone: every weight is read for each token",
        )
    }
}
