//! Downloads, whole and broken.

use std::fs;
use std::path::Path;

use axum::http::Method;
use futures::future::join_all;
use twinkle_core::{Error, ErrorCode, Result};

use crate::stand_in::{COMMIT, Fault, Seen, StandIn, git_id, sha256};
use crate::{Machine, names, small_model};

const BOTH: [&str; 2] = ["hf://org/name", "ms://org/name"];
const WEIGHTS: &str = "model.safetensors";

async fn published() -> StandIn {
    let hub = StandIn::start().await;
    hub.publish("org/name", &small_model());
    hub
}

fn assert_same(folder: &Path) {
    for (name, content) in small_model() {
        assert!(fs::read(folder.join(name)).unwrap() == content, "{name} differs");
    }
}

/// The requests for the bytes of a file.
fn fetches(hub: &StandIn, name: &str) -> Vec<Seen> {
    let of_file = |seen: &Seen| seen.path.rsplit(['/', '=']).next() == Some(name) && seen.method == Method::GET;
    let mut fetches: Vec<Seen> = hub.seen().into_iter().filter(of_file).collect();
    if fetches.iter().any(|seen| seen.at_storage) {
        fetches.retain(|seen| seen.at_storage);
    }
    fetches
}

#[tokio::test]
async fn only_what_a_model_needs_is_fetched_and_never_again() {
    for id in BOTH {
        let hub = StandIn::start().await;
        let mut files = small_model();
        files.retain(|(name, _)| *name != WEIGHTS);
        let index = r#"{"weight_map": {"a": "model-1-of-2.safetensors", "b": "model-2-of-2.safetensors"}}"#;
        let others = [
            ("model.safetensors.index.json", index),
            ("model-1-of-2.safetensors", "one"),
            ("model-2-of-2.safetensors", "two"),
            ("consolidated.safetensors", "the same again"),
            ("generation_config.json", "{}"),
            ("chat_template.jinja", "{{ x }}"),
            ("pytorch_model.bin", "pickle"),
            ("modeling_x.py", "import os"),
            ("README.md", "# A model"),
            ("original/config.json", "{}"),
        ];
        files.extend(others.map(|(name, content)| (name, content.as_bytes().to_vec())));
        hub.publish("org/name", &files);
        let machine = Machine::with(&hub);

        let folder = machine.folder(id).await.unwrap();
        assert_eq!(
            names(&folder),
            [
                "chat_template.jinja",
                "config.json",
                "generation_config.json",
                "model-1-of-2.safetensors",
                "model-2-of-2.safetensors",
                "model.safetensors.index.json",
                "tokenizer.json",
                "tokenizer_config.json",
            ]
        );
        let asked = hub.seen().len();
        assert_eq!(machine.folder(id).await.unwrap(), folder);
        assert_eq!(hub.seen().len(), asked, "a complete model is taken from the cache");
    }
}

#[tokio::test]
async fn hugging_faces_cache_has_the_layout_of_its_own_tool() {
    let hub = published().await;
    let machine = Machine::with(&hub);
    let folder = machine.folder("hf://org/name").await.unwrap();
    let repository = machine.path(".cache/huggingface/hub/models--org--name");
    assert_eq!(folder, repository.join("snapshots").join(COMMIT));
    assert_eq!(fs::read_to_string(repository.join("refs/main")).unwrap(), COMMIT);
    for (name, content) in small_model() {
        let is_large = name == WEIGHTS || name == "tokenizer.json";
        let blob = if is_large { sha256(&content) } else { git_id(&content) };
        assert_eq!(fs::read_link(folder.join(name)).unwrap(), Path::new("../../blobs").join(&blob));
    }
    assert_eq!(names(&repository.join("blobs")).len(), 4, "nothing is left over");
    assert_same(&folder);
}

#[tokio::test]
async fn modelscopes_cache_has_the_layout_of_its_own_tool() {
    let hub = published().await;
    let machine = Machine::with(&hub);
    let folder = machine.folder("org/name@v1").await.unwrap();
    assert_eq!(folder, machine.path(".cache/modelscope/models/org--name/snapshots/v1"));
    assert_eq!(names(&folder).len(), 4, "nothing is left over");
    assert_same(&folder);
}

#[tokio::test]
async fn a_broken_connection_is_resumed_where_it_broke() {
    for id in BOTH {
        let hub = published().await;
        hub.faults(WEIGHTS, &[Fault::BreaksAfter(150_000), Fault::BreaksAfter(100_000)]);
        assert_same(&Machine::with(&hub).folder(id).await.unwrap());
        let fetches = fetches(&hub, WEIGHTS);
        let begins: Vec<u64> = fetches
            .iter()
            .map(|seen| seen.range.as_deref().map_or(0, |range| range[6..].trim_end_matches('-').parse().unwrap()))
            .collect();
        assert_eq!(begins.len(), 3);
        assert!(begins.is_sorted() && begins[0] == 0 && begins[2] > begins[1], "{begins:?}");
    }
}

#[tokio::test]
async fn what_an_earlier_run_left_is_continued_even_if_ranges_are_ignored() {
    let weights = small_model().into_iter().find(|(name, _)| *name == WEIGHTS).unwrap().1;
    for faults in [vec![], vec![Fault::IgnoresRange]] {
        let hub = published().await;
        hub.faults(WEIGHTS, &faults);
        let machine = Machine::with(&hub);
        let partial = format!(".cache/huggingface/hub/models--org--name/blobs/{}.incomplete", sha256(&weights));
        machine.write(&partial, &weights[..70_000]);
        assert_same(&machine.folder("hf://org/name").await.unwrap());
        assert_eq!(fetches(&hub, WEIGHTS)[0].range.as_deref(), Some("bytes=70000-"));
    }
}

