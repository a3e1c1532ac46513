//! Objects as the routes use them: made and called by name.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use serde_json::{Value, json};
use tokio::sync::Semaphore;
use twinkle_core::error::{Error, ErrorCode};
use twinkle_core::ids::{SessionId, TenantId};

use super::*;
use crate::data::Places;
use crate::tokenizer::ModelTokenizer;

struct House {
    _root: tempfile::TempDir,
    shared: std::path::PathBuf,
    registry: Arc<Registry>,
    hands: Hands,
    tenant: TenantId,
}

/// A node with one model and a folder of data sets.
fn house() -> House {
    let root = tempfile::tempdir().unwrap();
    let fixtures = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures");
    let (model, shared) = (root.path().join("model"), root.path().join("datasets"));
    fs::create_dir_all(&model).unwrap();
    fs::create_dir_all(&shared).unwrap();
    for name in ["tokenizer.json", "tokenizer_config.json"] {
        fs::copy(fixtures.join(name), model.join(name)).unwrap();
    }
    fs::copy(fixtures.join("templates/smollm2.jinja"), model.join("chat_template.jinja")).unwrap();
    let places = Places {
        shared: vec![shared.clone()],
        own: root.path().join("own"),
        current: root.path().to_owned(),
        hub: None,
    };
    let hands = Hands {
        places: Arc::new(places),
        models: Arc::new(BTreeMap::from([("tiny/model".to_owned(), Arc::new(ModelTokenizer::load(&model).unwrap()))])),
        workers: Arc::new(Semaphore::new(2)),
        long_work: Arc::new(Semaphore::new(1)),
        seed: None,
    };
    let registry = Registry::new(Limits { per_tenant: 20, silence: Duration::from_mins(1) });
    House { _root: root, shared, registry, hands, tenant: TenantId::new("alice") }
}

fn object(value: Value) -> serde_json::Map<String, Value> {
    let Value::Object(object) = value else { panic!("an object") };
    object
}

impl House {
    async fn create(&self, kind: &str, class: &str, arguments: Value) -> Result<String> {
        let session = SessionId::new("s");
        let owner = (&self.tenant, &session);
        create(&self.registry, &self.hands, owner, (kind, class), object(arguments)).await
    }

    async fn answer(&self, name: &str, function: &str, arguments: Value) -> Result<Answered> {
        call(&self.registry, &self.hands, &self.tenant, (name, function), object(arguments)).await
    }

    /// What a function answers; `None` when an iterator is exhausted.
    async fn call(&self, name: &str, function: &str, arguments: Value) -> Result<Option<Value>> {
        match self.answer(name, function, arguments).await? {
            Answered::Value(value) => Ok(Some(serde_json::from_str(value.get()).unwrap())),
            Answered::Exhausted => Ok(None),
        }
    }

    async fn made(&self, kind: &str, class: &str, arguments: Value) -> String {
        self.create(kind, class, arguments).await.unwrap()
    }

    async fn done(&self, name: &str, function: &str, arguments: Value) -> Value {
        self.call(name, function, arguments).await.unwrap().unwrap()
    }

    async fn refused(&self, name: &str, function: &str, arguments: Value) -> Error {
        self.call(name, function, arguments).await.unwrap_err()
    }

    /// All that an iterator gives.
    async fn all(&self, name: &str) -> Vec<Value> {
        assert_eq!(self.done(name, "__iter__", json!({})).await, "ok");
        let mut given = Vec::new();
        while let Some(value) = self.call(name, "__next__", json!({})).await.unwrap() {
            given.push(value);
        }
        assert_eq!(self.call(name, "__next__", json!({})).await.unwrap(), None, "exhausted again and again");
        given
    }

    /// A file with questions about who somebody is.
    fn put_cognition(&self, rows: usize) {
        let row = |number: usize| {
            format!("{{\"query\":\"q{number} {{{{NAME}}}}\",\"response\":\"a{number}\",\"tag\":\"x\"}}\n")
        };
        fs::write(self.shared.join("cognition.jsonl"), (0..rows).map(row).collect::<String>()).unwrap();
    }
}

