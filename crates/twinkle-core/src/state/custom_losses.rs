//! Losses that clients wrote, kept for the length of their session.

use super::StateStore;
use super::codec::{from_blob, to_blob};
use super::connection::Connection;
use super::failure::Failure;
use super::session_parts::CUSTOM_LOSSES;
use super::sql::{Row, query};
use super::writer::Write;
use crate::call::CustomLossRecord;
use crate::error::{Error, Result};
use crate::ids::{CustomLossId, SessionId, TenantId};

impl StateStore {
    /// Keeps a new loss of an open session.
    ///
    /// The same id with the same graph again changes nothing; with another it is refused.
    pub async fn create_custom_loss(&self, record: &CustomLossRecord) -> Result<()> {
        self.writer.write(CreateCustomLoss(record.clone())).await
    }

    /// The tenant's loss of that name.
    pub async fn custom_loss(&self, tenant: &TenantId, id: &CustomLossId) -> Result<CustomLossRecord> {
        let row = query("SELECT * FROM custom_losses WHERE id = $1 AND tenant = $2")
            .bind(id.as_str())
            .bind(tenant.as_str())
            .fetch_optional(&self.readers)
            .await?
            .ok_or_else(|| no_custom_loss(id))?;
        read_custom_loss(&row)
    }
}

/// The answer for a custom loss that is absent, another tenant's, or another session's.
#[must_use]
pub fn no_custom_loss(id: &CustomLossId) -> Error {
    Error::not_found(format!("custom loss `{id}` does not exist"))
}

fn read_custom_loss(row: &Row) -> Result<CustomLossRecord> {
    Ok(CustomLossRecord {
        id: CustomLossId::new(row.get::<String>("id")?),
        tenant: TenantId::new(row.get::<String>("tenant")?),
        session: SessionId::new(row.get::<String>("session")?),
        graph: from_blob(&row.get::<Vec<u8>>("graph")?)?,
    })
}

struct CreateCustomLoss(CustomLossRecord);

impl Write for CreateCustomLoss {
    type Answer = ();

    async fn apply(&self, connection: &mut Connection) -> Result<(), Failure> {
        let Self(record) = self;
        CUSTOM_LOSSES.require_room(connection, (&record.tenant, &record.session), record.id.as_str()).await?;
        let graph = to_blob(&record.graph)?;
        let existing: Option<Vec<u8>> = query("SELECT graph FROM custom_losses WHERE id = $1")
            .bind(record.id.as_str())
            .fetch_optional_value("graph", &mut *connection)
            .await?;
        if let Some(existing) = existing {
            // Bytes, because a constant may be no number, and that equals nothing.
            if existing == graph {
                return Ok(());
            }
            return Err(Error::invalid(format!("custom loss `{}` exists already with another graph", record.id))
                .hint("give every custom loss of a session its own number")
                .into());
        }
        query("INSERT INTO custom_losses (id, tenant, session, graph) VALUES ($1, $2, $3, $4)")
            .bind(record.id.as_str())
            .bind(record.tenant.as_str())
            .bind(record.session.as_str())
            .bind(graph)
            .execute(connection)
            .await?;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::super::Retention;
    use super::super::tests::session;
    use super::*;
    use crate::call::{GraphArgument, GraphInput, GraphNode, LossGraph, NodeKind};
    use crate::error::ErrorCode;

    fn record(number: u64, constant: f64) -> CustomLossRecord {
        let session = SessionId::new("s");
        let node = GraphNode {
            op: NodeKind::CallFunction,
            name: "exp".into(),
            target: "torch.exp".into(),
            args: vec![GraphArgument::Float(constant)],
            kwargs: BTreeMap::new(),
        };
        let graph = LossGraph {
            name: "loss".into(),
            inputs: vec![GraphInput { name: "logprobs".into(), rank: 1 }],
            nodes: vec![node],
        };
        let id = CustomLossId::of_session(&session, number);
        CustomLossRecord { id, tenant: TenantId::new("alice"), session, graph: graph.into() }
    }

    #[tokio::test]
    async fn the_same_number_is_the_same_loss_and_nobody_elses() {
        let store = StateStore::open_in_memory().await.unwrap();
        assert!(store.create_custom_loss(&record(0, 1.0)).await.is_err(), "there is no session yet");
        store.create_session(&session("s")).await.unwrap();
        let first = record(0, f64::NAN);
        store.create_custom_loss(&first).await.unwrap();
        store.create_custom_loss(&first).await.unwrap();
        let error = store.create_custom_loss(&record(0, 2.0)).await.unwrap_err();
        assert!(error.message.contains("another graph"), "{error}");
        assert_eq!(store.custom_loss(&first.tenant, &first.id).await.unwrap().graph.name, "loss");
        let foreign = store.custom_loss(&TenantId::new("bob"), &first.id).await.unwrap_err();
        assert_eq!(foreign, no_custom_loss(&first.id));
    }

    #[tokio::test]
    async fn a_session_has_so_many_and_takes_them_along() {
        let store = StateStore::open_in_memory().await.unwrap();
        store.create_session(&session("s")).await.unwrap();
        for number in 0..256 {
            store.create_custom_loss(&record(number, 1.0)).await.unwrap();
        }
        let error = store.create_custom_loss(&record(256, 1.0)).await.unwrap_err();
        assert_eq!(error.code, ErrorCode::LimitReached);
        let tenant = TenantId::new("alice");
        store.finish_session(&tenant, &SessionId::new("s")).await.unwrap();
        let retention = Retention { idle_sessions: std::time::Duration::ZERO, ..Retention::default() };
        store.sweep(&retention).await.unwrap();
        let gone = CustomLossId::of_session(&SessionId::new("s"), 0);
        assert_eq!(store.custom_loss(&tenant, &gone).await.unwrap_err(), no_custom_loss(&gone));
    }

    #[tokio::test]
    async fn a_loss_survives_a_restart() {
        let folder = tempfile::tempdir().unwrap();
        let place = folder.path().join("state.sqlite");
        let store = StateStore::open(&place).await.unwrap();
        store.create_session(&session("s")).await.unwrap();
        let record = record(3, 0.5);
        store.create_custom_loss(&record).await.unwrap();
        store.close().await;
        let store = StateStore::open(&place).await.unwrap();
        assert_eq!(store.custom_loss(&record.tenant, &record.id).await.unwrap(), record);
    }
}
