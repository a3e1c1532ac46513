//! What may still become something: the end of a text that comes in pieces.

/// How many bytes at the end of `text` may be the beginning of one of `wanted`.
pub fn unfinished<'a>(text: &str, wanted: impl IntoIterator<Item = &'a str>) -> usize {
    let longest = |wanted: &str| {
        let most = wanted.len().saturating_sub(1).min(text.len());
        (1..=most).rev().find(|count| text.as_bytes().ends_with(&wanted.as_bytes()[..*count]))
    };
    wanted.into_iter().filter_map(longest).max().unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_longest_beginning_counts_and_a_whole_one_is_none() {
        assert_eq!(unfinished("a <to", ["<tool>", "<t"]), 3);
        assert_eq!(unfinished("a <tool>", ["<tool>"]), 0);
        assert_eq!(unfinished("", ["x"]), 0);
        assert_eq!(unfinished("x", []), 0);
    }
}
