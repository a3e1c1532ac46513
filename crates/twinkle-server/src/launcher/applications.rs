//! Builds every application's component and puts it in its stack.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use tokio_util::sync::CancellationToken;
use tracing::warn;
use twinkle_core::checkpoint::CheckpointStore;
use twinkle_core::component::{BoxComponent, Component};
use twinkle_core::config::{
    Application, ApplicationArgs, ModelArgs, ProcessorArgs, SamplerArgs, ServerArgs, ServerConfig, TrainMode,
};
use twinkle_core::error::{Error, Result};
use twinkle_core::futures::{Futures, FuturesOptions};
use twinkle_core::middleware::journal::{Journal, JournalOptions};
use twinkle_core::state::{RunLimits, StateStore};
use twinkle_model::engine::EngineLimits;
use twinkle_model::{ModelComponent, ModelContext};
use twinkle_nn::PublishedAdapters;
use twinkle_processor::data::Places;
use twinkle_processor::{Processor, ProcessorContext, Templates};
use twinkle_sampler::{SamplerComponent, SamplerContext};

use super::base_models::BaseModels;
use super::data_sets;
use super::folders::Folders;
use super::housekeeping::{self, TrainedModel};
use super::memory::MemoryPlan;
use super::model_folders::ModelFolders;
use super::running::{Draining, drain_limit};
use crate::directory::{Directory, ServedModel};
use crate::downloads::{Downloads, SigningKey};
use crate::front::FrontContext;
use crate::native::ApplicationInformation;
use crate::node::Mounts;
use crate::routes::Mounted;
use crate::server_component::{ServerComponent, ServerContext};
use crate::stack::{component_stack, concurrency_limits, quota_limits};

/// A run is snapshotted when replaying it would take longer than this.
const SNAPSHOT_AFTER: Duration = Duration::from_secs(20);

/// What all components of a node share.
#[derive(Clone)]
pub(super) struct NodeState {
    pub(super) store: StateStore,
    pub(super) futures: Futures,
    pub(super) checkpoints: CheckpointStore,
    pub(super) snapshots: PathBuf,
    pub(super) published: PublishedAdapters,
    pub(super) stopping: CancellationToken,
    pub(super) downloads: Downloads,
    pub(super) data_sets: Places,
}

impl NodeState {
    /// Opens the store and the checkpoints of these folders.
    pub(super) async fn open(folders: &Folders, is_tls: bool, stopping: CancellationToken) -> Result<Self> {
        let store = open_store(folders).await?;
        let checkpoints = CheckpointStore::new(folders.checkpoints.clone());
        housekeeping::remove_leftovers(&checkpoints).await?;
        let key = SigningKey::keep(&folders.download_key)?;
        let downloads = Downloads::new(key, store.clone(), checkpoints.clone(), is_tls);
        let futures = Futures::new(store.clone(), FuturesOptions::default());
        futures.take_up().await?;
        Ok(Self {
            futures,
            checkpoints,
            snapshots: folders.snapshots.clone(),
            data_sets: data_sets::places(folders.data_sets.clone())?,
            published: PublishedAdapters::new(folders.live.clone()),
            store,
            stopping,
            downloads,
        })
    }
}

/// The store that these folders are about.
pub(super) async fn open_store(folders: &Folders) -> Result<StateStore> {
    StateStore::open(folders.records.clone()).await
}

/// The node's applications, built and in their stacks.
pub(super) struct Applications {
    /// What the protocol fronts work with.
    pub(super) front: FrontContext,
    /// Every application, in the order they were built.
    pub(super) draining: Vec<Draining>,
    /// The models that are trained, with how long their runs live.
    pub(super) trained: Vec<TrainedModel>,
}

