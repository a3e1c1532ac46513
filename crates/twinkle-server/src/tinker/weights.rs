//! Saving and loading weights.

use axum::extract::State;
use twinkle_core::call::{
    CreateRun, RunOperation, SamplerTarget, SamplingSource, SavedTraining, ServeOutcome, ServeRequest, StartingPoint,
};
use twinkle_core::checkpoint::Recipients;
use twinkle_core::error::{Error, Result};
use twinkle_core::ids::{CheckpointKind, CheckpointPath, RunId, SamplingSessionId, SessionId, TenantId};
use twinkle_core::wire::tinker::json::{
    LoadWeights, SaveWeights, SaveWeightsExternal, SaveWeightsForSampler, WeightsInfo, WeightsInfoRequest,
};

use super::body::RawBody;
use super::checkpoints::no_access_tokens;
use super::models::{adamw, check_optimizer, creation};
use super::operations::Place;
use super::reply::{Answer, ok};
use super::session::notes;
use super::{Front, Tenant};

/// Shortest lifetime of a checkpoint that has one: an hour, in seconds.
const MIN_TTL_SECONDS: u64 = 3_600;
/// Longest lifetime: ten years.
const MAX_TTL_SECONDS: u64 = 10 * 365 * 24 * 3600;

/// `POST save_weights`
pub(super) async fn save(State(front): State<Front>, Tenant(tenant): Tenant, body: RawBody) -> Answer {
    let wanted: SaveWeights = front.parse(&tenant, &body).await?;
    let place = Place::new(wanted.model_id, wanted.seq_id);
    let path = wanted
        .path
        .as_deref()
        .ok_or_else(no_name)
        .and_then(|name| CheckpointPath::new(place.run.clone(), CheckpointKind::Weights, name));
    let operation = path.and_then(|path| {
        Ok(RunOperation::SaveState {
            path,
            ttl_seconds: lifetime(wanted.ttl_seconds)?,
            overwrite: wanted.overwrite,
            user_metadata: wanted.user_metadata,
            training: SavedTraining::default(),
        })
    });
    ok(&front.submit(&tenant, place, operation).await?)
}

/// `POST save_weights_for_sampler`: to a checkpoint when it has a name, to memory when it has none.
pub(super) async fn save_for_sampler(State(front): State<Front>, Tenant(tenant): Tenant, body: RawBody) -> Answer {
    let wanted: SaveWeightsForSampler = front.parse(&tenant, &body).await?;
    let place = Place::new(wanted.model_id.clone(), wanted.seq_id);
    let operation = front.publication(&tenant, &place.run, wanted).await;
    // A full queue is not the fault of the content: the client may send this number again.
    if let Err(error) = &operation
        && !error.code.is_users_fault()
    {
        return Err(error.clone().into());
    }
    ok(&front.submit(&tenant, place, operation).await?)
}

impl Front {
    async fn publication(&self, tenant: &TenantId, run: &RunId, wanted: SaveWeightsForSampler) -> Result<RunOperation> {
        let is_inflight = match wanted.kind.as_deref() {
            None | Some("snapshot") => false,
            Some("inflight") => true,
            Some(kind) => {
                return Err(Error::unsupported(format!("sampling weights of kind `{kind}` are not supported"))
                    .hint("known kinds: `snapshot`, `inflight`"));
            }
        };
        let target = match (&wanted.path, wanted.sampling_session_seq_id) {
            (Some(_), _) if is_inflight => {
                return Err(Error::invalid("weights of kind `inflight` have no `path`")
                    .hint("they change with every save; leave `path` out, or save a `snapshot`"));
            }
            (Some(name), _) => {
                SamplerTarget::Checkpoint(CheckpointPath::new(run.clone(), CheckpointKind::SamplerWeights, name)?)
            }
            (None, Some(number)) => self.live_session(tenant, run, number, is_inflight).await?,
            (None, None) => {
                return Err(Error::invalid("neither `path` nor `sampling_session_seq_id` is given")
                    .hint("name a checkpoint, or number the sampling session that is to hold the weights"));
            }
        };
        Ok(RunOperation::SaveForSampler {
            target,
            ttl_seconds: lifetime(wanted.ttl_seconds)?,
            user_metadata: wanted.user_metadata,
        })
    }

    /// Opens the sampling session that will hold the weights, or share the run's inflight ones; asked twice, it is the
    /// same one.
    async fn live_session(
        &self,
        tenant: &TenantId,
        run: &RunId,
        number: u64,
        is_inflight: bool,
    ) -> Result<SamplerTarget> {
        let record = self.run(tenant, run.clone()).await?;
        let session = SamplingSessionId::of_session(&record.session, number);
        let target = if is_inflight {
            let weights = SamplingSessionId::inflight_weights(&record.session, run);
            SamplerTarget::Inflight { session, weights }
        } else {
            SamplerTarget::Live(session)
        };
        let source = target.published().cloned().map_or(SamplingSource::Base, SamplingSource::Live);
        let request = ServeRequest::CreateSamplingSession {
            session: record.session,
            number,
            base_model: Some(record.base_model),
            source: source.clone(),
        };
        match self.serve(tenant, request).await? {
            ServeOutcome::SamplingSession(opened) if opened.source != source => {
                Err(Error::invalid(format!("sampling session `{}` exists and holds other weights", opened.id))
                    .hint("number each sampling session anew"))
            }
            _ => Ok(target),
        }
    }
}