fn meta(id: &str) -> Value {
    json!(
        json!({"dataset_id": id, "subset_name": "default", "split": "train", "_TWINKLE_TYPE_": "DatasetMeta"})
            .to_string()
    )
}

fn cognition() -> Value {
    meta("cognition.jsonl")
}

#[tokio::test]
async fn conversations_are_mapped_encoded_and_loaded_in_batches() {
    let house = house();
    house.put_cognition(5);
    let dataset = house.made("dataset", "Dataset", json!({"dataset_meta": cognition()})).await;
    let template = json!({"template_func": "Template", "model_id": "ms://tiny/model", "max_length": 256});
    house.done(&dataset, "set_template", template).await;
    let map = json!({
        "preprocess_func": "SelfCognitionProcessor", "dataset_meta": null,
        "init_args": {"model_name": "Bot", "model_author": "Lab"}, "num_proc": 4
    });
    house.done(&dataset, "map", map).await;
    assert_eq!(house.done(&dataset, "__len__", json!({})).await, 5);
    let row = house.done(&dataset, "__getitem__", json!({"idx": -1})).await;
    assert_eq!((&row["tag"], &row["messages"][1]["content"]), (&json!("x"), &json!("q4 Bot")));
    house.done(&dataset, "encode", json!({"add_generation_prompt": false})).await;
    let row = house.done(&dataset, "__getitem__", json!({"idx": 0})).await;
    let length = row["input_ids"].as_array().unwrap().len();
    assert_eq!((row["labels"].as_array().unwrap().len(), &row["length"]), (length, &json!(length)));
    assert_eq!(row["tag"], "x");

    let loader = house.made("dataloader", "DataLoader", json!({"dataset": dataset, "batch_size": 2})).await;
    assert_eq!(house.done(&loader, "__len__", json!({})).await, 3);
    let batches = house.all(&loader).await;
    assert_eq!(batches.iter().map(|batch| batch.as_array().unwrap().len()).collect::<Vec<_>>(), [2, 2]);
    assert_eq!(batches[1][0]["query"], "q2 {{NAME}}");
    assert_eq!(house.done(&loader, "get_state", json!({})).await, json!({"consumed_train_samples": 4}));
    house.done(&loader, "resume_from_checkpoint", json!({"consumed_train_samples": 2, "cur_step": 1})).await;
    assert_eq!(house.all(&loader).await.len(), 1);
    house.done(&loader, "set_processor", json!({"processor_cls": "InputProcessor", "padding_side": "right"})).await;
    let tensors = house.all(&loader).await;
    assert_eq!(tensors[0]["input_ids"].as_array().unwrap().len(), 2);
}

#[tokio::test]
async fn a_lazy_data_set_does_the_same_when_rows_are_taken() {
    let house = house();
    house.put_cognition(4);
    let (lazy, eager) = (
        house.made("dataset", "LazyDataset", json!({"dataset_meta": cognition()})).await,
        house.made("dataset", "Dataset", json!({"dataset_meta": cognition()})).await,
    );
    for dataset in [&lazy, &eager] {
        house.done(dataset, "set_template", json!({"template_func": "Template"})).await;
        house.done(dataset, "map", json!({"preprocess_func": "SelfCognitionProcessor"})).await;
        let long = json!({"filter_func": "LengthFilter", "init_args": {"column": "messages", "min_length": 3}});
        house.done(dataset, "filter", long).await;
        house.done(dataset, "encode", json!({"remove_columns": ["tag"]})).await;
    }
    for index in 0..4 {
        let row = house.done(&lazy, "__getitem__", json!({"idx": index})).await;
        assert_eq!(row, house.done(&eager, "__getitem__", json!({"idx": index})).await);
        assert_eq!(row.get("tag"), None);
    }
    let split = json!({"template_func": "Template", "truncation_strategy": "split"});
    house.done(&lazy, "set_template", split).await;
    assert!(house.refused(&lazy, "encode", json!({})).await.message.contains("cannot split"));
}

