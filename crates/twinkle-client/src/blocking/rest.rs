//! What lies on the server.

use std::path::{Path, PathBuf};

use twinkle_core::wire::tinker::json::{
    Checkpoints, ExternalWeightsUrls, Sampler, ServerCapabilities, SessionContents, SessionNames, SessionSearchRequest,
    SessionSearchResponse, TraceExport, TrainingRun, TrainingRuns, WeightsInfo,
};

use super::runtime::Runtime;
use crate::download::Download;
use crate::environment::{api_key_from_env, base_url_from_env};
use crate::error::Result;
use crate::options::ConnectOptions;

/// Lists and changes what a key owns on the server: [`crate::RestClient`] that waits.
#[derive(Clone, Debug)]
pub struct RestClient {
    inner: crate::RestClient,
    runtime: Runtime,
}

impl RestClient {
    pub(super) const fn new(inner: crate::RestClient, runtime: Runtime) -> Self {
        Self { inner, runtime }
    }

    /// [`crate::RestClient::connect`].
    pub fn connect(base_url: &str, api_key: &str, options: ConnectOptions) -> Result<Self> {
        Ok(Self::new(crate::RestClient::connect(base_url, api_key, options)?, Runtime::start()?))
    }

    /// [`crate::RestClient::from_env`].
    pub fn from_env() -> Result<Self> {
        Self::connect(&base_url_from_env(), &api_key_from_env()?, ConnectOptions::default())
    }

    /// [`crate::RestClient::get_server_capabilities`].
    pub fn get_server_capabilities(&self) -> Result<ServerCapabilities> {
        self.runtime.wait(self.inner.get_server_capabilities())
    }

    /// [`crate::RestClient::list_training_runs`].
    pub fn list_training_runs(&self, limit: u64, offset: u64) -> Result<TrainingRuns> {
        self.runtime.wait(self.inner.list_training_runs(limit, offset))
    }

    /// [`crate::RestClient::get_training_run`].
    pub fn get_training_run(&self, training_run_id: &str) -> Result<TrainingRun> {
        self.runtime.wait(self.inner.get_training_run(training_run_id))
    }

    /// [`crate::RestClient::get_training_run_by_tinker_path`].
    pub fn get_training_run_by_tinker_path(&self, path: &str) -> Result<TrainingRun> {
        self.runtime.wait(self.inner.get_training_run_by_tinker_path(path))
    }

    /// [`crate::RestClient::list_checkpoints`].
    pub fn list_checkpoints(&self, training_run_id: &str) -> Result<Checkpoints> {
        self.runtime.wait(self.inner.list_checkpoints(training_run_id))
    }

    /// [`crate::RestClient::list_user_checkpoints`].
    pub fn list_user_checkpoints(&self, limit: u64, offset: u64) -> Result<Checkpoints> {
        self.runtime.wait(self.inner.list_user_checkpoints(limit, offset))
    }

    /// [`crate::RestClient::get_weights_info_by_tinker_path`].
    pub fn get_weights_info_by_tinker_path(&self, path: &str) -> Result<WeightsInfo> {
        self.runtime.wait(self.inner.get_weights_info_by_tinker_path(path))
    }

    /// [`crate::RestClient::delete_checkpoint_from_tinker_path`].
    pub fn delete_checkpoint_from_tinker_path(&self, path: &str) -> Result<()> {
        self.runtime.wait(self.inner.delete_checkpoint_from_tinker_path(path))
    }

    /// [`crate::RestClient::set_checkpoint_ttl_from_tinker_path`].
    pub fn set_checkpoint_ttl_from_tinker_path(&self, path: &str, ttl_seconds: Option<u64>) -> Result<()> {
        self.runtime.wait(self.inner.set_checkpoint_ttl_from_tinker_path(path, ttl_seconds))
    }

    /// [`crate::RestClient::publish_checkpoint_from_tinker_path`].
    pub fn publish_checkpoint_from_tinker_path(&self, path: &str) -> Result<()> {
        self.runtime.wait(self.inner.publish_checkpoint_from_tinker_path(path))
    }

    /// [`crate::RestClient::unpublish_checkpoint_from_tinker_path`].
    pub fn unpublish_checkpoint_from_tinker_path(&self, path: &str) -> Result<()> {
        self.runtime.wait(self.inner.unpublish_checkpoint_from_tinker_path(path))
    }

    /// [`crate::RestClient::copy_weights`].
    pub fn copy_weights(&self, path: &str, project_id: &str, ttl_seconds: Option<u64>) -> Result<String> {
        self.runtime.wait(self.inner.copy_weights(path, project_id, ttl_seconds))
    }

    /// [`crate::RestClient::get_checkpoint_archive_url_from_tinker_path`].
    pub fn get_checkpoint_archive_url_from_tinker_path(&self, path: &str) -> Result<String> {
        self.runtime.wait(self.inner.get_checkpoint_archive_url_from_tinker_path(path))
    }

    /// [`crate::RestClient::download_checkpoint_archive`].
    pub fn download_checkpoint_archive(
        &self,
        path: &str,
        to: &Path,
        progress: impl FnMut(Download) + Send,
    ) -> Result<u64> {
        self.runtime.wait(self.inner.download_checkpoint_archive(path, to, progress))
    }

    /// [`crate::RestClient::get_external_weights_urls`].
    pub fn get_external_weights_urls(&self, path: &str) -> Result<ExternalWeightsUrls> {
        self.runtime.wait(self.inner.get_external_weights_urls(path))
    }

    /// [`crate::RestClient::download_external_weights`].
    pub fn download_external_weights(
        &self,
        path: &str,
        folder: &Path,
        progress: impl FnMut(&str, Download) + Send,
    ) -> Result<Vec<PathBuf>> {
        self.runtime.wait(self.inner.download_external_weights(path, folder, progress))
    }

    /// [`crate::RestClient::list_sessions`].
    pub fn list_sessions(&self, limit: u64, offset: u64) -> Result<SessionNames> {
        self.runtime.wait(self.inner.list_sessions(limit, offset))
    }

    /// [`crate::RestClient::get_session`].
    pub fn get_session(&self, session_id: &str) -> Result<SessionContents> {
        self.runtime.wait(self.inner.get_session(session_id))
    }

    /// [`crate::RestClient::search_sessions`].
    pub fn search_sessions(&self, search: &SessionSearchRequest) -> Result<SessionSearchResponse> {
        self.runtime.wait(self.inner.search_sessions(search))
    }

    /// [`crate::RestClient::assign_session_project`].
    pub fn assign_session_project(&self, session_id: &str, project_id: &str) -> Result<()> {
        self.runtime.wait(self.inner.assign_session_project(session_id, project_id))
    }

    /// [`crate::RestClient::export_session_trace`].
    pub fn export_session_trace(&self, session_id: &str) -> Result<TraceExport> {
        self.runtime.wait(self.inner.export_session_trace(session_id))
    }

    /// [`crate::RestClient::get_sampler`].
    pub fn get_sampler(&self, sampler_id: &str) -> Result<Sampler> {
        self.runtime.wait(self.inner.get_sampler(sampler_id))
    }
}
