//! A call as `<function=name><parameter=key>value</parameter></function>`.
//!
//! A parameter's end is the tag before another parameter or the function's end: its value may hold the tag itself. The
//! arguments are told one parameter at a time.

use serde_json::Value;

use super::parts::{Parts, Read};
use crate::tool_calls::format::FUNCTION;
use crate::tool_calls::offered::OfferedTools;
use crate::unfinished::unfinished;

const PARAMETER: &str = "<parameter=";
const PARAMETER_END: &str = "</parameter>";
const FUNCTION_END: &str = "</function>";
/// Most bytes of a name.
const LONGEST_NAME: usize = 256;

/// Reads one function.
#[derive(Clone, Debug)]
pub(super) struct FunctionReader {
    place: Place,
    /// What came and is not used up.
    held: String,
    name: String,
    /// How many parameters were told.
    told: usize,
}

#[derive(Clone, Debug)]
enum Place {
    Name,
    Between,
    Value {
        parameter: String,
        /// How much of what is held has no end of the parameter.
        searched: usize,
    },
}

/// What `<tag=name>` is.
enum Tag {
    Named(String),
    /// Its name is empty or too long.
    Nameless,
    /// It is not complete.
    Open,
}

impl FunctionReader {
    /// Before `<function=`.
    pub(super) const fn new() -> Self {
        Self { place: Place::Name, held: String::new(), name: String::new(), told: 0 }
    }

    /// Before the parameters of a function that is called in any case, and whose name was told.
    pub(super) fn of(name: &str) -> Self {
        Self { place: Place::Between, name: name.to_owned(), ..Self::new() }
    }

    /// Whether the function's name was told.
    pub(super) const fn is_told(&self) -> bool {
        !self.name.is_empty()
    }

    /// Reads on.
    pub(super) fn read(&mut self, text: &str, tools: &OfferedTools, parts: &mut Parts) -> Read {
        self.held.push_str(text);
        loop {
            match &self.place {
                Place::Name => match self.tag(FUNCTION) {
                    Tag::Named(name) => {
                        parts.name(&name);
                        (self.name, self.place) = (name, Place::Between);
                    }
                    Tag::Nameless => {
                        let name = self.held.find('>').unwrap_or(self.held.len()).min(longest(FUNCTION));
                        let behind = self.held.len() - self.held.floor_char_boundary(name);
                        return Read::Nothing { read: text.len().saturating_sub(behind) };
                    }
                    Tag::Open => return Read::On,
                },
                Place::Between => {
                    let space = self.held.len() - self.held.trim_start().len();
                    self.held.drain(..space);
                    if self.held.starts_with(FUNCTION_END) {
                        self.held.drain(..FUNCTION_END.len());
                        self.close(parts);
                        return Read::Whole { rest: self.held.len() };
                    }
                    if self.held.starts_with(PARAMETER) {
                        let parameter = match self.tag(PARAMETER) {
                            Tag::Named(parameter) => parameter,
                            Tag::Nameless => String::new(),
                            Tag::Open => return Read::On,
                        };
                        self.place = Place::Value { parameter, searched: 0 };
                    } else if unfinished(&self.held, [FUNCTION_END, PARAMETER]) == self.held.len() {
                        return Read::On;
                    } else {
                        // Between parameters there is nothing to say.
                        let next = self.held.char_indices().skip(1).find(|(_, letter)| *letter == '<');
                        self.held.drain(..next.map_or(self.held.len(), |(at, _)| at));
                    }
                }
                Place::Value { searched, .. } => match end_of_value(&self.held, *searched) {
                    Ok((value, behind)) => self.tell(value, behind, tools, parts),
                    Err(without) => {
                        if let Place::Value { searched, .. } = &mut self.place {
                            *searched = without;
                        }
                        return Read::On;
                    }
                },
            }
        }
    }

    /// The block around the function ends, or with `false` the whole text.
    pub(super) fn end(&mut self, is_closed: bool, tools: &OfferedTools, parts: &mut Parts) {
        if let Place::Value { .. } = self.place {
            let held = self.held.trim_end();
            let held = held.strip_suffix(FUNCTION_END).unwrap_or(held).trim_end();
            let ended = held.strip_suffix(PARAMETER_END);
            if is_closed || ended.is_some() {
                let value = ended.unwrap_or(held).len();
                self.tell(value, self.held.len(), tools, parts);
            }
        }
        if is_closed && self.is_told() {
            self.close(parts);
        }
    }

    /// Takes `<tag=name>` from the beginning of what is held, if it is complete.
    fn tag(&mut self, tag: &str) -> Tag {
        let end = self.held.find('>').unwrap_or(self.held.len());
        if end > longest(tag) {
            return Tag::Nameless;
        }
        if end == self.held.len() {
            return Tag::Open;
        }
        let name = self.held.get(tag.len()..end).unwrap_or_default().trim().to_owned();
        if name.is_empty() && tag == FUNCTION {
            return Tag::Nameless;
        }
        self.held.drain(..=end);
        Tag::Named(name)
    }

    /// Tells a parameter whose value ends at `value` and whose tag ends at `behind`.
    fn tell(&mut self, value: usize, behind: usize, tools: &OfferedTools, parts: &mut Parts) {
        let Place::Value { parameter, .. } = std::mem::replace(&mut self.place, Place::Between) else { return };
        let taken: String = self.held.drain(..behind).collect();
        let value = taken.get(..value).unwrap_or_default();
        // Chat templates write a value on lines of its own.
        let value = value.strip_prefix('\n').unwrap_or(value);
        let value = value.strip_suffix('\n').unwrap_or(value);
        parts.arguments(if self.told == 0 { "{" } else { "," });
        parts.arguments(&Value::from(parameter.as_str()).to_string());
        parts.arguments(":");
        parts.arguments(&tools.json_of(&self.name, &parameter, value));
        self.told += 1;
    }

    fn close(&self, parts: &mut Parts) {
        parts.arguments(if self.told == 0 { "{}" } else { "}" });
    }
}

/// Most bytes of a tag with its name.
const fn longest(tag: &str) -> usize {
    tag.len() + LONGEST_NAME
}

/// Where a value ends and where its tag does; else how much of the text was looked through.
fn end_of_value(held: &str, from: usize) -> Result<(usize, usize), usize> {
    let mut from = from;
    loop {
        let rest = held.get(from..).unwrap_or_default();
        let Some(offset) = rest.find(PARAMETER_END) else {
            return Err(held.len() - unfinished(rest, [PARAMETER_END]));
        };
        let (value, behind) = (from + offset, from + offset + PARAMETER_END.len());
        let follows = held.get(behind..).unwrap_or_default().trim_start();
        if follows.starts_with(PARAMETER) || follows.starts_with(FUNCTION_END) {
            return Ok((value, behind));
        }
        if unfinished(follows, [PARAMETER, FUNCTION_END]) == follows.len() {
            return Err(value);
        }
        from = behind;
    }
}
