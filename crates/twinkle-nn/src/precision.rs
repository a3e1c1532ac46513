//! In which dtype the network computes.

use tch::{Device, Kind};

/// The dtype of weights and activations.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Precision {
    /// `bf16` where the device multiplies it natively (CUDA, AMX-BF16, AVX512-BF16), else `fp32`.
    #[default]
    Auto,
    /// 32-bit floats everywhere.
    Float32,
    /// bfloat16 weights and activations; norms, softmax and loss in fp32.
    BFloat16,
}

impl Precision {
    /// The dtype on this device.
    #[must_use]
    pub fn kind(self, device: Device) -> Kind {
        match self {
            Self::BFloat16 => Kind::BFloat16,
            Self::Auto if device != Device::Cpu || cpu_multiplies_bf16() => Kind::BFloat16,
            Self::Auto | Self::Float32 => Kind::Float,
        }
    }
}

#[cfg(target_arch = "x86_64")]
fn cpu_multiplies_bf16() -> bool {
    // Every processor with AMX-BF16 has AVX512-BF16 too.
    std::arch::is_x86_feature_detected!("avx512bf16")
}

#[cfg(not(target_arch = "x86_64"))]
fn cpu_multiplies_bf16() -> bool {
    false
}
