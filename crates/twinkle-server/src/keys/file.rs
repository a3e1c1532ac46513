//! The keys file: one key a line, readable by people, changed by `twinkle-server keys` while a server reads it.
//!
//! ```text
//! # prefix      sha256 of the whole key   tenant  name    created
//! tml-Ab3dE9xY  5f2c…                     alice   laptop  2026-11-21T08:00:00Z
//! ```

use std::fmt::Write as _;
use std::fs::{self, File, Permissions};
use std::io::{self, Read, Write as _};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

use jiff::Timestamp;
use twinkle_core::error::{Error, ErrorCode, Result};
use twinkle_core::ids::TenantId;
use twinkle_core::state::ApiKeyRecord;

use super::key::check_name;

/// Largest file that is read, in bytes: some hundred thousand keys.
const MAX_BYTES: u64 = 64 << 20;

/// How a new file starts.
const HEADING: &str = "\
# API keys of a twinkle-server, made by `twinkle-server keys create`. A line taken away revokes its key within seconds.
# Digests only: a lost key cannot be shown again.
# prefix      sha256 of the whole key                                           tenant  name  created
";

/// Owner reads and writes, nobody else does anything.
const PRIVATE: u32 = 0o600;

/// A file of keys.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct KeyFile {
    path: PathBuf,
}

/// What tells one state of the file from the next.
pub(super) type Stamp = (u64, i64, i64, u64);

impl KeyFile {
    /// The file at `path`, which need not be there yet.
    pub(super) fn new(path: &Path) -> Self {
        Self { path: path.to_owned() }
    }

    /// Where it is.
    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// Whether others than its owner may read or write it.
    pub(super) fn is_shared(&self) -> bool {
        fs::metadata(&self.path).is_ok_and(|metadata| metadata.permissions().mode() & 0o077 != 0)
    }

    /// Which state the file is in now; `None` when it is not there.
    pub(super) fn stamp(&self) -> Option<Stamp> {
        let metadata = fs::metadata(&self.path).ok()?;
        Some((metadata.ino(), metadata.mtime(), metadata.mtime_nsec(), metadata.len()))
    }

    /// Every key; none when the file is not there. The error names the line.
    pub(super) fn read(&self) -> Result<Vec<ApiKeyRecord>> {
        let mut keys: Vec<ApiKeyRecord> = Vec::new();
        for (index, line) in self.text()?.lines().enumerate() {
            let Some(key) = parse(line).map_err(|error| self.at(index, &error))? else { continue };
            if keys.iter().any(|known| known.prefix == key.prefix || known.name == key.name) {
                let text = format!("there is another key `{}` or named `{}` above", key.prefix, key.name);
                return Err(self.at(index, &Error::invalid(text)));
            }
            keys.push(key);
        }
        Ok(keys)
    }

    /// Adds a key; one with its prefix or name is a [`ErrorCode::Conflict`].
    pub(super) fn add(&self, key: &ApiKeyRecord) -> Result<()> {
        let _lock = self.lock()?;
        if self.read()?.iter().any(|known| known.prefix == key.prefix || known.name == key.name) {
            let text = format!("there is a key named `{}` or starting with `{}` already", key.name, key.prefix);
            return Err(Error::new(ErrorCode::Conflict, text));
        }
        let mut text = self.text()?;
        if text.is_empty() {
            HEADING.clone_into(&mut text);
        } else if !text.ends_with('\n') {
            text.push('\n');
        }
        let ApiKeyRecord { prefix, digest, tenant, name, created_at } = key;
        // Writing to a string cannot fail.
        let _ = writeln!(text, "{prefix}  {}  {tenant}  {name}  {created_at}", hex::encode(digest));
        self.replace(&text)
    }

    /// Takes the key with this prefix away; `false` when there is none. Comments and other keys stay as they are.
    pub(super) fn remove(&self, prefix: &str) -> Result<bool> {
        let _lock = self.lock()?;
        let text = self.text()?;
        let kept: Vec<&str> = text.lines().filter(|line| line.split_whitespace().next() != Some(prefix)).collect();
        if kept.len() == text.lines().count() {
            return Ok(false);
        }
        self.replace(&(kept.join("\n") + "\n"))?;
        Ok(true)
    }

    /// Lets one process change the file at a time.
    fn lock(&self) -> Result<File> {
        let folder = self.folder();
        fs::create_dir_all(folder).map_err(|error| self.cannot("make the folder of", &error))?;
        let lock = File::open(folder).map_err(|error| self.cannot("open the folder of", &error))?;
        lock.lock().map_err(|error| self.cannot("lock", &error))?;
        Ok(lock)
    }

    /// Puts a new file in the old one's place: a server never reads half of it.
    fn replace(&self, text: &str) -> Result<()> {
        let write = || -> io::Result<()> {
            // A link stays a link: what it points to is replaced.
            let target = fs::canonicalize(&self.path).unwrap_or_else(|_| self.path.clone());
            let folder = target.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
            let mut draft = tempfile::Builder::new().prefix(".keys-").tempfile_in(folder)?;
            draft.as_file().set_permissions(Permissions::from_mode(PRIVATE))?;
            draft.write_all(text.as_bytes())?;
            draft.as_file().sync_all()?;
            draft.persist(&target)?;
            File::open(folder)?.sync_all()
        };
        write().map_err(|error| self.cannot("write", &error))
    }

