//! What lies on the server: models, training runs, checkpoints, sessions.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use reqwest::header::LOCATION;
use twinkle_core::wire::tinker::json::{
    AssignProject, CheckpointLifetime, Checkpoints, CopyWeights, ExternalWeightsUrls, Sampler, ServerCapabilities,
    SessionContents, SessionNames, SessionSearchRequest, SessionSearchResponse, TraceExport, TrainingRun, TrainingRuns,
    WeightsCopied, WeightsInfo, WeightsInfoRequest,
};

use crate::answer::Answer;
use crate::checkpoint_path::{CheckpointPath, is_segment};
use crate::download::{self, Download};
use crate::environment::{api_key_from_env, base_url_from_env};
use crate::error::{Error, Result};
use crate::http::Http;
use crate::options::ConnectOptions;
use crate::request::Request;

/// Lists and changes what a key owns on the server, whichever session it came from.
///
/// It needs no session: [`RestClient::connect`] sends nothing.
#[derive(Clone, Debug)]
pub struct RestClient {
    http: Http,
}

impl RestClient {
    pub(crate) const fn new(http: Http) -> Self {
        Self { http }
    }

    /// A client of the server at `base_url`. Of the options, those of a session do not count.
    pub fn connect(base_url: &str, api_key: &str, options: ConnectOptions) -> Result<Self> {
        Ok(Self { http: Http::new(base_url, api_key, &options.headers, options.retry)? })
    }

    /// [`Self::connect`] with the address of [`base_url_from_env`] and the key of [`api_key_from_env`].
    pub fn from_env() -> Result<Self> {
        Self::connect(&base_url_from_env(), &api_key_from_env()?, ConnectOptions::default())
    }

    /// The models on offer.
    pub async fn get_server_capabilities(&self) -> Result<ServerCapabilities> {
        self.http.get("/api/v1/get_server_capabilities".to_owned()).await
    }

    // --- runs

    /// Training runs, latest first: `limit` of them after the first `offset`.
    pub async fn list_training_runs(&self, limit: u64, offset: u64) -> Result<TrainingRuns> {
        self.http.get(format!("/api/v1/training_runs?limit={limit}&offset={offset}")).await
    }

    /// One training run.
    pub async fn get_training_run(&self, training_run_id: &str) -> Result<TrainingRun> {
        self.http.get(format!("/api/v1/training_runs/{}", segment(training_run_id)?)).await
    }

    /// The run that saved a checkpoint.
    pub async fn get_training_run_by_tinker_path(&self, path: &str) -> Result<TrainingRun> {
        self.get_training_run(CheckpointPath::parse(path)?.run()).await
    }

    // --- checkpoints

    /// The checkpoints of a run, of every kind.
    pub async fn list_checkpoints(&self, training_run_id: &str) -> Result<Checkpoints> {
        self.http.get(format!("/api/v1/training_runs/{}/checkpoints", segment(training_run_id)?)).await
    }

    /// The checkpoints of all runs: `limit` of them after the first `offset`.
    pub async fn list_user_checkpoints(&self, limit: u64, offset: u64) -> Result<Checkpoints> {
        self.http.get(format!("/api/v1/checkpoints?limit={limit}&offset={offset}")).await
    }

    /// Which base model and adapter a checkpoint is of.
    pub async fn get_weights_info_by_tinker_path(&self, path: &str) -> Result<WeightsInfo> {
        self.http.ask("/api/v1/weights_info", &WeightsInfoRequest { tinker_path: path.to_owned() }).await
    }

    /// Deletes a checkpoint.
    pub async fn delete_checkpoint_from_tinker_path(&self, path: &str) -> Result<()> {
        self.change(Request::delete(CheckpointPath::parse(path)?.route())).await
    }

    /// Keeps a checkpoint for so many seconds from now; `None` keeps it until it is deleted.
    pub async fn set_checkpoint_ttl_from_tinker_path(&self, path: &str, ttl_seconds: Option<u64>) -> Result<()> {
        let route = CheckpointPath::parse(path)?.route();
        self.change(Request::json(format!("{route}/ttl"), &CheckpointLifetime { ttl_seconds })?.put()).await
    }

    /// Lets every key of the server load and sample a checkpoint.
    pub async fn publish_checkpoint_from_tinker_path(&self, path: &str) -> Result<()> {
        let route = CheckpointPath::parse(path)?.route();
        self.change(Request::json(format!("{route}/publish"), &serde_json::json!({}))?).await
    }

    /// Takes [`Self::publish_checkpoint_from_tinker_path`] back.
    pub async fn unpublish_checkpoint_from_tinker_path(&self, path: &str) -> Result<()> {
        self.change(Request::delete(format!("{}/publish", CheckpointPath::parse(path)?.route()))).await
    }

