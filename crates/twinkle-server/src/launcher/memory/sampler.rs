//! What a `sampler` application takes: its caches.

use twinkle_core::ByteSize;
use twinkle_core::config::Device;
use twinkle_core::error::{Error, ErrorCode, Result};
use twinkle_nn::memory::CostModel;
use twinkle_sampler::memory::CacheBudget;

use super::device::{DevicePlan, device_name};

/// For the caches of a sampler whose device does not tell what it has.
const CACHES_OF_UNKNOWN: u64 = 1 << 30;

/// What one `sampler` application takes.
#[derive(Clone, Debug)]
pub(crate) struct SamplerPlan {
    pub(crate) application: String,
    pub(crate) model: String,
    pub(crate) context: usize,
    pub(crate) sequences: usize,
    /// The share of the device that weights and its caches may take together.
    pub(crate) utilization: f64,
    /// For caches; `None`: nobody knows what there is.
    pub(crate) caches: Option<CacheBudget>,
    pub(crate) cost: CostModel,
    pub(crate) device: Device,
    pub(crate) kind: tch::Kind,
}

impl SamplerPlan {
    /// Takes its share of what is for caches, as far as the configuration lets it; one without room for a token is refused.
    pub(super) fn settle(&mut self, device: &DevicePlan, share: u64) -> Result<()> {
        let Some(memory) = device.memory else { return Ok(()) };
        let allowed = (memory.total as f64 * self.utilization) as u64;
        let caches = CacheBudget::new(&self.cost, share.min(allowed.saturating_sub(device.weight_bytes())));
        self.caches = Some(caches);
        if caches.sequences_of(1) > 0 {
            return Ok(());
        }
        Err(Error::new(
            ErrorCode::ResourceExhausted,
            format!(
                "application `{}` has no room for the cache of one token: weights take {}, and with them it may take {} of \
                 the {} that {} has, {} of which are free",
                self.application,
                ByteSize(device.weight_bytes()),
                ByteSize(allowed),
                ByteSize(memory.total),
                device_name(self.device),
                ByteSize(memory.available)
            ),
        )
        .hint("raise `gpu_memory_utilization`, free memory, or serve fewer or smaller models"))
    }

    /// What the engine's caches may take.
    pub(crate) fn budget(&self) -> CacheBudget {
        self.caches.unwrap_or_else(|| CacheBudget::new(&self.cost, CACHES_OF_UNKNOWN))
    }

    pub(crate) fn is_on_cpu(&self) -> bool {
        self.device == Device::Cpu
    }
}
