//! The key that links are signed with, in a file that only this node reads.

use std::fs::{self, File, OpenOptions, Permissions};
use std::io::{ErrorKind, Write};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::Path;

use hmac::{Hmac, KeyInit, Mac};
use rand::Rng;
use sha2::Sha256;
use twinkle_core::error::{Error, Result};

/// Readable and writable by the node's user, and by nobody else.
const MODE: u32 = 0o600;

/// 256 random bits.
#[derive(Clone)]
pub(crate) struct SigningKey([u8; 32]);

impl std::fmt::Debug for SigningKey {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.write_str("SigningKey")
    }
}

impl SigningKey {
    /// A new key.
    pub(crate) fn fresh() -> Self {
        let mut key = [0; 32];
        rand::rng().fill_bytes(&mut key);
        Self(key)
    }

    /// The key in a file, which is made with a new one when it is not there.
    ///
    /// Errors: the file cannot be read or made, or holds something else.
    pub(crate) fn keep(path: &Path) -> Result<Self> {
        let failed = |action: &str, error: &std::io::Error| {
            Error::invalid(format!("`{}` could not be {action}: {error}", path.display()))
        };
        match fs::read(path) {
            Ok(bytes) => {
                fs::set_permissions(path, Permissions::from_mode(MODE)).map_err(|error| failed("protected", &error))?;
                let key = bytes.try_into().map_err(|_| {
                    Error::invalid(format!("`{}` is not a key for links", path.display()))
                        .hint("remove it: a new one is made, and links of before are no longer valid")
                })?;
                Ok(Self(key))
            }
            Err(error) if error.kind() == ErrorKind::NotFound => {
                let key = Self::fresh();
                key.write(path).map_err(|error| failed("made", &error))?;
                Ok(key)
            }
            Err(error) => Err(failed("read", &error)),
        }
    }

    /// Written aside and renamed: a file of that name holds a whole key.
    fn write(&self, path: &Path) -> std::io::Result<()> {
        let aside = path.with_extension("new");
        let mut file = OpenOptions::new().write(true).create(true).truncate(true).mode(MODE).open(&aside)?;
        file.write_all(&self.0)?;
        file.sync_all()?;
        fs::rename(&aside, path)?;
        path.parent().map_or(Ok(()), |folder| File::open(folder)?.sync_all())
    }

    /// HMAC-SHA-256 of `fields`, none of which can pass for a part of another.
    pub(super) fn sign(&self, fields: &[&[u8]]) -> [u8; 32] {
        self.mac(fields).finalize().into_bytes().into()
    }

    /// Whether this is the signature of `fields`; takes as long whatever is wrong with it.
    pub(super) fn is_signature(&self, fields: &[&[u8]], signature: &[u8]) -> bool {
        self.mac(fields).verify_slice(signature).is_ok()
    }

    fn mac(&self, fields: &[&[u8]]) -> Hmac<Sha256> {
        // HMAC takes keys of any length; this constructor takes the block's.
        let mut block = [0; 64];
        block[..self.0.len()].copy_from_slice(&self.0);
        let mut mac = Hmac::<Sha256>::new(&block.into());
        for field in fields {
            mac.update(&(field.len() as u64).to_le_bytes());
            mac.update(field);
        }
        mac
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_is_made_once_and_only_its_user_may_read_it() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("download.key");
        let first = SigningKey::keep(&path).unwrap();
        fs::set_permissions(&path, Permissions::from_mode(0o644)).unwrap();
        assert_eq!(SigningKey::keep(&path).unwrap().0, first.0);
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, MODE);
        fs::write(&path, "short").unwrap();
        assert!(SigningKey::keep(&path).unwrap_err().message.contains("download.key"));
    }

    #[test]
    fn a_signature_is_of_all_fields_and_of_their_borders() {
        let key = SigningKey::fresh();
        let signature = key.sign(&[b"ab", b"c"]);
        assert!(key.is_signature(&[b"ab", b"c"], &signature));
        assert!(!key.is_signature(&[b"a", b"bc"], &signature));
        assert!(!key.is_signature(&[b"ab", b"c"], &signature[..31]));
        assert!(!SigningKey::fresh().is_signature(&[b"ab", b"c"], &signature));
    }
}