#[tokio::test]
async fn a_stream_gives_rows_one_by_one_and_can_be_packed() {
    let house = house();
    house.put_cognition(6);
    let stream = house.made("dataset", "IterableDataset", json!({"dataset_meta": cognition()})).await;
    assert!(house.refused(&stream, "__next__", json!({})).await.to_string().contains("call `__iter__` first"));
    assert_eq!(house.all(&stream).await.len(), 6);
    assert_eq!(house.all(&stream).await[5]["query"], "q5 {{NAME}}");
    assert!(house.refused(&stream, "__len__", json!({})).await.message.contains("no `__len__`"));

    let rows: Vec<Value> = (0..6)
        .map(|_| json!({"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}))
        .collect();
    let given = json!({"dataset_meta": {"data": rows}, "packing_interval": 4, "cyclic": false});
    let packed = house.made("dataset", "IterablePackingDataset", given).await;
    house.done(&packed, "set_template", json!({"template_cls": "Template", "max_length": 8192})).await;
    assert!(house.refused(&packed, "__iter__", json!({})).await.message.contains("not packed"));
    house.done(&packed, "pack_dataset", json!({})).await;
    let packs = house.all(&packed).await;
    assert_eq!(packs.len(), 1, "everything fits into one");
    assert_eq!(packs[0]["length"].as_array().unwrap().len(), 6);
    let total: u64 = packs[0]["length"].as_array().unwrap().iter().map(|length| length.as_u64().unwrap()).sum();
    assert_eq!(packs[0]["input_ids"].as_array().unwrap().len() as u64, total);
}

#[tokio::test]
async fn packed_rows_are_taken_several_at_a_time() {
    let house = house();
    house.put_cognition(5);
    let dataset =
        house.made("dataset", "PackingDataset", json!({"dataset_meta": cognition(), "packing_num_proc": 2})).await;
    house.done(&dataset, "set_template", json!({"template_func": "Template", "max_length": 200})).await;
    house.done(&dataset, "map", json!({"preprocess_func": "SelfCognitionProcessor"})).await;
    assert!(
        house.refused(&dataset, "pack_dataset", json!({})).await.to_string().contains("encode the data set before")
    );
    house.done(&dataset, "encode", json!({})).await;
    assert!(house.refused(&dataset, "__len__", json!({})).await.message.contains("not packed"));
    house.done(&dataset, "pack_dataset", json!({})).await;
    let count = house.done(&dataset, "__len__", json!({})).await.as_u64().unwrap();
    let mut sequences = 0;
    for index in 0..count {
        let pack = house.done(&dataset, "__getitem__", json!({"index": index})).await;
        assert!(pack["input_ids"].as_array().unwrap().len() <= 200);
        sequences += pack["length"].as_array().unwrap().len();
    }
    assert_eq!(sequences, 5);
}

#[tokio::test]
async fn pairs_are_encoded_in_their_place() {
    let house = house();
    let rows = json!([{"prompt": "Hi", "answer_zh": "你好", "answer_en": "Hello"}]);
    let dataset = house.made("dataset", "Dataset", json!({"dataset_meta": {"data": rows}})).await;
    house.done(&dataset, "set_template", json!({"template_func": "Template"})).await;
    house.done(&dataset, "map", json!({"preprocess_func": "EmojiDPOProcessor", "remove_columns": ["prompt"]})).await;
    house.done(&dataset, "encode", json!({})).await;
    let row = house.done(&dataset, "__getitem__", json!({"idx": 0})).await;
    assert!(row["positive"]["input_ids"].is_array() && row["negative"]["labels"].is_array());
    assert_eq!((row.get("prompt"), &row["answer_en"]), (None, &json!("Hello")));
}

#[tokio::test]
async fn parts_are_mapped_by_their_meta_and_mixed() {
    let house = house();
    house.put_cognition(2);
    let sums = json!({"data": [{"problem": "1+1", "solution": "2"}, {"problem": "2+2", "solution": "4"}, {"problem": "x", "solution": "y"}]});
    let dataset = house.made("dataset", "Dataset", json!({"dataset_meta": cognition()})).await;
    house.done(&dataset, "add_dataset", json!({"dataset_meta": sums})).await;
    let unclear = house.refused(&dataset, "map", json!({"preprocess_func": "SelfCognitionProcessor"})).await;
    assert!(unclear.to_string().contains("say which one with `dataset_meta`"), "{unclear}");
    assert!(house.refused(&dataset, "__len__", json!({})).await.to_string().contains("call `mix_dataset` first"));
    let map = |name: &str, meta: Value| json!({"preprocess_func": name, "dataset_meta": meta});
    house.done(&dataset, "map", map("SelfCognitionProcessor", cognition())).await;
    house.done(&dataset, "map", map("CompetitionMathProcessor", sums)).await;
    house.done(&dataset, "mix_dataset", json!({"interleave": true})).await;
    assert_eq!(house.done(&dataset, "__len__", json!({})).await, 4);
    let row = house.done(&dataset, "__getitem__", json!({"idx": 1})).await;
    assert_eq!((&row["messages"][0]["content"], &row["query"]), (&json!("1+1"), &Value::Null));
}

#[tokio::test]
async fn what_is_saved_can_be_read_again_by_its_tenant_alone() {
    let mut house = house();
    house.put_cognition(3);
    let dataset = house.made("dataset", "Dataset", json!({"dataset_meta": cognition()})).await;
    house
        .done(&dataset, "save_as", json!({"output_path": "out/rows.parquet", "format": null, "batch_size": 1000}))
        .await;
    let again = house.made("dataset", "Dataset", json!({"dataset_meta": meta("out/rows.parquet")})).await;
    assert_eq!(
        house.done(&again, "__getitem__", json!({"idx": 2})).await,
        house.done(&dataset, "__getitem__", json!({"idx": 2})).await
    );
    // While rows are taken: nothing is there before the flush.
    house.done(&dataset, "save_as", json!({"output_path": "taken.jsonl", "mode": "training"})).await;
    house.done(&dataset, "__getitem__", json!({"idx": 1})).await;
    assert!(house.create("dataset", "Dataset", json!({"dataset_meta": meta("taken.jsonl")})).await.is_err());
    house.done(&dataset, "flush_save", json!({})).await;
    let taken = house.made("dataset", "Dataset", json!({"dataset_meta": meta("taken.jsonl")})).await;
    assert_eq!(house.done(&taken, "__len__", json!({})).await, 1);
    for path in ["/tmp/x.jsonl", "../x.jsonl"] {
        let error = house.refused(&dataset, "save_as", json!({"output_path": path})).await;
        assert_eq!(error.code, ErrorCode::InvalidArgument);
    }
    house.tenant = TenantId::new("bob");
    assert!(house.create("dataset", "Dataset", json!({"dataset_meta": meta("taken.jsonl")})).await.is_err());
}

#[tokio::test]
async fn another_tenants_object_is_not_there() {
    let mut house = house();
    house.put_cognition(1);
    let dataset = house.made("dataset", "Dataset", json!({"dataset_meta": cognition()})).await;
    house.tenant = TenantId::new("bob");
    assert_eq!(house.refused(&dataset, "__len__", json!({})).await.code, ErrorCode::NotFound);
    let loader = house.create("dataloader", "DataLoader", json!({"dataset": dataset, "batch_size": 1})).await;
    assert_eq!(loader.unwrap_err().code, ErrorCode::NotFound);
}

#[tokio::test]
async fn unknown_names_are_told_with_the_known_ones_and_leave_nothing() {
    let house = house();
    house.put_cognition(1);
    for (kind, class, arguments, told) in [
        ("datset", "Dataset", json!({}), "did you mean `dataset`?"),
        ("dataset", "DataSet", json!({}), "did you mean `Dataset`?"),
        ("dataset", "Dataset", json!({"dataset_meta": cognition(), "num_prco": 2}), "did you mean `num_proc`?"),
        ("dataset", "Dataset", json!({"dataset_meta": cognition(), "streaming": true}), "`IterableDataset` streams"),
        ("dataset", "Dataset", json!({"dataset_meta": meta("nowhere")}), "may be put into"),
        ("dataloader", "DataLoader", json!({"batch_size": 1}), "needs the argument `dataset`"),
        ("weight_loader", "Loader", json!({}), "`load`"),
        ("template", "Template", json!({"model_id": "other/model"}), "known models: `tiny/model`"),
        ("reward", "GSM8KReward", json!({}), "`GSM8KAccuracyReward`"),
    ] {
        let error = house.create(kind, class, arguments).await.unwrap_err().to_string();
        assert!(error.contains(told), "{error}");
    }
    assert_eq!(house.registry.count(), 0);
    let dataset = house.made("dataset", "Dataset", json!({"dataset_meta": cognition()})).await;
    for (function, arguments, told) in [
        ("__getitm__", json!({}), "did you mean `__getitem__`?"),
        ("__getitem__", json!({"idx": 1}), "there is no row 1: the data set has 1 rows"),
        ("__getitem__", json!({"idx": "query"}), "needs the number of a row"),
        ("__iter__", json!({}), "through a `DataLoader`"),
        ("encode", json!({}), "call `set_template`"),
        ("map", json!({"preprocess_func": "ms://someone/plugin"}), "does not run"),
        ("map", json!({"preprocess_func": "AlpacaProcessor", "with_indices": true}), "no argument `with_indices`"),
        ("filter", json!({"filter_func": "Mine"}), "known filters: `LengthFilter`"),
        ("pack_dataset", json!({}), "make a `PackingDataset`"),
        ("cast_column", json!({"column": "query"}), "not decoded"),
        ("cast_column", json!({"column": "image", "decode": false}), "no column `image`"),
        ("map", json!({"preprocess_func": "GSM8KProcessor"}), "row 0: a row has no value in the column `question`"),
    ] {
        let error = house.refused(&dataset, function, arguments).await.to_string();
        assert!(error.contains(told), "{error}");
    }
    assert_eq!(house.done(&dataset, "__getitem__", json!({"idx": 0})).await["query"], "q0 {{NAME}}", "as it was");
}

#[tokio::test]
async fn objects_without_a_state_are_called() {
    let house = house();
    let reward = house.made("reward", "GSM8KAccuracyReward", json!({})).await;
    let trajectory =
        json!({"messages": [{"role": "assistant", "content": "\\boxed{4}"}], "user_data": [["ground_truth", "4"]]});
    assert_eq!(house.done(&reward, "__call__", json!({"trajectories": [trajectory]})).await, json!([1.0]));
    let advantage = house.made("advantage", "GRPOAdvantage", json!({})).await;
    let given = json!({"rewards": [1, 0], "num_generations": 2, "scale": "none"});
    assert_eq!(house.done(&advantage, "__call__", given).await, json!([0.5, -0.5]));
    let preprocessor = house.made("preprocessor", "AlpacaProcessor", json!({})).await;
    let rows = house.done(&preprocessor, "__call__", json!({"rows": [{"instruction": "i", "output": "o"}]})).await;
    assert_eq!(rows[0]["messages"][1]["content"], "o");
    let processor =
        house.made("processor", "InputProcessor", json!({"device_mesh": null, "framework": "transformers"})).await;
    let tensors =
        house.done(&processor, "__call__", json!({"inputs": [{"input_ids": [1]}, {"input_ids": [2, 3]}]})).await;
    assert_eq!(tensors["input_ids"], json!([[1, 0], [2, 3]]));
    let template = house.made("template", "Template", json!({"model_id": "tiny/model"})).await;
    let conversation = json!({"messages": [{"role": "user", "content": "hi"}]});
    let encoded =
        house.done(&template, "encode", json!({"trajectory": conversation, "add_generation_prompt": true})).await;
    let text = house.done(&template, "decode", json!({"token_ids": encoded["input_ids"]})).await;
    assert!(text.as_str().unwrap().ends_with("<|im_start|>assistant\n"), "{text}");
    assert!(house.refused(&reward, "score", json!({})).await.to_string().contains("`__call__`"));
}
