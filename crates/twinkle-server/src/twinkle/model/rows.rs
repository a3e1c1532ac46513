//! From tokenized examples to what goes through the network: padding taken off, packed texts taken apart.

use twinkle_core::error::{Error, ErrorCode, Result};
use twinkle_core::wire::twinkle::{IGNORED_LABEL, InputFeature};

/// Most examples of one request.
pub(super) const MOST_ROWS: usize = 16_384;

/// One text: what the network reads, and where its numbers stand in the answer.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Row {
    /// The tokens.
    pub(super) tokens: Vec<u32>,
    /// Per token what it is to predict, or [`IGNORED_LABEL`].
    pub(super) labels: Vec<i64>,
    /// How many positions its row of the answer has before them: padding on the left.
    pub(super) before: usize,
    /// How many positions its row of the answer has, without what shorter rows are filled up with.
    pub(super) length: usize,
}

/// The texts of one request.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Rows {
    /// In the order of the answer: a packed example is as many rows as it has texts.
    pub(super) list: Vec<Row>,
    /// Whether labels were sent.
    pub(super) has_labels: bool,
    /// Whether shorter rows are filled up on the left.
    pub(super) pad_left: bool,
    /// Whether a label is for a whole text.
    pub(super) per_text: bool,
}

impl Row {
    /// Which positions are learned.
    pub(super) fn is_learned(&self) -> impl Iterator<Item = bool> + '_ {
        self.labels.iter().map(|label| *label != IGNORED_LABEL)
    }

    /// How many positions are learned.
    pub(super) fn learned(&self) -> usize {
        self.is_learned().filter(|learned| *learned).count()
    }
}

impl Rows {
    /// Takes features apart. `per_text`: there is one label for a whole text, as embeddings have it.
    pub(super) fn of(features: Vec<InputFeature>, pad_left: bool, per_text: bool) -> Result<Self> {
        if features.is_empty() {
            return Err(Error::invalid("`inputs` is empty").hint("send at least one example"));
        }
        let has_labels = features.iter().any(|feature| feature.labels.is_some());
        let mut rows = Vec::with_capacity(features.len());
        for (index, feature) in features.into_iter().enumerate() {
            let named = |error: Error| Error { message: format!("input {index}: {}", error.message), ..error };
            if feature.input_ids.is_empty() {
                return Err(Error::invalid(format!("input {index} has no tokens")));
            }
            let row = if per_text { whole_text(feature) } else { unpadded(feature) };
            rows.extend(row.map_err(named)?);
            if rows.len() > MOST_ROWS {
                let text = format!("a request holds at most {MOST_ROWS} examples");
                return Err(Error::new(ErrorCode::TooLarge, text).hint("send several smaller requests"));
            }
        }
        Ok(Self { list: rows, has_labels, pad_left, per_text })
    }

    /// Positions of each row of the answer, those that shorter ones are filled up with among them.
    pub(super) fn padded(&self) -> usize {
        self.list.iter().map(|row| row.length).max().unwrap_or_default()
    }

    /// Where a row's first token stands in the answer.
    pub(super) fn place(&self, row: &Row) -> usize {
        if self.pad_left { self.padded() - row.length + row.before } else { row.before }
    }
}

/// The labels of a feature, all of them ignored where there are none.
fn labels(feature: &InputFeature) -> Result<Vec<i64>> {
    let length = feature.input_ids.len();
    let Some(labels) = &feature.labels else { return Ok(vec![IGNORED_LABEL; length]) };
    same_length("labels", labels.len(), length)?;
    if let Some(label) = labels.iter().find(|label| **label < 0 && **label != IGNORED_LABEL) {
        return Err(Error::invalid(format!("`labels` holds {label}, which is neither a token nor {IGNORED_LABEL}")));
    }
    Ok(labels.clone())
}

fn same_length(name: &str, found: usize, expected: usize) -> Result<()> {
    if found == expected {
        return Ok(());
    }
    Err(Error::invalid(format!("`{name}` has {found} numbers, but `input_ids` has {expected}"))
        .hint("labels are shifted by the template already: one number per token, as `encode` returns them"))
}

/// A text without its padding, or the texts that were packed into it.
fn unpadded(feature: InputFeature) -> Result<Vec<Row>> {
    let labels = labels(&feature)?;
    let length = feature.input_ids.len();
    let (start, end) = match &feature.attention_mask {
        None => (0, length),
        Some(mask) => {
            same_length("attention_mask", mask.len(), length)?;
            let start = mask.iter().position(|seen| *seen != 0).unwrap_or(length);
            let end = mask.iter().rposition(|seen| *seen != 0).map_or(start, |last| last + 1);
            if mask.get(start..end).unwrap_or_default().contains(&0) {
                return Err(Error::invalid("`attention_mask` hides tokens between others")
                    .hint("it may only hide padding at the ends"));
            }
            (start, end)
        }
    };
    if start == end {
        return Err(Error::invalid("`attention_mask` hides every token"));
    }
    let tokens = feature.input_ids;
    let cuts = match &feature.position_ids {
        None => Vec::new(),
        Some(positions) => {
            let positions = positions.text();
            same_length("position_ids", positions.len(), length)?;
            let seen = positions.get(start..end).unwrap_or_default();
            // Where a text begins anew; the first begins anyway.
            (1..seen.len())
                .filter(|place| seen[*place] == 0 && seen[place - 1] != 0)
                .map(|place| start + place)
                .collect()
        }
    };
    let part = |from: usize, to: usize| (tokens[from..to].to_vec(), labels[from..to].to_vec());
    if cuts.is_empty() {
        let (tokens, labels) = part(start, end);
        return Ok(vec![Row { tokens, labels, before: start, length }]);
    }
    let begins = std::iter::once(start).chain(cuts.iter().copied());
    let ends = cuts.iter().copied().chain([end]);
    let text = |(from, to): (usize, usize)| {
        let (tokens, labels) = part(from, to);
        Row { tokens, labels, before: 0, length: to - from }
    };
    Ok(begins.zip(ends).map(text).collect())
}

