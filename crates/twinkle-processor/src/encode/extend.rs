//! A prompt and what was sampled after it as one example.

use serde_json::Value;
use twinkle_core::error::{Error, Result};
use twinkle_core::wire::twinkle::{IGNORED_LABEL, InputFeature};

/// The prompt with the new tokens behind it, which are what is learned of them.
///
/// Nothing is cut, whatever the template's `max_length`: tokens, labels and logprobs must go on belonging together.
///
/// [`twinkle_core::ErrorCode::InvalidArgument`] when the prompt has labels of another number than tokens.
pub fn extend_feature(prompt: &InputFeature, tokens: &[u32]) -> Result<InputFeature> {
    let mut feature = prompt.clone();
    let length = prompt.input_ids.len();
    let mut labels = match feature.labels.take() {
        None => vec![IGNORED_LABEL; length],
        Some(labels) if labels.len() == length => labels,
        Some(labels) => {
            return Err(Error::invalid(format!("the prompt has {length} tokens and {} labels", labels.len()))
                .hint("leave `labels` out, or send one per token"));
        }
    };
    // From what each position predicts to what each token is, and back.
    if !labels.is_empty() {
        labels.rotate_right(1);
    }
    labels.extend(tokens.iter().map(|token| i64::from(*token)));
    if !labels.is_empty() {
        labels.rotate_left(1);
    }
    feature.labels = Some(labels);
    feature.input_ids.extend(tokens);
    if let Some(mask) = &mut feature.completion_mask {
        mask.resize(length, 0);
        mask.resize(feature.input_ids.len(), 1);
    }
    if let Some(kinds) = feature.extra.get_mut("mm_token_type_ids") {
        pad(kinds, tokens.len());
    }
    feature.renew_fields();
    Ok(feature)
}

/// Adds zeros, for text, to a list or to the only list in a list.
fn pad(kinds: &mut Value, count: usize) {
    let Some(list) = kinds.as_array_mut() else { return };
    if let [Value::Array(row)] = &mut list[..] {
        row.extend(std::iter::repeat_n(Value::from(0), count));
    } else {
        list.extend(std::iter::repeat_n(Value::from(0), count));
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn what_was_sampled_is_learned_and_the_prompt_is_not() {
        let prompt = InputFeature::prompt(vec![1, 2, 3]);
        let first = extend_feature(&prompt, &[7, 8]).unwrap();
        assert_eq!(first.input_ids, [1, 2, 3, 7, 8]);
        assert_eq!(first.labels, Some(vec![-100, -100, 7, 8, -100]));
        assert_eq!((first.length, first.learned()), (Some(5), 2));
        let second = extend_feature(&first, &[9]).unwrap();
        assert_eq!(second.labels, Some(vec![-100, -100, 7, 8, 9, -100]));
    }

    #[test]
    fn a_prompt_without_labels_has_as_many_as_tokens_afterwards() {
        let prompt: InputFeature = serde_json::from_value(json!({"input_ids": [1, 2], "question": "q"})).unwrap();
        let feature = extend_feature(&prompt, &[7]).unwrap();
        assert_eq!(feature.labels, Some(vec![-100, 7, -100]));
        assert_eq!(feature.extra["question"], "q");
    }

    #[test]
    fn other_columns_grow_with_the_tokens() {
        let prompt = json!({"input_ids": [1, 2], "completion_mask": [0, 1], "mm_token_type_ids": [[0, 1]]});
        let prompt: InputFeature = serde_json::from_value(prompt).unwrap();
        let feature = extend_feature(&prompt, &[7, 8]).unwrap();
        assert_eq!(feature.completion_mask, Some(vec![0, 1, 1, 1]));
        assert_eq!(feature.extra["mm_token_type_ids"], json!([[0, 1, 0, 0]]));
    }

    #[test]
    fn labels_of_another_length_are_refused() {
        let prompt = InputFeature { labels: Some(vec![1]), ..InputFeature::prompt(vec![1, 2]) };
        assert_eq!(extend_feature(&prompt, &[7]).unwrap_err().message, "the prompt has 2 tokens and 1 labels");
    }
}
