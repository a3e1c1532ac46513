//! Typed getters of single values, as lax as the original's validation: `"8000"` is a whole number, `1` a yes.

use std::collections::BTreeMap;
use std::ops::RangeBounds;
use std::path::PathBuf;

use super::choices::Choices;
use super::limits::Limits;
use super::section::{Located, Section};
use super::tree::{Node, Value};
use crate::ByteSize;
use crate::error::suggestion;

impl Section<'_> {
    /// A text.
    pub(super) fn text(&mut self, key: &'static str) -> Option<Located<String>> {
        let node = self.node(key)?;
        if let Value::Text(text) = &node.value {
            return Some(Located { value: text.clone(), place: node.place });
        }
        self.wrong_type(key, node, "a text");
        None
    }

    /// A text that may be left out but not be empty.
    pub(super) fn filled_text(&mut self, key: &'static str) -> Option<Located<String>> {
        let text = self.text(key)?;
        if text.value.trim().is_empty() {
            self.report().problem(text.place, format!("`{key}`{} is empty", self.suffix()));
            return None;
        }
        Some(text)
    }

    /// A text that must be there and not be empty.
    pub(super) fn required_text(&mut self, key: &'static str) -> Option<Located<String>> {
        self.required(key, Self::filled_text)
    }

    /// A list of texts that are not empty; `None` when it is not there.
    pub(super) fn text_list(&mut self, key: &'static str) -> Option<Vec<Located<String>>> {
        self.node(key)?;
        let mut texts = Vec::new();
        for node in self.list(key) {
            match &node.value {
                Value::Text(text) if !text.trim().is_empty() => {
                    texts.push(Located { value: text.clone(), place: node.place });
                }
                _ => self.wrong_type(key, node, "a list of texts"),
            }
        }
        Some(texts)
    }

    /// A list of words of a closed list; `None` when it is not there.
    pub(super) fn choices<T: Choices>(&mut self, key: &'static str) -> Option<Vec<T>> {
        let mut chosen = Vec::new();
        for word in self.text_list(key)? {
            match T::of(&word.value) {
                Some(value) => chosen.push(value),
                None => self.report().problem_with_hint(
                    word.place,
                    format!("unknown `{}` in `{key}`{}", word.value, self.suffix()),
                    suggestion(&word.value, "values", T::WORDS),
                ),
            }
        }
        Some(chosen)
    }

    /// The path of a file or a folder, as written.
    pub(super) fn path(&mut self, key: &'static str) -> Option<PathBuf> {
        self.filled_text(key).map(|path| path.value.into())
    }

    /// A yes or no; `"true"`, `yes`, `on`, 0, 1 and their like count.
    pub(super) fn boolean(&mut self, key: &'static str) -> Option<Located<bool>> {
        let node = self.node(key)?;
        let value = match &node.value {
            Value::Boolean(value) => Some(*value),
            Value::Integer(number @ (0 | 1)) => Some(*number == 1),
            Value::Text(text) => match text.trim().to_lowercase().as_str() {
                "true" | "yes" | "on" | "t" | "y" | "1" => Some(true),
                "false" | "no" | "off" | "f" | "n" | "0" => Some(false),
                _ => None,
            },
            _ => None,
        };
        if value.is_none() {
            self.wrong_type(key, node, "`true` or `false`");
        }
        value.map(|value| Located { value, place: node.place })
    }

    /// A whole number within `range`; a text of digits and `4.0` count, `4.5` does not.
    pub(super) fn integer<T>(&mut self, key: &'static str, range: impl RangeBounds<i64>) -> Option<Located<T>>
    where
        T: TryFrom<i64>,
    {
        let node = self.node(key)?;
        let Some(number) = node.whole_number() else {
            self.wrong_type(key, node, "a whole number");
            return None;
        };
        let value = if range.contains(&number) { T::try_from(number).ok() } else { None };
        if value.is_none() {
            self.wrong_type(key, node, &describe_range(&range));
        }
        value.map(|value| Located { value, place: node.place })
    }

    /// An amount of memory above 0, in bytes or with a unit: `8 GiB`.
    pub(super) fn bytes(&mut self, key: &'static str) -> Option<u64> {
        let node = self.node(key)?;
        let size = node.scalar_text().and_then(|text| text.parse::<ByteSize>().ok()).filter(|size| size.0 > 0);
        if size.is_none() {
            self.wrong_type(key, node, "an amount of memory such as `8 GiB`");
        }
        size.map(|size| size.0)
    }

    /// A number within `limits`.
    pub(super) fn number(&mut self, key: &'static str, limits: Limits) -> Option<Located<f64>> {
        let node = self.node(key)?;
        let number = match &node.value {
            Value::Integer(number) => Some(*number as f64),
            Value::Float(number) => Some(*number),
            Value::Text(text) => text.trim().parse().ok(),
            _ => None,
        };
        let Some(number) = number.filter(|number: &f64| number.is_finite()) else {
            self.wrong_type(key, node, "a number");
            return None;
        };
        if !limits.contain(number) {
            self.wrong_type(key, node, &limits.to_string());
            return None;
        }
        Some(Located { value: number, place: node.place })
    }

    /// A number within `limits`, put into `target` when it is there.
    pub(super) fn set_number(&mut self, key: &'static str, limits: Limits, target: &mut f64) {
        if let Some(number) = self.number(key, limits) {
            *target = number.value;
        }
    }

    /// One word of a closed list.
    pub(super) fn choice<T: Choices>(&mut self, key: &'static str) -> Option<Located<T>> {
        let text = self.text(key)?;
        let word = text.value.trim();
        if let Some(value) = T::of(word) {
            return Some(Located { value, place: text.place });
        }
        let message = format!("unknown `{key}` `{word}`{}", self.suffix());
        self.report().problem_with_hint(text.place, message, suggestion(word, "values", T::WORDS));
        None
    }

    /// A mapping from text to text, such as environment variables.
    pub(super) fn texts(&mut self, key: &'static str) -> BTreeMap<String, String> {
        let mut texts = BTreeMap::new();
        let Some(section) = self.section(key) else { return texts };
        for entry in section.entries() {
            if let Some(text) = entry.node.scalar_text() {
                texts.insert(entry.key.clone(), text);
            } else {
                section.wrong_type(&entry.key, &entry.node, "a text");
            }
        }
        texts
    }

    /// A number that is checked and changes nothing here.
    pub(super) fn inert_number(&mut self, key: &'static str, limits: Limits, reason: &'static str) {
        if self.number(key, limits).is_some() {
            self.report().inert(self.path_of(key), reason);
        }
    }

    /// A yes or no that is checked and changes nothing here.
    pub(super) fn inert_boolean(&mut self, key: &'static str, reason: &'static str) {
        if self.boolean(key).is_some() {
            self.report().inert(self.path_of(key), reason);
        }
    }
}

