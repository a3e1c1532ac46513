//! Which keys there are, in every generation: what each takes, what it defaults to and what it means.
//!
//! The readers say what a key does; this says what a person or an editor needs to know of it. The JSON Schema and
//! `docs/configuration.md` are written from here, and tests hold both sides together: every key a reader asks for is
//! here, every key here is asked for, every default is the one of the normal form, and every key marked inert is
//! one the reader calls inert.

mod application;
mod device;
mod model;
mod node;
mod reference;
mod sampler;
mod schema;

use super::limits::Limits;

pub use reference::reference;
pub use schema::schema;

/// A mapping of the YAML.
#[derive(Clone, Copy, Debug)]
pub(super) struct Grammar {
    /// What it is called where it is referred to: `queue_config`.
    pub(super) name: &'static str,
    /// What it is for, in a sentence.
    pub(super) about: &'static str,
    pub(super) keys: &'static [Key],
}

/// One key of a mapping.
#[derive(Clone, Copy, Debug)]
pub(super) struct Key {
    pub(super) name: &'static str,
    pub(super) kind: Kind,
    pub(super) need: Need,
    /// What it means, with its unit, as a sentence without a full stop.
    pub(super) meaning: &'static str,
    /// The generations that know it.
    pub(super) since: &'static str,
    pub(super) effect: Effect,
}

/// What a key takes.
#[derive(Clone, Copy, Debug)]
pub(super) enum Kind {
    /// A text.
    Text,
    /// `true` or `false`.
    Flag,
    /// A whole number of at least the first and at most the second.
    Whole(i64, i64),
    /// A number.
    Number(Limits),
    /// A time in seconds.
    Seconds(Limits),
    /// One of these words.
    Words(&'static [&'static str]),
    /// A mapping from names to texts.
    Texts,
    /// A mapping with these keys.
    Section(&'static Grammar),
    /// A list of such mappings.
    Sections(&'static Grammar),
    /// `args`, whose keys depend on what is imported.
    Args,
    /// Anything at all.
    Anything,
    /// Something else: how it is told, its JSON Schema, and an example as YAML.
    Other { told: &'static str, schema: &'static str, example: &'static str },
}

/// Whether a key must be there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Need {
    /// It must.
    Required,
    /// It may be left out, which means this.
    Default(&'static str),
    /// It may be left out, which leaves something unsaid.
    Optional,
}

/// What a key does here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Effect {
    /// What its meaning says.
    Works,
    /// Nothing: it is checked and listed in the log.
    Inert,
    /// It is understood, and any value or these values are refused at start.
    Refused(&'static str),
}

const fn key(name: &'static str, kind: Kind, need: Need, meaning: &'static str) -> Key {
    Key { name, kind, need, meaning, since: "all", effect: Effect::Works }
}

impl Key {
    const fn since(mut self, generations: &'static str) -> Self {
        self.since = generations;
        self
    }

    const fn inert(mut self) -> Self {
        self.effect = Effect::Inert;
        self
    }

    const fn refused(mut self, which: &'static str) -> Self {
        self.effect = Effect::Refused(which);
        self
    }
}

/// The file itself.
pub(super) const ROOT: &Grammar = &node::ROOT;

/// The four kinds of `args`, by import path.
pub(super) const ARGS: [(&str, &Grammar); 4] = [
    ("server", &application::SERVER_ARGS),
    ("model", &model::MODEL_ARGS),
    ("sampler", &sampler::SAMPLER_ARGS),
    ("processor", &application::PROCESSOR_ARGS),
];

/// Every mapping there is, those that hold others before those they hold.
pub(super) fn all() -> Vec<&'static Grammar> {
    let mut found: Vec<&'static Grammar> = vec![ROOT];
    let mut next = 0;
    while let Some(grammar) = found.get(next).copied() {
        next += 1;
        for key in grammar.keys {
            let below: Vec<&'static Grammar> = match key.kind {
                Kind::Section(grammar) | Kind::Sections(grammar) => vec![grammar],
                Kind::Args => ARGS.iter().map(|(_, grammar)| *grammar).collect(),
                _ => Vec::new(),
            };
            for grammar in below {
                if !found.iter().any(|known| known.name == grammar.name) {
                    found.push(grammar);
                }
            }
        }
    }
    found
}

/// The mapping that knows a key, for one that stands in the wrong place.
pub(super) fn home_of(key: &str) -> Option<String> {
    let home = all().into_iter().find(|grammar| grammar.keys.iter().any(|known| known.name == key))?;
    Some(if home.name == ROOT.name { "the top level".to_owned() } else { format!("`{}`", home.name) })
}
