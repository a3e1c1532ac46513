//! What happens to an example that is too long.

use twinkle_core::data::TokenIds;
use twinkle_core::error::{Error, Result};

use super::spec::{TemplateSpec, Truncation};

/// Tokens with their labels, which are not shifted yet.
pub(super) type Labelled = (TokenIds, Vec<i64>);

/// The example as it is, cut, in pieces, or not at all; tokens and labels have the same length.
pub(super) fn fit((mut tokens, mut labels): Labelled, spec: &TemplateSpec) -> Result<Vec<Labelled>> {
    let length = tokens.len();
    let Some(most) = spec.max_length.filter(|most| length > *most) else { return Ok(vec![(tokens, labels)]) };
    match spec.truncation {
        Truncation::Raise => Err(Error::invalid(format!("input length {length} exceeds max_length {most}"))
            .hint("set `max_length` or `truncation_strategy` (`left`, `right`, `split`, `delete`) of the template")),
        Truncation::Left => {
            tokens.drain(..length - most);
            labels.drain(..length - most);
            Ok(vec![(tokens, labels)])
        }
        Truncation::Right => {
            tokens.truncate(most);
            labels.truncate(most);
            Ok(vec![(tokens, labels)])
        }
        Truncation::Split => {
            let pieces = tokens.chunks(most).zip(labels.chunks(most));
            Ok(pieces.map(|(tokens, labels)| (tokens.to_vec(), labels.to_vec())).collect())
        }
        Truncation::Delete => Ok(Vec::new()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fitted(truncation: Truncation, max_length: Option<usize>) -> Result<Vec<Labelled>> {
        let spec = TemplateSpec { max_length, truncation, ..TemplateSpec::default() };
        fit((vec![1, 2, 3, 4, 5], vec![-100, 2, 3, 4, 5]), &spec)
    }

    #[test]
    fn each_strategy_does_what_its_name_says() {
        let whole = (vec![1, 2, 3, 4, 5], vec![-100, 2, 3, 4, 5]);
        for fits in [None, Some(5)] {
            assert_eq!(fitted(Truncation::Delete, fits).unwrap(), std::slice::from_ref(&whole));
        }
        assert_eq!(fitted(Truncation::Raise, Some(4)).unwrap_err().message, "input length 5 exceeds max_length 4");
        assert_eq!(fitted(Truncation::Left, Some(3)).unwrap(), [(vec![3, 4, 5], vec![3, 4, 5])]);
        assert_eq!(fitted(Truncation::Right, Some(3)).unwrap(), [(vec![1, 2, 3], vec![-100, 2, 3])]);
        assert_eq!(fitted(Truncation::Delete, Some(4)).unwrap(), []);
        let pieces = fitted(Truncation::Split, Some(2)).unwrap();
        assert_eq!(pieces, [(vec![1, 2], vec![-100, 2]), (vec![3, 4], vec![3, 4]), (vec![5], vec![5])]);
    }
}
