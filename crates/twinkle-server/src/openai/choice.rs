//! Which weights a request's `model` names.
//!
//! | `model` | weights |
//! | --- | --- |
//! | a served base model | the base model |
//! | `tinker://…` or `twinkle://…` | that checkpoint |
//! | a training run | the newest checkpoint it saved |
//! | a sampling session | its weights |

use twinkle_core::call::{CheckpointRecord, SamplingSource, ServeOutcome, ServeRequest};
use twinkle_core::error::{Error, ErrorCode, Result};
use twinkle_core::ids::{CheckpointKind, CheckpointPath, RunId, SamplingSessionId, TenantId};

use super::answer::OpenAiError;
use super::front::OpenAiFront;
use crate::directory::ServedModel;
use crate::tinker::unexpected;

/// A base model and the weights to sample from.
#[derive(Clone, Debug)]
pub(super) struct Choice {
    /// The base model, which has a sampler.
    pub(super) model: ServedModel,
    /// What to add to it.
    pub(super) source: SamplingSource,
}

impl OpenAiFront {
    /// What `model` names; `adapter` is a checkpoint to add to a base model, as Twinkle's clients write it.
    pub(super) async fn choose(
        &self,
        tenant: &TenantId,
        model: &str,
        adapter: Option<&str>,
    ) -> Result<Choice, OpenAiError> {
        let named = self.named(tenant, model).await;
        let named = named.map_err(|error| match error.code {
            ErrorCode::NotFound | ErrorCode::Unsupported | ErrorCode::InvalidArgument => {
                OpenAiError::unknown_model(error)
            }
            _ => error.into(),
        })?;
        let Some(adapter) = adapter else { return Ok(named) };
        let added = self.checkpoint(tenant, adapter).await.map_err(|error| OpenAiError::of("adapter_uri", error))?;
        if added.model.name != named.model.name {
            let text = format!("`{adapter}` is of base model `{}`, not `{}`", added.model.name, named.model.name);
            return Err(OpenAiError::of("adapter_uri", Error::invalid(text)));
        }
        Ok(added)
    }

    async fn named(&self, tenant: &TenantId, model: &str) -> Result<Choice> {
        if model.contains("://") {
            return self.checkpoint(tenant, model).await;
        }
        let Err(unknown) = self.context.directory.model(model) else {
            return self.of_base(model, SamplingSource::Base);
        };
        if let Some(choice) = found(self.latest_of_run(tenant, RunId::new(model)).await)? {
            return Ok(choice);
        }
        if let Some(choice) = found(self.of_sampling_session(tenant, SamplingSessionId::new(model)).await)? {
            return Ok(choice);
        }
        Err(unknown)
    }

    async fn checkpoint(&self, tenant: &TenantId, path: &str) -> Result<Choice> {
        let path = CheckpointPath::parse(path)?;
        match self.serve(tenant, ServeRequest::DescribeCheckpoint(path)).await? {
            ServeOutcome::Checkpoint(record) => self.of_checkpoint(tenant, record),
            other => Err(unexpected("the server component", &other)),
        }
    }

    /// The newest checkpoint of a run of the tenant.
    async fn latest_of_run(&self, tenant: &TenantId, run: RunId) -> Result<Choice> {
        match self.serve(tenant, ServeRequest::DescribeRun(run.clone())).await? {
            ServeOutcome::Run(_) => {}
            other => return Err(unexpected("the server component", &other)),
        }
        let checkpoints = match self.serve(tenant, ServeRequest::LatestCheckpoints(run.clone())).await? {
            ServeOutcome::Checkpoints { checkpoints, .. } => checkpoints,
            other => return Err(unexpected("the server component", &other)),
        };
        let newest = checkpoints.into_iter().max_by_key(|record| record.created_at).ok_or_else(|| {
            Error::invalid(format!("training run `{run}` has saved no checkpoint yet"))
                .hint("save its weights for sampling first")
        })?;
        self.of_checkpoint(tenant, newest)
    }

    async fn of_sampling_session(&self, tenant: &TenantId, session: SamplingSessionId) -> Result<Choice> {
        let record = match self.serve(tenant, ServeRequest::DescribeSamplingSession(session)).await? {
            ServeOutcome::SamplingSession(record) => record,
            other => return Err(unexpected("the server component", &other)),
        };
        if let SamplingSource::Shared { path, .. } = record.source {
            // Its owner may have taken it back meanwhile.
            return self.checkpoint(tenant, &path.to_string()).await;
        }
        self.of_base(&record.base_model, record.source)
    }

    fn of_checkpoint(&self, tenant: &TenantId, record: CheckpointRecord) -> Result<Choice> {
        let path = record.path;
        if path.kind == CheckpointKind::ExternalWeights {
            return Err(Error::invalid(format!("`{path}` was exported to be downloaded and cannot be sampled from"))
                .hint("save the weights with `save_weights_for_sampler`"));
        }
        let source = if record.tenant == *tenant {
            SamplingSource::Checkpoint(path)
        } else {
            SamplingSource::Shared { owner: record.tenant, path }
        };
        self.of_base(&record.base_model, source)
    }

    fn of_base(&self, base_model: &str, source: SamplingSource) -> Result<Choice> {
        self.context.directory.sampler(base_model)?;
        Ok(Choice { model: self.context.directory.model(base_model)?.clone(), source })
    }
}

/// What was found, or nothing when there is nothing of that name.
fn found(choice: Result<Choice>) -> Result<Option<Choice>> {
    match choice {
        Ok(choice) => Ok(Some(choice)),
        Err(error) if error.code == ErrorCode::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}
