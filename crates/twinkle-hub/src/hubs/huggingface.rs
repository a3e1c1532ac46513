//! Hugging Face: `hf://`.
//!
//! The cache is that of `huggingface_hub`: `models--org--name/blobs/<etag>` holds bytes, `snapshots/<commit>/<file>`
//! are links to them, `refs/<branch>` names a commit.

use std::fs;
use std::path::{Path, PathBuf};

use reqwest::Url;
use reqwest::header::{AUTHORIZATION, CONTENT_LENGTH, HeaderMap};
use serde::Deserialize;
use twinkle_core::config::{Hub, HubModel};
use twinkle_core::{Error, Result};

use super::{Cached, Kind, Listing, Place, Remote, RemoteFile, below, endpoint, is_plain_name, secret, sha256_of};
use crate::download::{Client, Expected, Failure, etag, file_error, header};
use crate::environment::Environment;

const MAIN: &str = "main";

/// The hub, as the environment describes it.
pub(crate) struct HuggingFace {
    endpoint: Url,
    cache: PathBuf,
    headers: HeaderMap,
    silence: Option<String>,
    kind: Kind,
}

/// `GET /api/models/{id}/revision/{revision}?blobs=true`.
#[derive(Deserialize)]
struct Model {
    sha: String,
    #[serde(default)]
    siblings: Vec<Sibling>,
}

#[derive(Deserialize)]
struct Sibling {
    rfilename: String,
    size: Option<u64>,
    #[serde(rename = "blobId")]
    blob: Option<String>,
    lfs: Option<Lfs>,
}

#[derive(Deserialize)]
struct Lfs {
    sha256: Option<String>,
    size: Option<u64>,
}

