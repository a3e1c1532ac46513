//! A call as a JSON object: `{"name": .., "arguments": {..}}`, read letter by letter.
//!
//! The arguments are handed on as they are written, from the moment on that the function's name is known. What stands in
//! them is not checked: a model may write arguments that are no JSON, and those who get them must look.

use super::parts::{Parts, Read};
use crate::tool_calls::offered::OfferedTools;

/// Keys under which the function's name may stand.
const NAMES: [&str; 3] = ["name", "tool_name", "function"];
/// Keys under which its arguments may stand.
const ARGUMENTS: [&str; 2] = ["arguments", "parameters"];
/// What else an object has that is a call though no mark says so.
const HARMLESS: [&str; 2] = ["type", "id"];

/// Reads one object.
#[derive(Clone, Debug)]
pub(super) struct ObjectReader {
    place: Place,
    /// Whether no mark says that it is a call: then it must have nothing but the parts of one.
    is_bare: bool,
    key: String,
    role: Role,
    /// The value of `key` as it is written, where it is a name.
    value: String,
    nesting: Nesting,
    name: Option<String>,
    has_arguments: bool,
    /// Arguments that were read before the name.
    waiting: String,
    /// Whether the name was told, so that arguments follow as they come.
    is_told: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Place {
    BeforeObject,
    BeforeKey,
    InKey,
    BehindKey,
    BeforeValue,
    /// In a text, an object or a list.
    InNested,
    /// In a number or a word.
    InWord,
    /// In arguments of a forced call that are no object: everything belongs to them.
    InAnything,
}

/// What a value is to a call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Role {
    Name,
    Arguments,
    Other,
}

/// Where in a nested value the reader is.
#[derive(Clone, Copy, Debug, Default)]
struct Nesting {
    depth: usize,
    in_text: bool,
    is_escaped: bool,
}

impl Nesting {
    /// Whether the value ends with this letter.
    fn ends_with(&mut self, letter: char) -> bool {
        if self.in_text {
            self.in_text = self.is_escaped || letter != '"';
            self.is_escaped = letter == '\\' && !self.is_escaped;
            return !self.in_text && self.depth == 0;
        }
        match letter {
            '"' => self.in_text = true,
            '{' | '[' => self.depth += 1,
            '}' | ']' => self.depth = self.depth.saturating_sub(1),
            _ => {}
        }
        self.depth == 0 && !self.in_text
    }
}

impl ObjectReader {
    /// Before the object's brace.
    pub(super) fn new(is_bare: bool) -> Self {
        Self {
            place: Place::BeforeObject,
            is_bare,
            key: String::new(),
            role: Role::Other,
            value: String::new(),
            nesting: Nesting::default(),
            name: None,
            has_arguments: false,
            waiting: String::new(),
            is_told: false,
        }
    }

    /// Before the arguments of a function that is called in any case, and whose name was told.
    pub(super) fn of(name: &str) -> Self {
        let key = ARGUMENTS[0].to_owned();
        Self { place: Place::BeforeValue, key, name: Some(name.to_owned()), is_told: true, ..Self::new(false) }
    }

    /// Whether the function's name was told.
    pub(super) const fn is_told(&self) -> bool {
        self.is_told
    }

    /// Reads on.
    pub(super) fn read(&mut self, text: &str, tools: &OfferedTools, parts: &mut Parts) -> Read {
        for (at, letter) in text.char_indices() {
            if self.take(letter, tools, parts).is_none() {
                // Once it was told it stays a call, whatever follows the arguments.
                return if self.is_told { Read::Whole { rest: text.len() - at } } else { Read::Nothing { read: at } };
            }
            if self.place == Place::BeforeObject && letter == '}' {
                return Read::Whole { rest: text.len() - at - 1 };
            }
        }
        Read::On
    }

