//! Typed reading of one mapping of the YAML; every mistake goes to the [`Report`] and reading goes on.
//!
//! Each getter names its key once: the keys asked for are the known keys, and [`Section::finish`] reports the rest.

use std::ops::RangeBounds;

use super::choices::Choices;
use super::diagnostic::Report;
use super::tree::{Entry, Node, Place, Value};
use crate::error::suggestion;

/// A value read from the file, and where it stood.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Located<T> {
    pub(super) value: T,
    pub(super) place: Place,
}

/// A mapping being read.
#[derive(Debug)]
pub(super) struct Section<'a> {
    /// Its own key, for messages; empty at the top.
    name: String,
    /// All keys from the top, for the list of inert keys; empty at the top.
    path: String,
    place: Place,
    entries: &'a [Entry],
    known: Vec<&'static str>,
    report: &'a Report,
}

impl<'a> Section<'a> {
    /// The file's top level; `None` after reporting when it is not a mapping.
    pub(super) fn root(node: &'a Node, report: &'a Report) -> Option<Self> {
        match &node.value {
            Value::Mapping(entries) => Some(Self {
                name: String::new(),
                path: String::new(),
                place: node.place,
                entries,
                known: Vec::new(),
                report,
            }),
            other => {
                report.problem(node.place, format!("the top level must be a mapping, got {}", other.describe()));
                None
            }
        }
    }

    /// An item of a list, as `applications[2]`.
    pub(super) fn item(&self, list: &str, index: usize, node: &'a Node) -> Option<Self> {
        self.nested(&format!("{list}[{index}]"), node)
    }

    fn nested(&self, name: &str, node: &'a Node) -> Option<Self> {
        let path = if self.path.is_empty() { name.to_owned() } else { format!("{}.{name}", self.path) };
        let entries: &[Entry] = match &node.value {
            Value::Mapping(entries) => entries,
            // `args:` with nothing behind it is an empty mapping.
            Value::Null => &[],
            other => {
                self.report.problem(node.place, format!("`{name}` must be a mapping, got {}", other.describe()));
                return None;
            }
        };
        Some(Self { name: name.to_owned(), path, place: node.place, entries, known: Vec::new(), report: self.report })
    }

    pub(super) fn place(&self) -> Place {
        self.place
    }

