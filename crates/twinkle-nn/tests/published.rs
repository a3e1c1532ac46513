//! Live adapters: the recent ones in memory, all of them on disk.

mod common;

use std::sync::Arc;

use common::{load, load_adapter};
use twinkle_core::ErrorCode;
use twinkle_core::ids::SamplingSessionId;
use twinkle_nn::{Precision, PublishedAdapters};

/// More than are held in memory.
const MANY: u64 = 65;

fn session(number: u64) -> SamplingSessionId {
    SamplingSessionId::new(format!("s:sample:{number}"))
}

#[test]
fn an_adapter_that_left_the_memory_is_read_back_from_disk_in_the_same_bits() {
    let base = load("qwen3", Precision::Float32);
    let adapter = load_adapter(&base, "qwen3", "attn_mlp");
    let folder = tempfile::tempdir().unwrap();
    let published = PublishedAdapters::new(folder.path().to_path_buf());
    published.put(session(0), Arc::clone(&adapter.adapter));
    published.save(&session(0), &adapter.layout, &adapter.flat, "a/base").unwrap();
    for number in 1..=MANY {
        published.put(session(number), Arc::clone(&adapter.adapter));
    }
    assert!(published.get(&session(0)).is_none(), "the oldest makes room");
    let read = |number| published.get_or_load(&session(number), base.config(), base.kind(), base.device());
    let back = read(0).unwrap();
    assert!(!Arc::ptr_eq(&back, &adapter.adapter));
    assert_eq!(back.content_hash(), adapter.adapter.content_hash());
    assert!(Arc::ptr_eq(&back, &read(0).unwrap()), "it is in memory again");

    assert_eq!(read(1).unwrap_err().code, ErrorCode::NotFound, "one that was never saved is gone");
    assert!(Arc::ptr_eq(&read(MANY).unwrap(), &adapter.adapter), "a recent one is handed over by pointer");
    published.remove(&session(0)).unwrap();
    assert_eq!(read(0).unwrap_err().code, ErrorCode::NotFound);
}

#[test]
fn a_session_whose_name_is_no_folder_name_holds_no_weights() {
    let base = load("qwen3", Precision::Float32);
    let folder = tempfile::tempdir().unwrap();
    let published = PublishedAdapters::new(folder.path().join("live"));
    for name in ["", ".", "../live", "a/b", "a\\b", "a\0b"] {
        let read = published.get_or_load(&SamplingSessionId::new(name), base.config(), base.kind(), base.device());
        assert_eq!(read.unwrap_err().code, ErrorCode::NotFound, "{name:?}");
    }
}
