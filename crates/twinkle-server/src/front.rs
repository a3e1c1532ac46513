//! What a protocol front is given to work with.

use std::sync::Arc;

use tokio_util::sync::CancellationToken;
use twinkle_core::checkpoint::CheckpointStore;
use twinkle_core::component::BoxComponent;
use twinkle_core::config::ServerArgs;
use twinkle_core::futures::Futures;
use twinkle_core::state::StateStore;
use twinkle_processor::Templates;

use crate::directory::Directory;
use crate::downloads::Downloads;

/// The node as a protocol front sees it; a cheap handle.
#[derive(Clone)]
pub struct FrontContext {
    /// The `server` application inside its stack.
    pub server: BoxComponent,
    /// Its settings.
    pub settings: Arc<ServerArgs>,
    /// The models and their components.
    pub directory: Directory,
    /// Answers that are not there yet.
    pub futures: Futures,
    /// Where the records are.
    pub store: StateStore,
    /// Where the checkpoints' files are.
    pub checkpoints: CheckpointStore,
    /// Links to files of checkpoints.
    pub downloads: Downloads,
    /// The models' tokenizers and chat templates.
    pub templates: Templates,
    /// Cancelled when the node stops: parked polls then answer "still pending" at once.
    pub stopping: CancellationToken,
}
