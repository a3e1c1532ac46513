//! Making, describing and unloading models, which are training runs.

use axum::extract::State;
use sha2::{Digest, Sha256};
use twinkle_core::call::{CreateRun, LoraSpec, RunOperation};
use twinkle_core::config::TrainMode;
use twinkle_core::error::{Error, Result};
use twinkle_core::ids::{RunId, SessionId, TenantId};
use twinkle_core::wire::tinker::json::{
    CreateModel, LoraConfig, ModelData, ModelInfo, ModelRequest, OptimizerConfig, Tag,
};

use super::body::RawBody;
use super::operations::Place;
use super::reply::{Answer, ok};
use super::session::notes;
use super::{Front, Tenant};
use crate::directory::ServedModel;

/// `POST create_model`
pub(super) async fn create(State(front): State<Front>, Tenant(tenant): Tenant, body: RawBody) -> Answer {
    let wanted: CreateModel = body.json().await?;
    check_optimizer(wanted.optimizer_config.as_ref())?;
    let session = front.open_session(&tenant, SessionId::new(wanted.session_id)).await?;
    let run = RunId::of_session(&session, wanted.model_seq_id);
    let model = front.context.directory.model(&wanted.base_model)?;
    let lora = lora_spec(wanted.lora_config, model, &run)?;
    let operation = RunOperation::Create(CreateRun {
        session: None,
        accumulation_steps: None,
        base_model: wanted.base_model.clone(),
        lora,
        from: None,
        user_metadata: notes(wanted.user_metadata),
    });
    ok(&front.accept(&tenant, &wanted.base_model, creation(run), operation).await?)
}

impl Front {
    /// The session, if it still takes new models.
    pub(super) async fn open_session(&self, tenant: &TenantId, session: SessionId) -> Result<SessionId> {
        let record = self.session(tenant, session).await?;
        if record.finished {
            return Err(Error::invalid(format!("session `{}` is finished", record.id)).hint("open a new session"));
        }
        Ok(record.id)
    }
}

/// Creation is number 0 of a run: sent twice, it is answered once.
pub(super) fn creation(run: RunId) -> Place {
    Place { run, sequence: Some(0) }
}

/// Only `AdamW` is served.
pub(super) fn check_optimizer(config: Option<&OptimizerConfig>) -> Result<()> {
    match config {
        None => Ok(()),
        Some(config) if config.kind == "adamw" => Ok(()),
        Some(config) => Err(unknown_optimizer(&config.kind)),
    }
}

/// Says why an optimizer is not here, and which one is.
pub(super) fn unknown_optimizer(kind: &str) -> Error {
    let why = match kind {
        // Its client's texts name a preconditioner, a matrix sign and a rank correction, and call the constants internal.
        "dimuon" => " because its update was never published: two servers would train differently under one name",
        _ => "",
    };
    Error::unsupported(format!("optimizer `{kind}` is not supported{why}")).hint("known optimizers: `adamw`")
}

fn lora_spec(config: Option<LoraConfig>, model: &ServedModel, run: &RunId) -> Result<LoraSpec> {
    let Some(config) = config else {
        return match model.train_mode {
            TrainMode::Full => Ok(LoraSpec { full: true, ..LoraSpec::default() }),
            TrainMode::Lora => Err(Error::unsupported(format!("full fine-tuning is not served for `{}`", model.name))
                .hint("send a `lora_config`, or serve the model with `train_mode: full`")),
        };
    };
    if model.train_mode == TrainMode::Full {
        return Err(Error::invalid(format!(
            "`{}` is served with `train_mode: full`: all its weights are trained",
            model.name
        ))
        .hint("send no `lora_config`"));
    }
    if config.rank == 0 || config.rank > model.max_rank {
        return Err(Error::invalid(format!("LoRA rank {} is not between 1 and {}", config.rank, model.max_rank)));
    }
    if !(config.train_attn || config.train_mlp || config.train_unembed) {
        return Err(Error::invalid("the LoRA configuration trains nothing")
            .hint("set one of `train_attn`, `train_mlp`, `train_unembed`"));
    }
    Ok(LoraSpec {
        rank: config.rank,
        alpha: model.default_alpha,
        seed: config.seed.map_or_else(|| seed_of(run), twinkle_core::wire::tinker::json::Seed::bits),
        train_attn: config.train_attn,
        train_mlp: config.train_mlp,
        train_unembed: config.train_unembed,
        ..LoraSpec::default()
    })
}

/// The seed of a run that asked for none: as random as its session's id, and the same when sent again.
fn seed_of(run: &RunId) -> u64 {
    let digest = Sha256::digest(run.as_str().as_bytes());
    let (words, _) = digest.as_slice().as_chunks();
    words.first().map_or(0, |word| u64::from_le_bytes(*word))
}

/// `POST get_info`
pub(super) async fn info(State(front): State<Front>, Tenant(tenant): Tenant, body: RawBody) -> Answer {
    let wanted: ModelRequest = body.json().await?;
    let record = front.run(&tenant, RunId::new(wanted.model_id)).await?;
    let model = front.context.directory.model(&record.base_model)?;
    // A client on this machine loads the tokenizer from this folder, without any hub.
    let tokenizer = std::path::absolute(&model.tokenizer).unwrap_or_else(|_| model.tokenizer.clone());
    ok(&ModelInfo {
        kind: Tag::new("get_info"),
        model_id: record.id.as_str().to_owned(),
        model_data: ModelData {
            model_name: record.base_model.clone(),
            tokenizer_id: Some(tokenizer.to_string_lossy().into_owned()),
        },
        optimizer_config: Some(adamw()),
        is_lora: Some(!record.lora.full),
        lora_rank: (!record.lora.full).then_some(record.lora.rank),
        model_name: Some(record.base_model),
    })
}

/// The only optimizer.
pub(super) fn adamw() -> OptimizerConfig {
    OptimizerConfig { kind: "adamw".to_owned() }
}

/// `POST unload_model`
pub(super) async fn unload(State(front): State<Front>, Tenant(tenant): Tenant, body: RawBody) -> Answer {
    let wanted: ModelRequest = body.json().await?;
    let place = Place::new(wanted.model_id, None);
    ok(&front.submit(&tenant, place, Ok(RunOperation::Unload)).await?)
}