/// A lifetime within bounds; `None` is forever.
pub(super) fn lifetime(ttl_seconds: Option<u64>) -> Result<Option<u64>> {
    match ttl_seconds {
        Some(seconds) if !(MIN_TTL_SECONDS..=MAX_TTL_SECONDS).contains(&seconds) => Err(Error::invalid(format!(
            "`ttl_seconds` {seconds} is not between {MIN_TTL_SECONDS} and {MAX_TTL_SECONDS}"
        ))),
        other => Ok(other),
    }
}

/// `POST save_weights_external`: files that users download.
pub(super) async fn save_external(State(front): State<Front>, Tenant(tenant): Tenant, body: RawBody) -> Answer {
    let wanted: SaveWeightsExternal = front.parse(&tenant, &body).await?;
    let place = Place::new(wanted.model_id.clone(), wanted.seq_id);
    let operation = export(&place.run, wanted);
    ok(&front.submit(&tenant, place, operation).await?)
}

fn export(run: &RunId, wanted: SaveWeightsExternal) -> Result<RunOperation> {
    let name = wanted.path.as_deref().ok_or_else(no_name)?;
    let recipients = wanted.age_encryption_recipients;
    if let Some(recipients) = &recipients {
        Recipients::parse(recipients)?;
    }
    Ok(RunOperation::SaveExternal {
        path: CheckpointPath::new(run.clone(), CheckpointKind::ExternalWeights, name)?,
        ttl_seconds: lifetime(wanted.ttl_seconds)?,
        recipients: recipients.unwrap_or_default(),
    })
}

fn no_name() -> Error {
    Error::invalid("`path` is missing").hint("give the checkpoint a name")
}

/// `POST load_weights`: makes a model out of a checkpoint, or loads one into a model.
pub(super) async fn load(State(front): State<Front>, Tenant(tenant): Tenant, body: RawBody) -> Answer {
    let wanted: LoadWeights = front.parse(&tenant, &body).await?;
    match (wanted.session_id.clone(), wanted.model_seq_id, wanted.model_id.clone()) {
        (Some(session), Some(number), None) => create(&front, &tenant, session, number, wanted).await,
        (None, None, Some(model_id)) => {
            let place = Place::new(model_id, wanted.seq_id);
            let operation = front.loading(&tenant, wanted).await;
            if let Err(error) = &operation
                && !error.code.is_users_fault()
            {
                return Err(error.clone().into());
            }
            ok(&front.submit(&tenant, place, operation).await?)
        }
        _ => Err(Error::invalid("a load names either `session_id` and `model_seq_id`, or `model_id`").into()),
    }
}

/// Makes a model with the checkpoint's adapter.
async fn create(front: &Front, tenant: &TenantId, session: String, number: u64, wanted: LoadWeights) -> Answer {
    let session = front.open_session(tenant, SessionId::new(session)).await?;
    let path = training_path(&wanted)?;
    let checkpoint = front.checkpoint(tenant, path.clone()).await?;
    check_base_model(wanted.base_model.as_deref(), &checkpoint.base_model)?;
    let operation = RunOperation::Create(CreateRun {
        session: None,
        accumulation_steps: None,
        base_model: checkpoint.base_model.clone(),
        lora: checkpoint.lora,
        from: Some(StartingPoint {
            path,
            with_optimizer: wanted.optimizer,
            owner: foreign(tenant, &checkpoint.tenant),
        }),
        user_metadata: notes(wanted.user_metadata),
    });
    let place = creation(RunId::of_session(&session, number));
    ok(&front.accept(tenant, &checkpoint.base_model, place, operation).await?)
}

impl Front {
    async fn loading(&self, tenant: &TenantId, wanted: LoadWeights) -> Result<RunOperation> {
        let path = training_path(&wanted)?;
        let checkpoint = self.checkpoint(tenant, path.clone()).await?;
        check_base_model(wanted.base_model.as_deref(), &checkpoint.base_model)?;
        let owner = foreign(tenant, &checkpoint.tenant);
        Ok(RunOperation::LoadState { path, with_optimizer: wanted.optimizer, owner })
    }
}

/// The owner of a checkpoint, if it is another tenant than the one that loads it.
fn foreign(tenant: &TenantId, owner: &TenantId) -> Option<TenantId> {
    (owner != tenant).then(|| owner.clone())
}

/// The path of a checkpoint that training can continue from.
fn training_path(wanted: &LoadWeights) -> Result<CheckpointPath> {
    check_optimizer(wanted.optimizer_config.as_ref())?;
    if wanted.weights_access_token.is_some() {
        return Err(no_access_tokens());
    }
    let path = CheckpointPath::parse(&wanted.path)?;
    if path.kind != CheckpointKind::Weights {
        return Err(Error::invalid(format!("`{path}` holds no state to train from"))
            .hint("load a checkpoint of kind `weights`, as `save_state` writes"));
    }
    Ok(path)
}

fn check_base_model(wanted: Option<&str>, actual: &str) -> Result<()> {
    match wanted {
        Some(wanted) if wanted != actual => {
            Err(Error::invalid(format!("the checkpoint is of base model `{actual}`, not `{wanted}`")))
        }
        _ => Ok(()),
    }
}

/// `POST weights_info`
pub(super) async fn info(State(front): State<Front>, Tenant(tenant): Tenant, body: RawBody) -> Answer {
    let wanted: WeightsInfoRequest = body.json().await?;
    let record = front.checkpoint(&tenant, CheckpointPath::parse(&wanted.tinker_path)?).await?;
    ok(&WeightsInfo {
        base_model: record.base_model,
        is_lora: true,
        lora_rank: Some(record.lora.rank),
        train_unembed: Some(record.lora.train_unembed),
        train_mlp: Some(record.lora.train_mlp),
        train_attn: Some(record.lora.train_attn),
        optimizer_config: Some(adamw()),
    })
}
