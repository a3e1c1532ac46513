//! Where data sets may lie: the operator's folders, a tenant's own folder, and the hubs.

use std::fmt;
use std::fs;
use std::path::{Component, Path, PathBuf};
use std::sync::Arc;

use futures::future::BoxFuture;
use sha2::{Digest, Sha256};
use twinkle_core::error::{Error, ErrorCode, Result};
use twinkle_core::ids::TenantId;

use super::format::Format;
use super::meta::DatasetMeta;
use super::readme::Readme;
use super::source::{DataFile, Source};
use super::splits::{Selection, select};

/// What says which files are which, if it is there.
const README: &str = "README.md";
/// The most files a folder is looked through for.
const MOST_FILES: usize = 100_000;
/// The deepest folder that is looked into.
const DEEPEST: usize = 8;

/// A hub, or several.
pub trait FetchData: Send + Sync + fmt::Debug {
    /// Whether a data set's id names one of a hub: `ms://org/name`, `hf://org/name` or `org/name`.
    fn is_id(&self, id: &str) -> bool;

    /// What a hub's cache has of a data set.
    fn cached(&self, id: &str, revision: Option<&str>) -> BoxFuture<'static, Result<Option<Arc<dyn Repository>>>>;

    /// What a hub has of a data set.
    fn open(&self, id: &str, revision: Option<&str>) -> BoxFuture<'static, Result<Arc<dyn Repository>>>;
}

/// A data set of a hub.
pub trait Repository: Send + Sync {
    /// The paths of all its files, with `/`.
    fn paths(&self) -> &[String];

    /// Brings files here; answers the folder that they are below.
    fn fetch(&self, paths: Vec<String>) -> BoxFuture<'static, Result<PathBuf>>;
}

/// Where data sets may lie. Nothing else is ever read or written.
#[derive(Clone, Debug, Default)]
pub struct Places {
    /// Folders of the operator that every tenant may read.
    pub shared: Vec<PathBuf>,
    /// The folder with a folder per tenant, which that tenant may read and write.
    pub own: PathBuf,
    /// The folder that relative paths are below.
    pub current: PathBuf,
    /// The hubs.
    pub hub: Option<Arc<dyn FetchData>>,
}

impl Places {
    /// The folder of a tenant.
    #[must_use]
    pub fn folder_of(&self, tenant: &TenantId) -> PathBuf {
        let name = hex::encode(Sha256::digest(tenant.as_str().as_bytes()));
        self.own.join(name.get(..16).unwrap_or_default())
    }

    /// Where a tenant's file goes: below its own folder, whatever the path says.
    pub fn target(&self, tenant: &TenantId, path: &str) -> Result<PathBuf> {
        let inside = plain(Path::new(path)).filter(|inside| inside.file_name().is_some() && path.len() <= 512);
        let inside = inside.ok_or_else(|| {
            Error::invalid(format!("rows cannot be saved as `{}`", shown(path)))
                .hint("give a path like `name.jsonl`: it is below your own folder on the server")
        })?;
        let is_plain = |part: &str| !part.starts_with('.') && !part.chars().any(char::is_control);
        if !inside.iter().all(|part| part.to_str().is_some_and(is_plain)) {
            return Err(Error::invalid(format!("`{}` has a part that is hidden or unreadable", shown(path))));
        }
        Ok(self.folder_of(tenant).join(inside))
    }

    /// Finds the rows that `meta` describes; those of a hub are downloaded if need be.
    pub async fn source(&self, tenant: &TenantId, meta: &DatasetMeta, revision: Option<&str>) -> Result<Source> {
        if let Some(rows) = &meta.rows {
            return Ok(Source::Memory(rows.clone().into()));
        }
        let named =
            |error: Error| Error { message: format!("data set `{}`: {}", shown(&meta.id), error.message), ..error };
        let candidates = self.candidates(tenant, &meta.id);
        let wanted = meta.clone();
        let local =
            blocking(move || candidates.iter().find(|path| path.exists()).map(|path| local(path, &wanted)).transpose());
        if let Some(source) = local.await.map_err(named)? {
            return Ok(source);
        }
        match &self.hub {
            Some(hub) if hub.is_id(&meta.id) && Format::of_name(&meta.id).is_none() => {
                let found = from_hub(hub.as_ref(), meta, revision).await;
                found.map_err(|error| match error.code {
                    ErrorCode::NotFound => named(error).hint(self.advice(&meta.id)),
                    _ => named(error),
                })
            }
            _ => {
                Err(Error::not_found(format!("there is no data set `{}`", shown(&meta.id))).hint(self.advice(&meta.id)))
            }
        }
    }

