//! Which snapshot a run is rebuilt from.

use std::path::PathBuf;
use std::time::Duration;

use super::StateStore;
use super::codec::{from_integer, to_integer};
use super::connection::Connection;
use super::failure::Failure;
use super::sql::query;
use super::writer::Write;
use crate::call::Position;
use crate::error::{Error, ErrorCode, Result};
use crate::ids::RunId;

/// How a snapshot waits for the results it covers to be stored: so often, so long each time.
const RESULT_CHECKS: u32 = 400;
const RESULT_CHECK_EVERY: Duration = Duration::from_millis(5);

/// A folder that holds exactly the effect of a run's operations up to a position.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SnapshotRecord {
    /// The folder.
    pub directory: PathBuf,
    /// The last operation it contains.
    pub through: Position,
}

impl StateStore {
    /// Makes `snapshot` the one its run is rebuilt from, and drops the payloads it covers.
    ///
    /// Waits a moment for results it covers that are still being stored: a result must be durable
    /// before the operation can no longer be replayed. Returns the folder of the snapshot it
    /// replaces, which the caller then deletes.
    pub async fn record_snapshot(&self, run: &RunId, snapshot: &SnapshotRecord) -> Result<Option<PathBuf>> {
        let Some(directory) = snapshot.directory.to_str() else {
            return Err(Error::invalid(format!("the snapshot folder `{}` is not UTF-8", snapshot.directory.display())));
        };
        for _ in 0..RESULT_CHECKS {
            let write = RecordSnapshot { run: run.clone(), directory: directory.to_owned(), through: snapshot.through };
            match self.writer.write(write).await? {
                Recorded::Replaced(previous) => return Ok(previous),
                Recorded::ResultsMissing => tokio::time::sleep(RESULT_CHECK_EVERY).await,
            }
        }
        Err(Error::new(ErrorCode::Overloaded, format!("run `{run}` has results that are not stored yet"))
            .hint("take the snapshot again later"))
    }

    /// The snapshot a run is rebuilt from.
    pub async fn latest_snapshot(&self, run: &RunId) -> Result<Option<SnapshotRecord>> {
        let row = query("SELECT directory, after, arrival FROM snapshots WHERE run = $1")
            .bind(run.as_str())
            .fetch_optional(&self.readers)
            .await?;
        let Some(row) = row else { return Ok(None) };
        Ok(Some(SnapshotRecord {
            directory: PathBuf::from(row.get::<String>("directory")?),
            through: Position { after: from_integer(row.get("after")?)?, arrival: row.get("arrival")? },
        }))
    }

    /// The folders of all snapshots in use; any other folder beside them is left over from a crash.
    pub async fn snapshot_directories(&self) -> Result<Vec<PathBuf>> {
        let directories: Vec<String> =
            query("SELECT directory FROM snapshots ORDER BY run").fetch_column("directory", &self.readers).await?;
        Ok(directories.into_iter().map(PathBuf::from).collect())
    }
}

enum Recorded {
    Replaced(Option<PathBuf>),
    ResultsMissing,
}

struct RecordSnapshot {
    run: RunId,
    directory: String,
    through: Position,
}

impl Write for RecordSnapshot {
    type Answer = Recorded;
    const PATIENT: bool = true;

    async fn apply(&self, connection: &mut Connection) -> Result<Recorded, Failure> {
        let after = to_integer(self.through.after)?;
        let arrival = self.through.arrival;
        let open: bool = query("SELECT EXISTS (SELECT 1 FROM runs WHERE id = $1 AND closed = 0) AS open")
            .bind(self.run.as_str())
            .fetch_value("open", &mut *connection)
            .await?;
        if !open {
            return Err(super::runs::closed_run(&self.run).into());
        }
        let missing: bool = query(
            "SELECT EXISTS (SELECT 1 FROM operations
             WHERE run = $1 AND state = 0 AND (after, arrival) <= ($2, $3)) AS missing",
        )
        .bind(self.run.as_str())
        .bind(after)
        .bind(arrival)
        .fetch_value("missing", &mut *connection)
        .await?;
        if missing {
            return Ok(Recorded::ResultsMissing);
        }
        let previous = query("SELECT directory, after, arrival FROM snapshots WHERE run = $1")
            .bind(self.run.as_str())
            .fetch_optional(&mut *connection)
            .await?;
        let mut replaced = None;
        if let Some(row) = previous {
            if (row.get::<i64>("after")?, row.get::<i64>("arrival")?) > (after, arrival) {
                return Err(Error::internal(format!("run `{}` has a newer snapshot already", self.run)).into());
            }
            let directory: String = row.get("directory")?;
            replaced = (directory != self.directory).then(|| PathBuf::from(directory));
        }
        query(
            "INSERT INTO snapshots (run, directory, after, arrival) VALUES ($1, $2, $3, $4)
             ON CONFLICT (run) DO UPDATE SET directory = excluded.directory, after = excluded.after,
             arrival = excluded.arrival",
        )
        .bind(self.run.as_str())
        .bind(self.directory.as_str())
        .bind(after)
        .bind(arrival)
        .execute(&mut *connection)
        .await?;
        query(
            "UPDATE operations SET payload = NULL
             WHERE run = $1 AND (after, arrival) <= ($2, $3) AND payload IS NOT NULL",
        )
        .bind(self.run.as_str())
        .bind(after)
        .bind(arrival)
        .execute(connection)
        .await?;
        Ok(Recorded::Replaced(replaced))
    }
}
