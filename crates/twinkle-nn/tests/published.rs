//! Live adapters: the recent ones in memory, all of them on disk.

mod common;

use std::sync::Arc;

use common::{LoadedAdapter, load, load_adapter};
use twinkle_core::ErrorCode;
use twinkle_core::call::Position;
use twinkle_core::ids::SamplingSessionId;
use twinkle_nn::{Precision, Publication, PublishedAdapters};

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
    let publication = |after| Publication { position: Position { after, arrival: 0 }, optimizer_steps: after };
    published.put(session(0), Arc::clone(&adapter.adapter), publication(3));
    published.save(&session(0), &adapter.layout, &adapter.flat, "a/base", publication(3)).unwrap();
    for number in 1..=MANY {
        published.put(session(number), Arc::clone(&adapter.adapter), publication(3));
    }
    assert!(published.get(&session(0)).is_none(), "the oldest makes room");
    let read = |number| published.get_or_load(&session(number), base.config(), base.kind(), base.device());
    let back = read(0).unwrap();
    assert!(!Arc::ptr_eq(&back.adapter, &adapter.adapter));
    assert_eq!(back.adapter.content_hash(), adapter.adapter.content_hash());
    assert_eq!(back.publication, publication(3));
    assert!(Arc::ptr_eq(&back.adapter, &read(0).unwrap().adapter), "it is in memory again");

    assert_eq!(read(1).unwrap_err().code, ErrorCode::NotFound, "one that was never saved is gone");
    assert!(Arc::ptr_eq(&read(MANY).unwrap().adapter, &adapter.adapter), "a recent one is handed over by pointer");
    published.remove(&session(0)).unwrap();
    assert_eq!(read(0).unwrap_err().code, ErrorCode::NotFound);
}

#[test]
fn a_newer_publication_takes_the_place_and_an_older_one_does_not() {
    let base = load("qwen3", Precision::Float32);
    let [first, second] = ["attn_mlp", "attn_mlp_unembed"].map(|name| load_adapter(&base, "qwen3", name));
    let folder = tempfile::tempdir().unwrap();
    let at = |after| Publication { position: Position { after, arrival: 0 }, optimizer_steps: after * 2 };
    let published = PublishedAdapters::new(folder.path().to_path_buf());
    let put = |table: &PublishedAdapters, adapter: &LoadedAdapter, after| {
        table.put(session(0), Arc::clone(&adapter.adapter), at(after));
        table.save(&session(0), &adapter.layout, &adapter.flat, "a/base", at(after)).unwrap();
    };
    let now = |table: &PublishedAdapters| {
        let published = table.get_or_load(&session(0), base.config(), base.kind(), base.device()).unwrap();
        (*published.adapter.content_hash(), published.publication)
    };
    put(&published, &first, 3);
    put(&published, &second, 5);
    assert_eq!(now(&published), (*second.adapter.content_hash(), at(5)));
    put(&published, &first, 3);
    assert_eq!(now(&published), (*second.adapter.content_hash(), at(5)), "a replay went back");

    let restarted = PublishedAdapters::new(folder.path().to_path_buf());
    put(&restarted, &first, 3);
    assert_eq!(now(&restarted), (*second.adapter.content_hash(), at(5)), "a replay after a restart went back");
    put(&restarted, &second, 5);
    put(&restarted, &first, 8);
    assert_eq!(now(&restarted), (*first.adapter.content_hash(), at(8)));
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
