//! One mapping of the YAML being read; every mistake goes to the [`Report`] and reading goes on.
//!
//! Each getter names its key once: the keys asked for are the known keys, and [`Section::finish`] reports the rest.
//! The getters of single values are in `scalars`.

use super::diagnostic::Report;
use super::grammar;
use super::tree::{Entry, Node, Place, Value};
use crate::error::{nearest, suggestion};

/// A value read from the file, and where it stood.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Located<T> {
    pub(super) value: T,
    pub(super) place: Place,
}

/// A mapping being read.
#[derive(Debug)]
pub(super) struct Section<'a> {
    /// All keys from the top, as `applications[0].args`; empty at the top.
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
            Value::Mapping(entries) => {
                Some(Self { path: String::new(), place: node.place, entries, known: Vec::new(), report })
            }
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
            Value::Failed => return None,
            other => {
                self.report.problem(node.place, format!("`{path}` must be a mapping, got {}", other.describe()));
                return None;
            }
        };
        Some(Self { path, place: node.place, entries, known: Vec::new(), report: self.report })
    }

    pub(super) fn place(&self) -> Place {
        self.place
    }

    pub(super) fn report(&self) -> &'a Report {
        self.report
    }

    pub(super) fn entries(&self) -> &'a [Entry] {
        self.entries
    }

    /// The path of one of its keys.
    pub(super) fn path_of(&self, key: &str) -> String {
        if self.path.is_empty() { key.to_owned() } else { format!("{}.{key}", self.path) }
    }

    /// The section's path with ` in ` before it; empty at the top.
    pub(super) fn suffix(&self) -> String {
        if self.path.is_empty() { String::new() } else { format!(" in `{}`", self.path) }
    }

    /// The raw value of a key; a key with nothing behind it counts as absent.
    pub(super) fn node(&mut self, key: &'static str) -> Option<&'a Node> {
        self.entry(key).map(|entry| &entry.node).filter(|node| node.value != Value::Null)
    }

    /// Whether a key is there with something behind it.
    pub(super) fn has(&mut self, key: &'static str) -> bool {
        self.node(key).is_some()
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

    /// A nested mapping under its name or an older one; both at once must say the same.
    pub(super) fn section_or_alias(&mut self, key: &'static str, alias: &'static str) -> Option<Section<'a>> {
        if let (Some(named), Some(aliased)) = (self.node(key), self.node(alias))
            && !named.says_the_same(aliased)
        {
            self.contradiction(aliased.place, key, alias);
        }
        self.section(key).or_else(|| self.section(alias))
    }

    /// One value under its name or an older one; both at once must say the same.
    pub(super) fn either<T: PartialEq>(
        &mut self,
        key: &'static str,
        older: &'static str,
        read: impl Fn(&mut Self, &'static str) -> Option<Located<T>>,
    ) -> Option<Located<T>> {
        let aliased = read(self, older);
        let named = read(self, key);
        if let (Some(named), Some(aliased)) = (&named, &aliased)
            && named.value != aliased.value
        {
            self.contradiction(aliased.place, key, older);
        }
        named.or(aliased)
    }

    fn contradiction(&self, place: Place, key: &str, older: &str) {
        let message = format!("`{older}` contradicts `{key}`{}", self.suffix());
        self.report.problem_with_hint(place, message, format!("keep `{key}`; `{older}` is its older name"));
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

    /// Reports a missing key, then reads it.
    pub(super) fn required<T>(
        &mut self,
        key: &'static str,
        read: impl FnOnce(&mut Self, &'static str) -> Option<T>,
    ) -> Option<T> {
        if !self.has(key) {
            self.missing(key);
            return None;
        }
        read(self, key)
    }

    /// Reports a missing key.
    pub(super) fn missing(&self, key: &str) {
        self.report.problem(self.place, format!("`{key}` is missing{}", self.suffix()));
    }

    /// A key whose value, whatever it is, changes nothing here.
    pub(super) fn inert(&mut self, key: &'static str, reason: &'static str) {
        if self.has(key) {
            self.report.inert(self.path_of(key), reason);
        }
    }

    /// A key that would change something we cannot do yet.
    pub(super) fn unavailable(&mut self, key: &'static str) {
        if let Some(node) = self.node(key) {
            self.report.unavailable(node.place, format!("`{key}`"));
        }
    }

    /// A key with a value that we cannot do yet.
    pub(super) fn unavailable_value(&mut self, key: &'static str) {
        if let Some(node) = self.node(key) {
            let value = node.scalar_text().unwrap_or_default();
            self.report.unavailable(node.place, format!("`{key}: {value}`"));
        }
    }

    /// Reports every key that nobody asked for.
    pub(super) fn finish(mut self) {
        self.known.sort_unstable();
        self.known.dedup();
        self.report.asked(&self.path, &self.known);
        for entry in self.entries {
            if self.known.contains(&entry.key.as_str()) {
                continue;
            }
            let message = format!("unknown key `{}`{}", entry.key, self.suffix());
            self.report.problem_with_hint(entry.place, message, self.hint_for(&entry.key));
        }
    }

    /// What an unknown key was probably meant to be.
    fn hint_for(&self, key: &str) -> String {
        /// A longer list hides the one that was meant.
        const MOST_LISTED: usize = 16;
        let home = grammar::home_of(key);
        match (nearest(key, self.known.iter().copied()), home) {
            // Spelt right and in the wrong place.
            (None, Some(home)) => format!("`{key}` is a key of {home}"),
            (Some(near), _) if self.known.len() > MOST_LISTED => format!("did you mean `{near}`?"),
            _ => suggestion(key, "keys", &self.known),
        }
    }

    /// Reports a value that is not what its key takes.
    pub(super) fn wrong_type(&self, key: &str, node: &Node, expected: &str) {
        if node.value == Value::Failed {
            return;
        }
        let message = format!("`{key}`{} must be {expected}, got {}", self.suffix(), node.value.describe());
        self.report.problem(node.place, message);
    }
}
