//! Who owns a schema.

use std::time::Duration;

use sha2::{Digest, Sha256};
use sqlx::PgConnection;
use tokio::time::{Instant, sleep};

use super::super::connection::Connection;
use super::super::failure::Failure;
use super::super::sql::query;
use crate::error::{Error, ErrorCode, Result};

/// How long a server that is just ending is waited for.
const LOCK_WAIT: Duration = Duration::from_secs(3);
const LOCK_CHECK_EVERY: Duration = Duration::from_millis(50);

/// Takes the schema's advisory lock for as long as the connection lives.
pub(super) async fn lock(connection: &mut PgConnection, schema: &str) -> Result<(), Failure> {
    let key = lock_key(schema);
    let deadline = Instant::now() + LOCK_WAIT;
    loop {
        let taken: bool =
            sqlx::query_scalar("SELECT pg_try_advisory_lock($1)").bind(key).fetch_one(&mut *connection).await?;
        if taken {
            return Ok(());
        }
        if Instant::now() >= deadline {
            let text = format!("the state store in schema `{schema}` is in use by another server");
            return Err(Error::new(ErrorCode::Conflict, text)
                .hint("stop that server, or give this one another `persistence.key_prefix`")
                .into());
        }
        sleep(LOCK_CHECK_EVERY).await;
    }
}

/// Advisory locks are numbers; ours come from the schema's name.
fn lock_key(schema: &str) -> i64 {
    let digest = Sha256::digest(format!("twinkle state store {schema}"));
    let mut key = [0; 8];
    key.copy_from_slice(&digest[..8]);
    i64::from_be_bytes(key)
}

/// Makes this server the owner; returns its epoch and the number of the last commit.
pub(super) async fn begin_epoch(connection: &mut Connection) -> Result<(i64, i64), Failure> {
    query("UPDATE ownership SET epoch = epoch + 1").execute(connection).await?;
    read(connection).await
}

/// The epoch and the number of the last commit.
pub(super) async fn read(connection: &mut Connection) -> Result<(i64, i64), Failure> {
    let row = query("SELECT epoch, commits FROM ownership").fetch_optional(connection).await?;
    let row = row.ok_or_else(|| Error::internal("the table `ownership` of the state store is empty"))?;
    Ok((row.get("epoch")?, row.get("commits")?))
}
