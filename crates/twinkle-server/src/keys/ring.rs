//! The keys in memory.

use std::collections::HashMap;
use std::sync::Arc;

use arc_swap::ArcSwap;
use subtle::ConstantTimeEq;
use twinkle_core::ids::TenantId;
use twinkle_core::state::ApiKeyRecord;

use super::key::digest_of;

/// Bytes of a digest that a key is filed under. Nobody can steer them, so how long the search takes tells nothing.
const SHELF_BYTES: usize = 4;

/// The keys a node accepts: a cheap handle on one set, which is replaced as a whole.
#[derive(Clone, Debug, Default)]
pub struct KeyRing {
    keys: Arc<ArcSwap<Keys>>,
}

#[derive(Debug, Default)]
struct Keys {
    shelves: HashMap<[u8; SHELF_BYTES], Vec<Key>>,
    count: usize,
}

#[derive(Debug)]
struct Key {
    digest: [u8; 32],
    tenant: TenantId,
}

impl KeyRing {
    /// A ring of these keys.
    #[must_use]
    pub fn new(records: &[ApiKeyRecord]) -> Self {
        let ring = Self::default();
        ring.replace(records);
        ring
    }

    /// Accepts these keys and no others from now on.
    pub fn replace(&self, records: &[ApiKeyRecord]) {
        let mut shelves: HashMap<_, Vec<Key>> = HashMap::with_capacity(records.len());
        for record in records {
            let key = Key { digest: record.digest, tenant: record.tenant.clone() };
            shelves.entry(shelf(&record.digest)).or_default().push(key);
        }
        self.keys.store(Arc::new(Keys { shelves, count: records.len() }));
    }

    /// Whose key this is. A revoked key is as unknown as one that never was.
    #[must_use]
    pub fn tenant_of(&self, key: &str) -> Option<TenantId> {
        let digest = digest_of(key);
        let keys = self.keys.load();
        let candidates = keys.shelves.get(&shelf(&digest))?;
        // Two keys hardly ever share a shelf; whole digests are compared without stopping at the first difference.
        let own = candidates.iter().find(|candidate| bool::from(candidate.digest.ct_eq(&digest)))?;
        Some(own.tenant.clone())
    }

    /// How many keys there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.keys.load().count
    }

    /// Whether no key is accepted.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

fn shelf(digest: &[u8; 32]) -> [u8; SHELF_BYTES] {
    let [a, b, c, d, ..] = *digest;
    [a, b, c, d]
}

#[cfg(test)]
mod tests {
    use super::super::key::ApiKey;
    use super::*;

    #[test]
    fn each_key_names_its_tenant_until_it_is_replaced() {
        let (alice, bob) = (ApiKey::fresh(), ApiKey::fresh());
        let records = [alice.record(Some("alice"), None), bob.record(Some("bob"), None)];
        let ring = KeyRing::new(&records);
        let shared = ring.clone();
        assert_eq!(ring.tenant_of(alice.reveal()), Some(TenantId::new("alice")));
        assert_eq!(ring.tenant_of(bob.reveal()), Some(TenantId::new("bob")));
        assert_eq!(ring.tenant_of(ApiKey::fresh().reveal()), None);

        ring.replace(&records[1..]);
        assert_eq!(shared.tenant_of(alice.reveal()), None);
        assert_eq!(shared.tenant_of(bob.reveal()), Some(TenantId::new("bob")));
        assert_eq!(shared.len(), 1);
    }

    #[test]
    fn keys_whose_digests_begin_alike_are_told_apart() {
        let key = ApiKey::fresh();
        let own = key.record(Some("alice"), None);
        let mut neighbour = own.clone();
        neighbour.digest[31] ^= 1;
        neighbour.tenant = TenantId::new("bob");
        assert_eq!(KeyRing::new(&[neighbour.clone(), own]).tenant_of(key.reveal()), Some(TenantId::new("alice")));
        assert_eq!(KeyRing::new(&[neighbour]).tenant_of(key.reveal()), None);
    }
}