    /// Copies a checkpoint into another project of this key; the result is the copy's path. `ttl_seconds` is how long the
    /// copy is kept; `None` keeps it until it is deleted.
    pub async fn copy_weights(&self, path: &str, project_id: &str, ttl_seconds: Option<u64>) -> Result<String> {
        let body = CopyWeights {
            source_path: path.to_owned(),
            destination_project_id: Some(project_id.to_owned()),
            session_id: None,
            model_seq_id: None,
            ttl_seconds,
            weights_access_token: None,
        };
        let copied: WeightsCopied = self.http.ask("/api/v1/copy_weights", &body).await?;
        Ok(copied.tinker_path)
    }

    // --- files

    /// A link to a checkpoint's files in one archive, which needs no key and works for a while.
    pub async fn get_checkpoint_archive_url_from_tinker_path(&self, path: &str) -> Result<String> {
        let route = format!("{}/archive", CheckpointPath::parse(path)?.route());
        let request = Request::get(route).accepting("application/gzip");
        let answer = self.http.send_until(&request, Answer::is_elsewhere).await?;
        let location = answer.header(LOCATION).map(str::to_owned);
        location.ok_or_else(|| Error::malformed(request.path(), &"no `location`"))
    }

    /// Downloads a checkpoint as a tar archive to the file `to`, which appears when it is complete. `progress` is told
    /// about every piece.
    pub async fn download_checkpoint_archive(
        &self,
        path: &str,
        to: &Path,
        mut progress: impl FnMut(Download) + Send,
    ) -> Result<u64> {
        let link = self.get_checkpoint_archive_url_from_tinker_path(path).await?;
        download::to_file(&self.http, &link, to, &mut progress).await
    }

    /// Links to the files of external weights, which need no key and work for a while.
    pub async fn get_external_weights_urls(&self, path: &str) -> Result<ExternalWeightsUrls> {
        self.http.get(format!("{}/external_weights_urls", CheckpointPath::parse(path)?.route())).await
    }

    /// Downloads external weights into `folder`, which is created if it is missing: a PEFT adapter that other programs
    /// load. `progress` is told about every piece of every file. The result is the files.
    pub async fn download_external_weights(
        &self,
        path: &str,
        folder: &Path,
        mut progress: impl FnMut(&str, Download) + Send,
    ) -> Result<Vec<PathBuf>> {
        let links: BTreeMap<String, String> = self.get_external_weights_urls(path).await?.urls;
        download::create_folder(folder).await?;
        let mut files = Vec::with_capacity(links.len());
        for (name, link) in links {
            // A server must not choose where on this machine something is written.
            if !is_segment(&name) {
                return Err(Error::malformed("external_weights_urls", &format!("`{name}` is not a file's name")));
            }
            let file = folder.join(&name);
            download::to_file(&self.http, &link, &file, &mut |piece| progress(&name, piece)).await?;
            files.push(file);
        }
        Ok(files)
    }

    // --- sessions

    /// The ids of sessions, latest first: `limit` of them after the first `offset`.
    pub async fn list_sessions(&self, limit: u64, offset: u64) -> Result<SessionNames> {
        self.http.get(format!("/api/v1/sessions?limit={limit}&offset={offset}")).await
    }

    /// The runs and sampling sessions of a session.
    pub async fn get_session(&self, session_id: &str) -> Result<SessionContents> {
        self.http.get(format!("/api/v1/sessions/{}", segment(session_id)?)).await
    }

    /// The sessions for which everything in `search` holds, one page of them.
    pub async fn search_sessions(&self, search: &SessionSearchRequest) -> Result<SessionSearchResponse> {
        self.http.ask("/api/v1/sessions/search", search).await
    }

    /// Files a session, its runs and their checkpoints under another project.
    pub async fn assign_session_project(&self, session_id: &str, project_id: &str) -> Result<()> {
        let body = AssignProject { project_id: project_id.to_owned() };
        self.change(Request::json(format!("/api/v1/sessions/{}/project", segment(session_id)?), &body)?.put()).await
    }

    /// Whether there is a trace of a session, and where.
    pub async fn export_session_trace(&self, session_id: &str) -> Result<TraceExport> {
        self.http.get(format!("/api/v1/sessions/{}/trace_export", segment(session_id)?)).await
    }

    /// Which weights a sampling session reads.
    pub async fn get_sampler(&self, sampler_id: &str) -> Result<Sampler> {
        self.http.get(format!("/api/v1/samplers/{}", segment(sampler_id)?)).await
    }

    async fn change(&self, request: Request) -> Result<()> {
        self.http.send(&request).await.map(drop)
    }
}

/// An id as a part of an address.
fn segment(id: &str) -> Result<&str> {
    if is_segment(id) { Ok(id) } else { Err(Error::InvalidArgument(format!("`{id}` is not an id"))) }
}
