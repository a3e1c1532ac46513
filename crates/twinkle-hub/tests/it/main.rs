//! The library against a stand-in that speaks both hubs' HTTP, and against caches as the hubs' own tools leave them.

mod caches;
mod data_sets;
mod downloads;
mod gguf;
mod refusals;
mod stand_in;

use std::path::{Path, PathBuf};
use std::time::Duration;

use twinkle_core::Result;
use twinkle_core::config::ModelSource;
use twinkle_hub::{Environment, LibraryOptions, ModelLibrary, Patience};

use stand_in::StandIn;

/// A machine: its own home, caches and current folder.
struct Machine {
    root: tempfile::TempDir,
    variables: Vec<(String, String)>,
    before_weights: Option<fn(&Path) -> Result<()>>,
}

impl Machine {
    /// Both hubs are the stand-in.
    fn with(hub: &StandIn) -> Self {
        Self::with_endpoint(&hub.url())
    }

    fn with_endpoint(url: &str) -> Self {
        let root = tempfile::tempdir().unwrap();
        let mut machine = Self { root, variables: Vec::new(), before_weights: None };
        let home = machine.path("").display().to_string();
        for (name, value) in [("HOME", home.as_str()), ("HF_ENDPOINT", url), ("MODELSCOPE_ENDPOINT", url)] {
            machine.set(name, value);
        }
        machine
    }

    fn set(&mut self, name: &str, value: &str) {
        self.variables.push((name.to_owned(), value.to_owned()));
    }

    fn path(&self, below: &str) -> PathBuf {
        if below.is_empty() { self.root.path().to_owned() } else { self.root.path().join(below) }
    }

    fn write(&self, path: &str, content: impl AsRef<[u8]>) -> PathBuf {
        let path = self.path(path);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(&path, content).unwrap();
        path
    }

    /// A model as small as one can be.
    fn write_model(&self, folder: &str) -> PathBuf {
        for (name, content) in small_model() {
            self.write(&format!("{folder}/{name}"), content);
        }
        self.path(folder)
    }

    fn library(&self) -> ModelLibrary {
        let patience = Patience {
            attempts: 4,
            first_wait: Duration::from_millis(1),
            longest_wait: Duration::from_secs(1),
            silence: Duration::from_secs(20),
        };
        ModelLibrary::new(LibraryOptions {
            environment: Environment::new(self.variables.clone()),
            current: self.path(""),
            patience,
            before_weights: self.before_weights,
        })
        .unwrap()
    }

    async fn folder(&self, id: &str) -> Result<PathBuf> {
        self.library().folder(&ModelSource::new(id)).await
    }

    /// The error's text, with this machine's folder and the hub's address replaced.
    async fn refusal(&self, id: &str, hub: &str) -> String {
        let error = self.folder(id).await.err().unwrap();
        error.to_string().replace(&self.path("").display().to_string(), "<home>").replace(hub, "<hub>")
    }
}

fn small_model() -> Vec<(&'static str, Vec<u8>)> {
    let weights: Vec<u8> = (0..100_000_u32).flat_map(u32::to_le_bytes).collect();
    vec![
        ("config.json", b"{\"model_type\": \"llama\"}".to_vec()),
        ("model.safetensors", weights),
        ("tokenizer.json", b"{\"version\": \"1.0\"}".to_vec()),
        ("tokenizer_config.json", b"{}".to_vec()),
    ]
}

/// The names in a folder, in order.
fn names(folder: &Path) -> Vec<String> {
    let mut names: Vec<String> =
        std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}
