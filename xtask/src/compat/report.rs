//! The page: what works with which release, and the texts of what does not.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;

use serde::Deserialize;

/// What came of one thing a release offers.
#[derive(Clone, Debug, Deserialize)]
pub(super) struct Row {
    /// The table it belongs to.
    pub(super) group: String,
    /// Such as `ServiceClient.close`.
    #[serde(rename = "row")]
    pub(super) name: String,
    /// What came of it.
    pub(super) outcome: Outcome,
    /// Why it does not work.
    pub(super) text: String,
}

/// What can come of a row; the words are those of `tests/python/compat/scenario.py`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
pub(super) enum Outcome {
    #[serde(rename = "works")]
    Works,
    #[serde(rename = "refused")]
    Refused,
    #[serde(rename = "local")]
    Local,
    #[serde(rename = "not driven")]
    NotDriven,
    #[serde(rename = "differs")]
    Differs,
    #[serde(rename = "no scenario")]
    NoScenario,
}

impl Outcome {
    const fn word(self) -> &'static str {
        match self {
            Self::Works => "works",
            Self::Refused => "refused",
            Self::Local => "by the SDK",
            Self::NotDriven => "not driven",
            Self::Differs => "**differs**",
            Self::NoScenario => "**no scenario**",
        }
    }
}

/// What became of an extra field in a request.
#[derive(Clone, Debug, Deserialize)]
pub(super) struct Field {
    /// The route and the object in its body.
    pub(super) place: String,
    /// The field's name, or `any other` for one nobody knows.
    #[serde(rename = "field")]
    pub(super) name: String,
    /// `ignored`, or the text of the refusal.
    pub(super) answer: String,
}

/// Everything that was seen.
#[derive(Debug)]
pub(super) struct Seen {
    /// Releases in their order.
    releases: Vec<(String, BTreeMap<String, Row>)>,
    /// Groups with their rows, both in the order in which they were first met.
    groups: Vec<(String, Vec<String>)>,
    fields: Vec<Field>,
}

/// What is not offered by a release.
const ABSENT: &str = "–";

impl Seen {
    pub(super) fn new(driven: Vec<(String, Vec<Row>)>, fields: Vec<Field>) -> Self {
        let mut groups: Vec<(String, Vec<String>)> = Vec::new();
        // The newest release decides the order; what only older ones have comes behind.
        for row in driven.iter().rev().flat_map(|(_, rows)| rows) {
            let known = groups.iter_mut().find(|(group, _)| *group == row.group);
            match known {
                Some((_, rows)) if !rows.contains(&row.name) => rows.push(row.name.clone()),
                Some(_) => {}
                None => groups.push((row.group.clone(), vec![row.name.clone()])),
            }
        }
        for (_, rows) in &mut groups {
            rows.sort();
        }
        let by_name = |rows: Vec<Row>| rows.into_iter().map(|row| (row.name.clone(), row)).collect();
        let releases = driven.into_iter().map(|(release, rows)| (release, by_name(rows))).collect();
        Self { releases, groups, fields }
    }

    /// What must not be.
    pub(super) fn complaints(&self) -> Vec<String> {
        let wrong = |row: &&Row| matches!(row.outcome, Outcome::Differs | Outcome::NoScenario);
        self.all()
            .filter(|(_, row)| wrong(row))
            .map(|(release, row)| match row.outcome {
                Outcome::NoScenario => format!("`{}` of {release} has no scenario in tests/python/compat", row.name),
                _ => format!("`{}` of {release} differs: {}", row.name, row.text),
            })
            .collect()
    }

    /// What worked according to an earlier page, and does not now.
    pub(super) fn worse_than(&self, page: &str) -> Vec<String> {
        let before = works_in(page);
        self.all()
            .filter(|(release, row)| {
                row.outcome != Outcome::Works && before.contains(&((*release).to_owned(), row.name.clone()))
            })
            .map(|(release, row)| format!("`{}` of {release} worked before: {}", row.name, row.text))
            .collect()
    }

