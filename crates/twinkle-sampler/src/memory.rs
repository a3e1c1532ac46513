//! How much memory KV caches may take.

use std::fs;

use tch::Kind;
use twinkle_nn::config::MixerKind;
use twinkle_nn::{BaseModel, ModelConfig, delta_state_bytes};

/// Share of the machine's free memory on a CPU; the trainer and the weights' page cache need the rest.
const CPU_SHARE: f64 = 0.25;
/// A cache that has just grown has room for half as much again.
pub const GROWTH: f64 = 1.5;
/// When the system does not tell how much memory is free.
const FALLBACK_BYTES: u64 = 1 << 30;

/// Bytes of one token's keys and values over all layers that keep them.
#[must_use]
pub fn kv_bytes_per_token(config: &ModelConfig, kind: Kind) -> u64 {
    let numbers = 2 * layers(config, MixerKind::FullAttention) * config.kv_head_count * config.head_dim;
    (numbers * kind.elt_size_in_bytes()) as u64
}

/// Bytes that a sequence takes however short it is: the memories of linear attention, and those of the step that is
/// being computed.
#[must_use]
pub fn bytes_per_sequence(config: &ModelConfig, kind: Kind) -> u64 {
    let state = config.delta.as_ref().map_or(0, |delta| delta_state_bytes(delta, kind));
    (2 * layers(config, MixerKind::GatedDeltaNet) * state) as u64
}

fn layers(config: &ModelConfig, mixer: MixerKind) -> usize {
    config.layers.iter().filter(|layer| layer.mixer == mixer).count()
}

/// What a sequence takes however short it is, in KV rows of [`kv_token_budget`].
#[must_use]
pub fn sequence_tokens(base: &BaseModel) -> usize {
    let bytes = bytes_per_sequence(base.config(), base.kind()) as f64;
    (bytes / row_bytes(base)).ceil() as usize
}

/// Bytes that one KV row is planned with.
fn row_bytes(base: &BaseModel) -> f64 {
    kv_bytes_per_token(base.config(), base.kind()).max(1) as f64 * GROWTH
}

/// KV rows (tokens) that the caches of an engine may hold together.
#[must_use]
pub fn kv_token_budget(base: &BaseModel) -> usize {
    let free = available_bytes().map_or(FALLBACK_BYTES, |free| (free as f64 * CPU_SHARE) as u64);
    (free as f64 / row_bytes(base)) as usize
}

/// Free memory: what Linux reports, and no more than the control group allows.
fn available_bytes() -> Option<u64> {
    let text = fs::read_to_string("/proc/meminfo").ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix("MemAvailable:"))?;
    let kibibytes: u64 = line.trim().trim_end_matches(" kB").trim().parse().ok()?;
    let machine = kibibytes * 1024;
    Some(group_limit().map_or(machine, |group| machine.min(group)))
}

fn group_limit() -> Option<u64> {
    let number = |path| fs::read_to_string(path).ok()?.trim().parse::<u64>().ok();
    let limit = number("/sys/fs/cgroup/memory.max")?;
    let used = number("/sys/fs/cgroup/memory.current").unwrap_or(0);
    Some(limit.saturating_sub(used))
}
