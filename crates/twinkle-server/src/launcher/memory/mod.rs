//! How a node divides the memory of its devices, decided before any weight is loaded. `twinkle-server plan` prints it.
//!
//! ```text
//! what a device has free
//! ├─ weights of its models, each once
//! ├─ half of the rest: training, shared by the device's trainers, or each its `memory_limit`
//! │  ├─ half: runs (adapters, gradients, optimizers); idle ones beyond it wait on disk
//! │  └─ half: the pass (activations, the head's window, copies of gradients that take it back); layers are recomputed
//! │           only where it would not fit
//! ├─ a quarter: caches of the samplers, shared; each at most what `gpu_memory_utilization` leaves beside the weights
//! └─ a quarter: everything else
//! ```
//!
//! A trainer of all weights has one run, and what that leaves is for its passes; it also takes what no sampler needs. On a
//! device without trainers caches take their half, too.

mod device;
mod sampler;
#[cfg(test)]
mod tests;
mod trainer;

use std::path::Path;

use tracing::{info, warn};
use twinkle_core::config::{
    Application, ApplicationArgs, Device, ModelArgs, Precision, SamplerArgs, ServerConfig, TrainMode,
};
use twinkle_core::error::{Error, Result};
use twinkle_core::{ByteSize, call::LoraSpec};
use twinkle_model::memory::MemoryLimits;
use twinkle_nn::memory::CostModel;
use twinkle_nn::memory::machine::MachineMemory;
use twinkle_nn::{LoadOptions, ModelConfig};

pub(crate) use self::device::{DevicePlan, device_name};
use self::device::{Weights, free_memory, torch_device};
pub(crate) use self::sampler::SamplerPlan;
use self::trainer::MOST_ROWS;
pub(crate) use self::trainer::TrainerPlan;
use super::base_models::precision_of;
use super::model_folders::ModelFolders;

/// What each part of a node may take.
pub(crate) struct MemoryPlan {
    pub(crate) devices: Vec<DevicePlan>,
    pub(crate) trainers: Vec<TrainerPlan>,
    pub(crate) samplers: Vec<SamplerPlan>,
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

    /// What was decided for a `sampler` application.
    pub(crate) fn sampler(&self, application: &str) -> Result<&SamplerPlan> {
        let found = self.samplers.iter().find(|sampler| sampler.application == application);
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
        let (largest_run, undo) = if args.train_mode == TrainMode::Full {
            (cost.full_run_bytes(), cost.full_undo_bytes())
        } else {
            let lora = LoraSpec { rank: args.max_rank, ..LoraSpec::default() };
            let parameters = cost.adapter_parameters(&lora)?;
            (cost.run_bytes(parameters), cost.undo_bytes(parameters))
        };
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
            train_mode: args.train_mode,
            largest_run,
            undo,
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
            utilization: args.engine.gpu_memory_utilization,
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
        let cost = CostModel::new(config, kind, LoadOptions::default().row_tile).on(torch_device(device));
        let found = Weights { folder: folder.to_path_buf(), kind, bytes: cost.weight_bytes() };
        if !weights.contains(&found) {
            weights.push(found);
        }
        (kind, cost)
    }

    fn divide(&mut self) -> Result<()> {
        for device in &self.devices {
            let Some(rest) = device.rest() else { continue };
            let samplers = self.samplers.iter().filter(|sampler| sampler.device == device.device).count() as u64;
            let has_trainers = self.trainers.iter().any(|trainer| trainer.device == device.device);
            let sharing = |other: &&mut TrainerPlan| other.device == device.device && !other.limit_is_given;
            let trainers = self.trainers.iter_mut().filter(sharing).count().max(1) as u64;
            for trainer in self.trainers.iter_mut().filter(sharing) {
                let is_alone = trainer.train_mode == TrainMode::Full && samplers == 0;
                let for_training = if is_alone { rest - rest / 4 } else { rest / 2 };
                trainer.limit = Some(for_training / trainers);
            }
            let for_caches = if has_trainers { rest / 4 } else { rest - rest / 4 };
            for sampler in self.samplers.iter_mut().filter(|sampler| sampler.device == device.device) {
                sampler.settle(device, for_caches / samplers)?;
            }
        }
        self.trainers.iter_mut().try_for_each(TrainerPlan::settle)
    }
}