    pub(super) fn report(&self) -> &'a Report {
        self.report
    }

    /// Gives the section a better name for messages than its key.
    pub(super) fn renamed(mut self, name: String) -> Self {
        self.name = name;
        self
    }

    /// The section's name with ` in ` before it; empty at the top.
    pub(super) fn suffix(&self) -> String {
        if self.name.is_empty() { String::new() } else { format!(" in `{}`", self.name) }
    }

    /// The raw value of a key; a key with nothing behind it counts as absent.
    pub(super) fn node(&mut self, key: &'static str) -> Option<&'a Node> {
        self.entry(key).map(|entry| &entry.node).filter(|node| node.value != Value::Null)
    }

    fn entry(&mut self, key: &'static str) -> Option<&'a Entry> {
        self.known.push(key);
        self.entries.iter().find(|entry| entry.key == key)
    }

    /// A nested mapping; present but empty gives an empty section.
    pub(super) fn section(&mut self, key: &'static str) -> Option<Section<'a>> {
        let entry = self.entry(key)?;
        self.nested(key, &entry.node)
    }

    /// A nested mapping under its name or an older one; both at once is an error.
    pub(super) fn section_or_alias(&mut self, key: &'static str, alias: &'static str) -> Option<Section<'a>> {
        let aliased = self.section(alias);
        let named = self.section(key);
        if let (Some(_), Some(aliased)) = (&named, &aliased) {
            self.report.problem(aliased.place, format!("`{alias}` is an older name of `{key}`, and both are given"));
        }
        named.or(aliased)
    }

    /// A list; empty when absent.
    pub(super) fn list(&mut self, key: &'static str) -> &'a [Node] {
        match self.node(key) {
            None => &[],
            Some(Node { value: Value::List(items), .. }) => items,
            Some(node) => {
                self.wrong_type(key, node, "a list");
                &[]
            }
        }
    }

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
    pub(super) fn required_if_given(&mut self, key: &'static str) -> Option<Located<String>> {
        self.node(key)?;
        self.required_text(key)
    }

    /// The path of a file or a folder, as written.
    pub(super) fn path(&mut self, key: &'static str) -> Option<std::path::PathBuf> {
        self.required_if_given(key).map(|path| path.value.into())
    }

    /// A text that must be there and not be empty.
    pub(super) fn required_text(&mut self, key: &'static str) -> Option<Located<String>> {
        let text = self.required(key, Self::text)?;
        if text.value.trim().is_empty() {
            self.report.problem(text.place, format!("`{key}`{} is empty", self.suffix()));
            return None;
        }
        Some(text)
    }

    /// Reports a missing key, then reads it.
    pub(super) fn required<T>(
        &mut self,
        key: &'static str,
        read: impl FnOnce(&mut Self, &'static str) -> Option<T>,
    ) -> Option<T> {
        if self.node(key).is_none() {
            let message = format!("`{key}` is missing{}", self.suffix());
            self.report.problem(self.place, message);
            return None;
        }
        read(self, key)
    }

    /// A yes or no; `"true"`, `"false"`, 0 and 1 count.
    pub(super) fn boolean(&mut self, key: &'static str) -> Option<Located<bool>> {
        let node = self.node(key)?;
        let value = match &node.value {
            Value::Boolean(value) => Some(*value),
            Value::Integer(number @ (0 | 1)) => Some(*number == 1),
            Value::Text(text) => text.to_lowercase().parse().ok(),
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
        let Some(number) = whole_number(&node.value) else {
            self.wrong_type(key, node, "a whole number");
            return None;
        };
        let value = if range.contains(&number) { T::try_from(number).ok() } else { None };
        if value.is_none() {
            self.wrong_type(key, node, &describe_range(&range));
        }
        value.map(|value| Located { value, place: node.place })
    }

    /// A number of at least `minimum`.
    pub(super) fn number(&mut self, key: &'static str, minimum: f64) -> Option<Located<f64>> {
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
        if number < minimum {
            self.wrong_type(key, node, &format!("at least {minimum}"));
            return None;
        }
        Some(Located { value: number, place: node.place })
    }

    /// One word of a closed list.
    pub(super) fn choice<T: Choices>(&mut self, key: &'static str) -> Option<Located<T>> {
        let text = self.text(key)?;
        let word = text.value.trim();
        if let Some(value) = T::of(word) {
            return Some(Located { value, place: text.place });
        }
        let message = format!("unknown `{key}` `{word}`{}", self.suffix());
        self.report.problem_with_hint(text.place, message, suggestion(word, "values", T::WORDS));
        None
    }

    /// A mapping from text to text, such as environment variables.
    pub(super) fn texts(&mut self, key: &'static str) -> std::collections::BTreeMap<String, String> {
        let mut texts = std::collections::BTreeMap::new();
        let Some(section) = self.section(key) else { return texts };
        for entry in section.entries {
            let text = match &entry.node.value {
                Value::Text(text) => text.clone(),
                Value::Boolean(value) => value.to_string(),
                Value::Integer(value) => value.to_string(),
                Value::Float(value) => value.to_string(),
                other => {
                    let message =
                        format!("`{}`{} must be a text, got {}", entry.key, section.suffix(), other.describe());
                    self.report.problem(entry.node.place, message);
                    continue;
                }
            };
            texts.insert(entry.key.clone(), text);
        }
        texts
    }

    /// A key whose value, whatever it is, changes nothing here.
    pub(super) fn inert(&mut self, key: &'static str, reason: &'static str) {
        if self.node(key).is_some() {
            let path = if self.path.is_empty() { key.to_owned() } else { format!("{}.{key}", self.path) };
            self.report.inert(path, reason);
        }
    }

    /// A key that would change something we cannot do yet.
    pub(super) fn unavailable(&mut self, key: &'static str) {
        if let Some(node) = self.node(key) {
            self.report.unavailable(node.place, format!("`{key}`{}", self.suffix()));
        }
    }

    /// Reports every key that nobody asked for.
    pub(super) fn finish(mut self) {
        self.known.sort_unstable();
        self.known.dedup();
        for entry in self.entries {
            if self.known.contains(&entry.key.as_str()) {
                continue;
            }
            let message = format!("unknown key `{}`{}", entry.key, self.suffix());
            self.report.problem_with_hint(entry.place, message, suggestion(&entry.key, "keys", &self.known));
        }
    }

    fn wrong_type(&self, key: &str, node: &Node, expected: &str) {
        let message = format!("`{key}`{} must be {expected}, got {}", self.suffix(), node.value.describe());
        self.report.problem(node.place, message);
    }
}

fn whole_number(value: &Value) -> Option<i64> {
    match value {
        Value::Integer(number) => Some(*number),
        // Beyond 2^53 a float no longer names one integer.
        Value::Float(number) if number.fract() == 0.0 && number.abs() < 9.0e15 => Some(*number as i64),
        Value::Text(text) => text.trim().parse().ok(),
        _ => None,
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
