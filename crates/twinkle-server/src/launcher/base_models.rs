//! Frozen weights, mapped once and shared: a trainer and a sampler of the same model read the same memory.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use tokio::time::Instant;
use tracing::info;
use twinkle_core::config::{Device, Precision};
use twinkle_core::error::{Error, Result};
use twinkle_nn::{BaseModel, LoadOptions};

/// What makes two applications share weights.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Key {
    folder: PathBuf,
    precision: Precision,
    device: Device,
}

/// The base models of a node.
#[derive(Default)]
pub(super) struct BaseModels {
    loaded: Vec<(Key, Arc<BaseModel>)>,
}

impl BaseModels {
    /// The model in `folder`; loaded at most once for each precision and device.
    ///
    /// [`Precision::Auto`] takes the model as it is already loaded on that device, whatever its precision.
    pub(super) async fn get(&mut self, folder: &Path, precision: Precision, device: Device) -> Result<Arc<BaseModel>> {
        let shared = self.loaded.iter().find(|(key, _)| {
            let same_precision = precision == Precision::Auto || key.precision == precision;
            key.folder == folder && key.device == device && same_precision
        });
        if let Some((_, model)) = shared {
            return Ok(Arc::clone(model));
        }
        let key = Key { folder: folder.to_path_buf(), precision, device };
        let model = Arc::new(load(folder.to_path_buf(), precision, device).await?);
        self.loaded.push((key, Arc::clone(&model)));
        Ok(model)
    }
}

/// Maps the weights on a blocking thread: it reads headers, and converts tensors where the precision differs.
async fn load(folder: PathBuf, precision: Precision, device: Device) -> Result<BaseModel> {
    let began = Instant::now();
    let shown = folder.display().to_string();
    let loading = tokio::task::spawn_blocking(move || {
        let options =
            LoadOptions { precision: precision_of(precision), device: device_of(device)?, ..LoadOptions::default() };
        BaseModel::load(&folder, &options)
    });
    let model = loading.await.map_err(|error| Error::internal(format!("loading `{shown}` failed: {error}")))??;
    info!(
        folder = shown,
        mebibytes = model.weight_bytes() >> 20,
        precision = ?model.kind(),
        device = ?model.device(),
        elapsed_s = began.elapsed().as_secs_f64(),
        "base model loaded"
    );
    Ok(model)
}

pub(super) const fn precision_of(precision: Precision) -> twinkle_nn::Precision {
    match precision {
        Precision::Auto => twinkle_nn::Precision::Auto,
        Precision::Float32 => twinkle_nn::Precision::Float32,
        Precision::Bfloat16 => twinkle_nn::Precision::BFloat16,
    }
}

/// libtorch's name of the device; a CUDA device is checked to be there.
pub(super) fn device_of(device: Device) -> Result<tch::Device> {
    let name = match device {
        Device::Cpu => "cpu".to_owned(),
        Device::Cuda(ordinal) => format!("cuda:{ordinal}"),
    };
    twinkle_torch::cuda::device(&name).map_err(|error| {
        Error::unsupported(format!("the device `{name}` cannot be used: {error}"))
            .hint("set `device_type: CPU` in `device_group`, or see docs/ for what a CUDA device needs")
    })
}
