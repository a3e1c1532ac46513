//! What becomes of an operation, its run and the engine when something fails.
//!
//! | What happened | The operation | Its run | Other runs |
//! | --- | --- | --- | --- |
//! | an error | the error, recorded as failed | as before | as before |
//! | too little memory | `ResourceExhausted`, recorded as failed | as before, or rebuilt | as before |
//! | a panic | `Internal`, recorded as failed | rebuilt from its journal | as before |
//! | a failure in a pass that several operations share | each begins again apart: one of the above | as before | as before |
//! | the device is lost | executed again by the next engine, apart, twice at most | rebuilt | rebuilt |

use std::any::Any;

use twinkle_core::call::RunOutcome;
use twinkle_core::engine::supervisor::panic_text;
use twinkle_core::{Error, ErrorCode, Result};
use twinkle_nn::{DeviceFailure, device_failure, out_of_memory};

/// How an operation, or a pass, ended.
#[derive(Debug)]
pub enum Ending<Outcome = RunOutcome> {
    /// With an answer, and its run is whole.
    Whole(Result<Outcome>),
    /// With an answer, but its run may be half changed.
    Torn(Error),
    /// Without an answer: the device is lost, for this reason.
    Lost(String),
}

impl<Outcome> Ending<Outcome> {
    /// Judges what came out of an operation: its result, or the panic that ended it.
    #[must_use]
    pub fn of(ended: std::thread::Result<Result<Outcome>>) -> Self {
        match ended {
            Ok(Err(error)) if is_lost_device(&error) => Self::Lost(error.message),
            Ok(outcome) => Self::Whole(outcome),
            Err(panic) => Self::of_panic(panic.as_ref()),
        }
    }

    fn of_panic(panic: &(dyn Any + Send)) -> Self {
        let text = panic_text(panic);
        match device_failure(&text) {
            DeviceFailure::Lost => Self::Lost(text),
            DeviceFailure::OutOfMemory => Self::Torn(out_of_memory(&text)),
            DeviceFailure::Operation => Self::Torn(
                Error::internal(format!("the engine failed: {text}"))
                    .hint("the operation changed nothing; the run goes on with the next one"),
            ),
        }
    }
}

fn is_lost_device(error: &Error) -> bool {
    error.code == ErrorCode::Internal && device_failure(&error.message) == DeviceFailure::Lost
}

/// What the client hears of an operation that took the engine with it each time.
#[must_use]
pub fn poison(name: &str, times: u32) -> Error {
    Error::internal(format!("poison operation: the engine was lost each of the {times} times it executed `{name}`"))
        .hint("the operation changed nothing; the run goes on with the next one")
}

/// What the journal hears of an operation that was not executed because the engine was lost.
#[must_use]
pub fn interrupted() -> Error {
    Error::new(ErrorCode::Interrupted, "the training engine was lost and is started again")
}
