//! An adapter as the device multiplies by it.

use std::sync::{Arc, OnceLock};

use sha2::{Digest, Sha256};
use tch::{Device, Kind, Tensor};
use twinkle_torch::Frozen;

use super::layout::{AdapterLayout, Site};

/// `A` and `B` of every module in the model's dtype. Immutable and shared between threads; a changed adapter is a new one.
#[derive(Debug)]
pub struct Adapter {
    layout: Arc<AdapterLayout>,
    pairs: Vec<AdapterPair>,
    /// Of which every factor is a view, `[P]`.
    rounded: Frozen,
    /// Made when first asked for: a trainer makes an adapter with every step and publishes few.
    hash: OnceLock<[u8; 32]>,
}

/// The two factors of one module.
#[derive(Debug)]
pub(crate) struct AdapterPair {
    /// `[rank, inputs]`; of experts `[a_groups, rank, inputs]`.
    pub(crate) a: Frozen,
    /// `[outputs, rank]`; of experts `[b_groups, outputs, rank]`.
    pub(crate) b: Frozen,
    /// What `B A x` is multiplied by.
    pub(crate) scale: f64,
}

impl Adapter {
    /// The adapter of these fp32 parameters `[P]`, rounded to `kind` on `device`. The parameters are copied.
    #[must_use]
    pub fn from_parameters(layout: &Arc<AdapterLayout>, flat: &Tensor, kind: Kind, device: Device) -> Self {
        // One copy in the model's dtype, of which every module is a view.
        let rounded = flat.detach().to_device(device).to_dtype(kind, false, true);
        let part = |range: std::ops::Range<usize>, shape: &[usize]| {
            let shape: Vec<i64> = shape.iter().map(|size| *size as i64).collect();
            Frozen::new(rounded.narrow(0, range.start as i64, range.len() as i64).view(shape.as_slice()))
        };
        let pairs = layout
            .modules()
            .iter()
            .map(|module| AdapterPair {
                a: part(module.a_range(), &module.a_shape()),
                b: part(module.b_range(), &module.b_shape()),
                scale: module.scale,
            })
            .collect();
        Self { layout: Arc::clone(layout), pairs, rounded: Frozen::new(rounded), hash: OnceLock::new() }
    }

    /// The modules it covers.
    #[must_use]
    pub fn layout(&self) -> &Arc<AdapterLayout> {
        &self.layout
    }

    /// SHA-256 of what the device multiplies by, as fp32: equal adapters have equal hashes.
    #[must_use]
    pub fn content_hash(&self) -> &[u8; 32] {
        self.hash.get_or_init(|| {
            let rounded = self.rounded.tensor();
            let mut values = vec![0.0_f32; rounded.numel()];
            rounded.to_device(Device::Cpu).to_kind(Kind::Float).copy_data(&mut values, rounded.numel());
            Sha256::digest(bytemuck::cast_slice::<f32, u8>(&values)).into()
        })
    }

    /// The factors at `site`, if it is adapted.
    pub(crate) fn at(&self, site: Site) -> Option<&AdapterPair> {
        self.pairs.get(self.layout.module_at(site)?)
    }
}
