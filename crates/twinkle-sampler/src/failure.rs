//! What a failure costs: the requests it happened in, or the engine.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::Duration;

use tracing::error;
use twinkle_core::engine::supervisor::panic_text;
use twinkle_core::{Error, ErrorCode, Result};
use twinkle_nn::{DeviceFailure, device_failure, out_of_memory};

/// The device is lost, for this reason: this engine must not go on.
#[derive(Debug)]
pub(crate) struct Lost(pub(crate) String);

/// How a part of a step failed.
#[derive(Debug)]
pub(crate) enum Failure {
    /// Its requests cannot be answered, for this reason; everyone else goes on.
    Requests(Error),
    /// Nobody can be answered by this engine.
    Device(Lost),
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        if error.code != ErrorCode::Internal {
            return Self::Requests(error);
        }
        match device_failure(&error.message) {
            DeviceFailure::Lost => Self::Device(Lost(error.message)),
            DeviceFailure::OutOfMemory => Self::Requests(out_of_memory(&error.message)),
            DeviceFailure::Operation => Self::Requests(error),
        }
    }
}

/// Runs a part of a step; a panic becomes a failure.
pub(crate) fn guarded<T>(work: impl FnOnce() -> Result<T>) -> Result<T, Failure> {
    match catch_unwind(AssertUnwindSafe(work)) {
        Ok(done) => done.map_err(Failure::from),
        Err(panic) => {
            let reason = panic_text(panic.as_ref());
            error!(reason, "a sampling step panicked");
            Err(Error::internal(format!("the sampling engine failed: {reason}")).into())
        }
    }
}

/// What a request gets whose logits are no numbers.
pub(crate) fn not_finite(has_adapter: bool) -> Error {
    if has_adapter {
        return Error::invalid("the adapter makes the model's logits infinite or NaN")
            .hint("its training has diverged; sample from an earlier checkpoint");
    }
    Error::internal("the base model's logits are infinite or NaN")
}

/// What a request gets when the engine no longer works; clients submit samples again.
pub(crate) fn stopped() -> Error {
    Error::new(ErrorCode::Draining, "the sampling engine is stopping").retry_after(Duration::from_secs(1))
}
