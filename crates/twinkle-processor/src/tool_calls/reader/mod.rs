//! Calls of tools out of what a model writes, piece by piece.
//!
//! Nothing is lost: what begins like a call and is none comes as text. From the moment on that a function's name is
//! certain it is a call, also when it is cut off.

mod function;
mod object;
mod parts;
mod python;

use std::sync::Arc;

use self::function::FunctionReader;
use self::object::ObjectReader;
use self::parts::{Parts, Read};
use super::format::{CallFormat, FUNCTION, LIST, PYTHON, TAG_END};
use super::offered::OfferedTools;
use crate::unfinished::unfinished;

pub use parts::CallPart;

/// How a model writes calls, and which tools it was offered.
#[derive(Clone, Debug, Default)]
pub struct Calling {
    /// Its format.
    pub format: CallFormat,
    /// The tools, or none where nobody knows.
    pub tools: Arc<OfferedTools>,
}

/// Reads the calls of one text.
#[derive(Clone, Debug)]
pub struct CallReader {
    calling: Calling,
    place: Place,
    /// What has come and is not read.
    held: String,
    /// The text of the call that is being read.
    written: String,
    /// What is known before any text.
    ready: Parts,
}

#[derive(Clone, Debug)]
enum Place {
    /// Before the first word, where a turn may be a call without a mark.
    Start,
    Text,
    Block(Block),
}

/// A part of a text in which calls are expected.
#[derive(Clone, Debug)]
struct Block {
    kind: Kind,
    inside: Inside,
    /// Whether a call was read to its end, but for what may still belong to it.
    has_whole: bool,
}

/// What a block is begun and ended by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    /// By tags.
    Tag,
    /// By the tags of the function itself.
    Function,
    /// By a mark and the end of a list.
    List,
    /// By Llama's mark for code, and nothing.
    Python,
    /// By nothing: a turn that has nothing but calls.
    Bare,
}

#[derive(Clone, Debug)]
enum Inside {
    /// Before a call.
    Before,
    Object(Box<ObjectReader>),
    Function(Box<FunctionReader>),
    /// In Llama's code, which is read when it is complete.
    Python,
    /// Behind the last call, in what is no call but was written as a part of one.
    Behind,
}

impl Kind {
    /// What this mark begins.
    fn of(mark: &str) -> Self {
        match mark {
            LIST => Self::List,
            PYTHON => Self::Python,
            FUNCTION => Self::Function,
            _ => Self::Tag,
        }
    }

    /// The text that ends it, where it has one.
    fn close(self) -> Option<&'static str> {
        (self == Self::Tag).then_some(TAG_END)
    }

    /// Whether more calls may follow the first.
    const fn may_go_on(self) -> bool {
        matches!(self, Self::Tag | Self::List | Self::Bare)
    }

    /// Whether functions may be written with tags.
    const fn has_functions(self) -> bool {
        matches!(self, Self::Tag | Self::Function)
    }
}

impl Block {
    const fn new(kind: Kind) -> Self {
        Self { kind, inside: Inside::Before, has_whole: false }
    }

    fn is_told(&self) -> bool {
        match &self.inside {
            Inside::Object(object) => object.is_told(),
            Inside::Function(function) => function.is_told(),
            Inside::Before | Inside::Python | Inside::Behind => false,
        }
    }
}

impl CallReader {
    /// Of a text without a letter.
    #[must_use]
    pub fn new(calling: Calling) -> Self {
        let place = if calling.format == CallFormat::Bare { Place::Start } else { Place::Text };
        Self { calling, place, held: String::new(), written: String::new(), ready: Parts::default() }
    }

    /// Of a text that goes on behind [`CallFormat::beginning_of_call`].
    #[must_use]
    pub fn inside_call(calling: Calling, name: &str) -> Self {
        let format = calling.format;
        let mut reader = Self { written: format.beginning_of_call(name), ..Self::new(calling) };
        let object = || Inside::Object(Box::new(ObjectReader::of(name)));
        let (kind, inside) = match format {
            CallFormat::Tagged => (Kind::Tag, object()),
            CallFormat::Functions => (Kind::Tag, Inside::Function(Box::new(FunctionReader::of(name)))),
            CallFormat::Bare => (Kind::Bare, object()),
            CallFormat::Listed => (Kind::List, object()),
        };
        reader.place = Place::Block(Block { inside, ..Block::new(kind) });
        reader.ready.name(name);
        reader
    }

    /// What is certain after this piece of text.
    pub fn push(&mut self, piece: &str) -> Vec<CallPart> {
        self.held.push_str(piece);
        let mut parts = std::mem::take(&mut self.ready);
        while self.step(false, &mut parts) {}
        parts.0
    }

    /// What was held back, at the end.
    pub fn finish(&mut self) -> Vec<CallPart> {
        let mut parts = std::mem::take(&mut self.ready);
        while self.step(true, &mut parts) {}
        if matches!(self.place, Place::Block(_)) {
            self.end_block(false, &mut parts);
        }
        parts.text(&std::mem::take(&mut self.held));
        parts.0
    }

    /// Reads as far as one mark; whether there may be another.
    fn step(&mut self, is_last: bool, parts: &mut Parts) -> bool {
        match &self.place {
            Place::Start => {
                let begun = self.held.trim_start();
                if begun.is_empty() {
                    return false;
                }
                self.place = if begun.starts_with('{') { Place::Block(Block::new(Kind::Bare)) } else { Place::Text };
                true
            }
            Place::Text => self.text(is_last, parts),
            Place::Block(_) => self.block(is_last, parts),
        }
    }

