//! Where the files of every model are, found (downloaded, converted) before anything is loaded.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use twinkle_core::config::{ApplicationArgs, ModelSource, ServerConfig};
use twinkle_core::error::{Error, Result};
use twinkle_hub::{LibraryOptions, ModelLibrary};
use twinkle_nn::ModelConfig;

/// The folders of a node's models.
pub(super) struct ModelFolders {
    by_source: BTreeMap<ModelSource, PathBuf>,
    by_name: BTreeMap<String, PathBuf>,
}

impl ModelFolders {
    /// Finds each model once, however many applications serve it. One after another: the network is the limit.
    pub(super) async fn find(config: &ServerConfig) -> Result<Self> {
        let options = LibraryOptions { before_weights: Some(check_computable), ..LibraryOptions::of_process()? };
        Self::find_in(&ModelLibrary::new(options)?, config).await
    }

    /// Finds each model on this machine; no hub is asked.
    pub(super) async fn on_this_machine(config: &ServerConfig) -> Result<Self> {
        let options = LibraryOptions::of_process()?;
        let environment = options.environment.clone().offline();
        Self::find_in(&ModelLibrary::new(LibraryOptions { environment, ..options })?, config).await
    }

    async fn find_in(library: &ModelLibrary, config: &ServerConfig) -> Result<Self> {
        let mut found = Self { by_source: BTreeMap::new(), by_name: BTreeMap::new() };
        for application in &config.applications {
            let (name, source) = match &application.args {
                ApplicationArgs::Model(args) => (&args.public_name, &args.model),
                ApplicationArgs::Sampler(args) => (&args.public_name, &args.model),
                ApplicationArgs::Processor(_) | ApplicationArgs::Server(_) => continue,
            };
            let folder = match found.by_source.get(source) {
                Some(folder) => folder.clone(),
                None => library.folder(source).await?,
            };
            found.by_source.insert(source.clone(), folder.clone());
            found.by_name.insert(name.clone(), folder);
        }
        Ok(found)
    }

    /// The folder of a model that an application serves.
    pub(super) fn of(&self, source: &ModelSource) -> Result<&Path> {
        let folder = self.by_source.get(source).map(PathBuf::as_path);
        folder.ok_or_else(|| Error::internal(format!("the model `{source}` was not looked for")))
    }

    /// The folder of every model by the name clients use.
    pub(super) fn by_name(&self) -> &BTreeMap<String, PathBuf> {
        &self.by_name
    }
}

/// Spares the download of weights that could not be computed with.
fn check_computable(folder: &Path) -> Result<()> {
    ModelConfig::read(folder).map(drop)
}
