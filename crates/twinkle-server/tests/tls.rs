//! A node behind TLS: a real certificate, real clients, both versions of HTTP.

use std::fs;
use std::path::{Path, PathBuf};

use rcgen::generate_simple_self_signed;
use reqwest::{Certificate, Client, ClientBuilder, StatusCode, Version};
use tempfile::TempDir;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use twinkle_core::config::ServerConfig;
use twinkle_server::{LaunchError, RunningServer, TwinkleServer};

/// A self-signed certificate for `localhost`, and its key, as files.
struct Files {
    certificate: PathBuf,
    private_key: PathBuf,
    pem: String,
}

impl Files {
    fn make(folder: &Path, name: &str) -> Self {
        let made = generate_simple_self_signed(vec!["localhost".to_owned()]).unwrap();
        let (certificate, private_key) = (folder.join(format!("{name}.pem")), folder.join(format!("{name}.key")));
        fs::write(&certificate, made.cert.pem()).unwrap();
        fs::write(&private_key, made.signing_key.serialize_pem()).unwrap();
        Self { certificate, private_key, pem: made.cert.pem() }
    }

    fn client(&self) -> ClientBuilder {
        let root = Certificate::from_pem(self.pem.as_bytes()).unwrap();
        Client::builder().tls_certs_only([root]).no_proxy()
    }
}

/// A node without models; what it serves of the Tinker protocol is enough here.
async fn start(certificate: &Path, private_key: &Path) -> Result<RunningServer, LaunchError> {
    let yaml = format!(
        "
http_options: {{host: localhost, port: 0, tls: {{certificate: {}, private_key: {}}}}}
persistence: {{mode: memory}}
applications:
  - {{name: server, route_prefix: /api/v1, import_path: server}}
",
        certificate.display(),
        private_key.display()
    );
    TwinkleServer::new(ServerConfig::parse("node.yaml", &yaml)?).start().await
}

#[tokio::test(flavor = "multi_thread")]
async fn both_versions_of_http_are_served_over_tls_and_nothing_without_it() {
    let folder = TempDir::new().unwrap();
    let files = Files::make(folder.path(), "node");
    let node = start(&files.certificate, &files.private_key).await.unwrap();
    let port = node.address().port();
    let url = format!("https://localhost:{port}/api/v1/healthz");

    let modern = files.client().build().unwrap().get(&url).send().await.unwrap();
    assert_eq!((modern.status(), modern.version()), (StatusCode::OK, Version::HTTP_2));
    let plain = files.client().http1_only().build().unwrap().get(&url).send().await.unwrap();
    assert_eq!((plain.status(), plain.version()), (StatusCode::OK, Version::HTTP_11));

    let stranger = Files::make(folder.path(), "stranger");
    assert!(stranger.client().build().unwrap().get(&url).send().await.is_err(), "any certificate is believed");
    let mut stream = TcpStream::connect(("127.0.0.1", port)).await.unwrap();
    stream.write_all(b"GET /api/v1/healthz HTTP/1.1\r\nhost: a\r\n\r\n").await.unwrap();
    let mut answer = Vec::new();
    let _ = stream.read_to_end(&mut answer).await;
    assert!(!answer.starts_with(b"HTTP"), "plain HTTP was answered");
    node.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_key_of_another_certificate_is_one_error_and_nothing_listens() {
    let folder = TempDir::new().unwrap();
    let (node, other) = (Files::make(folder.path(), "node"), Files::make(folder.path(), "other"));
    let Err(LaunchError::Failed(error)) = start(&node.certificate, &other.private_key).await else {
        panic!("a node started with a key that does not fit")
    };
    let (certificate, private_key) = (node.certificate.display(), other.private_key.display());
    assert_eq!(
        error.message,
        format!("the private key `{private_key}` does not belong to the certificate `{certificate}`")
    );
}
