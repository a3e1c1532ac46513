//! What a protocol front is given to work with.

use tokio_util::sync::CancellationToken;
use twinkle_core::component::BoxComponent;
use twinkle_core::futures::Futures;

use crate::directory::Directory;
use crate::downloads::Downloads;

/// The node as a protocol front sees it; a cheap handle.
#[derive(Clone)]
pub struct FrontContext {
    /// The `server` application inside its stack.
    pub server: BoxComponent,
    /// The models and their components.
    pub directory: Directory,
    /// Answers that are not there yet.
    pub futures: Futures,
    /// Links to files of checkpoints.
    pub downloads: Downloads,
    /// Cancelled when the node stops: parked polls then answer "still pending" at once.
    pub stopping: CancellationToken,
}
