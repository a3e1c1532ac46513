//! A key, its digest, and what may be a name.

use jiff::{Timestamp, Unit};
use rand::distr::{Alphanumeric, SampleString};
use sha2::{Digest, Sha256};
use twinkle_core::error::{Error, Result};
use twinkle_core::ids::TenantId;
use twinkle_core::state::ApiKeyRecord;

/// What every key starts with: the Tinker SDK refuses others before it sends anything.
pub(super) const SCHEME: &str = "tml-";

/// Random letters and digits after the scheme: 43 of 62 kinds are 256 bits.
const RANDOM_LENGTH: usize = 43;

/// How much of a key people may see: enough to tell keys apart, too little to help guessing the rest.
const PREFIX_LENGTH: usize = SCHEME.len() + 8;

/// Longest name of a key or tenant, in bytes.
const MAX_NAME_LENGTH: usize = 64;

/// A key that was just made. It is not kept anywhere and has no `Debug`, so it cannot get into a log.
pub(crate) struct ApiKey(String);

impl ApiKey {
    /// A key nobody has seen.
    pub(crate) fn fresh() -> Self {
        Self(format!("{SCHEME}{}", Alphanumeric.sample_string(&mut rand::rng(), RANDOM_LENGTH)))
    }

    /// The key itself, to be shown once.
    pub(crate) fn reveal(&self) -> &str {
        &self.0
    }

    /// What is kept of it. Without a tenant it is one of its own; without a name it is called by its prefix.
    pub(crate) fn record(&self, tenant: Option<&str>, name: Option<&str>) -> ApiKeyRecord {
        let prefix = prefix_of(&self.0);
        let called = prefix.strip_prefix(SCHEME).unwrap_or(prefix);
        let now = Timestamp::now();
        ApiKeyRecord {
            prefix: prefix.to_owned(),
            digest: digest_of(&self.0),
            tenant: tenant.map_or_else(|| TenantId::of_key(&self.0), TenantId::new),
            name: name.map_or_else(|| format!("key-{called}"), str::to_owned),
            created_at: now.round(Unit::Second).unwrap_or(now),
        }
    }
}

/// SHA-256 of a key.
pub(super) fn digest_of(key: &str) -> [u8; 32] {
    Sha256::digest(key.as_bytes()).into()
}

fn prefix_of(key: &str) -> &str {
    key.get(..PREFIX_LENGTH).unwrap_or(key)
}

/// Whether an operator who writes `text` means this key: its name, the beginning of its prefix, or the whole key.
pub(crate) fn matches(record: &ApiKeyRecord, text: &str) -> bool {
    let is_whole_key = text.len() > PREFIX_LENGTH && record.digest == digest_of(text);
    let is_beginning = text.len() > SCHEME.len() && record.prefix.starts_with(text);
    record.name == text || is_beginning || is_whole_key
}

/// Refuses what cannot be a name of a key or tenant: it is a word in the keys file, and a tenant's a folder as well.
pub(crate) fn check_name(what: &str, name: &str) -> Result<()> {
    let is_word = name.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"._@+-".contains(&byte));
    let starts_well = name.bytes().next().is_some_and(|byte| byte.is_ascii_alphanumeric());
    if is_word && starts_well && name.len() <= MAX_NAME_LENGTH && !name.starts_with(SCHEME) {
        return Ok(());
    }
    let shown = if name.starts_with(SCHEME) { "tml-…".to_owned() } else { name.escape_debug().to_string() };
    Err(Error::invalid(format!("`{shown}` cannot be the {what}")).hint(format!(
        "use up to {MAX_NAME_LENGTH} letters, digits and `._@+-`, starting with a letter or digit, and not `{SCHEME}`"
    )))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_long_random_and_fit_the_sdk() {
        let (first, second) = (ApiKey::fresh(), ApiKey::fresh());
        assert_ne!(first.reveal(), second.reveal());
        let random = first.reveal().strip_prefix("tml-").unwrap();
        assert!(random.len() == 43 && random.bytes().all(|byte| byte.is_ascii_alphanumeric()));
    }

    #[test]
    fn a_record_does_not_give_its_key_away() {
        let key = ApiKey::fresh();
        let shown = format!("{:?}", key.record(Some("alice"), None));
        assert!(shown.contains(&key.reveal()[..12]) && !shown.contains(&key.reveal()[..13]), "{shown}");
    }

    #[test]
    fn a_key_is_its_own_tenant_unless_one_is_named() {
        let key = ApiKey::fresh();
        assert_eq!(key.record(None, None).tenant, TenantId::of_key(key.reveal()));
        assert_eq!(key.record(Some("alice"), Some("laptop")).tenant.as_str(), "alice");
    }

    #[test]
    fn a_key_is_meant_by_name_prefix_or_itself() {
        let key = ApiKey::fresh();
        let record = key.record(None, Some("laptop"));
        for text in ["laptop", &key.reveal()[..12], &key.reveal()[..7], key.reveal()] {
            assert!(matches(&record, text), "{text}");
        }
        for text in ["lap", "tml-", "", ApiKey::fresh().reveal()] {
            assert!(!matches(&record, text), "{text}");
        }
    }

    #[test]
    fn names_are_words_and_never_keys() {
        for name in ["alice", "a", "team.a@example.org", "0"] {
            check_name("tenant", name).unwrap();
        }
        for name in ["", "..", ".a", "a b", "a/b", "a\n", "é", &"a".repeat(65)] {
            assert!(check_name("tenant", name).is_err(), "{name:?} was accepted");
        }
        let key = ApiKey::fresh();
        let refusal = check_name("name", key.reveal()).unwrap_err();
        assert!(!refusal.to_string().contains(key.reveal()), "the key is repeated: {refusal}");
    }
}
