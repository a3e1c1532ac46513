//! How a node divides the memory of its devices, decided before any weight is loaded. `twinkle-server plan` prints it.
//!
//! ```text
//! what a device has free
//! ├─ weights of its models, each once
//! ├─ half of the rest: training, shared by the device's trainers, or each its `memory_limit`
//! │  ├─ half: runs (adapters, gradients, optimizers); idle ones beyond it wait on disk
//! │  └─ half: the pass (activations, the head's window); layers are recomputed only where it would not fit
//! ├─ a quarter: caches of the samplers
//! └─ a quarter: everything else
//! ```

use std::path::{Path, PathBuf};

use tracing::{info, warn};
use twinkle_core::config::{Application, ApplicationArgs, Device, ModelArgs, Precision, SamplerArgs, ServerConfig};
use twinkle_core::error::{Error, ErrorCode, Result};
use twinkle_core::{ByteSize, call::LoraSpec};
use twinkle_model::memory::MemoryLimits;
use twinkle_nn::memory::machine::MachineMemory;
use twinkle_nn::memory::{CostModel, PassShape, Recompute};
use twinkle_nn::{LoadOptions, ModelConfig};

use super::base_models::precision_of;
use super::model_folders::ModelFolders;

/// Packed rows of one training pass: more than enough to fill a device.
const MOST_ROWS: usize = 4_096;
/// A pass is cut no smaller than this to save memory; rather are layers recomputed.
const FEWEST_ROWS: usize = 512;

/// What each part of a node may take.
pub(crate) struct MemoryPlan {
    pub(crate) devices: Vec<DevicePlan>,
    pub(crate) trainers: Vec<TrainerPlan>,
    pub(crate) samplers: Vec<SamplerPlan>,
}

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

/// What one `model` application may take.
#[derive(Clone, Debug)]
pub(crate) struct TrainerPlan {
    pub(crate) application: String,
    pub(crate) model: String,
    pub(crate) folder: PathBuf,
    pub(crate) device: Device,
    pub(crate) kind: tch::Kind,
    pub(crate) cost: CostModel,
    /// For runs and the pass; `None`: nobody knows what there is.
    pub(crate) limit: Option<u64>,
    /// Whether `memory_limit` says so.
    pub(crate) limit_is_given: bool,
    pub(crate) limits: MemoryLimits,
    pub(crate) rows_per_pass: usize,
    /// The longest datum that can be trained, at most `max_length`.
    pub(crate) longest: usize,
    /// Most tokens of a datum by the configuration and the model.
    pub(crate) max_length: usize,
    pub(crate) max_loras: usize,
    pub(crate) max_rank: u32,
    /// Bytes of a run of `max_rank` on every module.
    pub(crate) largest_run: u64,
}

/// What one `sampler` application takes.
#[derive(Clone, Debug)]
pub(crate) struct SamplerPlan {
    pub(crate) application: String,
    pub(crate) model: String,
    pub(crate) context: usize,
    pub(crate) sequences: usize,
    pub(crate) bytes_per_token: u64,
    pub(crate) bytes_per_sequence: u64,
    /// For caches; `None`: nobody knows what there is.
    pub(crate) caches: Option<u64>,
    pub(crate) cost: CostModel,
    pub(crate) device: Device,
    pub(crate) kind: tch::Kind,
}

impl MemoryPlan {
    /// Divides what the devices have free now.
    pub(crate) fn new(config: &ServerConfig, folders: &ModelFolders) -> Result<Self> {
        Self::with_memory(config, folders, free_memory)
    }

    /// Divides what `memory` says of each device.
    pub(crate) fn with_memory(
        config: &ServerConfig,
        folders: &ModelFolders,
        memory: impl Fn(Device) -> Option<MachineMemory>,
    ) -> Result<Self> {
        let mut plan = Self { devices: Vec::new(), trainers: Vec::new(), samplers: Vec::new() };
        // Trainers first: a sampler whose precision is `auto` takes the trainer's weights.
        for application in &config.applications {
            if let ApplicationArgs::Model(args) = &application.args {
                plan.add_trainer(application, args, folders.of(&args.model)?, &memory)?;
            }
        }
        for application in &config.applications {
            if let ApplicationArgs::Sampler(args) = &application.args {
                plan.add_sampler(application, args, folders.of(&args.model)?, &memory)?;
            }
        }
        plan.devices.iter().try_for_each(DevicePlan::check)?;
        plan.divide()?;
        Ok(plan)
    }

