//! Checkpoints on a real file system.

use std::collections::BTreeMap;

use super::*;
use crate::call::{LoraSpec, Position};
use crate::error::ErrorCode;
use crate::ids::{CheckpointKind, RunId};

#[test]
fn a_folder_names_a_checkpoint_of_its_tenant_only() {
    let store = CheckpointStore::new(PathBuf::from("/c"));
    let named = |tenant: &str, folder: &str| store.path_of(&TenantId::new(tenant), Path::new(folder));
    let found = named("alice", "/c/alice/s-math/weights/step-1").unwrap();
    assert_eq!(found.to_twinkle(), "twinkle://s-math/weights/step-1");
    for (tenant, folder) in [
        ("bob", "/c/alice/s-math/weights/step-1"),
        ("alice", "/c/alice/../bob/s/weights/x"),
        ("alice", "/c/alice/s-math/weights"),
        ("alice", "/c/alice/s-math/code/x"),
        ("alice", "/c/alice/s-math/weights/.draft-1"),
        ("alice", "/etc/passwd"),
        ("alice", "../.."),
    ] {
        assert_eq!(named(tenant, folder), None, "{tenant} {folder}");
    }
}

struct Fixture {
    root: tempfile::TempDir,
    store: CheckpointStore,
    tenant: TenantId,
}

impl Fixture {
    fn new() -> Self {
        let root = tempfile::tempdir().unwrap();
        let store = CheckpointStore::new(root.path().join("checkpoints"));
        Self { root, store, tenant: TenantId::new("alice") }
    }

    fn save(&self, name: &str, content: &[u8], at: u64, overwrite: bool) -> Result<CommittedCheckpoint> {
        let draft = self.store.draft(&self.tenant, &path(name))?;
        fs::write(draft.directory().join("adapter_model.safetensors"), content).unwrap();
        fs::write(draft.directory().join("adapter_config.json"), b"{}").unwrap();
        draft.commit(&meta(at), overwrite)
    }

    fn content(&self, name: &str) -> Result<Vec<u8>> {
        let checkpoint = self.store.open(&self.tenant, &path(name))?;
        Ok(fs::read(checkpoint.directory().join("adapter_model.safetensors")).unwrap())
    }

    fn folder(&self) -> PathBuf {
        self.root.path().join("checkpoints/alice/s:train:0/weights")
    }

    fn entries(&self) -> Vec<String> {
        let entries = disk::list(&self.folder()).unwrap();
        entries.iter().map(|entry| entry.file_name().unwrap().to_str().unwrap().to_owned()).collect()
    }
}

fn path(name: &str) -> CheckpointPath {
    CheckpointPath::new(RunId::new("s:train:0"), CheckpointKind::Weights, name).unwrap()
}

fn meta(at: u64) -> CheckpointMeta {
    CheckpointMeta {
        base_model: "tiny".to_owned(),
        lora: LoraSpec { rank: 4, seed: 1, train_unembed: false, ..LoraSpec::default() },
        user_metadata: BTreeMap::from([("note".to_owned(), "first".to_owned())]),
        created_at: Timestamp::UNIX_EPOCH,
        position: Position { after: at, arrival: 0 },
        optimizer_steps: Some(at),
    }
}

#[test]
fn a_saved_checkpoint_opens_with_its_files_and_manifest() {
    let fixture = Fixture::new();
    let committed = fixture.save("a", b"weights", 3, false).unwrap();
    assert_eq!(committed.size_bytes, 9);
    let checkpoint = fixture.store.open(&fixture.tenant, &path("a")).unwrap();
    assert_eq!(checkpoint.manifest().lora, meta(3).lora);
    assert_eq!(checkpoint.manifest().user_metadata, meta(3).user_metadata);
    assert_eq!(fixture.content("a").unwrap(), b"weights");
    assert_eq!(fixture.entries(), ["a"]);
}

#[test]
fn every_damaged_file_is_refused_and_named() {
    for (file, content) in [
        ("adapter_model.safetensors", b"wEights".as_slice()),
        ("adapter_model.safetensors", b"weight"),
        ("adapter_config.json", b"[]"),
        ("manifest.json", b"{"),
    ] {
        let fixture = Fixture::new();
        fixture.save("a", b"weights", 3, false).unwrap();
        fs::write(fixture.folder().join("a").join(file), content).unwrap();
        let error = fixture.store.open(&fixture.tenant, &path("a")).unwrap_err();
        assert_eq!(error.code, ErrorCode::InvalidArgument);
        assert!(error.message.contains(file) && error.message.contains("tinker://s:train:0/weights/a"), "{error}");
    }
}