    /// Where a file or folder of this name may be, the tenant's own folder first.
    fn candidates(&self, tenant: &TenantId, id: &str) -> Vec<PathBuf> {
        let (scheme, rest) = id.split_once("://").unwrap_or(("", id));
        let path = Path::new(rest);
        let mut candidates = Vec::new();
        // An id of a hub also stands for a folder of that name.
        if let Some(inside) = plain(path) {
            if scheme.is_empty() || scheme == "file" {
                candidates.push(self.folder_of(tenant).join(&inside));
            }
            candidates.extend(self.shared.iter().map(|folder| folder.join(&inside)));
        }
        if scheme.is_empty() || scheme == "file" {
            let absolute = self.current.join(path);
            let is_plain = !absolute.components().any(|part| part == Component::ParentDir);
            if is_plain && self.shared.iter().any(|folder| absolute.starts_with(folder)) {
                candidates.push(absolute);
            }
        }
        candidates
    }

    fn advice(&self, id: &str) -> String {
        let rest = id.split_once("://").map_or(id, |(_, rest)| rest);
        match (self.shared.first(), plain(Path::new(rest))) {
            (Some(folder), Some(inside)) => {
                format!("its files may be put into `{}`", folder.join(inside).display())
            }
            (Some(folder), None) => {
                format!("files are read below `{}`, and saved ones below your own folder", folder.display())
            }
            (None, _) => "the operator names folders with data sets as `data_folders` of `processor_config`, or in `TWINKLE_DATA_DIRS`".to_owned(),
        }
    }
}

/// A relative path without steps upwards.
fn plain(path: &Path) -> Option<PathBuf> {
    let mut inside = PathBuf::new();
    for part in path.components() {
        match part {
            Component::Normal(part) => inside.push(part),
            Component::CurDir => {}
            _ => return None,
        }
    }
    (!inside.as_os_str().is_empty()).then_some(inside)
}

fn shown(text: &str) -> String {
    text.chars().filter(|letter| !letter.is_control()).take(200).collect()
}

/// The rows of a file, or of a subset's split in a folder.
fn local(path: &Path, meta: &DatasetMeta) -> Result<Source> {
    if path.is_file() {
        let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default().to_owned();
        let format = Format::of_name(&name).ok_or_else(|| {
            Error::invalid("its name does not tell what is in it")
                .hint(format!("names of files end in {}", Format::endings().join(", ")))
        })?;
        return Ok(Source::Files(Arc::from([DataFile { path: path.to_owned(), name, format }])));
    }
    let mut paths = Vec::new();
    list(path, "", 0, &mut paths)?;
    let readme = fs::read_to_string(path.join(README)).unwrap_or_default();
    select(&paths, &Readme::read(&readme), &meta.subset, &meta.split).map(|selection| files_of(path, selection))
}

fn files_of(folder: &Path, selection: Selection) -> Source {
    let format = selection.format;
    let file = |name: String| DataFile { path: folder.join(&name), name, format };
    Source::Files(selection.paths.into_iter().map(file).collect())
}

/// The paths of all files in a folder.
fn list(folder: &Path, prefix: &str, depth: usize, paths: &mut Vec<String>) -> Result<()> {
    let unreadable = |error: std::io::Error| Error::invalid(format!("its folder cannot be read: {}", error.kind()));
    for entry in fs::read_dir(folder).map_err(unreadable)? {
        let entry = entry.map_err(unreadable)?;
        let Ok(name) = entry.file_name().into_string() else { continue };
        if name.starts_with('.') {
            continue;
        }
        let path = if prefix.is_empty() { name } else { format!("{prefix}/{name}") };
        if entry.path().is_dir() {
            if depth < DEEPEST {
                list(&entry.path(), &path, depth + 1, paths)?;
            }
        } else {
            paths.push(path);
        }
        if paths.len() > MOST_FILES {
            return Err(Error::invalid(format!("its folder holds more than {MOST_FILES} files")));
        }
    }
    Ok(())
}

/// What a cache holds is taken as it is; a hub is asked where that is not enough.
async fn from_hub(hub: &dyn FetchData, meta: &DatasetMeta, revision: Option<&str>) -> Result<Source> {
    if let Some(cached) = hub.cached(&meta.id, revision).await?
        && let Ok(source) = from_repository(cached.as_ref(), meta).await
    {
        return Ok(source);
    }
    let repository = hub.open(&meta.id, revision).await?;
    from_repository(repository.as_ref(), meta).await
}

