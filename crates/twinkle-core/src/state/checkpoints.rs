//! The directory of checkpoints; their files are [`crate::checkpoint`]'s.

use jiff::Timestamp;

use super::StateStore;
use super::codec::{from_blob, from_integer, from_nanoseconds, now, to_blob, to_integer, to_nanoseconds};
use super::connection::Connection;
use super::failure::Failure;
use super::sql::{Row, query};
use super::writer::Write;
use crate::call::CheckpointRecord;
use crate::error::{Error, Result};
use crate::ids::{CheckpointKind, CheckpointPath, RunId, TenantId};

impl StateStore {
    /// Lists a checkpoint whose files are in place, replacing the entry of an overwritten one.
    pub async fn insert_checkpoint(&self, checkpoint: &CheckpointRecord) -> Result<()> {
        self.writer.write(InsertCheckpoint(checkpoint.clone())).await
    }

    /// The tenant's checkpoint of that path, unless it has expired.
    pub async fn checkpoint(&self, tenant: &TenantId, path: &CheckpointPath) -> Result<CheckpointRecord> {
        let row = query(
            "SELECT * FROM checkpoints WHERE tenant = $1 AND run = $2 AND kind = $3 AND name = $4
             AND (expires_at IS NULL OR expires_at > $5)",
        )
        .bind(tenant.as_str())
        .bind(path.run.as_str())
        .bind(path.kind.segment())
        .bind(path.name.as_str())
        .bind(now())
        .fetch_optional(&self.readers)
        .await?
        .ok_or_else(|| no_checkpoint(path))?;
        read_checkpoint(&row)
    }

    /// The checkpoint of that path as the tenant may read it: its own, or a public one.
    pub async fn readable_checkpoint(&self, tenant: &TenantId, path: &CheckpointPath) -> Result<CheckpointRecord> {
        let record = self.checkpoint_of_anyone(path).await?;
        if record.tenant != *tenant && !record.public {
            return Err(no_checkpoint(path));
        }
        Ok(record)
    }

    /// The checkpoint of that path, whoever owns it. For requests that prove in another way what they may read.
    ///
    /// A run has one owner, so there is one at most.
    pub async fn checkpoint_of_anyone(&self, path: &CheckpointPath) -> Result<CheckpointRecord> {
        let row = query(
            "SELECT * FROM checkpoints WHERE run = $1 AND kind = $2 AND name = $3
             AND (expires_at IS NULL OR expires_at > $4)",
        )
        .bind(path.run.as_str())
        .bind(path.kind.segment())
        .bind(path.name.as_str())
        .bind(now())
        .fetch_optional(&self.readers)
        .await?
        .ok_or_else(|| no_checkpoint(path))?;
        read_checkpoint(&row)
    }

    /// Lets every tenant read the tenant's checkpoint, or its owner alone again. Saying it twice changes nothing.
    pub async fn publish_checkpoint(&self, tenant: &TenantId, path: &CheckpointPath, public: bool) -> Result<()> {
        self.change(tenant, path, Change::Public(public)).await
    }

    /// Sets when the tenant's checkpoint is removed; `None`: never.
    pub async fn keep_checkpoint_until(
        &self,
        tenant: &TenantId,
        path: &CheckpointPath,
        expires_at: Option<Timestamp>,
    ) -> Result<()> {
        self.change(tenant, path, Change::Expiry(expires_at)).await
    }

    async fn change(&self, tenant: &TenantId, path: &CheckpointPath, change: Change) -> Result<()> {
        self.writer.write(ChangeCheckpoint { tenant: tenant.clone(), path: path.clone(), change }).await
    }

    /// One page of the tenant's checkpoints, of one run or of all, oldest first, and how many there are in all.
    pub async fn list_checkpoints(
        &self,
        tenant: &TenantId,
        run: Option<&RunId>,
        limit: u32,
        offset: u32,
    ) -> Result<(Vec<CheckpointRecord>, u64)> {
        let now = now();
        let rows = query(
            "SELECT * FROM checkpoints WHERE tenant = $1 AND (CAST($2 AS TEXT) IS NULL OR run = $2)
             AND (expires_at IS NULL OR expires_at > $3) ORDER BY created_at, run, kind, name LIMIT $4 OFFSET $5",
        )
        .bind(tenant.as_str())
        .bind(run.map(RunId::as_str))
        .bind(now)
        .bind(limit)
        .bind(offset)
        .fetch_all(&self.readers)
        .await?;
        let total: i64 = query(
            "SELECT COUNT(*) AS total FROM checkpoints WHERE tenant = $1 AND (CAST($2 AS TEXT) IS NULL OR run = $2)
             AND (expires_at IS NULL OR expires_at > $3)",
        )
        .bind(tenant.as_str())
        .bind(run.map(RunId::as_str))
        .bind(now)
        .fetch_value("total", &self.readers)
        .await?;
        let checkpoints = rows.iter().map(read_checkpoint).collect::<Result<Vec<_>>>()?;
        Ok((checkpoints, from_integer(total)?))
    }

    /// The newest checkpoint of that kind of the tenant's run.
    pub async fn latest_checkpoint(
        &self,
        tenant: &TenantId,
        run: &RunId,
        kind: CheckpointKind,
    ) -> Result<Option<CheckpointRecord>> {
        let row = query(
            "SELECT * FROM checkpoints WHERE tenant = $1 AND run = $2 AND kind = $3
             AND (expires_at IS NULL OR expires_at > $4) ORDER BY created_at DESC, name DESC LIMIT 1",
        )
        .bind(tenant.as_str())
        .bind(run.as_str())
        .bind(kind.segment())
        .bind(now())
        .fetch_optional(&self.readers)
        .await?;
        row.as_ref().map(read_checkpoint).transpose()
    }