    /// What was decided for a `model` application.
    pub(crate) fn trainer(&self, application: &str) -> Result<&TrainerPlan> {
        let found = self.trainers.iter().find(|trainer| trainer.application == application);
        found.ok_or_else(|| Error::internal(format!("no memory was planned for `{application}`")))
    }

    /// Says at start how long a datum may be, and what runs and passes may take.
    pub(crate) fn log(&self) {
        for trainer in &self.trainers {
            let Some(limit) = trainer.limit else { continue };
            info!(
                application = trainer.application,
                limit = %ByteSize(limit),
                rows_per_pass = trainer.rows_per_pass,
                "memory for runs and passes"
            );
            if trainer.longest < trainer.max_length {
                warn!(
                    application = trainer.application,
                    longest = trainer.longest,
                    max_length = trainer.max_length,
                    "longer datums will be refused for lack of memory; `twinkle-server plan` shows the figures"
                );
            }
        }
    }

    fn add_trainer(
        &mut self,
        application: &Application,
        args: &ModelArgs,
        folder: &Path,
        memory: &impl Fn(Device) -> Option<MachineMemory>,
    ) -> Result<()> {
        let config = ModelConfig::read(folder)?;
        let device = args.devices.first();
        let (kind, cost) = self.weights(folder, &config, args.precision, device, memory);
        let longest = config.max_position_embeddings;
        let lora = LoraSpec { rank: args.max_rank, ..LoraSpec::default() };
        let largest_run = cost.run_bytes(cost.adapter_parameters(&lora)?);
        let max_length = args.max_length.map_or(longest, |length| longest.min(length as usize));
        self.trainers.push(TrainerPlan {
            application: application.name.clone(),
            model: args.public_name.clone(),
            folder: folder.to_path_buf(),
            device,
            kind,
            cost,
            limit: args.memory_limit,
            limit_is_given: args.memory_limit.is_some(),
            limits: MemoryLimits::NONE,
            rows_per_pass: MOST_ROWS,
            longest: max_length,
            max_length,
            max_loras: args.max_loras as usize,
            max_rank: args.max_rank,
            largest_run,
        });
        Ok(())
    }

    fn add_sampler(
        &mut self,
        application: &Application,
        args: &SamplerArgs,
        folder: &Path,
        memory: &impl Fn(Device) -> Option<MachineMemory>,
    ) -> Result<()> {
        let config = ModelConfig::read(folder)?;
        let device = args.devices.first();
        let (kind, cost) = self.weights(folder, &config, args.engine.dtype, device, memory);
        let longest = config.max_position_embeddings;
        self.samplers.push(SamplerPlan {
            application: application.name.clone(),
            model: args.public_name.clone(),
            context: args.engine.max_model_len.map_or(longest, |length| longest.min(length as usize)),
            sequences: args.engine.max_num_seqs as usize,
            bytes_per_token: cost.cache_bytes_per_token(),
            bytes_per_sequence: cost.cache_bytes_per_sequence(),
            caches: None,
            cost,
            device,
            kind,
        });
        Ok(())
    }

    /// Counts a model's weights once; `auto` takes them as they are on that device already.
    fn weights(
        &mut self,
        folder: &Path,
        config: &ModelConfig,
        precision: Precision,
        device: Device,
        memory: &impl Fn(Device) -> Option<MachineMemory>,
    ) -> (tch::Kind, CostModel) {
        let index = self.devices.iter().position(|plan| plan.device == device).unwrap_or_else(|| {
            self.devices.push(DevicePlan { device, memory: memory(device), weights: Vec::new() });
            self.devices.len() - 1
        });
        let weights = &mut self.devices[index].weights;
        let there = weights.iter().find(|weights| weights.folder == folder && precision == Precision::Auto);
        let kind = there.map_or_else(|| precision_of(precision).kind(torch_device(device)), |weights| weights.kind);
        let cost = CostModel::new(config, kind, LoadOptions::default().row_tile);
        let found = Weights { folder: folder.to_path_buf(), kind, bytes: cost.weight_bytes() };
        if !weights.contains(&found) {
            weights.push(found);
        }
        (kind, cost)
    }