    /// Takes a letter; `None` when it belongs to no call.
    fn take(&mut self, letter: char, tools: &OfferedTools, parts: &mut Parts) -> Option<()> {
        match self.place {
            Place::BeforeObject if letter == '{' => self.place = Place::BeforeKey,
            Place::BeforeKey if letter == ',' => {}
            Place::BeforeKey if letter == '"' => {
                self.key.clear();
                self.nesting = Nesting { in_text: true, ..Nesting::default() };
                self.place = Place::InKey;
            }
            Place::BeforeKey if letter == '}' => {
                self.end_object(parts)?;
                self.place = Place::BeforeObject;
            }
            Place::InKey if self.nesting.ends_with(letter) => self.end_key()?,
            Place::InKey => self.key.push(letter),
            Place::BehindKey if letter == ':' => self.place = Place::BeforeValue,
            Place::BeforeObject | Place::BeforeKey | Place::BehindKey | Place::BeforeValue
                if letter.is_ascii_whitespace() => {}
            Place::BeforeObject | Place::BeforeKey | Place::BehindKey => return None,
            Place::BeforeValue => self.begin_value(letter, parts)?,
            Place::InNested => {
                self.keep(letter, parts);
                if self.nesting.ends_with(letter) {
                    self.end_value(tools, parts)?;
                }
            }
            Place::InWord if matches!(letter, ',' | '}') || letter.is_ascii_whitespace() => {
                self.end_value(tools, parts)?;
                self.take(letter, tools, parts)?;
            }
            Place::InWord | Place::InAnything => self.keep(letter, parts),
        }
        Some(())
    }

    fn end_key(&mut self) -> Option<()> {
        let key = self.key.as_str();
        self.role = if NAMES.contains(&key) {
            Role::Name
        } else if ARGUMENTS.contains(&key) && !self.has_arguments {
            Role::Arguments
        } else if self.is_bare && !HARMLESS.contains(&key) {
            return None;
        } else {
            Role::Other
        };
        self.place = Place::BehindKey;
        Some(())
    }

    fn begin_value(&mut self, letter: char, parts: &mut Parts) -> Option<()> {
        if self.is_told && !self.has_arguments {
            // A forced call: whatever comes are its arguments.
            (self.role, self.has_arguments) = (Role::Arguments, true);
            if letter != '{' {
                self.place = Place::InAnything;
                self.keep(letter, parts);
                return Some(());
            }
        }
        self.place = match (letter, self.role) {
            ('"', _) | ('{', Role::Arguments | Role::Other) | ('[', Role::Other) => Place::InNested,
            ('-' | '0'..='9' | 't' | 'f', Role::Other) | ('n', Role::Arguments | Role::Other) => Place::InWord,
            _ => return None,
        };
        if self.role == Role::Arguments && letter == '{' {
            self.has_arguments = true;
            self.tell(parts);
        }
        self.value.clear();
        self.nesting = Nesting::default();
        self.nesting.ends_with(letter);
        self.keep(letter, parts);
        Some(())
    }

    /// Keeps a letter of a value, or hands it on.
    fn keep(&mut self, letter: char, parts: &mut Parts) {
        match self.role {
            Role::Name => self.value.push(letter),
            Role::Arguments if self.is_told => parts.arguments(letter.encode_utf8(&mut [0; 4])),
            Role::Arguments => self.waiting.push(letter),
            Role::Other => {}
        }
    }

    fn end_value(&mut self, tools: &OfferedTools, parts: &mut Parts) -> Option<()> {
        self.place = Place::BeforeKey;
        match self.role {
            Role::Name => {
                let name: String = serde_json::from_str(&self.value).ok()?;
                if name.is_empty() || (self.is_bare && !tools.may_have(&name)) {
                    return None;
                }
                self.name.get_or_insert(name);
            }
            Role::Arguments if !self.has_arguments => {
                // Not an object: JSON in a text, or nothing.
                let inner: Option<String> = serde_json::from_str(&self.waiting).ok()?;
                self.waiting = inner.filter(|text| !text.trim().is_empty()).unwrap_or_else(|| "{}".to_owned());
                self.has_arguments = true;
            }
            Role::Arguments | Role::Other => {}
        }
        self.tell(parts);
        Some(())
    }

    fn end_object(&mut self, parts: &mut Parts) -> Option<()> {
        if !self.has_arguments {
            if self.is_bare {
                return None;
            }
            self.has_arguments = true;
            "{}".clone_into(&mut self.waiting);
        }
        self.tell(parts);
        self.is_told.then_some(())
    }

    /// Tells the call as soon as there is a name and something to follow it.
    fn tell(&mut self, parts: &mut Parts) {
        let Some(name) = self.name.as_deref().filter(|_| self.has_arguments && !self.is_told) else { return };
        parts.name(name);
        parts.arguments(&self.waiting);
        self.is_told = true;
    }
}
