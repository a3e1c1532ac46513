//! API keys of tenants, for nodes that keep them in the store instead of a file. Only digests are here.

use jiff::Timestamp;

use super::StateStore;
use super::codec::{from_nanoseconds, to_nanoseconds};
use super::connection::Connection;
use super::failure::Failure;
use super::sql::{Row, query};
use super::writer::Write;
use crate::error::{Error, ErrorCode, Result};
use crate::ids::TenantId;

/// What is kept of an API key: enough to recognise it, not enough to use it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ApiKeyRecord {
    /// The beginning of the key, which people know it by. No two keys share one.
    pub prefix: String,
    /// SHA-256 of the whole key.
    pub digest: [u8; 32],
    /// Whose requests those with this key are.
    pub tenant: TenantId,
    /// What the operator calls it. No two keys share one.
    pub name: String,
    /// When it was made.
    pub created_at: Timestamp,
}

impl StateStore {
    /// Every key, oldest first.
    pub async fn api_keys(&self) -> Result<Vec<ApiKeyRecord>> {
        let rows = query("SELECT prefix, digest, tenant, name, created_at FROM api_keys ORDER BY created_at, prefix")
            .fetch_all(&self.readers)
            .await?;
        rows.iter().map(read_key).collect()
    }

    /// Keeps a new key; one with its prefix or name is a [`ErrorCode::Conflict`].
    pub async fn insert_api_key(&self, key: &ApiKeyRecord) -> Result<()> {
        self.writer.write(InsertKey(key.clone())).await
    }

    /// Forgets the key with this prefix; `false` when there is none.
    pub async fn delete_api_key(&self, prefix: &str) -> Result<bool> {
        self.writer.write(DeleteKey(prefix.to_owned())).await
    }
}

fn read_key(row: &Row) -> Result<ApiKeyRecord> {
    let mut digest = [0; 32];
    hex::decode_to_slice(row.get::<String>("digest")?, &mut digest)
        .map_err(|error| Error::internal(format!("the state store holds a key with a broken digest: {error}")))?;
    Ok(ApiKeyRecord {
        prefix: row.get("prefix")?,
        digest,
        tenant: TenantId::new(row.get::<String>("tenant")?),
        name: row.get("name")?,
        created_at: from_nanoseconds(row.get("created_at")?)?,
    })
}

struct InsertKey(ApiKeyRecord);

impl Write for InsertKey {
    type Answer = ();

    async fn apply(&self, connection: &mut Connection) -> Result<(), Failure> {
        let Self(key) = self;
        let inserted = query(
            "INSERT INTO api_keys (prefix, digest, tenant, name, created_at) VALUES ($1, $2, $3, $4, $5)
             ON CONFLICT DO NOTHING",
        )
        .bind(key.prefix.as_str())
        .bind(hex::encode(key.digest))
        .bind(key.tenant.as_str())
        .bind(key.name.as_str())
        .bind(to_nanoseconds(key.created_at))
        .execute(connection)
        .await?;
        if inserted == 0 {
            let text = format!("there is a key named `{}` or starting with `{}` already", key.name, key.prefix);
            return Err(Error::new(ErrorCode::Conflict, text).into());
        }
        Ok(())
    }
}

struct DeleteKey(String);

impl Write for DeleteKey {
    type Answer = bool;

    async fn apply(&self, connection: &mut Connection) -> Result<bool, Failure> {
        let deleted = query("DELETE FROM api_keys WHERE prefix = $1").bind(self.0.as_str()).execute(connection).await?;
        Ok(deleted > 0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(prefix: &str, name: &str) -> ApiKeyRecord {
        ApiKeyRecord {
            prefix: prefix.to_owned(),
            digest: [7; 32],
            tenant: TenantId::new("alice"),
            name: name.to_owned(),
            created_at: Timestamp::UNIX_EPOCH,
        }
    }

    #[tokio::test]
    async fn keys_are_kept_in_order_and_forgotten_by_prefix() {
        let store = StateStore::open_in_memory().await.unwrap();
        let first = key("tml-a", "laptop");
        let second = ApiKeyRecord { digest: [8; 32], ..key("tml-b", "server") };
        store.insert_api_key(&first).await.unwrap();
        store.insert_api_key(&second).await.unwrap();
        assert_eq!(store.api_keys().await.unwrap(), [first, second.clone()]);

        assert!(store.delete_api_key("tml-a").await.unwrap());
        assert!(!store.delete_api_key("tml-a").await.unwrap());
        assert_eq!(store.api_keys().await.unwrap(), [second]);
    }

    #[tokio::test]
    async fn a_second_key_of_the_same_name_or_prefix_is_refused() {
        let store = StateStore::open_in_memory().await.unwrap();
        store.insert_api_key(&key("tml-a", "laptop")).await.unwrap();
        for other in [key("tml-b", "laptop"), key("tml-a", "server")] {
            let other = ApiKeyRecord { digest: [9; 32], ..other };
            assert_eq!(store.insert_api_key(&other).await.unwrap_err().code, ErrorCode::Conflict, "{other:?}");
        }
    }
}
