//! What is on the server: training runs and checkpoints.

use std::sync::Arc;

use serde::de::DeserializeOwned;
use twinkle_core::wire::tinker::json::{
    CheckpointLifetime, Checkpoints, TrainingRun, TrainingRuns, WeightsInfo, WeightsInfoRequest,
};

use crate::error::{Error, Result};
use crate::http::Request;
use crate::session::Session;

/// Lists and changes what this key owns on the server, whichever session it came from.
#[derive(Clone, Debug)]
pub struct DirectoryClient {
    session: Arc<Session>,
}

impl DirectoryClient {
    pub(crate) fn new(session: Arc<Session>) -> Self {
        Self { session }
    }

    /// Training runs, latest first: `limit` of them after the first `offset`.
    pub async fn training_runs(&self, limit: u64, offset: u64) -> Result<TrainingRuns> {
        self.get(format!("/api/v1/training_runs?limit={limit}&offset={offset}")).await
    }

    /// One training run.
    pub async fn training_run(&self, run: &str) -> Result<TrainingRun> {
        self.get(format!("/api/v1/training_runs/{run}")).await
    }

    /// The checkpoints of a run, of every kind.
    pub async fn run_checkpoints(&self, run: &str) -> Result<Checkpoints> {
        self.get(format!("/api/v1/training_runs/{run}/checkpoints")).await
    }

    /// The checkpoints of all runs: `limit` of them after the first `offset`.
    pub async fn checkpoints(&self, limit: u64, offset: u64) -> Result<Checkpoints> {
        self.get(format!("/api/v1/checkpoints?limit={limit}&offset={offset}")).await
    }

    /// Which base model and adapter a checkpoint is of.
    pub async fn weights_info(&self, path: &str) -> Result<WeightsInfo> {
        self.session.http.ask("/api/v1/weights_info", &WeightsInfoRequest { tinker_path: path.to_owned() }).await
    }

    /// Deletes a checkpoint.
    pub async fn delete_checkpoint(&self, path: &str) -> Result<()> {
        self.change(Request::delete(route(path)?)).await
    }

    /// Keeps a checkpoint for so many seconds from now; `None` keeps it until it is deleted.
    pub async fn set_checkpoint_ttl(&self, path: &str, ttl_seconds: Option<u64>) -> Result<()> {
        let body = CheckpointLifetime { ttl_seconds };
        self.change(Request::json(format!("{}/ttl", route(path)?), &body)?.put()).await
    }

    /// Lets every key of the server load and sample a checkpoint.
    pub async fn publish_checkpoint(&self, path: &str) -> Result<()> {
        self.change(Request::json(format!("{}/publish", route(path)?), &serde_json::json!({}))?).await
    }

    /// Takes [`Self::publish_checkpoint`] back.
    pub async fn unpublish_checkpoint(&self, path: &str) -> Result<()> {
        self.change(Request::delete(format!("{}/publish", route(path)?))).await
    }

    async fn get<T: DeserializeOwned>(&self, path: String) -> Result<T> {
        let request = Request::get(path);
        self.session.http.send(&request).await?.decode(request.path())
    }

    async fn change(&self, request: Request) -> Result<()> {
        self.session.http.send(&request).await.map(drop)
    }
}

/// The route of the checkpoint at `tinker://<run>/<kind>/<name>`.
fn route(path: &str) -> Result<String> {
    let parts: Option<Vec<&str>> = path.strip_prefix("tinker://").map(|rest| rest.split('/').collect());
    match parts.as_deref() {
        Some([run, kind, name]) if ![run, kind, name].iter().any(|part| part.is_empty()) => {
            Ok(format!("/api/v1/training_runs/{run}/checkpoints/{kind}/{name}"))
        }
        _ => Err(Error::InvalidArgument(format!("`{path}` is not a path like `tinker://<run>/weights/<name>`"))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_checkpoints_route_follows_from_its_path() {
        let expected = "/api/v1/training_runs/s-1:train:0/checkpoints/weights/last";
        assert_eq!(route("tinker://s-1:train:0/weights/last").unwrap(), expected);
        for wrong in ["", "s-1:train:0/weights/last", "tinker://run/last", "tinker://run/weights/", "tinker://a/b/c/d"]
        {
            assert!(route(wrong).is_err(), "{wrong}");
        }
    }
}
