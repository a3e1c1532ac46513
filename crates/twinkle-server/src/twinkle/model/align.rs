//! Numbers per example, as clients send them, to numbers per position.
//!
//! For each example there is one number for all its learned positions, or a list: as long as there are learned positions
//! (what a sampler returns), or at least as long as a row of the answer (what a forward returned). Any other length is a
//! mistake: to cut or fill it would give a token another token's number.

use serde_json::Value;
use twinkle_core::error::{Error, Result};

use super::rows::{Row, Rows};

/// One number for each position of each row; 0 where nothing is learned.
pub(super) fn aligned(name: &str, given: &Value, rows: &Rows) -> Result<Vec<Vec<f32>>> {
    let per_row = per_row(name, given, rows.list.len())?;
    let one = |(index, (given, row)): (usize, (&Value, &Row))| {
        align(given, row, rows)
            .map_err(|error| Error { message: format!("`{name}` of input {index} {}", error.message), ..error })
    };
    per_row.into_iter().zip(&rows.list).enumerate().map(one).collect()
}

/// What was given, row by row. A single number is one for a batch of one: so the answers of this protocol have it.
pub(super) fn per_row<'a>(name: &str, given: &'a Value, rows: usize) -> Result<Vec<&'a Value>> {
    let list: Vec<&Value> = match given {
        Value::Array(list) if rows == 1 && list.len() != 1 && list.iter().all(Value::is_number) => vec![given],
        Value::Array(list) => list.iter().collect(),
        number if number.is_number() && rows == 1 => vec![number],
        _ => return Err(Error::invalid(format!("`{name}` must be a list with something for each input"))),
    };
    if list.len() == rows {
        return Ok(list);
    }
    Err(Error::invalid(format!("`{name}` is for {} inputs, but there are {rows}", list.len())))
}

fn align(given: &Value, row: &Row, rows: &Rows) -> Result<Vec<f32>> {
    let mut numbers = Vec::new();
    flatten(given, &mut numbers)?;
    let learned = row.learned();
    let mut aligned = vec![0.0; row.tokens.len()];
    let places = aligned.iter_mut().zip(row.is_learned()).filter(|(_, learned)| *learned).map(|(place, _)| place);
    match numbers.as_slice() {
        [number] => places.for_each(|place| *place = *number),
        numbers if numbers.len() == learned => places.zip(numbers).for_each(|(place, number)| *place = *number),
        numbers if numbers.len() >= rows.padded() => {
            let start = rows.place(row);
            let own = numbers.get(start..).unwrap_or_default();
            for ((place, learned), number) in aligned.iter_mut().zip(row.is_learned()).zip(own) {
                if learned {
                    *place = *number;
                }
            }
        }
        numbers => {
            return Err(Error::invalid(format!(
                "has {} numbers, but {learned} positions are learned and a row of the batch has {}",
                numbers.len(),
                rows.padded()
            ))
            .hint("send one number, one for each learned position, or one for each position of the padded batch"));
        }
    }
    Ok(aligned)
}

/// All numbers of nested lists, in order.
pub(super) fn flatten(given: &Value, numbers: &mut Vec<f32>) -> Result<()> {
    match given {
        Value::Array(list) => list.iter().try_for_each(|value| flatten(value, numbers)),
        value => {
            let number = value.as_f64().filter(|number| number.is_finite());
            numbers.push(
                number.ok_or_else(|| Error::invalid(format!("holds `{value}`, which is no finite number")))? as f32
            );
            Ok(())
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;
    use twinkle_core::wire::twinkle::InputFeature;

    use super::*;

    /// Two texts of 4 and 2 tokens, of which 2 and 1 are learned.
    fn rows() -> Rows {
        let features: Vec<InputFeature> = serde_json::from_value(json!([
            { "input_ids": [1, 2, 3, 4], "labels": [-100, 3, 4, -100] },
            { "input_ids": [5, 6], "labels": [-100, 7] },
        ]))
        .unwrap();
        Rows::of(features, false, false).unwrap()
    }

    #[test]
    fn a_number_is_for_every_learned_position() {
        let expected = [vec![0.0, 1.5, 1.5, 0.0], vec![0.0, -2.0]];
        assert_eq!(aligned("advantages", &json!([1.5, -2]), &rows()).unwrap(), expected);
        assert_eq!(aligned("advantages", &json!([[1.5], [[-2.0]]]), &rows()).unwrap(), expected);
    }

    #[test]
    fn a_list_is_for_the_learned_positions_or_for_the_padded_row() {
        let expected = [vec![0.0, -1.0, -2.0, 0.0], vec![0.0, -3.0]];
        assert_eq!(aligned("old_logps", &json!([[-1, -2], [-3]]), &rows()).unwrap(), expected);
        let padded = json!([[9, -1, -2, 9], [9, -3, 9, 9]]);
        assert_eq!(aligned("ref_logps", &padded, &rows()).unwrap(), expected);
        let longer = json!([[9, -1, -2, 9, 9], [9, -3, 9, 9, 9]]);
        assert_eq!(aligned("ref_logps", &longer, &rows()).unwrap(), expected);
        let mut left = rows();
        left.pad_left = true;
        let padded = json!([[9, -1, -2, 9], [9, 9, 9, -3]]);
        assert_eq!(aligned("ref_logps", &padded, &left).unwrap(), expected);
    }

    #[test]
    fn a_batch_of_one_may_come_without_its_list() {
        let features = serde_json::from_value(json!([{ "input_ids": [1, 2], "labels": [2, 3] }])).unwrap();
        let one = Rows::of(features, false, false).unwrap();
        assert_eq!(aligned("advantages", &json!(0.5), &one).unwrap(), [vec![0.5, 0.5]]);
        assert_eq!(aligned("old_logps", &json!([-1, -2]), &one).unwrap(), [vec![-1.0, -2.0]]);
        assert_eq!(aligned("old_logps", &json!([-1]), &one).unwrap(), [vec![-1.0, -1.0]]);
    }

    #[test]
    fn another_length_is_a_mistake() {
        for (given, expected) in [
            (json!([[-1, -2, -3], [-3]]), "`old_logps` of input 0 has 3 numbers, but 2 positions are learned"),
            (json!([[-1, -2]]), "`old_logps` is for 1 inputs, but there are 2"),
            (json!([[-1, null], [-3]]), "`old_logps` of input 0 holds `null`"),
            (json!("x"), "must be a list"),
        ] {
            let error = aligned("old_logps", &given, &rows()).unwrap_err().to_string();
            assert!(error.contains(expected), "`{error}` lacks `{expected}`");
        }
    }
}