#[test]
fn a_missing_file_is_named_too() {
    let fixture = Fixture::new();
    fixture.save("a", b"weights", 3, false).unwrap();
    fs::remove_file(fixture.folder().join("a/adapter_config.json")).unwrap();
    let error = fixture.store.open(&fixture.tenant, &path("a")).unwrap_err();
    assert!(error.message.contains("adapter_config.json"), "{error}");
}

#[test]
fn a_foreign_checkpoint_and_an_absent_one_give_the_same_error() {
    let fixture = Fixture::new();
    fixture.save("a", b"weights", 3, false).unwrap();
    let mallory = TenantId::new("mallory");
    let foreign = fixture.store.open(&mallory, &path("a")).unwrap_err();
    fixture.store.delete(&fixture.tenant, &path("a")).unwrap();
    assert_eq!(fixture.store.open(&fixture.tenant, &path("a")).unwrap_err(), foreign);
    assert_eq!(fixture.store.delete(&mallory, &path("a")).unwrap_err(), foreign);
    assert_eq!(foreign.code, ErrorCode::NotFound);
}

#[test]
fn a_taken_name_is_refused_and_its_files_stay_unless_overwriting_is_asked_for() {
    let fixture = Fixture::new();
    fixture.save("a", b"first", 3, false).unwrap();
    assert_eq!(fixture.save("a", b"second", 4, false).unwrap_err().code, ErrorCode::InvalidArgument);
    assert_eq!(fixture.content("a").unwrap(), b"first");
    fixture.save("a", b"second", 4, true).unwrap();
    assert_eq!(fixture.content("a").unwrap(), b"second");
    assert_eq!(fixture.entries(), ["a"]);
}

#[test]
fn the_same_operation_executed_again_finds_its_own_checkpoint() {
    let fixture = Fixture::new();
    let first = fixture.save("a", b"first", 3, false).unwrap();
    assert_eq!(fixture.save("a", b"first", 3, false).unwrap(), first);
}

#[test]
fn an_abandoned_draft_leaves_nothing_behind() {
    let fixture = Fixture::new();
    let draft = fixture.store.draft(&fixture.tenant, &path("a")).unwrap();
    fs::write(draft.directory().join("x"), b"half").unwrap();
    drop(draft);
    assert_eq!(fixture.entries(), Vec::<String>::new());
}

#[test]
fn leftovers_of_a_dead_process_are_removed_and_a_half_replaced_checkpoint_comes_back() {
    let fixture = Fixture::new();
    fixture.save("a", b"first", 3, false).unwrap();
    fixture.save("b", b"other", 4, false).unwrap();
    fs::rename(fixture.folder().join("a"), fixture.folder().join(".replaced-a")).unwrap();
    fs::create_dir(fixture.folder().join(".draft-1")).unwrap();
    fs::create_dir(fixture.folder().join(".deleted-2")).unwrap();
    assert_eq!(fixture.store.remove_leftovers().unwrap(), 3);
    assert_eq!(fixture.entries(), ["a", "b"]);
    assert_eq!(fixture.content("a").unwrap(), b"first");
}

#[test]
fn a_tenant_or_run_name_cannot_lead_out_of_the_root() {
    let fixture = Fixture::new();
    for tenant in ["..", "", "a/b", ".hidden"] {
        assert!(fixture.store.draft(&TenantId::new(tenant), &path("a")).is_err(), "{tenant:?} was accepted");
    }
    let mut escaping = path("a");
    escaping.run = RunId::new("../..");
    assert!(fixture.store.draft(&fixture.tenant, &escaping).is_err());
}

#[test]
fn a_newer_format_is_unsupported() {
    let fixture = Fixture::new();
    fixture.save("a", b"weights", 3, false).unwrap();
    fs::write(fixture.folder().join("a/manifest.json"), br#"{"format": 2, "shape": []}"#).unwrap();
    assert_eq!(fixture.store.open(&fixture.tenant, &path("a")).unwrap_err().code, ErrorCode::Unsupported);
}
