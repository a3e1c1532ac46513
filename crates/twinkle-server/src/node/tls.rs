//! TLS: a certificate and its key, checked at the start and read again when they change.

use std::fs;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use arc_swap::ArcSwap;
use rustls::crypto::aws_lc_rs;
use rustls::pki_types::pem::{self, PemObject};
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tokio::net::TcpStream;
use tokio::time::{MissedTickBehavior, interval};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;
use tracing::{info, warn};
use twinkle_core::config::TlsConfig;
use twinkle_core::error::{Error, Result};

/// How often the files are looked at.
const EVERY: Duration = Duration::from_secs(5);

/// HTTP/2 for clients that can, HTTP/1.1 for the others.
const PROTOCOLS: [&[u8]; 2] = [b"h2", b"http/1.1"];

/// The TLS side of a listener: a cheap handle on the certificate in use.
#[derive(Clone, Debug)]
pub struct Tls {
    files: Arc<TlsConfig>,
    current: Arc<ArcSwap<rustls::ServerConfig>>,
}

impl Tls {
    /// Reads the certificate and its key; the error names the file that is wrong.
    pub fn load(files: &TlsConfig) -> Result<Self> {
        let current = Arc::new(ArcSwap::from_pointee(server_config(files)?));
        Ok(Self { files: Arc::new(files.clone()), current })
    }

    /// Greets a client; the certificate is the newest one.
    pub(super) async fn accept(&self, stream: TcpStream) -> std::io::Result<TlsStream<TcpStream>> {
        TlsAcceptor::from(self.current.load_full()).accept(stream).await
    }

    /// Takes over renewed files, for as long as it is polled. Connections that are open keep what they have.
    pub async fn follow_files(self) {
        let mut seen = self.stamps().await;
        let mut ticks = interval(EVERY);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            ticks.tick().await;
            let now = self.stamps().await;
            if now == seen {
                continue;
            }
            seen = now;
            match self.reload().await {
                Ok(()) => info!(certificate = %self.files.certificate.display(), "the TLS certificate was renewed"),
                // A certificate tool writes one file after the other: the next look finds both.
                Err(error) => warn!(%error, "the TLS certificate in use stays: the new one cannot be used"),
            }
        }
    }

    async fn reload(&self) -> Result<()> {
        let files = Arc::clone(&self.files);
        let config = tokio::task::spawn_blocking(move || server_config(&files))
            .await
            .map_err(|error| Error::internal(format!("reading the certificate failed: {error}")))??;
        self.current.store(Arc::new(config));
        Ok(())
    }

    async fn stamps(&self) -> [Option<(SystemTime, u64)>; 2] {
        let stamp = async |path: &Path| {
            let metadata = tokio::fs::metadata(path).await.ok()?;
            Some((metadata.modified().ok()?, metadata.len()))
        };
        [stamp(&self.files.certificate).await, stamp(&self.files.private_key).await]
    }
}

fn server_config(files: &TlsConfig) -> Result<rustls::ServerConfig> {
    let chain = certificates(&files.certificate)?;
    let key = private_key(&files.private_key)?;
    // The provider is named here, so that a library that brings another one along changes nothing.
    let mut config = rustls::ServerConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()))
        .with_safe_default_protocol_versions()
        .map_err(|error| Error::internal(format!("TLS cannot be used: {error}")))?
        .with_no_client_auth()
        .with_single_cert(chain, key)
        .map_err(|error| unusable(files, &error))?;
    config.alpn_protocols = PROTOCOLS.map(<[u8]>::to_vec).to_vec();
    Ok(config)
}

fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>> {
    let bytes = read(path, "certificate")?;
    let chain: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&bytes).collect();
    match chain {
        Ok(chain) if chain.is_empty() => Err(broken(path, "certificate", &pem::Error::NoItemsFound)),
        Ok(chain) => Ok(chain),
        Err(error) => Err(broken(path, "certificate", &error)),
    }
}

fn private_key(path: &Path) -> Result<PrivateKeyDer<'static>> {
    let bytes = read(path, "private key")?;
    PrivateKeyDer::from_pem_slice(&bytes).map_err(|error| broken(path, "private key", &error))
}

