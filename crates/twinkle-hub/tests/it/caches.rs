//! Caches as the hubs' own tools leave them, and which place comes first.

use std::fs;
use std::os::unix::fs::symlink;

use crate::stand_in::{COMMIT, StandIn};
use crate::{Machine, small_model};

/// What `huggingface_hub` leaves: bytes by their tags, links, a reference.
fn write_huggingface(machine: &Machine, cache: &str) -> std::path::PathBuf {
    let repository = format!("{cache}/models--org--name");
    let snapshot = machine.path(&format!("{repository}/snapshots/{COMMIT}"));
    fs::create_dir_all(&snapshot).unwrap();
    for (number, (name, content)) in small_model().into_iter().enumerate() {
        machine.write(&format!("{repository}/blobs/{number}"), content);
        symlink(format!("../../blobs/{number}"), snapshot.join(name)).unwrap();
    }
    machine.write(&format!("{repository}/refs/main"), COMMIT);
    snapshot
}

#[tokio::test]
async fn hugging_faces_cache_is_used_without_asking() {
    let hub = StandIn::start().await;
    let mut machine = Machine::with(&hub);
    machine.set("HF_HUB_OFFLINE", "1");
    let snapshot = write_huggingface(&machine, ".cache/huggingface/hub");
    assert_eq!(machine.folder("hf://org/name").await.unwrap(), snapshot);
    assert_eq!(machine.folder("hf://org/name@main").await.unwrap(), snapshot);
    assert_eq!(machine.folder(&format!("hf://org/name@{COMMIT}")).await.unwrap(), snapshot);
    assert_eq!(machine.folder("org/name").await.unwrap(), snapshot, "an id without a scheme finds it, too");
    assert!(machine.folder("hf://org/name@v1").await.is_err());
    assert!(machine.folder("ms://org/name").await.is_err());
    machine.set("HF_HUB_CACHE", &machine.path("elsewhere").display().to_string());
    assert!(machine.folder("hf://org/name").await.is_err());
    let elsewhere = write_huggingface(&machine, "elsewhere");
    assert_eq!(machine.folder("hf://org/name").await.unwrap(), elsewhere);
    assert!(hub.seen().iter().all(|seen| seen.path.starts_with("/api/v1/")), "Hugging Face was not asked");
}

#[tokio::test]
async fn every_layout_modelscopes_tools_have_had_is_found() {
    let hub = StandIn::start().await;
    for (folder, id) in [
        (".cache/modelscope/models/org--na.me/snapshots/master", "ms://org/na.me"),
        (".cache/modelscope/models/org--na.me/snapshots/main", "org/na.me"),
        (".cache/modelscope/models/org--na.me/snapshots/v1", "ms://org/na.me@v1"),
        (".cache/modelscope/models/org/na___me", "ms://org/na.me"),
        (".cache/modelscope/hub/models/org/na___me", "org/na.me"),
        (".cache/modelscope/hub/org/na___me", "ms://org/na.me"),
    ] {
        let machine = Machine::with(&hub);
        let written = machine.write_model(folder);
        assert_eq!(machine.folder(id).await.unwrap(), written);
    }
    assert!(hub.seen().is_empty());
}

#[tokio::test]
async fn an_older_folder_serves_a_revision_only_if_its_note_says_so() {
    let hub = StandIn::start().await;
    let machine = Machine::with(&hub);
    let folder = machine.write_model(".cache/modelscope/hub/models/org/name");
    assert!(machine.folder("ms://org/name@v1").await.is_err());
    machine.write(".cache/modelscope/hub/models/org/name/.mv", "Revision:v1,CreatedAt:1727000000");
    assert_eq!(machine.folder("ms://org/name@v1").await.unwrap(), folder);
    assert!(machine.folder("ms://org/name@v2").await.is_err());
}

#[tokio::test]
async fn an_id_without_a_scheme_is_a_folder_then_a_cache_then_modelscope() {
    let hub = StandIn::start().await;
    hub.publish("org/name", &small_model());
    let mut machine = Machine::with(&hub);
    machine.set("MODELSCOPE_CACHE", &machine.path("ms").display().to_string());

    let downloaded = machine.folder("org/name").await.unwrap();
    assert_eq!(downloaded, machine.path("ms/models/org--name/snapshots/master"));
    assert!(hub.seen().iter().all(|seen| seen.at_storage || seen.path.starts_with("/api/v1/models/org/name/repo")));

    let snapshot = write_huggingface(&machine, ".cache/huggingface/hub");
    assert_eq!(machine.folder("org/name").await.unwrap(), downloaded);
    fs::remove_dir_all(machine.path("ms")).unwrap();
    assert_eq!(machine.folder("org/name").await.unwrap(), snapshot);

    let local = machine.write_model("org/name");
    assert_eq!(machine.folder("org/name").await.unwrap(), local);
    assert_eq!(machine.folder("./org/name").await.unwrap(), local);
    assert_eq!(machine.folder("~/org/name").await.unwrap(), local);
    assert_eq!(machine.folder(&format!("file://{}", local.display())).await.unwrap(), local);
}

#[tokio::test]
async fn a_cache_that_lacks_something_is_completed_from_the_hub() {
    let hub = StandIn::start().await;
    hub.publish("org/name", &small_model());
    let machine = Machine::with(&hub);
    let snapshot = write_huggingface(&machine, ".cache/huggingface/hub");
    fs::remove_file(machine.path(".cache/huggingface/hub/models--org--name/blobs/1")).unwrap();
    assert_eq!(machine.folder("hf://org/name").await.unwrap(), snapshot);
    for (name, content) in small_model() {
        assert!(fs::read(snapshot.join(name)).unwrap() == content, "{name}");
    }
}

#[tokio::test]
async fn offline_a_network_without_a_tokenizer_is_better_than_nothing() {
    let hub = StandIn::start().await;
    let mut machine = Machine::with(&hub);
    machine.set("TWINKLE_OFFLINE", "1");
    let folder = machine.write_model(".cache/modelscope/models/org--name/snapshots/master");
    fs::remove_file(folder.join("tokenizer.json")).unwrap();
    assert_eq!(machine.folder("ms://org/name").await.unwrap(), folder);
    fs::remove_file(folder.join("model.safetensors")).unwrap();
    assert!(machine.folder("ms://org/name").await.is_err());
}
