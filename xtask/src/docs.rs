//! `cargo xtask docs`: the documentation as a book.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};

use anyhow::{Context, Result, bail};

use crate::child;
use crate::workspace::Workspace;

/// Check the documentation's links and build it as a book with `mdbook`.
///
/// The book is written to `target/book`. Reference pages are written by tests: `UPDATE_DOCS=1 cargo nextest run
/// --workspace documentation_says` brings all of them up to date.
#[derive(clap::Args)]
pub(crate) struct Options {
    /// Only check that every page is in the table of contents and every link leads somewhere.
    #[arg(long)]
    check: bool,
}

/// Runs `cargo xtask docs`.
pub(crate) fn run(workspace: &Workspace, options: &Options) -> Result<ExitCode> {
    let mistakes = mistakes(workspace.root())?;
    for mistake in &mistakes {
        eprintln!("error: {mistake}");
    }
    if !mistakes.is_empty() {
        return Ok(ExitCode::FAILURE);
    }
    if options.check {
        eprintln!("every page is in the table of contents, every link leads somewhere");
        return Ok(ExitCode::SUCCESS);
    }
    if Command::new("mdbook").arg("--version").output().is_err() {
        bail!(
            "`mdbook` is not installed\nhint: `cargo install mdbook --locked`, or `cargo xtask docs --check` to check only"
        );
    }
    let mut build = Command::new("mdbook");
    build.current_dir(workspace.root()).args(["build", "docs"]);
    if !child::run_to_stderr(&mut build)? {
        bail!("`{}` failed", child::shown(&build));
    }
    eprintln!("open {}", workspace.path("target/book/index.html").display());
    Ok(ExitCode::SUCCESS)
}

/// Pages that the table of contents lacks, and links that lead nowhere.
fn mistakes(root: &Path) -> Result<Vec<String>> {
    let docs = root.join("docs");
    let contents = read(&docs.join("SUMMARY.md"))?;
    let listed: BTreeSet<String> = links(&contents).into_iter().map(|link| link.target).collect();
    let mut mistakes = Vec::new();
    for page in pages(&docs)? {
        let name = page.strip_prefix(&docs).unwrap_or(&page).display().to_string();
        if name != "SUMMARY.md" && !listed.contains(&name) {
            mistakes.push(format!("docs/SUMMARY.md does not list docs/{name}"));
        }
    }
    let fronts = ["README.md", "ARCHITECTURE.md", "CONTRIBUTING.md", "configs/README.md"].map(|name| root.join(name));
    mistakes.extend(unproven(root, &read(&docs.join("features.md"))?));
    for page in pages(&docs)?.into_iter().chain(fronts) {
        let text = read(&page)?;
        let folder = page.parent().unwrap_or(root);
        let shown = page.strip_prefix(root).unwrap_or(&page).display().to_string();
        for link in links(&text).into_iter().filter(Link::is_relative) {
            let (file, anchor) = link.target.split_once('#').unwrap_or((&link.target, ""));
            let target = if file.is_empty() { page.clone() } else { folder.join(file) };
            if !target.exists() {
                mistakes.push(format!("{shown}:{}: there is no `{}`", link.line, link.target));
                continue;
            }
            let is_page = target.extension().is_some_and(|extension| extension == "md");
            if is_page && !anchor.is_empty() && !anchors(&read(&target)?).contains(anchor) {
                mistakes.push(format!("{shown}:{}: `{file}` has no heading `#{anchor}`", link.line));
            }
        }
    }
    Ok(mistakes)
}

/// Proofs of features that are not there: a file, or a name in it after `::`.
fn unproven(root: &Path, page: &str) -> Vec<String> {
    let mut mistakes = Vec::new();
    for (line, text) in prose(page) {
        for proof in text.split('`').skip(1).step_by(2) {
            let (file, name) = proof.split_once("::").unwrap_or((proof, ""));
            if !["crates/", "tests/", "docs/", "python/"].iter().any(|folder| file.starts_with(folder)) {
                continue;
            }
            let text = fs::read_to_string(root.join(file));
            if !text.is_ok_and(|text| text.contains(name)) {
                mistakes.push(format!("docs/features.md:{line}: there is no `{proof}`"));
            }
        }
    }
    mistakes
}

fn read(path: &Path) -> Result<String> {
    fs::read_to_string(path).with_context(|| format!("cannot read `{}`", path.display()))
}

fn pages(docs: &Path) -> Result<Vec<PathBuf>> {
    let mut pages = Vec::new();
    for entry in fs::read_dir(docs).with_context(|| format!("cannot read `{}`", docs.display()))? {
        let path = entry?.path();
        if path.extension().is_some_and(|extension| extension == "md") {
            pages.push(path);
        }
    }
    pages.sort();
    Ok(pages)
}

/// `[text](target)` and the line it stands in.
struct Link {
    line: usize,
    target: String,
}

impl Link {
    fn is_relative(&self) -> bool {
        !self.target.contains("://") && !self.target.starts_with("mailto:")
    }
}

/// Every link outside code.
fn links(text: &str) -> Vec<Link> {
    let mut links = Vec::new();
    for (line, text) in prose(text) {
        // Every other part between backticks is code.
        let outside: String = text.split('`').step_by(2).collect::<Vec<_>>().join("`");
        let mut rest = outside.as_str();
        while let Some((_, after)) = rest.split_once("](") {
            let Some((target, left)) = after.split_once(')') else { break };
            let target = target.split_whitespace().next().unwrap_or_default();
            if !target.is_empty() {
                links.push(Link { line, target: target.to_owned() });
            }
            rest = left;
        }
    }
    links
}

/// The lines outside fenced code, with their numbers.
fn prose(text: &str) -> impl Iterator<Item = (usize, &str)> {
    let mut fenced = false;
    text.lines().enumerate().filter_map(move |(index, line)| {
        if line.trim_start().starts_with("```") {
            fenced = !fenced;
            return None;
        }
        (!fenced).then_some((index + 1, line))
    })
}

/// What headings are called in links: small letters, `-` for spaces, without punctuation.
fn anchors(text: &str) -> BTreeSet<String> {
    let headings = prose(text).map(|(_, line)| line).filter(|line| line.starts_with('#'));
    let anchor = |heading: &str| {
        heading
            .trim_start_matches('#')
            .trim()
            .to_lowercase()
            .chars()
            .filter_map(|letter| match letter {
                ' ' | '-' => Some('-'),
                '_' => Some('_'),
                letter if letter.is_alphanumeric() => Some(letter),
                _ => None,
            })
            .collect()
    };
    headings.map(anchor).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_page_is_listed_and_every_link_leads_somewhere() {
        let mistakes = mistakes(&Workspace::built_from()).unwrap();
        assert!(mistakes.is_empty(), "{}", mistakes.join("\n"));
    }

    #[test]
    fn links_in_code_are_no_links() {
        let text =
            "[a](one.md) and [b](two.md#there)\n```\n[c](three.md)\n```\n`[d](four.md)` [e](five.md \"title\")\n";
        let targets: Vec<String> = links(text).into_iter().map(|link| link.target).collect();
        assert_eq!(targets, ["one.md", "two.md#there", "five.md"]);
    }

    #[test]
    fn a_heading_is_named_as_renderers_name_it() {
        assert_eq!(anchors("## What `fails`, and why\n"), BTreeSet::from(["what-fails-and-why".to_owned()]));
    }
}
