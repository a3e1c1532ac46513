//! Model inputs and training examples.

use std::collections::BTreeMap;

use serde::{Deserialize, Deserializer, Serialize};

use super::super::training::unsupported_chunk;
use super::TensorData;
use crate::data::TokenIds;
use crate::error::{Error, Result};

/// The input of a model, in pieces; neighbouring text pieces are one sequence.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct ModelInput {
    /// The pieces.
    pub chunks: Vec<Chunk>,
}

/// A piece of a model input.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum Chunk {
    /// Tokens.
    EncodedText {
        /// Their ids.
        tokens: TokenIds,
    },
    /// A picture, of which this server only knows that it is one.
    Image,
    /// The place of a picture, of which this server only knows that it is one.
    ImageAssetPointer,
    /// Sound, of which this server only knows that it is sound.
    Dmel,
}

/// One training example.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct Datum {
    /// The model's input.
    pub model_input: ModelInput,
    /// What the loss needs, by name.
    #[serde(default, deserialize_with = "super::null_as_default")]
    pub loss_fn_inputs: BTreeMap<String, TensorData>,
}

impl ModelInput {
    /// An input of text only.
    #[must_use]
    pub fn text(tokens: TokenIds) -> Self {
        Self { chunks: vec![Chunk::EncodedText { tokens }] }
    }

    /// The tokens of all chunks in order; a chunk that is not text is an error.
    pub fn into_tokens(self) -> Result<TokenIds> {
        let mut all = Vec::new();
        for chunk in self.chunks {
            match chunk {
                Chunk::EncodedText { tokens } if all.is_empty() => all = tokens,
                Chunk::EncodedText { tokens } => all.extend(tokens),
                Chunk::Image => return Err(unsupported_chunk("image")),
                Chunk::ImageAssetPointer => return Err(unsupported_chunk("image_asset_pointer")),
                Chunk::Dmel => return Err(unsupported_chunk("dmel")),
            }
        }
        Ok(all)
    }
}

impl<'de> Deserialize<'de> for Chunk {
    /// The kind follows from the fields: SDK 0.16.1 leaves `type` out.
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        use serde::de::{Error as _, IgnoredAny};

        #[derive(Deserialize)]
        struct Fields {
            #[serde(rename = "type")]
            kind: Option<String>,
            tokens: Option<TokenIds>,
            location: Option<IgnoredAny>,
            data: Option<IgnoredAny>,
            dmel: Option<IgnoredAny>,
        }

        let fields = Fields::deserialize(deserializer)?;
        match (fields.kind.as_deref(), fields.tokens) {
            (None | Some("encoded_text"), Some(tokens)) => Ok(Self::EncodedText { tokens }),
            (Some("encoded_text"), None) => Err(D::Error::missing_field("tokens")),
            (Some("image"), _) => Ok(Self::Image),
            (Some("image_asset_pointer"), _) => Ok(Self::ImageAssetPointer),
            (Some("dmel"), _) => Ok(Self::Dmel),
            (Some(other), _) => {
                let error = Error::invalid(format!("unknown chunk type `{other}`"));
                Err(D::Error::custom(error))
            }
            (None, None) if fields.location.is_some() => Ok(Self::ImageAssetPointer),
            (None, None) if fields.data.is_some() => Ok(Self::Image),
            (None, None) if fields.dmel.is_some() => Ok(Self::Dmel),
            (None, None) => Err(D::Error::custom("a chunk has none of `tokens`, `data`, `location`, `dmel`")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tokens(json: &str) -> Result<TokenIds> {
        serde_json::from_str::<ModelInput>(json).unwrap().into_tokens()
    }

    #[test]
    fn chunks_without_type_are_recognised_by_their_fields() {
        assert_eq!(tokens(r#"{"chunks":[{"tokens":[1,2]},{"type":"encoded_text","tokens":[3]}]}"#).unwrap(), [1, 2, 3]);
        for (json, kind) in [
            (r#"{"chunks":[{"data":"AA==","format":"png"}]}"#, "`image`"),
            (r#"{"chunks":[{"location":"x","format":"png"}]}"#, "`image_asset_pointer`"),
            (r#"{"chunks":[{"dmel":"AA=="}]}"#, "`dmel`"),
            (r#"{"chunks":[{"type":"image","data":"AA==","format":"png"}]}"#, "`image`"),
        ] {
            let error = tokens(json).unwrap_err();
            assert!(error.message.contains(kind), "{error}");
        }
    }

    #[test]
    fn broken_chunks_are_refused() {
        for json in [r#"{"chunks":[{}]}"#, r#"{"chunks":[{"type":"text"}]}"#, r#"{"chunks":[{"tokens":[-1]}]}"#, "{}"] {
            assert!(serde_json::from_str::<ModelInput>(json).is_err(), "{json} was accepted");
        }
    }

    #[test]
    fn a_client_writes_the_full_form() {
        let json = serde_json::to_string(&ModelInput::text(vec![7])).unwrap();
        assert_eq!(json, r#"{"chunks":[{"type":"encoded_text","tokens":[7]}]}"#);
    }
}