impl Applications {
    /// Builds all of them; the first that cannot be built ends the launch.
    pub(super) async fn build(config: &ServerConfig, state: &NodeState) -> Result<Self> {
        let folders = ModelFolders::find(config).await?;
        let memory = MemoryPlan::new(config, &folders)?;
        memory.log();
        let mut builder = Builder {
            state,
            folders: &folders,
            memory: &memory,
            bases: BaseModels::default(),
            models: Vec::new(),
            trained: Vec::new(),
            runs_per_tenant: housekeeping::server_args(config).per_token_model_limit,
            draining: Vec::new(),
        };
        // Models first: a sampler whose precision is `auto` takes the trainer's weights.
        for application in &config.applications {
            if let ApplicationArgs::Model(args) = &application.args {
                builder.model(application, args).await?;
            }
        }
        for application in &config.applications {
            match &application.args {
                ApplicationArgs::Sampler(args) => builder.sampler(application, args).await?,
                ApplicationArgs::Processor(args) => {
                    builder.processor(application, args, folders.by_name().clone()).await?;
                }
                ApplicationArgs::Model(_) | ApplicationArgs::Server(_) => {}
            }
        }
        // Last, because the `server` component answers what the others serve.
        let mut front = None;
        let models = std::mem::take(&mut builder.models);
        for application in &config.applications {
            if let ApplicationArgs::Server(args) = &application.args {
                let directory = Directory::new(supported(&models, args));
                front.get_or_insert(builder.server(application, args, directory).await?);
            }
        }
        let front = front.ok_or_else(|| {
            Error::invalid("no `server` application is configured")
                .hint("add one: `{name: server, route_prefix: /api/v1, import_path: server}`")
        })?;
        Ok(Self { front, draining: builder.draining, trained: builder.trained })
    }

    /// Which kind of application answers below which path.
    pub(super) fn mounts(&self) -> Mounts {
        let information = self.draining.iter().map(|draining| &draining.mounted.information);
        Mounts::new(information.map(|about| (about.route_prefix.clone(), about.import_path.into())))
    }

    /// As the router mounts them.
    pub(super) fn mounted(&self) -> Vec<Mounted> {
        self.draining.iter().map(|draining| draining.mounted.clone()).collect()
    }
}

/// What an application tells about itself besides its configuration.
#[derive(Default)]
struct About {
    base_model: Option<String>,
    capabilities: Option<serde_json::Value>,
}

/// What has been built so far.
struct Builder<'a> {
    state: &'a NodeState,
    folders: &'a ModelFolders,
    memory: &'a MemoryPlan,
    bases: BaseModels,
    models: Vec<ServedModel>,
    trained: Vec<TrainedModel>,
    /// Open runs a tenant may have on the whole node.
    runs_per_tenant: u32,
    draining: Vec<Draining>,
}

