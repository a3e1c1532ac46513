//! Data sets of both hubs: listed, fetched file by file, found in caches.

use std::fs;
use std::time::Duration;

use twinkle_core::ErrorCode;
use twinkle_hub::{DataSet, DataSetLibrary, Environment, Patience};

use crate::Machine;
use crate::stand_in::{COMMIT, StandIn};

impl Machine {
    fn data_sets(&self) -> DataSetLibrary {
        let patience = Patience {
            attempts: 2,
            first_wait: Duration::from_millis(1),
            longest_wait: Duration::from_secs(1),
            silence: Duration::from_secs(20),
        };
        DataSetLibrary::new(&Environment::new(self.variables.clone()), patience).unwrap()
    }
}

fn published(hub: &StandIn) {
    let files = [
        ("README.md", b"# A card".to_vec()),
        ("data/train.jsonl", b"{\"a\":1}\n".to_vec()),
        ("data/test.jsonl", b"{\"a\":2}\n".to_vec()),
    ];
    hub.publish("datasets/org/name", &files);
}

async fn read(found: &DataSet, path: &str) -> String {
    let folder = found.fetch(vec![path.to_owned()]).await.unwrap();
    fs::read_to_string(folder.join(path)).unwrap()
}

#[tokio::test]
async fn only_the_wanted_files_are_fetched_and_both_caches_have_them_afterwards() {
    for id in ["hf://org/name", "ms://org/name", "org/name"] {
        let hub = StandIn::start().await;
        published(&hub);
        let machine = Machine::with(&hub);
        let library = machine.data_sets();
        assert!(library.cached(id, None).await.unwrap().is_none());
        let listed = library.listed(id, None).await.unwrap();
        assert!(listed.paths().contains(&"data/test.jsonl".to_owned()));
        assert_eq!(read(&listed, "data/train.jsonl").await, "{\"a\":1}\n");
        assert!(!hub.seen().iter().any(|seen| seen.path.contains("test.jsonl")), "{id}");
        let cached = library.cached(id, None).await.unwrap().unwrap();
        assert_eq!(cached.paths(), ["data/train.jsonl"]);
        assert_eq!(read(&cached, "data/train.jsonl").await, "{\"a\":1}\n");
    }
}

#[tokio::test]
async fn a_revision_is_asked_for() {
    let hub = StandIn::start().await;
    published(&hub);
    let library = Machine::with(&hub).data_sets();
    library.listed("hf://org/name", Some("v1")).await.unwrap();
    assert!(hub.seen().iter().any(|seen| seen.path.contains("/revision/v1")));
    assert!(library.listed("hf://org/name", Some("v2")).await.is_err());
}

#[tokio::test]
async fn the_servers_own_credentials_are_not_sent() {
    let hub = StandIn::start().await;
    published(&hub);
    let mut machine = Machine::with(&hub);
    machine.set("HF_TOKEN", "hf_secret");
    machine.set("MODELSCOPE_API_TOKEN", "ms_secret");
    for id in ["hf://org/name", "ms://org/name"] {
        read(&machine.data_sets().listed(id, None).await.unwrap(), "data/train.jsonl").await;
    }
    assert!(hub.seen().iter().all(|seen| seen.credentials.is_empty()));
}

#[tokio::test]
async fn what_cannot_be_had_is_told() {
    let hub = StandIn::start().await;
    let mut machine = Machine::with(&hub);
    let error = machine.data_sets().listed("hf://org/name", None).await.err().unwrap();
    assert_eq!(
        (error.code, error.message.as_str()),
        (ErrorCode::NotFound, "Hugging Face has no public data set `org/name`")
    );
    assert!(machine.data_sets().listed("org", None).await.is_err());
    assert!(!DataSetLibrary::is_id("rows.jsonl") && DataSetLibrary::is_id("org/name"));
    machine.set("TWINKLE_OFFLINE", "1");
    let error = machine.data_sets().listed("org/name", None).await.err().unwrap();
    assert!(error.message.contains("could not be asked (not asked: `TWINKLE_OFFLINE` is set)"), "{error}");
    let folder = format!(".cache/huggingface/hub/datasets--org--name/snapshots/{COMMIT}");
    machine.write(&format!("{folder}/train.jsonl"), "{}");
    machine.write(".cache/huggingface/hub/datasets--org--name/refs/main", COMMIT);
    let cached = machine.data_sets().cached("hf://org/name", None).await.unwrap().unwrap();
    assert_eq!(cached.paths(), ["train.jsonl"]);
}