    fn divide(&mut self) -> Result<()> {
        for device in &self.devices {
            let Some(rest) = device.rest() else { continue };
            let sharing = |other: &&mut TrainerPlan| other.device == device.device && !other.limit_is_given;
            let trainers = self.trainers.iter_mut().filter(sharing).count().max(1) as u64;
            for trainer in self.trainers.iter_mut().filter(sharing) {
                trainer.limit = Some(rest / 2 / trainers);
            }
            let samplers = self.samplers.iter().filter(|sampler| sampler.device == device.device).count().max(1) as u64;
            for sampler in self.samplers.iter_mut().filter(|sampler| sampler.device == device.device) {
                sampler.caches = Some(rest / 4 / samplers);
            }
        }
        self.trainers.iter_mut().try_for_each(TrainerPlan::settle)
    }
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
    fn check(&self) -> Result<()> {
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

impl SamplerPlan {
    pub(crate) fn is_on_cpu(&self) -> bool {
        self.device == Device::Cpu
    }
}

impl TrainerPlan {
    /// Derives what the engine goes by from the limit; an application that could not train one token is refused.
    fn settle(&mut self) -> Result<()> {
        let Some(limit) = self.limit else { return Ok(()) };
        self.limits = MemoryLimits::divide(limit);
        let rank = self.max_rank as usize;
        let whole = self.cost.rows_within(self.limits.pass, self.max_length, rank, Recompute::NOTHING);
        let all = self.recompute_most();
        let recomputed = self.cost.rows_within(self.limits.pass, usize::MAX, rank, all);
        self.longest = recomputed.min(self.max_length);
        self.rows_per_pass = whole.max(recomputed.min(FEWEST_ROWS)).min(MOST_ROWS);
        if self.longest > 0 && self.largest_run <= self.limits.runs {
            return Ok(());
        }
        let least = self.pass_bytes(1, all) * 2;
        Err(Error::new(
            ErrorCode::ResourceExhausted,
            format!(
                "application `{}` has {} for runs and passes; a run of rank {} takes {} and a pass of one token {}, \
                 and each may take half",
                self.application,
                ByteSize(limit),
                self.max_rank,
                ByteSize(self.largest_run),
                ByteSize(least / 2)
            ),
        )
        .hint(format!(
            "set `memory_limit` to at least `{}`, free memory on {}, or lower `max_r`",
            ByteSize(least.max(2 * self.largest_run) + (1 << 20)),
            device_name(self.device)
        )))
    }

    /// Every layer that can be computed twice.
    pub(crate) fn recompute_most(&self) -> Recompute {
        Recompute { layers: self.cost.config().layer_count.saturating_sub(1) }
    }

    pub(crate) fn is_on_cpu(&self) -> bool {
        self.device == Device::Cpu
    }

    /// The precision that gives its dtype.
    pub(crate) fn precision(&self) -> twinkle_nn::Precision {
        match self.kind {
            tch::Kind::BFloat16 => twinkle_nn::Precision::BFloat16,
            _ => twinkle_nn::Precision::Float32,
        }
    }

    /// Bytes of a pass of one sequence of so many rows with the largest rank.
    pub(crate) fn pass_bytes(&self, rows: usize, recompute: Recompute) -> u64 {
        let shape = PassShape { rows, longest: rows, rank: self.max_rank as usize, backward: true };
        self.cost.pass_bytes(shape, recompute)
    }
}

/// What a person calls a device.
pub(crate) fn device_name(device: Device) -> String {
    match device {
        Device::Cpu => "this machine".to_owned(),
        Device::Cuda(ordinal) => format!("`cuda:{ordinal}`"),
    }
}

fn torch_device(device: Device) -> tch::Device {
    match device {
        Device::Cpu => tch::Device::Cpu,
        Device::Cuda(ordinal) => tch::Device::Cuda(ordinal as usize),
    }
}

/// What a device has.
fn free_memory(device: Device) -> Option<MachineMemory> {
    match device {
        Device::Cpu => MachineMemory::now(),
        Device::Cuda(ordinal) => {
            let (available, total) = twinkle_torch::cuda::memory(ordinal as usize).ok()?;
            Some(MachineMemory { total, available })
        }
    }
}