fn read(path: &Path, what: &str) -> Result<Vec<u8>> {
    fs::read(path).map_err(|error| Error::invalid(format!("cannot read the {what} `{}`: {error}", path.display())))
}

/// The parser's own text may quote the file, and a private key must not get into a log.
fn broken(path: &Path, what: &str, error: &pem::Error) -> Error {
    let shown = path.display();
    let reason = match error {
        pem::Error::NoItemsFound => "has none in it",
        pem::Error::MissingSectionEnd { .. } => "ends in the middle of one",
        _ => "is no valid PEM",
    };
    Error::invalid(format!("the {what} file `{shown}` {reason}"))
        .hint(format!("a PEM {what} is text between `-----BEGIN` and `-----END` lines"))
}

fn unusable(files: &TlsConfig, error: &rustls::Error) -> Error {
    let (certificate, key) = (files.certificate.display(), files.private_key.display());
    match error {
        rustls::Error::InconsistentKeys(_) => {
            Error::invalid(format!("the private key `{key}` does not belong to the certificate `{certificate}`"))
                .hint("the server's own certificate comes first in its file, before those of its issuers")
        }
        rustls::Error::InvalidCertificate(_) => {
            Error::invalid(format!("the certificate `{certificate}` cannot be used: {error}"))
        }
        _ => Error::invalid(format!("the private key `{key}` cannot be used with `{certificate}`: {error}")),
    }
}

#[cfg(test)]
mod tests {
    use rcgen::generate_simple_self_signed;
    use tempfile::TempDir;

    use super::*;

    /// A fresh self-signed certificate for `localhost` in `folder`.
    fn files(folder: &TempDir, name: &str) -> TlsConfig {
        let made = generate_simple_self_signed(vec!["localhost".to_owned()]).unwrap();
        let files = TlsConfig {
            certificate: folder.path().join(format!("{name}.pem")),
            private_key: folder.path().join(format!("{name}.key")),
        };
        fs::write(&files.certificate, made.cert.pem()).unwrap();
        fs::write(&files.private_key, made.signing_key.serialize_pem()).unwrap();
        files
    }

    #[test]
    fn what_is_wrong_with_the_files_is_one_text_with_the_name_of_the_file() {
        let folder = TempDir::new().unwrap();
        let good = files(&folder, "good");
        Tls::load(&good).unwrap();
        let other = files(&folder, "other");
        let half = folder.path().join("half.key");
        let key = fs::read_to_string(&good.private_key).unwrap();
        fs::write(&half, &key[..key.len() / 2]).unwrap();
        let (certificate, private_key) = (good.certificate.clone(), good.private_key.clone());
        let cases = [
            (folder.path().join("absent.pem"), private_key.clone(), "cannot read the certificate `"),
            (private_key.clone(), private_key.clone(), "good.key` has none in it"),
            (certificate.clone(), certificate.clone(), "good.pem` has none in it"),
            (certificate.clone(), half, "half.key` ends in the middle of one"),
            (certificate, other.private_key, "other.key` does not belong to the certificate `"),
        ];
        for (certificate, private_key, expected) in cases {
            let refusal = Tls::load(&TlsConfig { certificate, private_key }).unwrap_err();
            assert!(refusal.message.contains(expected), "{refusal}");
        }
    }

    #[tokio::test]
    async fn renewed_files_are_taken_over_and_broken_ones_are_not() {
        let folder = TempDir::new().unwrap();
        let good = files(&folder, "good");
        let tls = Tls::load(&good).unwrap();
        let first = tls.current.load_full();
        let renewed = files(&folder, "renewed");
        fs::copy(&renewed.certificate, &good.certificate).unwrap();
        assert!(tls.reload().await.is_err(), "a certificate without its key was taken over");
        assert!(Arc::ptr_eq(&first, &tls.current.load_full()));
        fs::copy(&renewed.private_key, &good.private_key).unwrap();
        tls.reload().await.unwrap();
        assert!(!Arc::ptr_eq(&first, &tls.current.load_full()));
    }
}
