//! Who has which objects, and for how long.

use std::collections::{BTreeSet, HashMap};
use std::sync::{Arc, Weak};
use std::time::Duration;

use jiff::Timestamp;
use parking_lot::Mutex;
use tokio::time::Instant;
use tracing::{debug, warn};
use twinkle_core::error::{Error, ErrorCode, Result};
use twinkle_core::ids::{SessionId, TenantId};
use twinkle_core::state::StateStore;
use uuid::Uuid;

use super::{Object, Shared};
use crate::data::Room;

/// Bytes that the rows of one tenant may take.
const ROOM_OF_TENANT: u64 = 4 << 30;
/// Bytes that the rows of all tenants may take.
const ROOM_OF_ALL: u64 = 16 << 30;
/// The shortest and the longest time between two looks at what is over.
const SHORTEST_PAUSE: Duration = Duration::from_secs(1);
const LONGEST_PAUSE: Duration = Duration::from_mins(1);

/// How many objects there may be, and how long they live.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Objects of a tenant at once.
    pub per_tenant: usize,
    /// Silence of a session and of an object after which it is dropped.
    pub silence: Duration,
}

/// The objects of all tenants.
#[derive(Debug)]
pub struct Registry {
    limits: Limits,
    room: Arc<Room>,
    inside: Mutex<Inside>,
}

#[derive(Debug, Default)]
struct Inside {
    objects: HashMap<String, Entry>,
    rooms: HashMap<TenantId, Weak<Room>>,
}

#[derive(Debug)]
struct Entry {
    tenant: TenantId,
    session: SessionId,
    /// Absent while it is being made: its place is taken already.
    object: Option<Shared>,
    used: Instant,
}

/// A place that an object is being made for; given back unless it is filled.
#[derive(Debug)]
pub struct Seat {
    registry: Arc<Registry>,
    name: Option<String>,
}

impl Registry {
    /// Without objects.
    #[must_use]
    pub fn new(limits: Limits) -> Arc<Self> {
        Arc::new(Self { limits, room: Room::new(ROOM_OF_ALL), inside: Mutex::default() })
    }

    /// Takes a place for an object, before the work of making it.
    pub fn seat(self: &Arc<Self>, tenant: &TenantId, session: &SessionId) -> Result<Seat> {
        let mut inside = self.inside.lock();
        let count = inside.objects.values().filter(|entry| entry.tenant == *tenant).count();
        if count >= self.limits.per_tenant {
            let text = format!("you have {count} processors, and {} are allowed at once", self.limits.per_tenant);
            return Err(Error::new(ErrorCode::LimitReached, text)
                .hint("they end with their session; the operator sets `processor_config.per_token_processor_limit`"));
        }
        let name = format!("pid:{}", Uuid::new_v4().simple());
        let entry = Entry { tenant: tenant.clone(), session: session.clone(), object: None, used: Instant::now() };
        inside.objects.insert(name.clone(), entry);
        Ok(Seat { registry: Arc::clone(self), name: Some(name) })
    }

    /// The tenant's object of this name, with or without `pid:`.
    pub fn find(&self, tenant: &TenantId, name: &str) -> Result<Shared> {
        let name = if name.starts_with("pid:") { name.to_owned() } else { format!("pid:{name}") };
        let mut inside = self.inside.lock();
        let entry = inside.objects.get_mut(&name).filter(|entry| entry.tenant == *tenant);
        let found = entry.and_then(|entry| {
            entry.used = Instant::now();
            entry.object.clone()
        });
        found.ok_or_else(|| {
            let shown: String = name.chars().filter(|letter| !letter.is_control()).take(80).collect();
            Error::not_found(format!("processor `{shown}` does not exist")).hint("it may have ended with its session")
        })
    }

    /// The room of a tenant's rows.
    #[must_use]
    pub fn room(&self, tenant: &TenantId) -> Arc<Room> {
        let mut inside = self.inside.lock();
        inside.rooms.retain(|_, room| room.strong_count() > 0);
        if let Some(room) = inside.rooms.get(tenant).and_then(Weak::upgrade) {
            return room;
        }
        let room = Room::within(&self.room, ROOM_OF_TENANT);
        inside.rooms.insert(tenant.clone(), Arc::downgrade(&room));
        room
    }

    /// How many objects there are.
    #[must_use]
    pub fn count(&self) -> usize {
        self.inside.lock().objects.len()
    }

    /// Drops the objects that nobody has used for a while and whose session is silent or over.
    pub async fn sweep(&self, store: &StateStore, now: Timestamp) {
        for (tenant, session) in self.unused() {
            let is_over = match store.session_last_seen(&tenant, &session).await {
                Ok(seen) => now.duration_since(seen).try_into().is_ok_and(|gone: Duration| gone >= self.limits.silence),
                Err(error) if error.code == ErrorCode::NotFound => true,
                // A store that does not answer says nothing about the session.
                Err(error) => {
                    warn!(%error, "a session could not be looked at");
                    false
                }
            };
            if is_over {
                self.drop_silent(&tenant, &session);
            }
        }
    }

