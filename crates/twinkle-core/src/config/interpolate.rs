//! `${…}` in the YAML, with `OmegaConf`'s meaning: `${oc.env:NAME}`, `${oc.env:NAME,default}` and `${a.b}`.

use super::diagnostic::Report;
use super::tree::{Node, Place, Value};

/// Most values one `${…}` may lead through, so that a circle ends.
const LONGEST_CHAIN: usize = 16;

/// Replaces every `${…}` in the tree; one that names nothing is reported.
pub(super) fn resolve(root: &mut Node, environment: &dyn Fn(&str) -> Option<String>, report: &Report) {
    let original = root.clone();
    let resolver = Resolver { root: &original, environment, report };
    resolver.visit(root);
}

struct Resolver<'a> {
    root: &'a Node,
    environment: &'a dyn Fn(&str) -> Option<String>,
    report: &'a Report,
}

impl Resolver<'_> {
    fn visit(&self, node: &mut Node) {
        match &mut node.value {
            Value::Text(text) if text.contains("${") => {
                // One that failed has been reported; as nothing it causes no second report of its type.
                node.value = self.value_of(text, node.place, LONGEST_CHAIN).unwrap_or(Value::Null);
            }
            Value::List(items) => items.iter_mut().for_each(|item| self.visit(item)),
            Value::Mapping(entries) => entries.iter_mut().for_each(|entry| self.visit(&mut entry.node)),
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
            let Some((expression, tail)) = after.split_once('}') else {
                self.report.problem(place, format!("`${{` without `}}` in `{text}`"));
                return None;
            };
            let value = self.expression(expression.trim(), place, steps_left)?;
            if before.is_empty() && tail.is_empty() && filled.is_empty() {
                return Some(value);
            }
            filled.push_str(before);
            match value {
                Value::Text(text) => filled.push_str(&text),
                Value::Integer(number) => filled.push_str(&number.to_string()),
                Value::Float(number) => filled.push_str(&number.to_string()),
                Value::Boolean(flag) => filled.push_str(&flag.to_string()),
                other => {
                    let message = format!("`${{{expression}}}` is {} and cannot be part of a text", other.describe());
                    self.report.problem(place, message);
                    return None;
                }
            }
            rest = tail;
        }
        filled.push_str(rest);
        Some(Value::Text(filled))
    }

    fn expression(&self, expression: &str, place: Place, steps_left: usize) -> Option<Value> {
        if let Some(variable) = expression.strip_prefix("oc.env:") {
            let (name, default) = match variable.split_once(',') {
                Some((name, default)) => (name.trim(), Some(default.trim())),
                None => (variable.trim(), None),
            };
            let found = (self.environment)(name).or_else(|| default.map(str::to_owned));
            if found.is_none() {
                let message = format!("environment variable `{name}` is not set");
                let hint = format!("set it, or write `${{oc.env:{name},default}}`");
                self.report.problem_with_hint(place, message, hint);
            }
            return found.map(Value::Text);
        }
        let Some(target) = lookup(self.root, expression) else {
            self.report.problem(place, format!("`${{{expression}}}` names nothing in this file"));
            return None;
        };
        match &target.value {
            Value::Text(text) if text.contains("${") => self.value_of(text, place, steps_left),
            value => Some(value.clone()),
        }
    }
}

/// The value at `a.b.0.c`, from the top.
fn lookup<'a>(root: &'a Node, path: &str) -> Option<&'a Node> {
    let mut node = root;
    for key in path.split('.') {
        node = match &node.value {
            Value::Mapping(entries) => &entries.iter().find(|entry| entry.key == key)?.node,
            Value::List(items) => items.get(key.parse::<usize>().ok()?)?,
            _ => return None,
        };
    }
    Some(node)
}
