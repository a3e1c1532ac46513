//! `auth`: where the API keys of tenants are.

use std::path::PathBuf;

use serde::Serialize;

use super::section::Section;

/// Where the API keys of tenants are; with neither, the node is open and listens on loopback only.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct AuthConfig {
    /// A file of keys.
    pub keys_file: Option<PathBuf>,
    /// Whether the keys in the node's store count: those that `twinkle-server keys create` writes.
    pub store: bool,
}

impl AuthConfig {
    /// Whether a request needs a key.
    #[must_use]
    pub const fn is_required(&self) -> bool {
        self.store || self.keys_file.is_some()
    }

    pub(super) fn read(section: Option<Section<'_>>) -> Self {
        let mut auth = Self::default();
        let Some(mut section) = section else { return auth };
        auth.keys_file = section.path("keys_file");
        if let Some(store) = section.boolean("store") {
            auth.store = store.value;
        }
        section.finish();
        auth
    }
}