    fn text(&mut self, is_last: bool, parts: &mut Parts) -> bool {
        let openings = self.calling.format.openings();
        let first = openings.iter().filter_map(|mark| Some((self.held.find(mark)?, *mark))).min_by_key(|(at, _)| *at);
        let Some((at, mark)) = first else {
            let open = if is_last { 0 } else { unfinished(&self.held, openings.iter().copied()) };
            let certain: String = self.held.drain(..self.held.len() - open).collect();
            parts.text(&certain);
            return false;
        };
        let said: String = self.held.drain(..at).collect();
        parts.text(&said);
        if mark != FUNCTION {
            self.take(mark.len());
        }
        self.place = Place::Block(Block::new(Kind::of(mark)));
        true
    }

    /// Moves bytes from what is held to the text of the call.
    fn take(&mut self, bytes: usize) {
        self.written.extend(self.held.drain(..bytes));
    }

    fn block(&mut self, is_last: bool, parts: &mut Parts) -> bool {
        let Place::Block(block) = &mut self.place else { return false };
        let close = block.kind.close();
        let closes = close.and_then(|close| Some((self.held.find(close)?, close)));
        let open = close.filter(|_| !is_last).map_or(0, |close| unfinished(&self.held, [close]));
        let end = closes.map_or(self.held.len() - open, |(at, _)| at);
        let text = self.held.get(..end).unwrap_or_default();
        let (tools, before) = (&self.calling.tools, text.len());
        let read = match &mut block.inside {
            Inside::Object(object) => object.read(text, tools, parts),
            Inside::Function(function) => function.read(text, tools, parts),
            Inside::Before => return self.before_call(end, closes.is_some(), is_last, parts),
            Inside::Python | Inside::Behind => Read::On,
        };
        match read {
            Read::Nothing { read } => {
                self.take(read);
                self.no_call(parts);
                true
            }
            Read::Whole { rest } => {
                self.take(before - rest);
                self.end_call(parts);
                true
            }
            Read::On => {
                self.take(end);
                let Some((_, close)) = closes else { return false };
                self.take(close.len());
                self.end_block(true, parts);
                true
            }
        }
    }

    /// Looks for the next call of a block in the first `end` bytes of what is held.
    fn before_call(&mut self, end: usize, closes: bool, is_last: bool, parts: &mut Parts) -> bool {
        let Place::Block(block) = &mut self.place else { return false };
        let text = self.held.get(..end).unwrap_or_default();
        let is_between = |letter: char| letter.is_whitespace() || (block.has_whole && matches!(letter, ',' | ';'));
        let begun = text.trim_start_matches(is_between);
        let space = text.len() - begun.len();
        if begun.starts_with('{') {
            block.inside = Inside::Object(Box::new(ObjectReader::new(block.kind == Kind::Bare)));
        } else if begun.starts_with(FUNCTION) && block.kind.has_functions() {
            block.inside = Inside::Function(Box::new(FunctionReader::new()));
        } else if begun.starts_with('[') && block.kind == Kind::List && !block.has_whole {
            self.take(space + 1);
            return true;
        } else if begun.starts_with(']') && block.kind == Kind::List && block.has_whole {
            self.take(space + 1);
            self.end_block(true, parts);
            return true;
        } else if !closes && (begun.is_empty() || (!is_last && FUNCTION.starts_with(begun))) {
            return false;
        } else if block.kind == Kind::Python {
            block.inside = Inside::Python;
            return true;
        } else if block.kind == Kind::Tag && block.has_whole {
            block.inside = Inside::Behind;
            return true;
        } else {
            self.no_call(parts);
            return true;
        }
        if block.has_whole {
            block.has_whole = false;
            self.take(space);
            parts.end(std::mem::take(&mut self.written));
        } else {
            self.take(space);
        }
        true
    }

    /// A call was read to its last letter.
    fn end_call(&mut self, parts: &mut Parts) {
        let Place::Block(block) = &mut self.place else { return };
        if block.kind.may_go_on() {
            (block.inside, block.has_whole) = (Inside::Before, true);
        } else {
            parts.end(std::mem::take(&mut self.written));
            self.place = Place::Text;
        }
    }

    /// The block is over, with its closing mark or with the text.
    fn end_block(&mut self, is_closed: bool, parts: &mut Parts) {
        let Place::Block(mut block) = std::mem::replace(&mut self.place, Place::Text) else { return };
        if let Inside::Function(function) = &mut block.inside {
            function.end(is_closed, &self.calling.tools, parts);
        }
        let written = std::mem::take(&mut self.written);
        if matches!(block.inside, Inside::Python) {
            let code = written.split_once(PYTHON).map_or(written.as_str(), |(_, code)| code);
            match python::call(code, &self.calling.tools) {
                Some((name, arguments)) => {
                    parts.name(&name);
                    parts.arguments(&arguments);
                    parts.end(written);
                }
                None => parts.text(&written),
            }
        } else if block.has_whole || block.is_told() {
            parts.end(written);
        } else {
            parts.text(&written);
        }
    }

    /// What was taken for a call is text; what follows may have calls.
    fn no_call(&mut self, parts: &mut Parts) {
        let Place::Block(block) = std::mem::replace(&mut self.place, Place::Text) else { return };
        let written = std::mem::take(&mut self.written);
        if block.has_whole {
            parts.end(written);
        } else {
            parts.text(&written);
        }
    }
}

#[cfg(test)]
mod tests;
