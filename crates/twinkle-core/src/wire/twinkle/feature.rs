//! A tokenized example.

use serde::de::{Deserializer, Error};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::numbers::{self, Rectangle};
use crate::data::TokenIds;

/// The label of a position that is not learned.
pub const IGNORED_LABEL: i64 = -100;

/// A tokenized example.
///
/// `labels[i]` is the token that position `i` is to predict: they are shifted already and must not be shifted again.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct InputFeature {
    /// The tokens.
    #[serde(deserialize_with = "token_ids")]
    pub input_ids: TokenIds,
    /// Per token what it is to predict, [`IGNORED_LABEL`] where nothing is; for embeddings one number that is 1 where a
    /// group begins.
    #[serde(default, deserialize_with = "numbers::whole_or_null", skip_serializing_if = "Option::is_none")]
    pub labels: Option<Vec<i64>>,
    /// Per token 1, or 0 where the position is padding.
    #[serde(default, deserialize_with = "numbers::whole_or_null", skip_serializing_if = "Option::is_none")]
    pub attention_mask: Option<Vec<i64>>,
    /// Per token its place in its text.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub position_ids: Option<Positions>,
    /// Per token 1 where a policy wrote it.
    #[serde(default, deserialize_with = "numbers::whole_or_null", skip_serializing_if = "Option::is_none")]
    pub completion_mask: Option<Vec<i64>>,
    /// How many tokens there are.
    #[serde(default, deserialize_with = "length", skip_serializing_if = "Option::is_none")]
    pub length: Option<usize>,
    /// Everything else: the conversation it came from and whatever the client wants back.
    #[serde(flatten)]
    pub extra: Map<String, Value>,
}

impl InputFeature {
    /// A sequence of tokens with nothing to learn.
    #[must_use]
    pub fn prompt(input_ids: TokenIds) -> Self {
        let labels = vec![IGNORED_LABEL; input_ids.len()];
        Self::new(input_ids, labels)
    }

    /// Tokens with their labels, which are shifted already.
    #[must_use]
    pub fn new(input_ids: TokenIds, labels: Vec<i64>) -> Self {
        let mut feature = Self { input_ids, labels: Some(labels), ..Self::default() };
        feature.renew_fields();
        feature
    }

    /// Sets the mask, the positions and the length from the tokens: one text without padding.
    pub fn renew_fields(&mut self) {
        let length = self.input_ids.len();
        self.attention_mask = Some(vec![1; length]);
        self.position_ids = Some(Positions::Text((0..length as i64).collect()));
        self.length = Some(length);
    }

    /// How many positions are learned.
    #[must_use]
    pub fn learned(&self) -> usize {
        self.labels.iter().flatten().filter(|label| **label != IGNORED_LABEL).count()
    }
}

/// Where each token stands.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(untagged)]
pub enum Positions {
    /// One number per token.
    Text(Vec<i64>),
    /// Several numbers per token, row by row: the first row is the text's, others are of images and videos.
    Rows(Vec<Vec<i64>>),
}

impl Positions {
    /// The text's own positions.
    #[must_use]
    pub fn text(&self) -> &[i64] {
        match self {
            Self::Text(row) => row,
            Self::Rows(rows) => rows.first().map_or(&[], Vec::as_slice),
        }
    }
}

impl<'de> Deserialize<'de> for Positions {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Ok(match Rectangle::deserialize(deserializer)? {
            Rectangle::Row(row) => Self::Text(row),
            Rectangle::Rows(rows) => Self::Rows(rows),
        })
    }
}

pub(super) fn token_ids<'de, D: Deserializer<'de>>(deserializer: D) -> Result<TokenIds, D::Error> {
    tokens(numbers::whole(deserializer)?)
}

/// Whole numbers as token ids.
pub(super) fn tokens<E: Error>(numbers: Vec<i64>) -> Result<TokenIds, E> {
    let token = |number: i64| u32::try_from(number).map_err(|_| E::custom(format!("`{number}` is not a token id")));
    numbers.into_iter().map(token).collect()
}

pub(super) fn length<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<usize>, D::Error> {
    match numbers::whole_or_null(deserializer)?.as_deref() {
        None => Ok(None),
        Some([length]) => usize::try_from(*length).map(Some).map_err(|_| D::Error::custom("a length below 0")),
        Some(_) => Err(D::Error::custom("a list where one length is expected")),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_feature_comes_back_as_it_was() {
        let value = json!({
            "input_ids": [5, 6], "labels": [6, -100], "attention_mask": [1, 1], "position_ids": [[0, 1], [0, 1], [0, 1]],
            "length": 2, "messages": [{"role": "user", "content": "a"}], "question": null,
        });
        let feature: InputFeature = serde_json::from_value(value.clone()).unwrap();
        assert_eq!(feature.position_ids.as_ref().unwrap().text(), [0, 1]);
        assert_eq!(serde_json::to_value(&feature).unwrap(), value);
    }

    #[test]
    fn arrays_of_a_batch_of_one_are_read() {
        let value =
            json!({"input_ids": [[5, 6]], "labels": [[6, -100]], "attention_mask": [[true, true]], "length": [2]});
        let feature: InputFeature = serde_json::from_value(value).unwrap();
        assert_eq!((feature.input_ids, feature.labels), (vec![5, 6], Some(vec![6, -100])));
        assert_eq!((feature.attention_mask, feature.length), (Some(vec![1, 1]), Some(2)));
    }

    #[test]
    fn a_number_that_is_no_token_is_refused() {
        let error = serde_json::from_value::<InputFeature>(json!({"input_ids": [-1]})).unwrap_err();
        assert!(error.to_string().contains("`-1` is not a token id"));
    }

    #[test]
    fn a_new_feature_has_all_fields() {
        let feature = InputFeature::new(vec![5, 6, 7], vec![6, 7, -100]);
        assert_eq!(feature.learned(), 2);
        let value = serde_json::to_value(&feature).unwrap();
        assert_eq!(value["position_ids"], json!([0, 1, 2]));
        assert_eq!((&value["attention_mask"], &value["length"]), (&json!([1, 1, 1]), &json!(3)));
    }
}