impl Builder<'_> {
    async fn model(&mut self, application: &Application, args: &ModelArgs) -> Result<()> {
        let folder = self.folders.of(&args.model)?.to_path_buf();
        let base = self.bases.get(&folder, args.precision, args.devices.first()).await?;
        let planned = self.memory.trainer(&application.name)?;
        let max_context = planned.max_length;
        let vocabulary = base.config().vocab_size;
        let limits = EngineLimits {
            max_length: max_context,
            rows_per_pass: planned.rows_per_pass,
            max_runs: Some(planned.max_loras),
            memory: planned.limits,
            train_mode: args.train_mode,
            max_rank: args.max_rank,
            snapshot_after: SNAPSHOT_AFTER,
        };
        let context = ModelContext {
            base_model: args.public_name.clone(),
            base,
            published: self.state.published.clone(),
            checkpoints: self.state.checkpoints.clone(),
            store: self.state.store.clone(),
            snapshots: self.state.snapshots.clone(),
            limits,
        };
        let component = ModelComponent::build(limits, context).await?.boxed();
        let run_limits =
            RunLimits { per_tenant: Some(self.runs_per_tenant), per_model: args.adapter.per_token_adapter_limit };
        let options =
            JournalOptions { base_model: Some(args.public_name.clone()), run_limits, ..JournalOptions::default() };
        let (store, futures) = (self.state.store.clone(), self.state.futures.clone());
        let journal = Journal::with_options(store, futures, component.clone(), options);
        self.trained.push(TrainedModel::new(args.public_name.clone(), journal.clone(), &args.adapter));
        let trainer = stacked(application, component, Some(journal.clone()));
        self.serve(ServedModel {
            name: args.public_name.clone(),
            max_context,
            vocabulary,
            train_mode: args.train_mode,
            max_rank: args.max_rank,
            max_loras: args.max_loras,
            default_alpha: args.lora_alpha,
            tokenizer: folder,
            trainer: Some(trainer.clone()),
            journal: Some(journal.clone()),
            sampler: None,
        })?;
        let about = About { base_model: Some(args.public_name.clone()), capabilities: None };
        self.mount(application, trainer, Some(journal), about);
        Ok(())
    }

    async fn sampler(&mut self, application: &Application, args: &SamplerArgs) -> Result<()> {
        let folder = self.folders.of(&args.model)?.to_path_buf();
        let base = self.bases.get(&folder, args.engine.dtype, args.devices.first()).await?;
        let planned = self.memory.sampler(&application.name)?;
        let max_context = planned.context;
        let vocabulary = base.config().vocab_size;
        let context = SamplerContext {
            base,
            published: self.state.published.clone(),
            checkpoints: self.state.checkpoints.clone(),
            tokenizer: folder.clone(),
            caches: planned.budget(),
        };
        let component = SamplerComponent::build(args.clone(), context).await?;
        let capabilities = serde_json::to_value(component.capabilities()).ok();
        let sampler = stacked(application, component.boxed(), None);
        self.serve(ServedModel {
            name: args.public_name.clone(),
            max_context,
            vocabulary,
            train_mode: TrainMode::Lora,
            max_rank: args.engine.max_lora_rank,
            max_loras: 0,
            default_alpha: 32.0,
            tokenizer: folder,
            trainer: None,
            journal: None,
            sampler: Some(sampler.clone()),
        })?;
        self.mount(application, sampler, None, About { base_model: Some(args.public_name.clone()), capabilities });
        Ok(())
    }

    async fn processor(
        &mut self,
        application: &Application,
        args: &ProcessorArgs,
        models: BTreeMap<String, PathBuf>,
    ) -> Result<()> {
        let context = ProcessorContext {
            models,
            places: data_sets::with_folders(&self.state.data_sets, args.data_folders.as_deref()),
            sessions: Some(self.state.store.clone()),
            seed: data_sets::seed()?,
        };
        let component = Processor::build(args.clone(), context).await?.boxed();
        self.mount(application, stacked(application, component, None), None, About::default());
        Ok(())
    }

    async fn server(
        &mut self,
        application: &Application,
        args: &ServerArgs,
        directory: Directory,
    ) -> Result<FrontContext> {
        let context = ServerContext {
            store: self.state.store.clone(),
            checkpoints: self.state.checkpoints.clone(),
            directory: directory.clone(),
        };
        let component = ServerComponent::build(args.clone(), context).await?.boxed();
        let server = stacked(application, component, None);
        self.mount(application, server.clone(), None, About::default());
        Ok(FrontContext {
            server,
            directory,
            futures: self.state.futures.clone(),
            settings: Arc::new(args.clone()),
            store: self.state.store.clone(),
            checkpoints: self.state.checkpoints.clone(),
            downloads: self.state.downloads.clone(),
            templates: Templates::default(),
            stopping: self.state.stopping.clone(),
        })
    }

    /// Adds a model to the directory, or what an application adds to a model that is there.
    fn serve(&mut self, served: ServedModel) -> Result<()> {
        let Some(model) = self.models.iter_mut().find(|model| model.name == served.name) else {
            self.models.push(served);
            return Ok(());
        };
        let name = &served.name;
        if model.tokenizer != served.tokenizer {
            return Err(Error::invalid(format!("base model `{name}` is served from two different folders"))
                .hint("give both applications the same `model_id`, or different names in their `route_prefix`"));
        }
        if (model.trainer.is_some() && served.trainer.is_some())
            || (model.sampler.is_some() && served.sampler.is_some())
        {
            return Err(Error::unsupported(format!("base model `{name}` is served by two applications of one kind")));
        }
        if served.trainer.is_some() {
            model.train_mode = served.train_mode;
        }
        model.trainer = model.trainer.take().or(served.trainer);
        model.journal = model.journal.take().or(served.journal);
        model.sampler = model.sampler.take().or(served.sampler);
        Ok(())
    }

    fn mount(&mut self, application: &Application, component: BoxComponent, journal: Option<Journal>, about: About) {
        let information = ApplicationInformation {
            name: application.name.clone(),
            import_path: application.args.kind(),
            route_prefix: application.route_prefix.clone(),
            base_model: about.base_model,
            capabilities: about.capabilities,
        };
        self.draining.push(Draining {
            mounted: Mounted { information, component },
            journal,
            limit: drain_limit(&application.deployment),
        });
    }
}

/// The models a `server` application offers: those it lists, or all.
fn supported(models: &[ServedModel], args: &ServerArgs) -> Vec<ServedModel> {
    let Some(names) = &args.supported_models else { return models.to_vec() };
    for name in names {
        if !models.iter().any(|model| model.name == *name) {
            warn!(model = name, "listed under `supported_models`, but no application serves it");
        }
    }
    models.iter().filter(|model| names.contains(&model.name)).cloned().collect()
}

/// The component inside the stack its application asks for.
fn stacked(application: &Application, component: BoxComponent, journal: Option<Journal>) -> BoxComponent {
    component_stack(component, journal, quota_limits(&application.args.queue()), concurrency_limits(application))
}