    fn text(&self) -> Result<String> {
        let mut text = String::new();
        let file = match File::open(&self.path) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(text),
            Err(error) => return Err(self.cannot("read", &error)),
        };
        let size = file.take(MAX_BYTES + 1).read_to_string(&mut text).map_err(|error| self.cannot("read", &error))?;
        if size as u64 > MAX_BYTES {
            return Err(Error::invalid(format!("the keys file `{}` is over {MAX_BYTES} bytes", self.path.display())));
        }
        Ok(text)
    }

    fn folder(&self) -> &Path {
        self.path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."))
    }

    fn cannot(&self, what: &str, error: &io::Error) -> Error {
        Error::invalid(format!("cannot {what} the keys file `{}`: {error}", self.path.display()))
    }

    fn at(&self, index: usize, error: &Error) -> Error {
        let mut error = error.clone();
        error.message = format!("{}:{}: {}", self.path.display(), index + 1, error.message);
        error
    }
}

/// The key on a line; `None` for a comment or an empty line. What is wrong is told without repeating the line,
/// for somebody may have put a key there.
fn parse(line: &str) -> Result<Option<ApiKeyRecord>> {
    let line = line.split_once('#').map_or(line, |(before, _)| before);
    let words: Vec<&str> = line.split_whitespace().collect();
    let &[prefix, digest, tenant, name, created] = words.as_slice() else {
        if words.is_empty() {
            return Ok(None);
        }
        let text = format!("a key is five words, these are {}", words.len());
        return Err(Error::invalid(text).hint("prefix, sha256, tenant, name and time of creation"));
    };
    let mut bytes = [0; 32];
    hex::decode_to_slice(digest, &mut bytes)
        .map_err(|_| Error::invalid("the second word is not a SHA-256 digest of 64 hexadecimal digits"))?;
    check_name("tenant of a key", tenant)?;
    check_name("name of a key", name)?;
    let created_at: Timestamp = created
        .parse()
        .map_err(|_| Error::invalid("the fifth word is not a time").hint("for example 2026-11-21T08:00:00Z"))?;
    let (prefix, tenant, name) = (prefix.to_owned(), TenantId::new(tenant), name.to_owned());
    Ok(Some(ApiKeyRecord { prefix, digest: bytes, tenant, name, created_at }))
}

#[cfg(test)]
mod tests {
    use tempfile::TempDir;

    use super::super::key::ApiKey;
    use super::*;

    fn file(folder: &TempDir) -> KeyFile {
        KeyFile::new(&folder.path().join("keys/keys.txt"))
    }

    #[test]
    fn what_is_added_is_read_again_and_private() {
        let folder = TempDir::new().unwrap();
        let file = file(&folder);
        assert_eq!(file.read(), Ok(Vec::new()));
        let first = ApiKey::fresh().record(Some("alice"), Some("laptop"));
        let second = ApiKey::fresh().record(None, None);
        file.add(&first).unwrap();
        file.add(&second).unwrap();
        assert_eq!(file.read(), Ok(vec![first, second]));
        assert!(!file.is_shared());
        fs::set_permissions(file.path(), Permissions::from_mode(0o644)).unwrap();
        assert!(file.is_shared());
    }

    #[test]
    fn a_key_is_taken_away_and_the_rest_stays() {
        let folder = TempDir::new().unwrap();
        let file = file(&folder);
        let first = ApiKey::fresh().record(Some("alice"), Some("laptop"));
        let second = ApiKey::fresh().record(Some("bob"), Some("server"));
        file.add(&first).unwrap();
        fs::write(file.path(), fs::read_to_string(file.path()).unwrap() + "# Bob's follow").unwrap();
        file.add(&second).unwrap();
        assert!(file.remove(&first.prefix).unwrap());
        assert!(!file.remove(&first.prefix).unwrap());
        assert_eq!(file.read(), Ok(vec![second]));
        assert!(fs::read_to_string(file.path()).unwrap().contains("# Bob's follow\n"));
    }

    #[test]
    fn two_keys_cannot_have_one_name() {
        let folder = TempDir::new().unwrap();
        let file = file(&folder);
        let record = ApiKey::fresh().record(Some("alice"), Some("laptop"));
        file.add(&record).unwrap();
        let other = ApiKey::fresh().record(Some("bob"), Some("laptop"));
        assert_eq!(file.add(&other).unwrap_err().code, ErrorCode::Conflict);
        fs::write(file.path(), fs::read_to_string(file.path()).unwrap().repeat(2)).unwrap();
        assert!(file.read().unwrap_err().message.contains("keys.txt:8: there is another key"));
    }

    #[test]
    fn a_wrong_line_is_named_and_not_repeated() {
        let folder = TempDir::new().unwrap();
        let file = KeyFile::new(&folder.path().join("keys.txt"));
        let key = ApiKey::fresh();
        for line in [key.reveal().to_owned(), format!("p {} t n 2026-01-01T00:00:00Z", key.reveal())] {
            fs::write(file.path(), format!("# a comment\n\n{line}\n")).unwrap();
            let refusal = file.read().unwrap_err();
            assert!(refusal.message.contains("keys.txt:3: "), "{refusal}");
            assert!(!refusal.to_string().contains(key.reveal()), "{refusal}");
        }
    }
}