    fn all(&self) -> impl Iterator<Item = (&str, &Row)> {
        self.releases.iter().flat_map(|(release, rows)| rows.values().map(move |row| (release.as_str(), row)))
    }

    /// One line for the terminal.
    pub(super) fn summary(&self) -> String {
        let count = |outcome| self.all().filter(|(_, row)| row.outcome == outcome).count();
        format!(
            "{} releases: {} work, {} refused, {} refused by the SDK, {} not driven, {} differ, {} without a scenario",
            self.releases.len(),
            count(Outcome::Works),
            count(Outcome::Refused),
            count(Outcome::Local),
            count(Outcome::NotDriven),
            count(Outcome::Differs),
            count(Outcome::NoScenario),
        )
    }

    /// Every row with its text, for the terminal.
    pub(super) fn list(&self) -> String {
        self.all().fold(String::new(), |text, (release, row)| {
            text + &format!("{release:8} {:40} {} {}\n", row.name, row.outcome.word(), row.text)
        })
    }

    /// The page.
    pub(super) fn page(&self) -> String {
        let mut page = String::from(INTRODUCTION);
        page += &self.counts();
        for (group, rows) in &self.groups {
            let _ = write!(page, "\n## {group}\n\n| |");
            for (release, _) in &self.releases {
                let _ = write!(page, " {release} |");
            }
            let _ = writeln!(page, "\n| --- |{}", " --- |".repeat(self.releases.len()));
            for name in rows {
                let _ = write!(page, "| `{name}` |");
                for (_, seen) in &self.releases {
                    let word = seen.get(name).map_or(ABSENT, |row| row.outcome.word());
                    let _ = write!(page, " {word} |");
                }
                page.push('\n');
            }
        }
        page += &self.texts();
        page += &self.fields();
        page
    }

    fn counts(&self) -> String {
        let outcomes = [Outcome::Works, Outcome::Refused, Outcome::Local, Outcome::NotDriven];
        let mut table = format!("\n| Release |{}\n", outcomes.map(|one| format!(" {} |", one.word())).concat());
        let _ = writeln!(table, "| --- |{}", " ---: |".repeat(outcomes.len()));
        for (release, rows) in &self.releases {
            let count = |outcome| rows.values().filter(|row| row.outcome == outcome).count();
            let _ = writeln!(table, "| {release} |{}", outcomes.map(|one| format!(" {} |", count(one))).concat());
        }
        table
    }

    /// Each text once, with what it is the answer to.
    fn texts(&self) -> String {
        let mut texts: BTreeMap<(&str, String), BTreeMap<&str, Vec<&str>>> = BTreeMap::new();
        for (release, row) in self.all() {
            if row.outcome != Outcome::Works {
                let text = row.text.replace('|', "\\|");
                texts.entry((row.outcome.word(), text)).or_default().entry(&row.name).or_default().push(release);
            }
        }
        let mut page =
            String::from("\n## What does not work, in its own words\n\n| | Text | Of |\n| --- | --- | --- |\n");
        for ((word, text), rows) in &texts {
            let rows: Vec<String> = rows
                .iter()
                .map(|(row, releases)| {
                    let everywhere = self.releases.iter().filter(|(_, seen)| seen.contains_key(*row)).count();
                    let releases = if releases.len() == everywhere {
                        String::new()
                    } else {
                        format!(" ({})", releases.join(", "))
                    };
                    format!("`{row}`{releases}")
                })
                .collect();
            let _ = writeln!(page, "| {word} | {text} | {} |", rows.join(", "));
        }
        page
    }

    fn fields(&self) -> String {
        let mut page = String::from(FIELDS);
        for Field { place, name, answer } in &self.fields {
            let field = if name == "any other" { name.clone() } else { format!("`{name}`") };
            let _ = writeln!(page, "| `{place}` | {field} | {} |", answer.replace('|', "\\|"));
        }
        page
    }
}

