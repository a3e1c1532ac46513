//! A YAML file as a tree in which every key and value knows its place.
//!
//! Typed deserialization would stop at the first mistake and lose places below enums; a tree lets the reader report
//! every mistake at once.

use std::fmt;

use serde::de::{Deserialize, Deserializer, MapAccess, SeqAccess, Visitor};
use serde_yaml::Spanned;

use super::diagnostic::{ConfigErrors, Problem};

/// Levels of nesting in a file: several times those of the grammar, and few enough for any stack.
const DEEPEST: usize = 32;

/// A line and a column, both from 1.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Place {
    pub(super) line: u32,
    pub(super) column: u32,
}

/// A value and where it stands.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Node {
    pub(super) place: Place,
    pub(super) value: Value,
}

/// What a node holds.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Value {
    Null,
    Boolean(bool),
    Integer(i64),
    Float(f64),
    Text(String),
    List(Vec<Node>),
    Mapping(Vec<Entry>),
    /// An interpolation that could not be resolved and was reported: whoever reads it says nothing more.
    Failed,
}

/// One `key: value`.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Entry {
    pub(super) key: String,
    pub(super) place: Place,
    pub(super) node: Node,
}

impl Value {
    /// What it is, for a message: "text `abc`", "a list".
    pub(super) fn describe(&self) -> String {
        match self {
            Self::Null => "nothing".to_owned(),
            Self::Boolean(value) => format!("`{value}`"),
            Self::Integer(value) => format!("the number `{value}`"),
            Self::Float(value) => format!("the number `{value:?}`"),
            Self::Text(value) => format!("the text `{}`", shown(value)),
            Self::List(_) => "a list".to_owned(),
            Self::Mapping(_) => "a mapping".to_owned(),
            Self::Failed => "an unresolved value".to_owned(),
        }
    }
}

/// The start of a text on one line, for a message.
fn shown(text: &str) -> String {
    const LONGEST: usize = 60;
    let line: String = text.chars().take(LONGEST).flat_map(char::escape_debug).collect();
    if text.chars().nth(LONGEST).is_some() { format!("{line}…") } else { line }
}

impl Node {
    /// The value below these keys.
    pub(super) fn at(&self, path: &[&str]) -> Option<&Self> {
        path.iter().try_fold(self, |node, key| match &node.value {
            Value::Mapping(entries) => entries.iter().find(|entry| entry.key == **key).map(|entry| &entry.node),
            _ => None,
        })
    }

    /// Whether two values are equal, wherever they stand and in whatever order their keys are.
    pub(super) fn says_the_same(&self, other: &Self) -> bool {
        match (&self.value, &other.value) {
            (Value::List(mine), Value::List(theirs)) => {
                mine.len() == theirs.len() && mine.iter().zip(theirs).all(|(mine, theirs)| mine.says_the_same(theirs))
            }
            (Value::Mapping(mine), Value::Mapping(theirs)) => {
                mine.len() == theirs.len()
                    && mine.iter().all(|mine| {
                        let theirs = theirs.iter().find(|theirs| theirs.key == mine.key);
                        theirs.is_some_and(|theirs| mine.node.says_the_same(&theirs.node))
                    })
            }
            (mine, theirs) => mine == theirs,
        }
    }
}

/// Parses one YAML document; an empty one is an empty mapping.
pub(super) fn parse(file: &str, text: &str) -> Result<Node, ConfigErrors> {
    // A number that is none is one mistake among others: its key reports it, with its place.
    let mut options = serde_yaml::Options::default();
    options.non_finite_float_policy = serde_yaml::NonFiniteFloatPolicy::PassThrough;
    if let Some(budget) = &mut options.budget {
        budget.max_depth = DEEPEST;
    }
    match serde_yaml::from_str_with_options::<Option<Node>>(text, options) {
        Ok(Some(node)) => Ok(node),
        Ok(None) => Ok(Node { place: Place { line: 1, column: 1 }, value: Value::Mapping(Vec::new()) }),
        Err(error) => {
            let place = error.location().map(place_of).unwrap_or_default();
            let message = match error.without_snippet() {
                serde_yaml::Error::DuplicateMappingKey { key: Some(key), .. } => format!("key `{key}` is given twice"),
                // The parser appends its own " at line 3, column 1"; ours stands in front.
                other => {
                    let text = other.to_string();
                    format!("malformed YAML: {}", text.split(" at line ").next().unwrap_or(&text))
                }
            };
            Err(ConfigErrors::new(file, vec![Problem { line: place.line, column: place.column, message, hint: None }]))
        }
    }
}

fn place_of(location: serde_yaml::Location) -> Place {
    let number = |value: u64| u32::try_from(value).unwrap_or(u32::MAX);
    Place { line: number(location.line()), column: number(location.column()) }
}

impl<'de> Deserialize<'de> for Node {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let spanned = Spanned::<Value>::deserialize(deserializer)?;
        Ok(Self { place: place_of(spanned.referenced), value: spanned.value })
    }
}

impl<'de> Deserialize<'de> for Value {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(ValueVisitor)
    }
}

struct ValueVisitor;

impl<'de> Visitor<'de> for ValueVisitor {
    type Value = Value;

    fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("a scalar, a list or a mapping")
    }

    fn visit_unit<E>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_none<E>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_some<D: Deserializer<'de>>(self, deserializer: D) -> Result<Value, D::Error> {
        deserializer.deserialize_any(self)
    }

    fn visit_bool<E>(self, value: bool) -> Result<Value, E> {
        Ok(Value::Boolean(value))
    }

    fn visit_i64<E>(self, value: i64) -> Result<Value, E> {
        Ok(Value::Integer(value))
    }

    fn visit_u64<E>(self, value: u64) -> Result<Value, E> {
        Ok(i64::try_from(value).map_or(Value::Float(value as f64), Value::Integer))
    }

    fn visit_f64<E>(self, value: f64) -> Result<Value, E> {
        Ok(Value::Float(value))
    }

    fn visit_str<E>(self, value: &str) -> Result<Value, E> {
        Ok(Value::Text(value.to_owned()))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut access: A) -> Result<Value, A::Error> {
        let mut items = Vec::new();
        while let Some(item) = access.next_element::<Node>()? {
            items.push(item);
        }
        Ok(Value::List(items))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut access: A) -> Result<Value, A::Error> {
        let mut entries = Vec::new();
        while let Some(key) = access.next_key::<Spanned<String>>()? {
            let node = access.next_value::<Node>()?;
            entries.push(Entry { key: key.value, place: place_of(key.referenced), node });
        }
        Ok(Value::Mapping(entries))
    }
}
