//! `${…}` in the YAML, with `OmegaConf`'s meaning: `${oc.env:NAME}`, `${oc.env:NAME,default}`, `${a.b}` and `${a[0]}`;
//! `\${` is a plain `${`.

use std::cell::Cell;

use super::diagnostic::Report;
use super::tree::{Node, Place, Value};

/// Most values one `${…}` may lead through, so that a circle ends.
const LONGEST_CHAIN: usize = 16;

/// Most bytes and values that interpolation may add to a file: a few lines that name each other twice would otherwise
/// fill the memory.
const MOST_ADDED: usize = 1 << 20;

/// Replaces every `${…}` in the tree; one that names nothing is reported and becomes [`Value::Failed`].
pub(super) fn resolve(root: &mut Node, environment: &dyn Fn(&str) -> Option<String>, report: &Report) {
    let original = root.clone();
    let resolver = Resolver { root: &original, environment, report, left: Cell::new(MOST_ADDED) };
    resolver.visit(root, LONGEST_CHAIN);
}

struct Resolver<'a> {
    root: &'a Node,
    environment: &'a dyn Fn(&str) -> Option<String>,
    report: &'a Report,
    /// What may still be added.
    left: Cell<usize>,
}

impl Resolver<'_> {
    fn visit(&self, node: &mut Node, steps_left: usize) {
        match &mut node.value {
            Value::Text(text) if text.contains("${") => {
                node.value = self.value_of(text, node.place, steps_left).unwrap_or(Value::Failed);
            }
            Value::List(items) => items.iter_mut().for_each(|item| self.visit(item, steps_left)),
            Value::Mapping(entries) => entries.iter_mut().for_each(|entry| self.visit(&mut entry.node, steps_left)),
            _ => {}
        }
    }

    /// The text with its interpolations filled in; one that is the whole text keeps the type of what it names.
    fn value_of(&self, text: &str, place: Place, steps_left: usize) -> Option<Value> {
        let Some(steps_left) = steps_left.checked_sub(1) else {
            self.report.problem(place, format!("`{text}` leads in a circle"));
            return None;
        };
        let mut filled = String::new();
        let mut rest = text;
        while let Some((before, after)) = rest.split_once("${") {
            if let Some(before) = before.strip_suffix('\\') {
                filled.push_str(before);
                filled.push_str("${");
                rest = after;
                continue;
            }
            let Some((expression, tail)) = split_at_closing(after) else {
                self.report.problem(place, format!("`${{` without `}}` in `{text}`"));
                return None;
            };
            let value = self.expression(expression, place, steps_left)?;
            if before.is_empty() && tail.is_empty() && filled.is_empty() {
                return Some(value);
            }
            let Some(scalar) = (Node { place, value: value.clone() }).scalar_text() else {
                let message = format!("`${{{expression}}}` is {} and cannot be part of a text", value.describe());
                self.report.problem(place, message);
                return None;
            };
            self.take(scalar.len(), place)?;
            filled.push_str(before);
            filled.push_str(&scalar);
            rest = tail;
        }
        filled.push_str(rest);
        Some(Value::Text(filled))
    }

    /// What stands between `${` and `}`, which may hold interpolations itself.
    fn expression(&self, expression: &str, place: Place, steps_left: usize) -> Option<Value> {
        let inner = if expression.contains("${") {
            Node { place, value: self.value_of(expression, place, steps_left)? }.scalar_text()?
        } else {
            expression.to_owned()
        };
        let inner = inner.trim();
        if let Some(variable) = inner.strip_prefix("oc.env:") {
            return self.variable(variable, place);
        }
        if let Some((resolver, _)) = inner.split_once(':') {
            let message = format!("unknown resolver `{resolver}` in `${{{inner}}}`");
            self.report.problem_with_hint(place, message, "known resolvers: `oc.env`");
            return None;
        }
        let Some(target) = lookup(self.root, inner) else {
            self.report.problem(place, format!("`${{{inner}}}` names nothing in this file"));
            return None;
        };
        self.take(size_of(target), place)?;
        let mut copy = target.clone();
        // What is named may be wrong itself: it is reported at the place that names it.
        self.visit(&mut copy, steps_left);
        (copy.value != Value::Failed).then_some(copy.value)
    }

    fn variable(&self, variable: &str, place: Place) -> Option<Value> {
        let (name, default) = match variable.split_once(',') {
            Some((name, default)) => (name.trim(), Some(default.trim())),
            None => (variable.trim(), None),
        };
        if let Some(found) = (self.environment)(name) {
            return Some(Value::Text(found));
        }
        let Some(default) = default else {
            let message = format!("environment variable `{name}` is not set");
            self.report.problem_with_hint(place, message, format!("set it, or write `${{oc.env:{name},default}}`"));
            return None;
        };
        let quoted = |mark: char| default.strip_prefix(mark).and_then(|rest| rest.strip_suffix(mark));
        Some(match quoted('\'').or_else(|| quoted('"')) {
            Some(text) => Value::Text(text.to_owned()),
            None if default == "null" => Value::Null,
            None => Value::Text(default.to_owned()),
        })
    }

    /// Counts what is added; `None` after reporting when it is too much.
    fn take(&self, size: usize, place: Place) -> Option<()> {
        let before = self.left.get();
        let left = before.checked_sub(size);
        self.left.set(left.unwrap_or(0));
        if left.is_none() && before > 0 {
            self.report.problem(place, "interpolation makes the file too large");
        }
        left.map(|_| ())
    }
}

/// Splits after `${` at the `}` that belongs to it.
fn split_at_closing(text: &str) -> Option<(&str, &str)> {
    let mut depth = 0_usize;
    let mut rest = text;
    loop {
        let closing = rest.find('}')?;
        depth += rest.get(..closing)?.matches("${").count();
        rest = rest.get(closing + 1..)?;
        if depth == 0 {
            let end = text.len() - rest.len();
            return Some((text.get(..end - 1)?, rest));
        }
        depth -= 1;
    }
}

/// The value at `a.b.0.c` or `a.b[0].c`, from the top.
fn lookup<'a>(root: &'a Node, path: &str) -> Option<&'a Node> {
    let path = path.replace('[', ".").replace(']', "");
    path.split('.').try_fold(root, |node, key| match &node.value {
        Value::List(items) => items.get(key.parse::<usize>().ok()?),
        _ => node.at(&[key]),
    })
}

/// Values and bytes of text in a tree.
fn size_of(node: &Node) -> usize {
    1 + match &node.value {
        Value::Text(text) => text.len(),
        Value::List(items) => items.iter().map(size_of).sum(),
        Value::Mapping(entries) => entries.iter().map(|entry| entry.key.len() + size_of(&entry.node)).sum(),
        _ => 0,
    }
}