/// The releases and rows that work according to a page.
fn works_in(page: &str) -> BTreeSet<(String, String)> {
    let mut works = BTreeSet::new();
    let mut releases: Vec<&str> = Vec::new();
    for line in page.lines() {
        let Some(cells) = line.strip_prefix('|').and_then(|rest| rest.strip_suffix('|')) else { continue };
        let mut cells = cells.split('|').map(str::trim);
        let first = cells.next().unwrap_or_default();
        if first.is_empty() {
            releases = cells.collect();
        } else if let Some(row) = first.strip_prefix('`').and_then(|name| name.strip_suffix('`')) {
            let rows = releases.iter().zip(cells).filter(|(_, cell)| *cell == Outcome::Works.word());
            works.extend(rows.map(|(release, _)| ((*release).to_owned(), row.to_owned())));
        }
    }
    works
}

const INTRODUCTION: &str = "\
# Compatibility with the Tinker SDK

Written by `cargo xtask compat`: it looks at everything each release offers, drives it with real arguments against a
server with a tiny model, and says what came of it. A name in brackets is an argument that may be left out.

* **works**: the server did what was asked, and the scenario saw it (`tests/python/compat`)
* **refused**: the server says no, at once and in words; the words are below
* **by the SDK**: the SDK itself says no before it asks the server
* **not driven**: needs something that is not on this machine
* **–**: this release does not have it
";

const FIELDS: &str = "
## Fields of requests without an effect

A field that would change a result is either obeyed or refused. What is ignored is listed here: each was sent in a
request that is otherwise right. A field that no release of the SDK knows is `any other`.

| Route | Field | Answer |
| --- | --- | --- |
";

#[cfg(test)]
mod tests {
    use super::*;

    fn row(name: &str, outcome: Outcome, text: &str) -> Row {
        Row { group: "Client".to_owned(), name: name.to_owned(), outcome, text: text.to_owned() }
    }

    fn seen(old: Vec<Row>, new: Vec<Row>) -> Seen {
        Seen::new(vec![("1.0".to_owned(), old), ("2.0".to_owned(), new)], Vec::new())
    }

    #[test]
    fn a_page_holds_every_row_with_its_text_and_what_a_release_lacks() {
        let page = seen(
            vec![row("Client.a", Outcome::Works, "")],
            vec![row("Client.b", Outcome::Refused, "404: no | route"), row("Client.a", Outcome::Works, "")],
        )
        .page();
        assert!(page.contains("| `Client.a` | works | works |\n| `Client.b` | – | refused |\n"), "{page}");
        assert!(page.contains("| refused | 404: no \\| route | `Client.b` |\n"), "{page}");
    }

    #[test]
    fn a_row_that_worked_on_the_page_may_not_fail() {
        let works = || vec![row("Client.a", Outcome::Works, "")];
        let page = seen(works(), works()).page();
        assert_eq!(seen(works(), works()).worse_than(&page), Vec::<String>::new());
        let worse = seen(works(), vec![row("Client.a", Outcome::Refused, "400: no")]).worse_than(&page);
        assert_eq!(worse, ["`Client.a` of 2.0 worked before: 400: no"]);
    }

    #[test]
    fn what_nobody_wrote_a_scenario_for_is_a_complaint() {
        let rows = vec![row("Client.new", Outcome::NoScenario, ""), row("Client.odd", Outcome::Differs, "7, not 8")];
        assert_eq!(
            seen(rows, Vec::new()).complaints(),
            ["`Client.new` of 1.0 has no scenario in tests/python/compat", "`Client.odd` of 1.0 differs: 7, not 8"]
        );
    }

    #[test]
    fn the_page_is_the_same_whatever_the_order_of_rows() {
        let rows = || vec![row("Client.b", Outcome::Works, ""), row("Client.a", Outcome::Local, "no")];
        let reversed = rows().into_iter().rev().collect();
        assert_eq!(seen(rows(), rows()).page(), seen(reversed, rows()).page());
    }
}
