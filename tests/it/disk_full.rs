//! A full disk fails the save that needs it, and nothing else.

use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::json;
use twinkle_tests::{Node, NodeOptions, TinkerHttp};

const TOKENS: [u32; 9] = [5, 9, 31, 7, 120, 44, 3, 250, 18];

/// A file system of 64 KiB; unmounted when dropped.
struct SmallDisk(PathBuf);

impl SmallDisk {
    /// `None` where mounting is not allowed.
    fn mount(folder: &Path) -> Option<Self> {
        std::fs::create_dir_all(folder).ok()?;
        let mounted = Command::new("mount").args(["-t", "tmpfs", "-o", "size=64k", "tmpfs"]).arg(folder).status();
        mounted.is_ok_and(|status| status.success()).then(|| Self(folder.to_path_buf()))
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        // A server that still writes to it is killed right after; lazily unmounted it disappears with it.
        let _ = Command::new("umount").arg("-l").arg(&self.0).status();
    }
}

#[tokio::test]
async fn a_save_on_a_full_disk_fails_clearly_and_training_goes_on() {
    let folder = tempfile::tempdir().expect("a folder");
    let Some(disk) = SmallDisk::mount(&folder.path().join("checkpoints")) else {
        eprintln!("skipped: mounting a small file system needs root");
        return;
    };
    let mut options = NodeOptions::fixture(env!("CARGO_BIN_EXE_node"), "qwen2");
    options.environment.push(("TWINKLE_DEFAULT_SAVE_DIR".to_owned(), disk.0.to_string_lossy().into_owned()));
    let node = Node::start(options).await.expect("the server starts");
    let client = TinkerHttp::new(&node.base_url(), "tml-disk");
    let run = client.create_run(node.model(), 16, 1).await.expect("a run");

    let step = client.submit_forward_backward(&run, 1, &TOKENS).await.expect("accepted");
    let before = client.result(&step).await.expect("a result");
    let save = json!({ "model_id": run, "path": "too-large", "seq_id": 2 });
    let save = client.submit("save_weights", &save).await.expect("accepted");
    let failure = client.result(&save).await.expect("an answer");
    let text = failure["error"].as_str().expect("the save failed");
    assert!(text.to_lowercase().contains("space"), "{text}");
    assert_eq!(failure["category"], "server", "it is not the user's fault: {failure}");
    let left: Vec<_> = walk(&disk.0);
    assert!(left.iter().all(|path| path.is_dir()), "nothing half written is left: {left:?}");

    let again = client.submit_forward_backward(&run, 3, &TOKENS).await.expect("accepted");
    let again = client.result(&again).await.expect("a result");
    assert_eq!(again["metrics"], before["metrics"], "the run is as it was");
}

fn walk(folder: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(folder).into_iter().flatten().flatten() {
        let path = entry.path();
        if path.is_dir() {
            found.extend(walk(&path));
        }
        found.push(path);
    }
    found
}
