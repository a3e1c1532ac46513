//! The grammar as Markdown: the tables of `docs/configuration.md`.

use std::fmt::Write as _;

use super::{Effect, Key, Kind, Need, ROOT, all};

/// A table for every mapping of the YAML, with every key's type, default, generations and meaning.
#[must_use]
pub fn reference() -> String {
    let mut page = String::new();
    for grammar in all() {
        let title = if grammar.name == ROOT.name { "Top level".to_owned() } else { format!("`{}`", grammar.name) };
        let _ = write!(page, "### {title}\n\n{}\n\n", grammar.about);
        page.push_str("| Key | Type | Default | Generations | Meaning |\n| --- | --- | --- | --- | --- |\n");
        for key in grammar.keys {
            let _ = writeln!(
                page,
                "| `{}` | {} | {} | {} | {}{} |",
                key.name,
                type_of(key.kind),
                default_of(key),
                key.since,
                key.meaning,
                effect_of(key.effect),
            );
        }
        page.push('\n');
    }
    page
}

fn type_of(kind: Kind) -> String {
    match kind {
        Kind::Text => "text".to_owned(),
        Kind::Flag => "true or false".to_owned(),
        Kind::Whole(low, high) if high < i64::from(u32::MAX) => format!("whole number, {low} to {high}"),
        Kind::Whole(low, _) => format!("whole number, {low} or more"),
        Kind::Number(limits) => format!("number, {limits}"),
        Kind::Seconds(limits) if limits.low_counts => "seconds, 0 or more".to_owned(),
        Kind::Seconds(_) => "seconds, above 0".to_owned(),
        Kind::Words(words) => words.iter().map(|word| format!("`{word}`")).collect::<Vec<_>>().join(", "),
        Kind::Texts => "mapping of texts".to_owned(),
        Kind::Section(grammar) => format!("`{}` below", grammar.name),
        Kind::Sections(grammar) => format!("list of `{}` below", grammar.name.replace("[]", "")),
        Kind::Args => "`args` of its kind, below".to_owned(),
        Kind::Anything => "anything".to_owned(),
        Kind::Other { told, .. } => told.to_owned(),
    }
}

fn default_of(key: &Key) -> String {
    match key.need {
        Need::Required => "required".to_owned(),
        Need::Default("") => "empty".to_owned(),
        Need::Default(default) => format!("`{default}`"),
        Need::Optional => String::new(),
    }
}

fn effect_of(effect: Effect) -> String {
    match effect {
        Effect::Works => String::new(),
        Effect::Inert => ". *No effect here*".to_owned(),
        Effect::Refused(which) => format!(". *Not available yet: {which}*"),
    }
}