    /// Checkpoints whose lifetime is over at `time`, of all tenants; their files can be deleted.
    pub async fn expired_checkpoints(&self, time: Timestamp, limit: u32) -> Result<Vec<CheckpointRecord>> {
        let rows = query("SELECT * FROM checkpoints WHERE expires_at <= $1 ORDER BY expires_at LIMIT $2")
            .bind(to_nanoseconds(time))
            .bind(limit)
            .fetch_all(&self.readers)
            .await?;
        rows.iter().map(read_checkpoint).collect()
    }

    /// Takes a checkpoint off the list; the caller then deletes its files.
    pub async fn delete_checkpoint(&self, tenant: &TenantId, path: &CheckpointPath) -> Result<()> {
        self.writer.write(DeleteCheckpoint { tenant: tenant.clone(), path: path.clone() }).await
    }
}

/// The answer for a checkpoint that is absent or another tenant's.
pub(crate) fn no_checkpoint(path: &CheckpointPath) -> Error {
    Error::not_found(format!("checkpoint `{path}` does not exist"))
}

fn read_checkpoint(row: &Row) -> Result<CheckpointRecord> {
    let kind: String = row.get("kind")?;
    let kind = CheckpointKind::of_segment(&kind)
        .ok_or_else(|| Error::internal(format!("the state store holds an unknown checkpoint kind `{kind}`")))?;
    let expires_at: Option<i64> = row.get("expires_at")?;
    Ok(CheckpointRecord {
        path: CheckpointPath { run: RunId::new(row.get::<String>("run")?), kind, name: row.get("name")? },
        tenant: TenantId::new(row.get::<String>("tenant")?),
        base_model: row.get("base_model")?,
        lora: from_blob(&row.get::<Vec<u8>>("lora")?)?,
        size_bytes: from_integer(row.get("size_bytes")?)?,
        user_metadata: from_blob(&row.get::<Vec<u8>>("user_metadata")?)?,
        created_at: from_nanoseconds(row.get("created_at")?)?,
        expires_at: expires_at.map(from_nanoseconds).transpose()?,
        public: row.get("public")?,
    })
}

struct InsertCheckpoint(CheckpointRecord);

impl Write for InsertCheckpoint {
    type Answer = ();

    async fn apply(&self, connection: &mut Connection) -> Result<(), Failure> {
        insert(connection, &self.0).await
    }
}

/// Lists a checkpoint. One that replaces a public one is its owner's alone again.
pub(super) async fn insert(connection: &mut Connection, checkpoint: &CheckpointRecord) -> Result<(), Failure> {
    query(
        "INSERT INTO checkpoints
         (tenant, run, kind, name, base_model, lora, size_bytes, user_metadata, created_at, expires_at, public)
         VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11)
         ON CONFLICT (tenant, run, kind, name) DO UPDATE SET base_model = excluded.base_model,
         lora = excluded.lora, size_bytes = excluded.size_bytes, user_metadata = excluded.user_metadata,
         created_at = excluded.created_at, expires_at = excluded.expires_at, public = excluded.public",
    )
    .bind(checkpoint.tenant.as_str())
    .bind(checkpoint.path.run.as_str())
    .bind(checkpoint.path.kind.segment())
    .bind(checkpoint.path.name.as_str())
    .bind(checkpoint.base_model.as_str())
    .bind(to_blob(&checkpoint.lora)?)
    .bind(to_integer(checkpoint.size_bytes)?)
    .bind(to_blob(&checkpoint.user_metadata)?)
    .bind(to_nanoseconds(checkpoint.created_at))
    .bind(checkpoint.expires_at.map(to_nanoseconds))
    .bind(checkpoint.public)
    .execute(connection)
    .await?;
    Ok(())
}

enum Change {
    Public(bool),
    Expiry(Option<Timestamp>),
}

struct ChangeCheckpoint {
    tenant: TenantId,
    path: CheckpointPath,
    change: Change,
}

impl Write for ChangeCheckpoint {
    type Answer = ();

    async fn apply(&self, connection: &mut Connection) -> Result<(), Failure> {
        let statement = match &self.change {
            Change::Public(public) => query(
                "UPDATE checkpoints SET public = $1 WHERE tenant = $2 AND run = $3 AND kind = $4 AND name = $5
                 AND (expires_at IS NULL OR expires_at > $6)",
            )
            .bind(*public),
            Change::Expiry(time) => query(
                "UPDATE checkpoints SET expires_at = $1 WHERE tenant = $2 AND run = $3 AND kind = $4 AND name = $5
                 AND (expires_at IS NULL OR expires_at > $6)",
            )
            .bind(time.map(to_nanoseconds)),
        };
        let changed = statement
            .bind(self.tenant.as_str())
            .bind(self.path.run.as_str())
            .bind(self.path.kind.segment())
            .bind(self.path.name.as_str())
            .bind(now())
            .execute(connection)
            .await?;
        if changed == 0 {
            return Err(no_checkpoint(&self.path).into());
        }
        Ok(())
    }
}

struct DeleteCheckpoint {
    tenant: TenantId,
    path: CheckpointPath,
}

impl Write for DeleteCheckpoint {
    type Answer = ();

    async fn apply(&self, connection: &mut Connection) -> Result<(), Failure> {
        let deleted = query("DELETE FROM checkpoints WHERE tenant = $1 AND run = $2 AND kind = $3 AND name = $4")
            .bind(self.tenant.as_str())
            .bind(self.path.run.as_str())
            .bind(self.path.kind.segment())
            .bind(self.path.name.as_str())
            .execute(connection)
            .await?;
        if deleted == 0 {
            return Err(no_checkpoint(&self.path).into());
        }
        Ok(())
    }
}
