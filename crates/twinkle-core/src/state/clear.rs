//! Forgetting everything, for an operator who wants to start anew.

use super::StateStore;
use super::connection::Connection;
use super::failure::Failure;
use super::sql::query;
use super::writer::Write;
use crate::error::Result;

/// One statement for each table, in an order that references allow. Each takes a bounded bite, so that a transaction
/// stays small.
const STATEMENTS: [&str; 10] = [
    "DELETE FROM snapshots WHERE run IN (SELECT run FROM snapshots LIMIT 1000)",
    "DELETE FROM operations WHERE id IN (SELECT id FROM operations LIMIT 1000)",
    "DELETE FROM runs WHERE id IN (SELECT id FROM runs LIMIT 1000)",
    "DELETE FROM samples WHERE request IN (SELECT request FROM samples LIMIT 1000)",
    "DELETE FROM uploads WHERE request IN (SELECT request FROM uploads LIMIT 1000)",
    "DELETE FROM sampling_sessions WHERE id IN (SELECT id FROM sampling_sessions LIMIT 1000)",
    "DELETE FROM adapters WHERE (session, name) IN (SELECT session, name FROM adapters LIMIT 1000)",
    "DELETE FROM custom_losses WHERE id IN (SELECT id FROM custom_losses LIMIT 1000)",
    "DELETE FROM sessions WHERE id IN (SELECT id FROM sessions LIMIT 1000)",
    "DELETE FROM checkpoints WHERE (tenant, run, kind, name) IN
     (SELECT tenant, run, kind, name FROM checkpoints LIMIT 1000)",
];

impl StateStore {
    /// Forgets every record and returns how many there were. API keys stay, as do files of checkpoints and snapshots.
    pub async fn clear(&self) -> Result<u64> {
        let mut cleared = 0;
        for statement in STATEMENTS {
            loop {
                let gone = self.writer.write(Clear(statement)).await?;
                cleared += gone;
                if gone == 0 {
                    break;
                }
            }
        }
        Ok(cleared)
    }
}

struct Clear(&'static str);

impl Write for Clear {
    type Answer = u64;

    async fn apply(&self, connection: &mut Connection) -> Result<u64, Failure> {
        query(self.0).execute(connection).await
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn no_table_is_forgotten() {
        let store = StateStore::open_in_memory().await.unwrap();
        let tables: Vec<String> =
            query("SELECT name FROM sqlite_schema WHERE type = 'table' AND name NOT LIKE '\\_%' ESCAPE '\\'")
                .fetch_column("name", &store.readers)
                .await
                .unwrap();
        assert!(tables.contains(&"sessions".to_owned()), "{tables:?}");
        for table in tables.iter().filter(|table| !table.starts_with("sqlite_") && *table != "api_keys") {
            assert!(
                STATEMENTS.iter().any(|statement| statement.starts_with(&format!("DELETE FROM {table} "))),
                "{table}"
            );
        }
    }
}
