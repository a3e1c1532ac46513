//! API keys: made once, shown once, kept as digests, and looked up on every request.
//!
//! | file | job |
//! | --- | --- |
//! | `key` | a fresh key, its digest, and what may be a name |
//! | `file` | the keys file: reading, and changing it while a server reads it |
//! | `ring` | the keys in memory, compared in constant time |
//! | `source` | where the keys of a configuration are, and keeping the ring like them |
//!
//! A key has 256 random bits, so its SHA-256 needs no salt and no slow hash: there is nothing to guess.

mod file;
mod key;
mod ring;
mod source;

pub(crate) use key::{ApiKey, check_name, matches};
pub use ring::KeyRing;
pub(crate) use source::{KeySource, authentication};
