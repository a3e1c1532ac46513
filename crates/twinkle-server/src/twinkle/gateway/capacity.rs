//! How much of the node is in use.

use axum::extract::State;
use serde_json::json;

use crate::twinkle::{Answer, Tenant, TwinkleFront, ok};

/// `GET capacity_info`: adapters that are held in memory at once, and adapters there are. Beyond the first number idle
/// adapters wait on disk, so none is refused for want of a slot.
pub(super) async fn capacity(State(front): State<TwinkleFront>, _: Tenant) -> Answer {
    let most: u64 = front.context.directory.models().iter().map(|model| u64::from(model.max_loras)).sum();
    let used = front.context.store.open_records().await?.runs;
    ok(&json!({ "max_loras": most, "used_loras": used, "free_loras": most.saturating_sub(used) }))
}

/// `GET status`
pub(super) async fn status(State(front): State<TwinkleFront>, _: Tenant) -> Answer {
    let open = front.context.store.open_records().await?;
    ok(&json!({
        "resources": {
            "sessions": open.sessions,
            "models": open.runs,
            "sampling_sessions": open.sampling_sessions,
            "futures": front.context.futures.pending(),
        },
        "cleanup": {
            "running": !front.context.stopping.is_cancelled(),
            "expiration_timeout": front.context.settings.expiration_timeout,
        },
    }))
}