    /// Whose objects nobody has used for a while.
    fn unused(&self) -> BTreeSet<(TenantId, SessionId)> {
        let inside = self.inside.lock();
        let entries = inside.objects.values().filter(|entry| entry.used.elapsed() >= self.limits.silence);
        entries.map(|entry| (entry.tenant.clone(), entry.session.clone())).collect()
    }

    fn drop_silent(&self, tenant: &TenantId, session: &SessionId) {
        let mut inside = self.inside.lock();
        let before = inside.objects.len();
        inside.objects.retain(|_, entry| {
            entry.tenant != *tenant || entry.session != *session || entry.used.elapsed() < self.limits.silence
        });
        debug!(%session, dropped = before - inside.objects.len(), "processors of a silent session");
    }

    /// Looks for what is over until nobody has the registry any more.
    pub async fn sweep_periodically(registry: Weak<Self>, store: StateStore) {
        let Some(pause) = registry.upgrade().map(|registry| registry.limits.silence / 4) else { return };
        loop {
            tokio::time::sleep(pause.clamp(SHORTEST_PAUSE, LONGEST_PAUSE)).await;
            let Some(registry) = registry.upgrade() else { return };
            registry.sweep(&store, Timestamp::now()).await;
        }
    }
}

impl Seat {
    /// Puts the object there; answers its name.
    #[must_use]
    pub fn fill(mut self, object: Object) -> String {
        let name = self.name.take().unwrap_or_default();
        if let Some(entry) = self.registry.inside.lock().objects.get_mut(&name) {
            entry.object = Some(Arc::new(tokio::sync::Mutex::new(object)));
            entry.used = Instant::now();
        }
        name
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        if let Some(name) = self.name.take() {
            self.registry.inside.lock().objects.remove(&name);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::preprocess::preprocessor;

    fn object() -> Object {
        Object::Preprocessor(preprocessor("AlpacaProcessor", serde_json::Map::new()).unwrap().into())
    }

    fn registry(per_tenant: usize) -> (Arc<Registry>, TenantId, SessionId) {
        let limits = Limits { per_tenant, silence: Duration::from_mins(1) };
        (Registry::new(limits), TenantId::new("a"), SessionId::new("s"))
    }

    #[tokio::test]
    async fn an_object_is_its_tenants_alone_and_others_hear_that_it_is_not_there() {
        let (registry, tenant, session) = registry(2);
        let name = registry.seat(&tenant, &session).unwrap().fill(object());
        assert!(registry.find(&tenant, &name).is_ok());
        assert!(registry.find(&tenant, name.strip_prefix("pid:").unwrap()).is_ok());
        let foreign = registry.find(&TenantId::new("b"), &name).unwrap_err();
        let missing = registry.find(&tenant, "pid:0123").unwrap_err();
        assert_eq!(foreign.message.replace(&name, "x"), missing.message.replace("pid:0123", "x"));
        assert_eq!(foreign.code, ErrorCode::NotFound);
    }

    #[tokio::test]
    async fn places_are_bounded_and_one_that_is_not_filled_is_free_again() {
        let (registry, tenant, session) = registry(1);
        let seat = registry.seat(&tenant, &session).unwrap();
        assert_eq!(registry.seat(&tenant, &session).unwrap_err().code, ErrorCode::LimitReached);
        assert!(registry.seat(&TenantId::new("b"), &session).is_ok());
        drop(seat);
        let _name = registry.seat(&tenant, &session).unwrap().fill(object());
        assert!(registry.seat(&tenant, &session).is_err());
    }

    #[tokio::test(start_paused = true)]
    async fn what_a_silent_session_leaves_is_dropped_and_what_is_used_stays() {
        let (registry, tenant, session) = registry(9);
        let silent = registry.seat(&tenant, &session).unwrap().fill(object());
        tokio::time::advance(Duration::from_secs(30)).await;
        let used = registry.seat(&tenant, &session).unwrap().fill(object());
        tokio::time::advance(Duration::from_secs(31)).await;
        assert_eq!(registry.unused(), BTreeSet::from([(tenant.clone(), session.clone())]));
        registry.drop_silent(&tenant, &session);
        assert!(registry.find(&tenant, &silent).is_err());
        assert!(registry.find(&tenant, &used).is_ok());
    }

    #[test]
    fn a_tenants_room_is_one_and_goes_when_nobody_has_it() {
        let (registry, tenant, _) = registry(1);
        let room = registry.room(&tenant);
        let mut taken = room.reserve();
        taken.grow(10).unwrap();
        assert_eq!(registry.room(&tenant).used(), 10);
        assert_eq!(registry.room.used(), 10);
        drop((room, taken));
        assert_eq!(registry.room(&tenant).used(), 0);
        assert_eq!(registry.room.used(), 0);
    }
}
