//! The frozen base model.

use std::path::Path;

use tch::{Device, Kind, Tensor};
use twinkle_core::{Error, Result};
use twinkle_torch::Frozen;

use crate::config::ModelConfig;
use crate::layers::decoder::DecoderLayer;
use crate::layers::load::LayerFiles;
use crate::layers::norm::RmsNorm;
use crate::memory::CostModel;
use crate::precision::Precision;
use crate::rope::RotaryEmbedding;
use crate::torch::device_error;
use crate::weights::{Loaded, WeightFiles};

/// How a model is loaded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LoadOptions {
    /// The dtype it computes in.
    pub precision: Precision,
    /// Where it computes. A CUDA device must come from [`twinkle_torch::cuda::device`], which loads what it needs.
    pub device: Device,
    /// Rows per tile of the training passes' matrix products, at least 16. Never changes while the program runs:
    /// bits depend on it.
    pub row_tile: usize,
}

impl Default for LoadOptions {
    fn default() -> Self {
        Self { precision: Precision::Auto, device: Device::Cpu, row_tile: 256 }
    }
}

/// A frozen decoder-only transformer. Shared as `Arc<BaseModel>` by the trainer and the sampler; nothing changes it.
#[derive(Debug)]
pub struct BaseModel {
    pub(crate) config: ModelConfig,
    pub(crate) kind: Kind,
    pub(crate) device: Device,
    pub(crate) row_tile: i64,
    /// `[V, H]`.
    pub(crate) embedding: Frozen,
    pub(crate) layers: Vec<DecoderLayer>,
    pub(crate) final_norm: RmsNorm,
    /// `[V, H]`; `None` when the embedding is the head.
    pub(crate) untied_head: Option<Frozen>,
    pub(crate) rotary: RotaryEmbedding,
    loaded: Loaded,
}

impl BaseModel {
    /// Loads a model folder: `config.json` and its safetensors files.
    ///
    /// Weights whose dtype is the model's are used from the mapped file without a copy; others are converted one by one.
    pub fn load(directory: &Path, options: &LoadOptions) -> Result<Self> {
        if options.row_tile < 16 {
            return Err(Error::invalid(format!("the row tile is `{}`, but must be at least 16", options.row_tile)));
        }
        if options.device == Device::Cpu {
            twinkle_torch::memory::keep_freed_blocks();
        }
        let config = ModelConfig::read(directory)?;
        let kind = options.precision.kind(options.device);
        let files = WeightFiles::open(directory, &config, kind, options.device)?;
        let model = Self::assemble(config, files, (kind, options.device), options.row_tile as i64)?;
        tracing::info!(
            family = ?model.config.family, layers = model.config.layer_count, hidden = model.config.hidden_size,
            vocabulary = model.config.vocab_size, ?kind, device = ?options.device, weight_bytes = model.loaded.bytes,
            "base model mapped"
        );
        Ok(model)
    }

    /// A model of these dimensions with random weights, as before any training: for measuring speed and memory, which
    /// need no files.
    pub fn with_random_weights(config: ModelConfig, options: &LoadOptions) -> Result<Self> {
        if options.device == Device::Cpu {
            twinkle_torch::memory::keep_freed_blocks();
        }
        let kind = options.precision.kind(options.device);
        let files = WeightFiles::invented(kind, options.device);
        Self::assemble(config, files, (kind, options.device), options.row_tile as i64)
    }

    /// The network of these weights.
    pub(crate) fn assemble(
        config: ModelConfig,
        mut files: WeightFiles,
        (kind, device): (Kind, Device),
        row_tile: i64,
    ) -> Result<Self> {
        let (vocabulary, hidden) = (config.vocab_size, config.hidden_size);

        let embedding = files.take("model.embed_tokens.weight", &[vocabulary, hidden])?;
        let mut layers = Vec::with_capacity(config.layer_count);
        for (index, kind) in config.layers.iter().enumerate() {
            layers.push(DecoderLayer::load(&mut LayerFiles { files: &mut files, config: &config, index }, *kind)?);
        }
        let final_norm = RmsNorm {
            weight: files.take("model.norm.weight", &[hidden])?,
            epsilon: config.rms_norm_eps,
            flavour: config.norm,
        };
        let untied_head =
            if config.tied_embeddings { None } else { Some(files.take("lm_head.weight", &[vocabulary, hidden])?) };
        let loaded = files.finish()?;
        let rotary = RotaryEmbedding::new(&config.rope, config.rotary_dim, kind, device).map_err(device_error)?;
        Ok(Self { config, kind, device, row_tile, embedding, layers, final_norm, untied_head, rotary, loaded })
    }

    /// Its dimensions.
    #[must_use]
    pub fn config(&self) -> &ModelConfig {
        &self.config
    }

    /// The dtype of weights and activations.
    #[must_use]
    pub fn kind(&self) -> Kind {
        self.kind
    }

    /// Where it computes.
    #[must_use]
    pub fn device(&self) -> Device {
        self.device
    }

    /// Bytes of all weights.
    #[must_use]
    pub fn weight_bytes(&self) -> u64 {
        self.loaded.bytes
    }

    /// The folder it was loaded from; `None`: its weights came from memory.
    #[must_use]
    pub fn directory(&self) -> Option<&Path> {
        self.loaded.directory.as_deref()
    }

    /// Every weight by its name in the files, in the order of the network.
    pub(crate) fn weights(&self) -> &[(String, Frozen)] {
        &self.loaded.weights
    }

    /// What it takes in memory, by arithmetic.
    #[must_use]
    pub fn cost(&self) -> CostModel {
        CostModel::new(&self.config, self.kind, self.row_tile as usize).on(self.device)
    }

    /// The output head's weight, `[V, H]`.
    pub(crate) fn head_weight(&self) -> &Tensor {
        self.untied_head.as_ref().unwrap_or(&self.embedding).tensor()
    }
}