async fn from_repository(repository: &dyn Repository, meta: &DatasetMeta) -> Result<Source> {
    let mut readme = String::new();
    if repository.paths().iter().any(|path| path == README) {
        let path = repository.fetch(vec![README.to_owned()]).await?.join(README);
        readme = blocking(move || Ok(fs::read_to_string(path).unwrap_or_default())).await?;
    }
    let selection = select(repository.paths(), &Readme::read(&readme), &meta.subset, &meta.split)?;
    let folder = repository.fetch(selection.paths.clone()).await?;
    Ok(files_of(&folder, selection))
}

async fn blocking<T: Send + 'static>(work: impl FnOnce() -> Result<T> + Send + 'static) -> Result<T> {
    tokio::task::spawn_blocking(work)
        .await
        .map_err(|error| Error::internal(format!("reading files was interrupted: {error}")))?
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    struct House {
        root: tempfile::TempDir,
        places: Places,
        tenant: TenantId,
    }

    fn house() -> House {
        let root = tempfile::tempdir().unwrap();
        let at = |name: &str| root.path().join(name);
        let places = Places { shared: vec![at("shared")], own: at("own"), current: root.path().to_owned(), hub: None };
        House { places, tenant: TenantId::new("tenant-a"), root }
    }

    impl House {
        fn put(path: &Path, text: &str) {
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        }

        async fn rows(&self, meta: serde_json::Value) -> Result<Vec<String>> {
            let serde_json::Value::Object(meta) = meta else { panic!("an object") };
            let meta = DatasetMeta::read(meta)?;
            let source = self.places.source(&self.tenant, &meta, None).await?;
            source.rows().map(|row| row?.to_text()).collect()
        }
    }

    #[tokio::test]
    async fn shared_files_are_found_by_relative_absolute_and_hub_names() {
        let house = house();
        let shared = house.root.path().join("shared");
        House::put(&shared.join("org/name/train.jsonl"), "{\"a\":1}\n");
        House::put(&shared.join("org/name/test.jsonl"), "{\"a\":2}\n");
        let file = shared.join("org/name/test.jsonl").display().to_string();
        for (id, expected) in [
            ("org/name", r#"{"a":1}"#),
            ("ms://org/name", r#"{"a":1}"#),
            ("./shared/org/name", r#"{"a":1}"#),
            ("org/name/test.jsonl", r#"{"a":2}"#),
            (&file, r#"{"a":2}"#),
        ] {
            assert_eq!(house.rows(json!({"dataset_id": id})).await.unwrap(), [expected], "{id}");
        }
        assert_eq!(house.rows(json!({"dataset_id": "org/name", "split": "test"})).await.unwrap(), [r#"{"a":2}"#]);
    }

    #[tokio::test]
    async fn nothing_outside_is_read_and_what_is_not_there_is_told_alike() {
        let house = house();
        House::put(&house.root.path().join("secret.jsonl"), "{\"a\":1}\n");
        House::put(&house.root.path().join("shared/a.jsonl"), "{\"a\":1}\n");
        let secret = house.root.path().join("secret.jsonl").display().to_string();
        let nowhere = house.root.path().join("nowhere.jsonl").display().to_string();
        for id in
            ["../secret.jsonl", "shared/../secret.jsonl", "file://../secret.jsonl", "secret.jsonl", &secret, &nowhere]
        {
            let error = house.rows(json!({"dataset_id": id})).await.unwrap_err();
            assert_eq!(error.code, ErrorCode::NotFound, "{id}");
            assert_eq!(error.message, format!("there is no data set `{id}`"));
        }
    }

    #[tokio::test]
    async fn what_a_tenant_saved_is_its_own() {
        let mut house = house();
        let path = house.places.target(&house.tenant, "./mine/a.jsonl").unwrap();
        House::put(&path, "{\"a\":1}\n");
        assert_eq!(house.rows(json!({"dataset_id": "mine/a.jsonl"})).await.unwrap(), [r#"{"a":1}"#]);
        house.tenant = TenantId::new("tenant-b");
        assert!(house.rows(json!({"dataset_id": "mine/a.jsonl"})).await.is_err());
        let absolute = path.display().to_string();
        assert!(house.rows(json!({"dataset_id": absolute})).await.is_err());
    }

    #[test]
    fn a_path_to_save_at_stays_below_the_tenants_folder() {
        let house = house();
        for path in ["../a.jsonl", "/etc/a.jsonl", "", ".", "a/../../b", "a\n", ".hidden/a", &"x".repeat(600)] {
            assert!(house.places.target(&house.tenant, path).is_err(), "{path:?}");
        }
        assert!(house.places.target(&house.tenant, "a/b.jsonl").unwrap().starts_with(&house.places.own));
    }
}