impl HuggingFace {
    pub(crate) fn new(environment: &Environment) -> Result<Self> {
        let home = environment.path("HF_HOME").unwrap_or_else(|| environment.caches().join("huggingface"));
        let cache = environment.path("HF_HUB_CACHE").or_else(|| environment.path("HUGGINGFACE_HUB_CACHE"));
        let address = environment.text("HF_ENDPOINT").unwrap_or("https://huggingface.co");
        let mut headers = HeaderMap::new();
        if let Some(token) = token(environment, &home) {
            headers.insert(AUTHORIZATION, secret(&format!("Bearer {token}"), "HF_TOKEN")?);
        }
        let offline = ["TWINKLE_OFFLINE", "HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE"];
        let offline = offline.into_iter().find(|variable| environment.is_on(variable));
        Ok(Self {
            endpoint: endpoint(address, "HF_ENDPOINT")?,
            cache: cache.unwrap_or_else(|| home.join("hub")),
            headers,
            silence: offline.map(|variable| format!("not asked: `{variable}` is set")),
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

    fn repository_name(&self, model: &HubModel) -> String {
        format!("{}--{}--{}", self.kind.plural(), model.organisation, model.name)
    }

    fn repository(&self, model: &HubModel) -> PathBuf {
        self.cache.join(self.repository_name(model))
    }
}

/// `HF_TOKEN`, else what `hf auth login` wrote.
fn token(environment: &Environment, home: &Path) -> Option<String> {
    if environment.is_on("HF_HUB_DISABLE_IMPLICIT_TOKEN") {
        return None;
    }
    let given = environment.text("HF_TOKEN").or_else(|| environment.text("HUGGING_FACE_HUB_TOKEN"));
    if let Some(token) = given {
        return Some(token.to_owned());
    }
    let file = environment.path("HF_TOKEN_PATH").unwrap_or_else(|| home.join("token"));
    let token = fs::read_to_string(file).ok()?;
    let token = token.trim();
    (!token.is_empty()).then(|| token.to_owned())
}

fn revision(model: &HubModel) -> &str {
    model.revision.as_deref().unwrap_or(MAIN)
}

fn is_commit(text: &str) -> bool {
    matches!(text.len(), 40 | 64) && text.chars().all(|letter| letter.is_ascii_hexdigit())
}

impl Remote for HuggingFace {
    const HUB: Hub = Hub::HuggingFace;

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
        let repository = self.repository(model);
        let revision = revision(model);
        let reference = fs::read_to_string(repository.join("refs").join(revision)).ok();
        let commit = reference.as_deref().map(str::trim).filter(|commit| is_plain_name(commit));
        let commit = commit.or_else(|| is_commit(revision).then_some(revision));
        vec![repository.join("snapshots").join(commit.unwrap_or(revision))]
    }

    fn cached(&self, model: &HubModel) -> Cached {
        let mut cached = Cached::default();
        self.candidates(model).into_iter().for_each(|folder| cached.consider(folder));
        cached
    }

    async fn list(&self, client: &Client, model: &HubModel) -> Result<Listing, Failure> {
        let (organisation, name) = (model.organisation.as_str(), model.name.as_str());
        let kind = self.kind.plural();
        let mut url = below(&self.endpoint, &["api", kind, organisation, name, "revision", revision(model)]);
        url.set_query(Some("blobs=true"));
        let listed: Model = client.json(&url, &self.headers).await?;
        if !is_commit(&listed.sha) {
            return Err(Error::invalid(format!("`{url}` names the commit `{}`, which is none", listed.sha)).into());
        }
        let file = |sibling: Sibling| {
            let mut parts = vec![organisation, name, "resolve", listed.sha.as_str()];
            if self.kind == Kind::DataSet {
                parts.insert(0, kind);
            }
            parts.extend(sibling.rfilename.split('/'));
            let url = below(&self.endpoint, &parts);
            let lfs = sibling.lfs.as_ref();
            let sha256 = lfs.and_then(|lfs| sha256_of(lfs.sha256.as_deref()?));
            let size = lfs.and_then(|lfs| lfs.size).or(sibling.size);
            let content = sha256.clone().or(sibling.blob);
            RemoteFile { path: sibling.rfilename, url, expected: Expected { size, sha256 }, content }
        };
        let files = listed.siblings.into_iter().map(file).collect();
        Ok(Listing { version: listed.sha, files })
    }

    /// A mirror may list names only; the file's own headers then tell its size and content.
    async fn described(&self, client: &Client, file: &RemoteFile) -> Result<RemoteFile, Failure> {
        let mut file = file.clone();
        if file.content.is_some() && file.expected.size.is_some() {
            return Ok(file);
        }
        let headers = client.headers(&file.url, &self.headers).await?;
        let linked = etag(&headers, "x-linked-etag");
        let size = match &linked {
            Some(_) => header(&headers, "x-linked-size"),
            None => header(&headers, CONTENT_LENGTH.as_str()),
        };
        let content = linked.or_else(|| etag(&headers, "etag"));
        file.expected.size = size.and_then(|size| size.parse().ok()).or(file.expected.size);
        file.expected.sha256 = content.as_deref().and_then(sha256_of).or(file.expected.sha256);
        file.content = content.or(file.content);
        Ok(file)
    }

    fn folder(&self, model: &HubModel, version: &str) -> PathBuf {
        self.repository(model).join("snapshots").join(version)
    }

    fn place(&self, model: &HubModel, version: &str, file: &RemoteFile) -> Result<Place> {
        let content = file.content.as_deref().filter(|content| is_plain_name(content)).ok_or_else(|| {
            Error::invalid(format!("the hub does not say what `{}` is: it has no entity tag", file.url))
                .hint("if `HF_ENDPOINT` is a mirror, try another one")
        })?;
        let blobs = self.repository(model).join("blobs");
        Ok(Place {
            file: blobs.join(content),
            partial: blobs.join(format!("{content}.incomplete")),
            lock: self.cache.join(".locks").join(self.repository_name(model)).join(format!("{content}.lock")),
            link: Some(self.folder(model, version).join(&file.path)),
            named_by_content: true,
        })
    }

    fn finish(&self, model: &HubModel, version: &str) -> Result<()> {
        let revision = revision(model);
        let reference = self.repository(model).join("refs").join(revision);
        if revision == version || fs::read_to_string(&reference).is_ok_and(|commit| commit.trim() == version) {
            return Ok(());
        }
        let written = reference.parent().map_or(Ok(()), fs::create_dir_all).and_then(|()| {
            let draft = reference.with_added_extension(format!("{}.tmp", std::process::id()));
            fs::write(&draft, version)?;
            fs::rename(&draft, &reference)
        });
        written.map_err(|error| file_error("write", &reference, &error))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hub(variables: &[(&str, &str)]) -> HuggingFace {
        let variables = variables.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned()));
        HuggingFace::new(&Environment::new(variables)).unwrap()
    }

    #[test]
    fn the_cache_is_where_its_own_tool_has_it() {
        let cache = |variables: &[(&str, &str)]| hub(variables).cache.display().to_string();
        assert_eq!(cache(&[("HOME", "/h")]), "/h/.cache/huggingface/hub");
        assert_eq!(cache(&[("HOME", "/h"), ("XDG_CACHE_HOME", "/c")]), "/c/huggingface/hub");
        assert_eq!(cache(&[("HF_HOME", "/d")]), "/d/hub");
        assert_eq!(cache(&[("HF_HOME", "/d"), ("HUGGINGFACE_HUB_CACHE", "/e")]), "/e");
        assert_eq!(cache(&[("HF_HUB_CACHE", "/f"), ("HUGGINGFACE_HUB_CACHE", "/e")]), "/f");
    }

    #[test]
    fn the_token_is_given_or_left_by_the_login_and_never_printed() {
        let root = tempfile::tempdir().unwrap();
        let home = root.path().display().to_string();
        fs::write(root.path().join("token"), "hf_file\n").unwrap();
        let token = |variables: &[(&str, &str)]| {
            let hub = hub(variables);
            hub.headers.get(AUTHORIZATION).map(|value| (value.to_str().unwrap().to_owned(), format!("{value:?}")))
        };
        assert_eq!(token(&[("HF_HOME", &home)]).unwrap(), ("Bearer hf_file".to_owned(), "Sensitive".to_owned()));
        assert_eq!(token(&[("HF_HOME", &home), ("HF_TOKEN", "hf_env")]).unwrap().0, "Bearer hf_env");
        assert_eq!(token(&[("HF_HOME", &home), ("HF_HUB_DISABLE_IMPLICIT_TOKEN", "1")]), None);
    }

    #[test]
    fn an_endpoint_that_is_no_address_is_refused() {
        let variables = [("HF_ENDPOINT".to_owned(), "ftp://mirror".to_owned())];
        let error = HuggingFace::new(&Environment::new(variables)).err().unwrap();
        insta::assert_snapshot!(error, @"`HF_ENDPOINT` is `ftp://mirror`, which is not the address of a hub (hint: write it as `https://host`)");
        assert_eq!(hub(&[("HF_ENDPOINT", "mirror.local/")]).endpoint.as_str(), "https://mirror.local/");
    }
}
