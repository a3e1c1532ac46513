//! `ModelScope`: `ms://`, and the hub of ids without a scheme.
//!
//! Its tool has changed its cache several times. What is downloaded here goes where the present one puts it,
//! `models/org--name/snapshots/<revision>`; what older ones left is found too, as the present one does.

use std::fs;
use std::path::{Path, PathBuf};

use reqwest::Url;
use reqwest::header::{AUTHORIZATION, COOKIE, HeaderMap};
use serde::Deserialize;
use sha2::{Digest, Sha256};
use twinkle_core::config::{Hub, HubModel};
use twinkle_core::{Error, Result};

use super::{Cached, Kind, Listing, Place, Remote, RemoteFile, below, endpoint, secret, sha256_of};
use crate::download::{Client, Expected, Failure};
use crate::environment::Environment;

const MASTER: &str = "master";
/// Files of a page of a data set's list, and the most pages.
const PAGE: usize = 1_000;
const MOST_PAGES: usize = 50;

/// The hub, as the environment describes it.
pub(crate) struct ModelScope {
    endpoint: Url,
    cache: PathBuf,
    headers: HeaderMap,
    silence: Option<String>,
    kind: Kind,
}

/// `GET /api/v1/models/{id}/repo/files`.
#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Answer {
    success: Option<bool>,
    message: Option<String>,
    data: Option<Files>,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Files {
    #[serde(default)]
    files: Vec<Entry>,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Entry {
    path: String,
    #[serde(rename = "Type")]
    kind: Option<String>,
    size: Option<u64>,
    sha256: Option<String>,
}

impl ModelScope {
    pub(crate) fn new(environment: &Environment) -> Result<Self> {
        let cache = environment.path("MODELSCOPE_CACHE").or_else(|| environment.path("MS_CACHE_HOME"));
        let (variable, address) = ["MODELSCOPE_ENDPOINT", "MODELSCOPE_DOMAIN"]
            .into_iter()
            .find_map(|variable| Some((variable, environment.text(variable)?)))
            .unwrap_or(("MODELSCOPE_ENDPOINT", "https://modelscope.cn"));
        let mut headers = HeaderMap::new();
        if let Some(token) = environment.text("MODELSCOPE_API_TOKEN") {
            // Some of the hub's routes read the one, some the other.
            headers.insert(AUTHORIZATION, secret(&format!("Bearer {token}"), "MODELSCOPE_API_TOKEN")?);
            headers.insert(COOKIE, secret(&format!("m_session_id={token}"), "MODELSCOPE_API_TOKEN")?);
        }
        let offline = environment.is_on("TWINKLE_OFFLINE");
        Ok(Self {
            endpoint: endpoint(address, variable)?,
            cache: cache.unwrap_or_else(|| environment.home().join(".cache/modelscope")),
            headers,
            silence: offline.then(|| "not asked: `TWINKLE_OFFLINE` is set".to_owned()),
            kind: Kind::Model,
        })
    }

    /// The same hub without this server's credential: for what tenants choose.
    pub(crate) fn anonymous(self) -> Self {
        Self { headers: HeaderMap::new(), ..self }
    }

    /// The same hub's data sets. Whoever may use this server chooses them, so its own credential is not sent.
    pub(crate) fn of_data_sets(self) -> Self {
        Self { kind: Kind::DataSet, headers: HeaderMap::new(), ..self }
    }

    fn snapshots(&self, model: &HubModel) -> PathBuf {
        self.cache.join(self.kind.plural()).join(format!("{}--{}", model.organisation, model.name)).join("snapshots")
    }

    /// Where tools before version 1.38 put a model, the newest first. They had one version of it at a time.
    fn older_folders(&self, model: &HubModel) -> Vec<PathBuf> {
        let name = model.name.replace('.', "___");
        let roots: &[&str] = match self.kind {
            Kind::Model => &["models", "hub/models", "", "hub"],
            Kind::DataSet => &["datasets", "hub/datasets"],
        };
        roots.iter().map(|root| self.cache.join(root).join(&model.organisation).join(&name)).collect()
    }
}

impl ModelScope {
    /// The files of a data set, which come in pages.
    async fn pages(&self, client: &Client, model: &HubModel, parts: &[&str]) -> Result<Vec<Entry>, Failure> {
        let mut files = Vec::new();
        for number in 1..=MOST_PAGES {
            let page = self.page(client, model, parts, Some(number)).await?;
            let is_last = page.len() < PAGE;
            files.extend(page);
            if is_last {
                return Ok(files);
            }
        }
        let text = format!("`{model}` has more than {} files", MOST_PAGES * PAGE);
        Err(Error::invalid(text).into())
    }

    async fn page(
        &self,
        client: &Client,
        model: &HubModel,
        parts: &[&str],
        number: Option<usize>,
    ) -> Result<Vec<Entry>, Failure> {
        let mut url = below(&self.endpoint, parts);
        url.query_pairs_mut().append_pair("Revision", revision(model)).append_pair("Recursive", "True");
        if let Some(number) = number {
            let (number, size) = (number.to_string(), PAGE.to_string());
            url.query_pairs_mut().append_pair("PageNumber", &number).append_pair("PageSize", &size);
        }
        let answer: Answer = client.json(&url, &self.headers).await?;
        match answer.data {
            Some(data) if answer.success != Some(false) => Ok(data.files),
            _ => {
                let message = answer.message.unwrap_or_else(|| "no reason given".to_owned());
                let shown: String = message.chars().filter(|letter| !letter.is_control()).take(300).collect();
                Err(Error::not_found(format!("`{url}` lists no files: {shown}")).into())
            }
        }
    }
}

fn revision(model: &HubModel) -> &str {
    model.revision.as_deref().unwrap_or(MASTER)
}

/// Whether an older tool noted that the folder holds this version (`Revision:v1,CreatedAt:…` in `.mv`).
fn is_noted(folder: &Path, revision: &str) -> bool {
    let note = fs::read_to_string(folder.join(".mv")).unwrap_or_default();
    note.trim().strip_prefix("Revision:").and_then(|rest| rest.split(',').next()) == Some(revision)
}

impl Remote for ModelScope {
    const HUB: Hub = Hub::ModelScope;

    fn endpoint(&self) -> &Url {
        &self.endpoint
    }

    fn silence(&self) -> Option<&str> {
        self.silence.as_deref()
    }

    fn headers(&self) -> &HeaderMap {
        &self.headers
    }

    fn candidates(&self, model: &HubModel) -> Vec<PathBuf> {
        let snapshots = self.snapshots(model);
        let mut candidates = vec![snapshots.join(revision(model))];
        if let Some(revision) = &model.revision {
            let noted = self.older_folders(model).into_iter().filter(|folder| is_noted(folder, revision));
            candidates.extend(noted);
        } else {
            // The present tool accepts these, too, when nobody asked for a version.
            let others = ["main"].map(|name| snapshots.join(name)).into_iter().filter(|folder| folder.is_dir());
            candidates.extend(others.chain(self.older_folders(model)));
        }
        candidates
    }

    fn cached(&self, model: &HubModel) -> Cached {
        let mut cached = Cached::default();
        self.candidates(model).into_iter().for_each(|folder| cached.consider(folder));
        cached
    }

    async fn list(&self, client: &Client, model: &HubModel) -> Result<Listing, Failure> {
        let (organisation, name) = (model.organisation.as_str(), model.name.as_str());
        let repository = ["api", "v1", self.kind.plural(), organisation, name, "repo"];
        let files = match self.kind {
            Kind::Model => self.page(client, model, &[repository.as_slice(), &["files"]].concat(), None).await?,
            Kind::DataSet => self.pages(client, model, &[repository.as_slice(), &["tree"]].concat()).await?,
        };
        let file = |entry: Entry| {
            let mut url = below(&self.endpoint, &repository);
            if self.kind == Kind::DataSet {
                url.query_pairs_mut().append_pair("Source", "SDK");
            }
            url.query_pairs_mut().append_pair("Revision", revision(model)).append_pair("FilePath", &entry.path);
            let sha256 = entry.sha256.as_deref().and_then(sha256_of);
            RemoteFile { path: entry.path, url, expected: Expected { size: entry.size, sha256 }, content: None }
        };
        let blobs = files.into_iter().filter(|entry| entry.kind.as_deref() != Some("tree"));
        Ok(Listing { version: revision(model).to_owned(), files: blobs.map(file).collect() })
    }

    async fn described(&self, _client: &Client, file: &RemoteFile) -> Result<RemoteFile, Failure> {
        Ok(file.clone())
    }

    fn folder(&self, model: &HubModel, version: &str) -> PathBuf {
        self.snapshots(model).join(version)
    }

    fn place(&self, model: &HubModel, version: &str, file: &RemoteFile) -> Result<Place> {
        let target = self.folder(model, version).join(&file.path);
        // The name under which its own tool locks the same file.
        let kind = self.kind.plural().trim_end_matches('s');
        let key = ["modelscope-hub-download-lock-v2", "file", kind, &model.id(), &file.path].join("\0");
        let key = hex::encode(Sha256::digest(key.as_bytes()));
        Ok(Place {
            partial: target.with_added_extension("incomplete"),
            lock: self.cache.join(".lock").join(format!("file_{key}.lock")),
            file: target,
            link: None,
            named_by_content: false,
        })
    }

    fn finish(&self, _model: &HubModel, _version: &str) -> Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hub(variables: &[(&str, &str)]) -> ModelScope {
        let variables = variables.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned()));
        ModelScope::new(&Environment::new(variables)).unwrap()
    }

    #[test]
    fn the_endpoint_may_be_a_domain_and_the_newer_variable_wins() {
        let address = |variables: &[(&str, &str)]| hub(variables).endpoint.to_string();
        assert_eq!(address(&[]), "https://modelscope.cn/");
        assert_eq!(address(&[("MODELSCOPE_DOMAIN", "www.modelscope.ai")]), "https://www.modelscope.ai/");
        let both = [("MODELSCOPE_DOMAIN", "a"), ("MODELSCOPE_ENDPOINT", "http://b:1/")];
        assert_eq!(address(&both), "http://b:1/");
    }

    #[test]
    fn the_cache_and_its_older_layouts_are_where_its_own_tools_have_them() {
        let model = HubModel { organisation: "Qwen".into(), name: "Qwen2.5-0.5B".into(), revision: None };
        let hub = hub(&[("HOME", "/h")]);
        let place = |path: PathBuf| path.display().to_string();
        assert_eq!(
            place(hub.folder(&model, "master")),
            "/h/.cache/modelscope/models/Qwen--Qwen2.5-0.5B/snapshots/master"
        );
        let older: Vec<String> = hub.older_folders(&model).into_iter().map(place).collect();
        assert_eq!(
            older,
            [
                "/h/.cache/modelscope/models/Qwen/Qwen2___5-0___5B",
                "/h/.cache/modelscope/hub/models/Qwen/Qwen2___5-0___5B",
                "/h/.cache/modelscope/Qwen/Qwen2___5-0___5B",
                "/h/.cache/modelscope/hub/Qwen/Qwen2___5-0___5B",
            ]
        );
    }
}
