//! A device: what it has, and the weights on it.

use std::path::PathBuf;

use twinkle_core::ByteSize;
use twinkle_core::config::Device;
use twinkle_core::error::{Error, ErrorCode, Result};
use twinkle_nn::memory::machine::MachineMemory;

/// A device and the weights on it.
#[derive(Clone, Debug)]
pub(crate) struct DevicePlan {
    pub(crate) device: Device,
    /// `None` where the system does not tell.
    pub(crate) memory: Option<MachineMemory>,
    /// The weights of each model in each precision, once.
    pub(crate) weights: Vec<Weights>,
}

/// The weights of one model.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Weights {
    pub(crate) folder: PathBuf,
    pub(crate) kind: tch::Kind,
    pub(crate) bytes: u64,
}

impl DevicePlan {
    /// Bytes of all weights on it.
    pub(crate) fn weight_bytes(&self) -> u64 {
        self.weights.iter().map(|weights| weights.bytes).sum()
    }

    /// What is free beside the weights.
    pub(crate) fn rest(&self) -> Option<u64> {
        self.memory.map(|memory| memory.available.saturating_sub(self.weight_bytes()))
    }

    /// Refuses weights that the device cannot hold, before the first of them is read.
    pub(super) fn check(&self) -> Result<()> {
        let Some(memory) = self.memory else { return Ok(()) };
        let weights = self.weight_bytes();
        if weights < memory.total {
            return Ok(());
        }
        let listed: Vec<String> = self
            .weights
            .iter()
            .map(|weights| format!("`{}` {} as {:?}", weights.folder.display(), ByteSize(weights.bytes), weights.kind))
            .collect();
        Err(Error::new(
            ErrorCode::ResourceExhausted,
            format!(
                "the weights need {} and {} has {}: {}",
                ByteSize(weights),
                device_name(self.device),
                ByteSize(memory.total),
                listed.join(", ")
            ),
        )
        .hint("serve fewer or smaller models, or set `torch_dtype: bfloat16`"))
    }
}

/// What a person calls a device.
pub(crate) fn device_name(device: Device) -> String {
    match device {
        Device::Cpu => "this machine".to_owned(),
        Device::Cuda(ordinal) => format!("`cuda:{ordinal}`"),
    }
}

pub(super) fn torch_device(device: Device) -> tch::Device {
    match device {
        Device::Cpu => tch::Device::Cpu,
        Device::Cuda(ordinal) => tch::Device::Cuda(ordinal as usize),
    }
}

/// What a device has.
pub(super) fn free_memory(device: Device) -> Option<MachineMemory> {
    match device {
        Device::Cpu => MachineMemory::now(),
        Device::Cuda(ordinal) => {
            let (available, total) = twinkle_torch::cuda::memory(ordinal as usize).ok()?;
            Some(MachineMemory { total, available })
        }
    }
}
