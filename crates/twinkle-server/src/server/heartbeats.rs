//! Signs of life that are too close together to be worth a durable write each.
//!
//! Sessions expire after minutes at the least, so a sign of life within a second of the last one tells nothing new.
//! A client in a tight loop, or thousands of clients, cannot fill the disk's queue with heartbeats.

use std::time::Duration;

use moka::sync::Cache;
use twinkle_core::call::{ClientEnd, ServeOutcome};
use twinkle_core::error::Result;
use twinkle_core::ids::{SessionId, TenantId};
use twinkle_core::state::StateStore;

use super::sessions;

/// How long a sign of life counts.
const COUNTS_FOR: Duration = Duration::from_secs(1);

/// Sessions remembered at once; one that falls out only costs a write.
const REMEMBERED: u64 = 65_536;

/// The sessions heard of within the last second.
#[derive(Clone, Debug)]
pub(crate) struct RecentHeartbeats {
    sessions: Cache<(TenantId, SessionId), ()>,
}

impl Default for RecentHeartbeats {
    fn default() -> Self {
        Self { sessions: Cache::builder().max_capacity(REMEMBERED).time_to_live(COUNTS_FOR).build() }
    }
}

impl RecentHeartbeats {
    /// Keeps a session alive; a finished one answers [`twinkle_core::ErrorCode::Gone`], at most a second late.
    pub(crate) async fn heartbeat(
        &self,
        store: &StateStore,
        tenant: TenantId,
        session: SessionId,
    ) -> Result<ServeOutcome> {
        let client = (tenant, session);
        if self.sessions.contains_key(&client) {
            return Ok(ServeOutcome::Done);
        }
        let outcome = sessions::heartbeat(store, &client.0, &client.1).await?;
        self.sessions.insert(client, ());
        Ok(outcome)
    }

    /// Ends a session: its next heartbeat is told so.
    pub(crate) async fn finish(
        &self,
        store: &StateStore,
        tenant: TenantId,
        session: SessionId,
        end: Option<ClientEnd>,
    ) -> Result<ServeOutcome> {
        let outcome = sessions::finish(store, &tenant, &session, end).await?;
        self.sessions.invalidate(&(tenant, session));
        Ok(outcome)
    }
}

#[cfg(test)]
mod tests {
    use twinkle_core::error::ErrorCode;

    use super::*;

    async fn store_with_session(tenant: &TenantId) -> (StateStore, SessionId) {
        let store = StateStore::open_in_memory().await.unwrap();
        let opened = sessions::create(&store, tenant.clone(), sessions::Opening::default()).await.unwrap();
        let ServeOutcome::Session(session) = opened else { panic!("a session") };
        (store, session.id)
    }

    #[tokio::test]
    async fn a_second_heartbeat_at_once_writes_nothing() {
        let alice = TenantId::new("alice");
        let (store, session) = store_with_session(&alice).await;
        let recent = RecentHeartbeats::default();
        recent.heartbeat(&store, alice.clone(), session.clone()).await.unwrap();
        let seen = store.session_last_seen(&alice, &session).await.unwrap();
        recent.heartbeat(&store, alice.clone(), session.clone()).await.unwrap();
        assert_eq!(store.session_last_seen(&alice, &session).await.unwrap(), seen);
    }

    #[tokio::test]
    async fn a_heartbeat_right_after_the_end_is_told_of_it() {
        let alice = TenantId::new("alice");
        let (store, session) = store_with_session(&alice).await;
        let recent = RecentHeartbeats::default();
        recent.heartbeat(&store, alice.clone(), session.clone()).await.unwrap();
        recent.finish(&store, alice.clone(), session.clone(), None).await.unwrap();
        let answer = recent.heartbeat(&store, alice, session).await;
        assert_eq!(answer.unwrap_err().code, ErrorCode::Gone);
    }

    #[tokio::test]
    async fn another_tenants_heartbeat_does_not_pass_on_the_owners() {
        let (alice, bob) = (TenantId::new("alice"), TenantId::new("bob"));
        let (store, session) = store_with_session(&alice).await;
        let recent = RecentHeartbeats::default();
        recent.heartbeat(&store, alice, session.clone()).await.unwrap();
        assert_eq!(recent.heartbeat(&store, bob, session).await.unwrap_err().code, ErrorCode::NotFound);
    }
}
