use serde_json::{Map, Value, json};

use super::*;
use crate::data::{DatasetMeta, Room, Source, Table};
use crate::dataset::{Kind, Operation};
use crate::preprocess::preprocessor;

fn settings(value: Value) -> Settings {
    let Value::Object(values) = value else { panic!("an object") };
    let mut given = Arguments::new("`DataLoader`", values);
    let settings = Settings::read(&mut given, None).unwrap();
    given.finish().unwrap();
    settings
}

fn indexed(kind: Kind, rows: &[Value]) -> Dataset {
    let room = Room::new(1 << 20);
    let mut dataset =
        Indexed::new(kind, std::sync::Arc::clone(&room), std::sync::Arc::new(tokio::sync::Semaphore::new(1)));
    let rows = rows.iter().map(|row| Row::parse(&row.to_string()));
    dataset.add("only".to_owned(), Table::collect(&room, rows).unwrap());
    Dataset::Indexed(Box::new(dataset))
}

fn numbers(count: usize) -> Dataset {
    indexed(Kind::Eager, &(0..count).map(|number| json!({"n": number})).collect::<Vec<_>>())
}

fn stream(count: usize) -> Dataset {
    let meta = json!({"data": (0..count).map(|number| json!({"n": number})).collect::<Vec<_>>()});
    let Value::Object(meta) = meta else { panic!("an object") };
    let rows = DatasetMeta::read(meta).unwrap().rows.unwrap();
    let mut dataset = Streamed::new(None);
    dataset.add("only".to_owned(), Source::Memory(rows.into()), None).unwrap();
    Dataset::Streamed(Box::new(dataset))
}

/// The numbers of all batches of a pass.
fn pass(loader: &mut DataLoader, dataset: &mut Dataset) -> Result<Vec<Vec<u64>>> {
    loader.begin(dataset)?;
    let mut batches = Vec::new();
    while let Some(batch) = loader.next(dataset)? {
        let rows: Vec<Value> = serde_json::from_str(batch.get()).unwrap();
        batches.push(rows.iter().map(|row| row["n"].as_u64().unwrap()).collect());
    }
    assert_eq!(loader.next(dataset)?.map(|batch| batch.to_string()), None, "the end stays the end");
    Ok(batches)
}

#[test]
fn a_small_last_batch_is_left_out_though_the_length_counts_it() {
    let mut dataset = numbers(8);
    let mut loader = DataLoader::new(settings(json!({"batch_size": 3})));
    assert_eq!(loader.len(&dataset), Ok(3));
    assert_eq!(pass(&mut loader, &mut dataset).unwrap(), [[0, 1, 2], [3, 4, 5]]);
    assert_eq!(loader.consumed(), 6);
    assert_eq!(pass(&mut loader, &mut dataset).unwrap().len(), 2);
    assert_eq!(loader.consumed(), 12, "over all passes");
}

#[test]
fn a_small_last_batch_comes_where_it_is_large_enough() {
    let mut dataset = numbers(8);
    let mut loader = DataLoader::new(settings(json!({"batch_size": 3, "min_batch_size": 2, "num_workers": 4})));
    assert_eq!(pass(&mut loader, &mut dataset).unwrap(), [vec![0, 1, 2], vec![3, 4, 5], vec![6, 7]]);
    let mut loader = DataLoader::new(settings(json!({"batch_size": 3, "min_batch_size": 1, "drop_last": true})));
    assert_eq!(loader.len(&dataset), Ok(2));
    assert_eq!(pass(&mut loader, &mut dataset).unwrap().len(), 2);
}

#[test]
fn every_pass_is_shuffled_on_its_own_and_the_same_again() {
    let settings = settings(json!({"batch_size": 5, "shuffle": true}));
    let mut dataset = numbers(10);
    let mut loader = DataLoader::new(settings.clone());
    let first = pass(&mut loader, &mut dataset).unwrap();
    assert_eq!(first, [[8, 1, 5, 0, 7], [2, 9, 4, 3, 6]]);
    let second = pass(&mut loader, &mut dataset).unwrap();
    assert_ne!(first, second);
    assert_eq!(pass(&mut DataLoader::new(settings), &mut dataset).unwrap(), first);
}

#[test]
fn a_resumed_loader_goes_on_where_the_other_stopped() {
    for (mut dataset, shuffle) in [(numbers(8), false), (numbers(8), true), (stream(8), false)] {
        let settings = settings(json!({"batch_size": 3, "min_batch_size": 2, "shuffle": shuffle}));
        let mut whole = DataLoader::new(settings.clone());
        let passes: Vec<_> = (0..3).map(|_| pass(&mut whole, &mut dataset).unwrap()).collect();
        // A pass counts three batches of three, the last one too.
        for (consumed, first, batch) in [(3, 0, 1), (9, 1, 0), (12, 1, 1), (18, 2, 0)] {
            let mut resumed = DataLoader::new(settings.clone());
            resumed.resume(consumed);
            assert_eq!(resumed.consumed(), consumed);
            for (number, expected) in passes.iter().enumerate() {
                let expected: &[_] = match number {
                    number if number < first => &[],
                    number if number == first => &expected[batch..],
                    _ => expected,
                };
                assert_eq!(pass(&mut resumed, &mut dataset).unwrap(), expected, "{consumed} {number} {dataset:?}");
            }
        }
    }
}

#[test]
fn rows_that_cannot_be_had_are_replaced_and_only_bad_ones_are_an_error() {
    let good = |number: usize| json!({"n": number, "problem": "p", "solution": "s"});
    let bad = |number: usize| json!({"n": number, "problem": "p", "solution": null});
    let operation = || Operation::Map(preprocessor("CompetitionMathProcessor", Map::new()).unwrap().into(), [].into());
    let lazy = |rows: &[Value]| {
        let mut dataset = indexed(Kind::Lazy, rows);
        let Dataset::Indexed(inside) = &mut dataset else { panic!("indexed") };
        inside.map(operation(), None).unwrap();
        dataset
    };
    let mut dataset = lazy(&[good(0), bad(1), good(2), good(3)]);
    let mut loader = DataLoader::new(settings(json!({"batch_size": 2})));
    // `RandomState(42).permutation(4)` begins with 1, which is bad, and 3.
    assert_eq!(pass(&mut loader, &mut dataset).unwrap(), [[0, 2], [3, 3]]);
    let mut dataset = lazy(&[bad(0), bad(1)]);
    let error = pass(&mut loader, &mut dataset).unwrap_err();
    assert!(error.message.starts_with("2 rows one after another cannot be had; row 1: "), "{error}");
}

#[test]
fn a_stream_has_batches_but_neither_a_length_nor_another_order() {
    let mut dataset = stream(5);
    let mut loader = DataLoader::new(settings(json!({"batch_size": 2})));
    assert_eq!(pass(&mut loader, &mut dataset).unwrap(), [[0, 1], [2, 3]]);
    assert!(loader.len(&dataset).is_err());
    let mut loader = DataLoader::new(settings(json!({"batch_size": 2, "shuffle": true})));
    assert!(loader.begin(&dataset).is_err());
}

#[test]
fn a_batch_must_be_asked_for_after_the_beginning() {
    let mut dataset = numbers(2);
    let error = DataLoader::new(settings(json!({"batch_size": 2}))).next(&mut dataset).unwrap_err();
    assert_eq!(error.to_string(), "nothing is being loaded (hint: call `__iter__` first)");
}
