//! Closed lists of words in the YAML.

/// A type whose values are the words of a closed list.
pub(super) trait Choices: Sized {
    /// The words, as they are told to an operator.
    const WORDS: &'static [&'static str];

    /// The value of a word, in whatever case it is written.
    fn of(word: &str) -> Option<Self>;
}

/// Implements [`Choices`] for an enum: the first word of each value is told, the others are accepted silently.
macro_rules! choices {
    ($type:ty { $($variant:ident = $word:literal $(| $alias:literal)*),+ $(,)? }) => {
        impl $crate::config::choices::Choices for $type {
            const WORDS: &'static [&'static str] = &[$($word),+];

            fn of(word: &str) -> Option<Self> {
                $(if [$word $(, $alias)*].iter().any(|known| known.eq_ignore_ascii_case(word)) {
                    return Some(Self::$variant);
                })+
                None
            }
        }
    };
}
pub(super) use choices;