impl Node {
    /// The whole number it holds or spells.
    pub(super) fn whole_number(&self) -> Option<i64> {
        // Beyond 2^53 a float no longer names one integer.
        let whole = |number: f64| (number.fract() == 0.0 && number.abs() < 9.0e15).then_some(number as i64);
        match &self.value {
            Value::Integer(number) => Some(*number),
            Value::Float(number) => whole(*number),
            Value::Text(text) => {
                let text = text.trim();
                text.parse().ok().or_else(|| text.parse().ok().and_then(whole))
            }
            _ => None,
        }
    }

    /// What a scalar reads as a text; `None` of a list, a mapping or nothing.
    pub(super) fn scalar_text(&self) -> Option<String> {
        match &self.value {
            Value::Text(text) => Some(text.clone()),
            Value::Boolean(value) => Some(value.to_string()),
            Value::Integer(value) => Some(value.to_string()),
            Value::Float(value) => Some(value.to_string()),
            Value::Null | Value::Failed | Value::List(_) | Value::Mapping(_) => None,
        }
    }
}

fn describe_range(range: &impl RangeBounds<i64>) -> String {
    use std::ops::Bound::{Excluded, Included, Unbounded};
    match (range.start_bound(), range.end_bound()) {
        (Included(low), Included(high)) => format!("between {low} and {high}"),
        (Included(low) | Excluded(low), Unbounded) => format!("at least {low}"),
        _ => "in range".to_owned(),
    }
}
