//! Where data sets may lie on this node.

use std::env;
use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use futures::FutureExt;
use futures::future::BoxFuture;
use twinkle_core::error::{Error, Result};
use twinkle_hub::{DataSet, DataSetLibrary, Environment, Patience};
use twinkle_processor::data::{FetchData, Places, Repository};

/// Folders whose files every tenant may read, between the signs that separate paths in `PATH`.
const FOLDERS_VARIABLE: &str = "TWINKLE_DATA_DIRS";
/// What is read where the variable is not set: a folder of the current one.
const STANDARD_FOLDER: &str = "datasets";
/// What orders of rows are made from.
const SEED_VARIABLE: &str = "TWINKLE_SEED";

/// The places of this process; `own` is the folder with what tenants saved.
pub(super) fn places(own: PathBuf) -> Result<Places> {
    let current = env::current_dir()
        .map_err(|error| Error::internal(format!("the current directory cannot be found: {error}")))?;
    let given = env::var_os(FOLDERS_VARIABLE).filter(|value| !value.is_empty());
    let folders: Vec<PathBuf> = match &given {
        Some(folders) => env::split_paths(folders).filter(|folder| !folder.as_os_str().is_empty()).collect(),
        None => vec![PathBuf::from(STANDARD_FOLDER)],
    };
    let shared = below(&current, &folders);
    // A client waits meanwhile, and gives up after ten minutes.
    let patience = Patience { attempts: 3, longest_wait: Duration::from_secs(30), ..Patience::default() };
    let hubs = Hubs(Arc::new(DataSetLibrary::new(&Environment::of_process(), patience)?));
    Ok(Places { shared, own, current, hub: Some(Arc::new(hubs)) })
}

/// The same places with the folders that a configuration names in place of the environment's.
pub(super) fn with_folders(places: &Places, folders: Option<&[PathBuf]>) -> Places {
    let shared = folders.map_or_else(|| places.shared.clone(), |folders| below(&places.current, folders));
    Places { shared, ..places.clone() }
}

fn below(current: &Path, folders: &[PathBuf]) -> Vec<PathBuf> {
    folders.iter().map(|folder| current.join(folder)).collect()
}

/// Both hubs, as the processor asks them.
struct Hubs(Arc<DataSetLibrary>);

/// A data set of a hub.
struct OfHub(DataSet);

impl FetchData for Hubs {
    fn is_id(&self, id: &str) -> bool {
        DataSetLibrary::is_id(id)
    }

    fn cached(&self, id: &str, revision: Option<&str>) -> BoxFuture<'static, Result<Option<Arc<dyn Repository>>>> {
        let (library, id, revision) = (Arc::clone(&self.0), id.to_owned(), revision.map(str::to_owned));
        async move { Ok(library.cached(&id, revision.as_deref()).await?.map(shared)) }.boxed()
    }

    fn open(&self, id: &str, revision: Option<&str>) -> BoxFuture<'static, Result<Arc<dyn Repository>>> {
        let (library, id, revision) = (Arc::clone(&self.0), id.to_owned(), revision.map(str::to_owned));
        async move { library.listed(&id, revision.as_deref()).await.map(shared) }.boxed()
    }
}

fn shared(found: DataSet) -> Arc<dyn Repository> {
    Arc::new(OfHub(found))
}

impl Repository for OfHub {
    fn paths(&self) -> &[String] {
        self.0.paths()
    }

    fn fetch(&self, paths: Vec<String>) -> BoxFuture<'static, Result<PathBuf>> {
        self.0.fetch(paths)
    }
}

impl fmt::Debug for Hubs {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("Hubs")
    }
}

/// `TWINKLE_SEED`, if it is set.
pub(super) fn seed() -> Result<Option<u32>> {
    let Some(text) = env::var(SEED_VARIABLE).ok().filter(|text| !text.trim().is_empty()) else { return Ok(None) };
    let seed = text.trim().parse().map(Some);
    seed.map_err(|_| {
        Error::invalid(format!("`{SEED_VARIABLE}` is `{text}`, which is not a number from 0 to {}", u32::MAX))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn folders_of_the_configuration_take_the_place_of_the_environments() {
        let places = Places {
            shared: vec![PathBuf::from("/srv/env")],
            own: PathBuf::from("/state/own"),
            current: PathBuf::from("/srv"),
            hub: None,
        };
        assert_eq!(with_folders(&places, None).shared, places.shared);
        let named = with_folders(&places, Some(&[PathBuf::from("data"), PathBuf::from("/other")]));
        assert_eq!(named.shared, [PathBuf::from("/srv/data"), PathBuf::from("/other")]);
        assert_eq!(named.own, places.own);
        assert!(with_folders(&places, Some(&[])).shared.is_empty());
    }
}