/// A text with one label, which is kept at its last token.
fn whole_text(feature: InputFeature) -> Result<Vec<Row>> {
    let label = match feature.labels.as_deref() {
        None => 0,
        Some([label]) => *label,
        Some(labels) => {
            return Err(Error::invalid(format!("`labels` has {} numbers, but an embedded text has one", labels.len()))
                .hint("1 where a group of anchor, positive and negatives begins, else 0"));
        }
    };
    let bare = InputFeature { labels: None, position_ids: None, ..feature };
    let mut rows = unpadded(bare)?;
    if let Some(last) = rows.first_mut().and_then(|row| row.labels.last_mut()) {
        *last = label;
    }
    Ok(rows)
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn rows(features: Value) -> Result<Rows> {
        let features: Vec<InputFeature> = serde_json::from_value(features).unwrap();
        Rows::of(features, false, false)
    }

    #[test]
    fn padding_is_taken_off_and_has_its_place_in_the_answer() {
        let found = rows(json!([
            { "input_ids": [0, 0, 5, 6], "labels": [-100, -100, 6, 7], "attention_mask": [0, 0, 1, 1] },
            { "input_ids": [8, 9, 3, 0], "labels": [9, 3, -100, -100], "attention_mask": [1, 1, 1, 0] },
        ]))
        .unwrap();
        assert_eq!(found.list[0], Row { tokens: vec![5, 6], labels: vec![6, 7], before: 2, length: 4 });
        assert_eq!(found.list[1], Row { tokens: vec![8, 9, 3], labels: vec![9, 3, -100], before: 0, length: 4 });
        assert_eq!(found.list[1].learned(), 2);
        assert_eq!(found.padded(), 4);
    }

    #[test]
    fn rows_are_filled_up_on_the_side_that_was_asked_for() {
        let features = json!([{ "input_ids": [5] }, { "input_ids": [5, 6, 7] }]);
        let mut found = rows(features).unwrap();
        assert_eq!(found.place(&found.list[0]), 0);
        found.pad_left = true;
        assert_eq!(found.place(&found.list[0]), 2);
        assert!(!found.has_labels);
    }

    #[test]
    fn texts_that_were_packed_are_taken_apart() {
        let found = rows(json!([{
            "input_ids": [1, 2, 3, 4, 5], "labels": [2, -100, 4, 5, -100], "position_ids": [0, 1, 0, 1, 2],
        }]))
        .unwrap();
        assert_eq!(found.list.len(), 2);
        assert_eq!(found.list[0], Row { tokens: vec![1, 2], labels: vec![2, -100], before: 0, length: 2 });
        assert_eq!(found.list[1], Row { tokens: vec![3, 4, 5], labels: vec![4, 5, -100], before: 0, length: 3 });
    }

    #[test]
    fn an_embedded_text_has_one_label() {
        let features =
            |labels: Value| serde_json::from_value(json!([{ "input_ids": [1, 2], "labels": labels }])).unwrap();
        let found = Rows::of(features(json!([1])), false, true).unwrap();
        assert_eq!(found.list[0].labels, [-100, 1]);
        assert!(Rows::of(features(json!([1, 0])), false, true).is_err());
    }

    #[test]
    fn mistakes_are_named() {
        for (features, expected) in [
            (json!([]), "`inputs` is empty"),
            (json!([{ "input_ids": [] }]), "input 0 has no tokens"),
            (json!([{ "input_ids": [1, 2], "labels": [2] }]), "input 0: `labels` has 1 numbers, but `input_ids` has 2"),
            (json!([{ "input_ids": [1], "labels": [-2] }]), "`labels` holds -2"),
            (json!([{ "input_ids": [1, 2, 3], "attention_mask": [1, 0, 1] }]), "hides tokens between others"),
            (json!([{ "input_ids": [1], "attention_mask": [0] }]), "hides every token"),
            (json!([{ "input_ids": [1], "position_ids": [0, 1] }]), "`position_ids` has 2"),
        ] {
            let error = rows(features).unwrap_err().to_string();
            assert!(error.contains(expected), "`{error}` lacks `{expected}`");
        }
    }
}
