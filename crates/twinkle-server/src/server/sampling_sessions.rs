//! Sampling sessions: places to sample from, each bound to one set of weights.

use twinkle_core::call::{SamplingSessionRecord, SamplingSource, ServeOutcome};
use twinkle_core::error::{Error, Result};
use twinkle_core::ids::{CheckpointKind, SamplingSessionId, SessionId, TenantId};
use twinkle_core::state::StateStore;

use crate::directory::Directory;

/// What a client wants to sample from.
pub(crate) struct Wanted {
    /// The session it belongs to.
    pub(crate) session: SessionId,
    /// The client's number for it.
    pub(crate) number: u64,
    /// The base model's public name; taken from the checkpoint when absent.
    pub(crate) base_model: Option<String>,
    /// The weights.
    pub(crate) source: SamplingSource,
}

/// Opens a sampling session; the same number names the same one, so a resend changes nothing.
pub(crate) async fn create(
    store: &StateStore,
    directory: &Directory,
    tenant: TenantId,
    wanted: Wanted,
) -> Result<ServeOutcome> {
    let Wanted { session, number, base_model, source } = wanted;
    let (base_model, source) = weights(store, &tenant, base_model, source).await?;
    directory.sampler(&base_model)?;
    let id = SamplingSessionId::of_session(&session, number);
    let record = SamplingSessionRecord { id, tenant, session, base_model, source };
    store.create_sampling_session(&record).await.map(ServeOutcome::SamplingSession)
}

/// The weights with their base model, which a client may repeat but not contradict.
async fn weights(
    store: &StateStore,
    tenant: &TenantId,
    named: Option<String>,
    source: SamplingSource,
) -> Result<(String, SamplingSource)> {
    let SamplingSource::Checkpoint(path) = source else {
        let named = named.ok_or_else(|| {
            Error::invalid("a sampling session needs `base_model` or `model_path`")
                .hint("name a base model, or a checkpoint like `tinker://<run>/sampler_weights/<name>`")
        })?;
        return Ok((named, source));
    };
    let checkpoint = store.readable_checkpoint(tenant, &path).await?;
    if path.kind == CheckpointKind::ExternalWeights {
        return Err(Error::invalid(format!("`{path}` was exported to be downloaded and cannot be sampled from"))
            .hint("save the weights with `save_weights_for_sampler`"));
    }
    let base_model = checkpoint.base_model;
    if let Some(named) = named
        && named != base_model
    {
        let text = format!("checkpoint `{path}` belongs to base model `{base_model}`, not to `{named}`");
        return Err(Error::invalid(text));
    }
    let source = if checkpoint.tenant == *tenant {
        SamplingSource::Checkpoint(path)
    } else {
        SamplingSource::Shared { owner: checkpoint.tenant, path }
    };
    Ok((base_model, source))
}
