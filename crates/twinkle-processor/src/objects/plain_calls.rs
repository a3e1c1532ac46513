//! Objects without a state: preprocessors, processors, rewards, advantages, templates.

use std::sync::Arc;

use serde_json::{Map, Value};
use twinkle_core::error::{Error, Result};

use super::calls::no_function;
use super::{Answered, Arguments, Object, Work};
use crate::advantage::Advantage;
use crate::data::Row;
use crate::encode::Template;
use crate::loader::InputProcessor;
use crate::preprocess::preprocessor;
use crate::reward::Reward;

/// Rows, trajectories or token lists of one call.
const MOST_INPUTS: usize = 65_536;

/// Makes an object; `None` for a type that is not here.
pub(super) fn object(kind: &str, class: &str, mut given: Arguments) -> Result<Option<Object>> {
    Ok(Some(match kind {
        "preprocessor" => Object::Preprocessor(preprocessor(class, given.rest())?.into()),
        "reward" => {
            Object::Reward(Reward::named(class, &mut given).and_then(|reward| given.finish().map(|()| reward))?)
        }
        "advantage" => {
            Object::Advantage(Advantage::named(class, &mut given).and_then(|made| given.finish().map(|()| made))?)
        }
        "processor" => {
            crate::preprocess::class_of(class, "processors", &["InputProcessor"])?;
            let processor = InputProcessor::read(&mut given)?;
            given.finish()?;
            Object::Processor(processor)
        }
        _ => return Ok(None),
    }))
}

/// Reads a call.
pub(super) fn of(object: &Object, function: &str, mut given: Arguments) -> Result<Work> {
    let work: Work = match (object, function) {
        (Object::Preprocessor(preprocess), "__call__") => {
            let preprocess = Arc::clone(preprocess);
            let rows = objects(given.need("rows")?, "rows")?;
            Box::new(move |_| {
                let mapped = rows.iter().map(|row| {
                    let mut row = crate::data::row_of(row)?;
                    let columns = preprocess.columns(&row)?;
                    row.merge(columns);
                    Ok(row)
                });
                Answered::value(&mapped.collect::<Result<Vec<_>>>()?)
            })
        }
        (Object::Processor(processor), "__call__") => {
            let processor = processor.clone();
            let inputs = objects(given.need("inputs")?, "inputs")?;
            let _ = given.rest();
            Box::new(move |_| {
                let rows: Vec<Row> = inputs.iter().map(crate::data::row_of).collect::<Result<_>>()?;
                Answered::value(&processor.collate(&rows)?)
            })
        }
        (Object::Reward(reward), "__call__") => {
            let reward = reward.clone();
            let trajectories = objects(given.need("trajectories")?, "trajectories")?;
            let truths = given.take("ground_truths").map(|truths| objects(truths, "ground_truths")).transpose()?;
            Box::new(move |_| {
                Answered::value(&reward.rewards(&trajectories, truths.as_deref().unwrap_or(&trajectories))?)
            })
        }
        (Object::Advantage(advantage), "__call__") => {
            let advantage = advantage.clone();
            let answer = advantage.call(&mut given)?;
            Box::new(move |_| Answered::value(&answer))
        }
        (Object::Template(template), "encode" | "batch_encode") => of_template(template, function, &mut given)?,
        (Object::Template(template), "decode") => {
            let template = template.clone();
            let tokens: Vec<u32> = serde_json::from_value(given.need("token_ids")?)
                .map_err(|error| Error::invalid(format!("`token_ids` are not token ids: {error}")))?;
            let skip = given.flag("skip_special_tokens")?.unwrap_or(false);
            Box::new(move |_| Answered::value(&template.decode(&tokens, skip)?))
        }
        (Object::Template(_), _) => {
            return Err(no_function("a template", function, &["encode", "batch_encode", "decode"]));
        }
        _ => return Err(no_function("this processor", function, &["__call__"])),
    };
    given.finish()?;
    Ok(work)
}

fn of_template(template: &Template, function: &str, given: &mut Arguments) -> Result<Work> {
    let template = template.clone();
    let is_prompt = given.flag("add_generation_prompt")?.unwrap_or(false);
    if function == "encode" {
        let mut rows = objects(given.need("trajectory")?, "trajectory")?;
        let (Some(Value::Object(row)), true) = (rows.pop(), rows.is_empty()) else {
            return Err(Error::invalid("`trajectory` is not one conversation").hint("call `batch_encode`"));
        };
        return Ok(Box::new(move |_| {
            let mut encoded = template.encode_row(row, is_prompt)?;
            match (encoded.pop(), encoded.is_empty()) {
                (Some(only), true) => Answered::value(&only),
                (None, _) => Answered::nothing(),
                _ => Err(Error::invalid("the conversation becomes several examples").hint("call `batch_encode`")),
            }
        }));
    }
    let rows = objects(given.need("trajectories")?, "trajectories")?;
    Ok(Box::new(move |_| {
        let mut encoded: Vec<Map<String, Value>> = Vec::new();
        for row in rows {
            let Value::Object(row) = row else { continue };
            encoded.extend(template.encode_row(row, is_prompt)?);
        }
        Answered::value(&encoded)
    }))
}

/// A list of objects; one object is a list of one.
fn objects(value: Value, name: &str) -> Result<Vec<Value>> {
    match value {
        Value::Object(_) => Ok(vec![value]),
        Value::Array(list) if list.len() > MOST_INPUTS => {
            Err(Error::invalid(format!("`{name}` has {} entries, more than {MOST_INPUTS}", list.len())))
        }
        Value::Array(list) if list.iter().all(Value::is_object) => Ok(list),
        _ => Err(Error::invalid(format!("`{name}` is not a list of objects"))),
    }
}
