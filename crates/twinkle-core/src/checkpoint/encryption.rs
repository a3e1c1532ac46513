//! Files that only their recipients can read, in the format of `age` (age-encryption.org).

use std::fs::{self, File};
use std::io::{self, BufReader, BufWriter};
use std::path::Path;

use super::disk::{failed, list};
use crate::error::{Error, Result};

/// Most recipients of one checkpoint.
pub const MOST_RECIPIENTS: usize = 10;

/// Longest text that is looked at as a recipient; real ones have 62 letters.
const LONGEST_RECIPIENT: usize = 256;

/// What an encrypted file's name ends with.
const SUFFIX: &str = "age";

/// Whom files are encrypted for: each of them can read all of them, alone.
pub struct Recipients(Vec<age::x25519::Recipient>);

impl std::fmt::Debug for Recipients {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(formatter, "{} recipients", self.0.len())
    }
}

impl Recipients {
    /// Reads public keys as `age-keygen` prints them, `age1…`.
    ///
    /// Errors: `InvalidArgument` or `Unsupported` naming the first that is no such key; none at all, or too many.
    pub fn parse(texts: &[String]) -> Result<Self> {
        if texts.is_empty() || texts.len() > MOST_RECIPIENTS {
            let given = texts.len();
            return Err(Error::invalid(format!(
                "`age_encryption_recipients` has {given} recipients, not 1 to {MOST_RECIPIENTS}"
            ))
            .hint("leave the field out to save plain files"));
        }
        texts.iter().map(|text| recipient(text)).collect::<Result<_>>().map(Self)
    }

    /// Encrypts every file of `folder` and names it `<name>.age`; nothing of the plain files stays.
    ///
    /// Errors: a file cannot be read or written, or the disk is full.
    pub fn encrypt_folder(&self, folder: &Path) -> Result<()> {
        for plain in list(folder)? {
            let name = plain.file_name().and_then(|name| name.to_str()).unwrap_or_default();
            let encrypted = folder.join(format!("{name}.{SUFFIX}"));
            self.encrypt(&plain, &encrypted).map_err(|error| failed("encrypt", &plain, &error))?;
            fs::remove_file(&plain).map_err(|error| failed("remove", &plain, &error))?;
        }
        Ok(())
    }

    fn encrypt(&self, plain: &Path, encrypted: &Path) -> io::Result<()> {
        let recipients = self.0.iter().map(|recipient| recipient as &dyn age::Recipient);
        let encryptor = age::Encryptor::with_recipients(recipients).map_err(io::Error::other)?;
        let mut writer = encryptor.wrap_output(BufWriter::new(File::create_new(encrypted)?))?;
        io::copy(&mut BufReader::new(File::open(plain)?), &mut writer)?;
        writer.finish()?.into_inner().map_err(io::IntoInnerError::into_error)?;
        Ok(())
    }
}

fn recipient(text: &str) -> Result<age::x25519::Recipient> {
    let shown: String = text.chars().take(80).collect();
    if text.starts_with("ssh-") {
        return Err(Error::unsupported(format!("`{shown}` is an SSH key, which files are not encrypted for here"))
            .hint("make a key with `age-keygen` and give its public key, `age1…`"));
    }
    if text.starts_with("AGE-SECRET-KEY-") {
        return Err(Error::invalid("a secret key of `age` was given as a recipient")
            .hint("give the public key, `age1…`, and consider the secret key as known to others"));
    }
    let parsed = (text.len() <= LONGEST_RECIPIENT).then(|| text.parse::<age::x25519::Recipient>().ok()).flatten();
    parsed.ok_or_else(|| {
        Error::invalid(format!("`{shown}` is not a recipient of `age`"))
            .hint("a recipient is a public key like `age1…`, as `age-keygen` prints it")
    })
}

#[cfg(test)]
mod tests {
    use std::io::Read;

    use super::*;

    #[test]
    fn each_recipient_reads_every_file_and_nothing_plain_is_left() {
        let folder = tempfile::tempdir().unwrap();
        let content: Vec<u8> = (0..200_000_u32).map(|index| (index % 251) as u8).collect();
        fs::write(folder.path().join("adapter_model.safetensors"), &content).unwrap();
        fs::write(folder.path().join("adapter_config.json"), b"{}").unwrap();
        let identities = [age::x25519::Identity::generate(), age::x25519::Identity::generate()];
        let texts: Vec<String> = identities.iter().map(|identity| identity.to_public().to_string()).collect();

        Recipients::parse(&texts).unwrap().encrypt_folder(folder.path()).unwrap();

        let names: Vec<_> =
            list(folder.path()).unwrap().iter().map(|path| path.file_name().unwrap().to_owned()).collect();
        assert_eq!(names, ["adapter_config.json.age", "adapter_model.safetensors.age"]);
        let encrypted = fs::read(folder.path().join("adapter_model.safetensors.age")).unwrap();
        for identity in &identities {
            let decryptor = age::Decryptor::new(&encrypted[..]).unwrap();
            let mut plain = Vec::new();
            decryptor.decrypt([identity as &dyn age::Identity].into_iter()).unwrap().read_to_end(&mut plain).unwrap();
            assert_eq!(plain, content);
        }
        let stranger = age::x25519::Identity::generate();
        let decryptor = age::Decryptor::new(&encrypted[..]).unwrap();
        assert!(decryptor.decrypt([&stranger as &dyn age::Identity].into_iter()).is_err());
    }

    #[test]
    fn what_is_no_recipient_is_named_unless_it_is_a_secret() {
        let refused = |text: &str| Recipients::parse(&[text.to_owned()]).unwrap_err();
        assert!(refused("age1nonsense").message.contains("`age1nonsense`"));
        assert!(refused("ssh-ed25519 AAAA you@there").message.contains("SSH"));
        assert!(!refused("AGE-SECRET-KEY-1QQQ").to_string().contains("1QQQ"));
        assert!(Recipients::parse(&[]).is_err());
        let key = age::x25519::Identity::generate().to_public().to_string();
        assert!(Recipients::parse(&vec![key.clone(); MOST_RECIPIENTS]).is_ok());
        assert!(Recipients::parse(&vec![key; MOST_RECIPIENTS + 1]).is_err());
    }
}
