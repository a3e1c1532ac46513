//! How many records are open, for the gauges.

use super::StateStore;
use super::sql::query;
use crate::error::Result;

/// How many records are open.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct OpenRecords {
    /// Sessions that were not ended.
    pub sessions: u64,
    /// Training runs that were not closed.
    pub runs: u64,
    /// Sampling sessions.
    pub sampling_sessions: u64,
}

impl StateStore {
    /// Counts what is open.
    pub async fn open_records(&self) -> Result<OpenRecords> {
        Ok(OpenRecords {
            sessions: self.count("SELECT COUNT(*) AS total FROM sessions WHERE finished = 0").await?,
            runs: self.count("SELECT COUNT(*) AS total FROM runs WHERE closed = 0").await?,
            sampling_sessions: self.count("SELECT COUNT(*) AS total FROM sampling_sessions").await?,
        })
    }

    async fn count(&self, statement: &'static str) -> Result<u64> {
        let total: i64 = query(statement).fetch_value("total", &self.readers).await?;
        Ok(u64::try_from(total).unwrap_or_default())
    }
}