#[tokio::test]
async fn a_whole_file_that_was_left_is_checked_and_not_fetched() {
    let weights = small_model().into_iter().find(|(name, _)| *name == WEIGHTS).unwrap().1;
    let hub = published().await;
    let machine = Machine::with(&hub);
    machine.write(".cache/modelscope/models/org--name/snapshots/master/model.safetensors.incomplete", &weights);
    assert_same(&machine.folder("ms://org/name").await.unwrap());
    assert!(fetches(&hub, WEIGHTS).is_empty());
}

#[tokio::test]
async fn a_damaged_file_is_fetched_once_more_and_then_refused() {
    for id in BOTH {
        let hub = published().await;
        hub.faults(WEIGHTS, &[Fault::Damaged]);
        assert_same(&Machine::with(&hub).folder(id).await.unwrap());

        let hub = published().await;
        hub.faults(WEIGHTS, &[Fault::Damaged, Fault::Damaged]);
        let machine = Machine::with(&hub);
        let error = machine.folder(id).await.err().unwrap();
        assert!(error.message.contains("arrived damaged: its sha256 is"), "{error}");
        assert_eq!(fetches(&hub, WEIGHTS).len(), 2);
        // Nothing of it is taken for a model later.
        assert_same(&machine.folder(id).await.unwrap());
    }
}

#[tokio::test]
async fn a_busy_hub_is_asked_again_when_it_says() {
    let hub = published().await;
    hub.faults("list", &[Fault::Status(429, Some("0")), Fault::Status(503, None)]);
    hub.faults(WEIGHTS, &[Fault::Status(500, None), Fault::Status(429, Some("1"))]);
    assert_same(&Machine::with(&hub).folder("hf://org/name").await.unwrap());
}

#[tokio::test]
async fn a_hub_that_stays_away_is_given_up() {
    let hub = published().await;
    let machine = Machine::with(&hub);
    hub.faults(WEIGHTS, &vec![Fault::Status(503, None); 10]);
    let text = machine.refusal("hf://org/name", &hub.url()).await;
    assert!(text.contains("`<hub>` (503: service unavailable)"), "{text}");
    assert_eq!(fetches(&hub, WEIGHTS).len(), 4);

    hub.faults(WEIGHTS, &[Fault::Status(429, Some("3600"))]);
    let text = machine.refusal("hf://org/name", &hub.url()).await;
    assert!(text.contains("(429: too many requests, and it asks to come back in 3600 s)"), "{text}");
}

#[tokio::test]
async fn a_token_is_sent_to_the_hub_and_to_nobody_else() {
    for (id, variable, expected) in [
        ("hf://org/name", "HF_TOKEN", vec!["Bearer secret"]),
        ("ms://org/name", "MODELSCOPE_API_TOKEN", vec!["Bearer secret", "m_session_id=secret"]),
    ] {
        let hub = published().await;
        let mut machine = Machine::with(&hub);
        machine.set(variable, "secret");
        machine.folder(id).await.unwrap();
        let seen = hub.seen();
        let (storage, asked): (Vec<&Seen>, Vec<&Seen>) = seen.iter().partition(|seen| seen.at_storage);
        assert!(storage.len() == 2 && storage.iter().all(|seen| seen.credentials.is_empty()), "{storage:?}");
        assert!(asked.iter().all(|seen| seen.credentials == expected), "{asked:?}");
    }
}

#[tokio::test]
async fn two_at_once_fetch_every_file_once() {
    for id in BOTH {
        let hub = published().await;
        let machine = Machine::with(&hub);
        let folders = join_all([machine.folder(id), machine.folder(id), machine.folder(id)]).await;
        for folder in folders {
            assert_same(&folder.unwrap());
        }
        for (name, _) in small_model() {
            assert_eq!(fetches(&hub, name).len(), 1, "{name}");
        }
    }
}

#[tokio::test]
async fn a_mirror_that_lists_names_only_is_asked_about_each_file() {
    let hub = published().await;
    hub.list_names_only();
    let machine = Machine::with(&hub);
    assert_same(&machine.folder("hf://org/name").await.unwrap());
    let blobs = names(&machine.path(".cache/huggingface/hub/models--org--name/blobs"));
    assert!(small_model().iter().any(|(_, content)| blobs.contains(&sha256(content))));
}

#[tokio::test]
async fn a_list_that_leads_outside_brings_nothing() {
    for id in BOTH {
        let hub = StandIn::start().await;
        let mut files = small_model();
        files.push(("../../../.ssh/config.json", Vec::new()));
        hub.publish("org/name", &files);
        let machine = Machine::with(&hub);
        let text = machine.refusal(id, &hub.url()).await;
        insta::allow_duplicates! {
            insta::assert_snapshot!(text, @"`org/name` lists a file `../../../.ssh/config.json`, which could lie outside its folder (hint: nothing was downloaded; do not trust this model)");
        }
        assert!(names(&machine.path("")).is_empty());
    }
}

#[tokio::test]
async fn weights_are_not_fetched_for_a_model_that_cannot_be_computed() {
    fn refuse(folder: &Path) -> Result<()> {
        assert!(folder.join("config.json").exists());
        Err(Error::unsupported("`model_type` is `mamba`, which is not computed here"))
    }
    for id in BOTH {
        let hub = published().await;
        let mut machine = Machine::with(&hub);
        machine.before_weights = Some(refuse);
        assert_eq!(machine.folder(id).await.err().unwrap().code, ErrorCode::Unsupported);
        assert!(fetches(&hub, WEIGHTS).is_empty());
    }
}
