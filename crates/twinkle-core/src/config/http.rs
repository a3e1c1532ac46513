//! `http_options`: where the node listens.

use std::path::PathBuf;

use serde::Serialize;

use super::limits::Limits;
use super::section::Section;

/// Why the settings of a cluster's proxy do nothing.
const OF_THE_PROXY: &str = "a setting of Ray Serve's proxy";

/// Where the node listens.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct HttpOptions {
    /// Address or host name.
    pub host: String,
    /// TCP port; 0 lets the system choose.
    pub port: u16,
    /// What makes it HTTPS; `None` is plain HTTP.
    pub tls: Option<TlsConfig>,
}

/// The files of a TLS server, both PEM.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct TlsConfig {
    /// The certificate, followed by those between it and a root.
    pub certificate: PathBuf,
    /// The certificate's private key.
    pub private_key: PathBuf,
}

impl Default for HttpOptions {
    fn default() -> Self {
        Self { host: "localhost".to_owned(), port: 8000, tls: None }
    }
}

impl HttpOptions {
    pub(super) fn read(section: Option<Section<'_>>) -> Self {
        let mut options = Self::default();
        let Some(mut section) = section else { return options };
        if let Some(host) = section.filled_text("host") {
            options.host = host.value;
        }
        if let Some(port) = section.integer("port", 0..=65535) {
            options.port = port.value;
        }
        options.tls = section.section("tls").and_then(TlsConfig::read);
        for key in ["request_timeout_s", "keep_alive_timeout_s"] {
            section.inert_number(key, Limits::SECONDS, OF_THE_PROXY);
        }
        section.inert_number("num_cpus", Limits::FROM_ZERO, OF_THE_PROXY);
        for key in ["root_path", "location"] {
            section.inert(key, OF_THE_PROXY);
        }
        section.finish();
        options
    }
}

impl TlsConfig {
    fn read(mut section: Section<'_>) -> Option<Self> {
        let certificate = section.required_text("certificate");
        let private_key = section.required_text("private_key");
        section.finish();
        Some(Self { certificate: certificate?.value.into(), private_key: private_key?.value.into() })
    }
}
