//! `http_options`: where the node listens.

use serde::Serialize;

use super::section::Section;

/// Where the node listens.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct HttpOptions {
    /// Address or host name.
    pub host: String,
    /// TCP port; 0 lets the system choose.
    pub port: u16,
}

impl Default for HttpOptions {
    fn default() -> Self {
        Self { host: "localhost".to_owned(), port: 8000 }
    }
}

impl HttpOptions {
    pub(super) fn read(section: Option<Section<'_>>) -> Self {
        let mut options = Self::default();
        let Some(mut section) = section else { return options };
        if let Some(host) = section.text("host") {
            options.host = host.value;
        }
        if let Some(port) = section.integer("port", 0..=65535) {
            options.port = port.value;
        }
        for key in ["root_path", "request_timeout_s", "keep_alive_timeout_s", "num_cpus", "location"] {
            section.inert(key, "a setting of Ray Serve's proxy");
        }
        section.finish();
        options
    }
}
