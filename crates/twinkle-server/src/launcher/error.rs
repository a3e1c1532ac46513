//! Why a node did not start.

use std::fmt;

use twinkle_core::config::ConfigErrors;
use twinkle_core::error::Error;

/// Why a node did not start. Nothing listens when this is returned.
#[derive(Debug)]
pub enum LaunchError {
    /// The configuration is wrong: every problem with its line and column.
    Config(ConfigErrors),
    /// The configuration is right, but this machine cannot do it: a missing model folder, a port in use.
    Failed(Error),
}

impl From<ConfigErrors> for LaunchError {
    fn from(errors: ConfigErrors) -> Self {
        Self::Config(errors)
    }
}

impl From<Error> for LaunchError {
    fn from(error: Error) -> Self {
        Self::Failed(error)
    }
}

impl fmt::Display for LaunchError {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Config(errors) => errors.fmt(formatter),
            Self::Failed(error) => {
                formatter.write_str(&error.message)?;
                // On a line of its own: an operator reads this in a terminal.
                error.hint.as_ref().map_or(Ok(()), |hint| write!(formatter, "\nhint: {hint}"))
            }
        }
    }
}

impl std::error::Error for LaunchError {}
