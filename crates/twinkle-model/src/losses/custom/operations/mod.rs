//! The operations a graph may use, and how a target names one.
//!
//! A function and the method of the same name are one operation, whose first argument is the tensor. Nothing random is
//! here, because a replay must give the same bits; nothing that leaves memory unset; nothing that keeps state.

mod creation;
mod elementwise;
mod indexing;
mod losses;
mod products;
mod python;
mod reductions;
mod shapes;
mod sorting;

use std::collections::BTreeMap;
use std::sync::LazyLock;

use twinkle_core::call::NodeKind;

use super::arguments::{Arguments, Parameter, parameters};
use super::value::{Fault, Value};

/// What an operation writes, so that it can be refused before it is done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Cost {
    /// One value for each of its arguments', broadcast.
    Broadcast,
    /// At most as many values as its arguments have together.
    Inputs,
    /// Nothing: a view, or a value of Python.
    Nothing,
    /// The operation accounts for it itself.
    Own,
}

/// One operation.
pub(super) struct Operation {
    /// Its names, separated by spaces; the first is the usual one.
    names: &'static str,
    /// Its parameters, see [`super::arguments`].
    signature: &'static str,
    pub(super) cost: Cost,
    pub(super) run: fn(&Arguments) -> Result<Value, Fault>,
}

impl Operation {
    const fn new(
        names: &'static str,
        signature: &'static str,
        cost: Cost,
        run: fn(&Arguments) -> Result<Value, Fault>,
    ) -> Self {
        Self { names, signature, cost, run }
    }
}

/// Where an operation's names are known.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Space {
    /// `torch.name` and its other homes.
    Torch,
    /// A method of a tensor, beside those of [`Space::Torch`].
    Method,
    /// `operator.name`.
    Operator,
    /// `math.name`.
    Math,
    /// A function of Python itself.
    Builtin,
}

/// An operation with its parameters read.
pub(super) struct Entry {
    pub(super) operation: &'static Operation,
    pub(super) parameters: Vec<Parameter>,
}

/// A target that was found.
#[derive(Clone, Copy)]
pub(super) struct Found {
    pub(super) entry: &'static Entry,
    /// The method changes its tensor: its name ends with `_`.
    pub(super) in_place: bool,
}

const FAMILIES: &[(Space, &[Operation])] = &[
    (Space::Torch, elementwise::UNARY),
    (Space::Torch, elementwise::BINARY),
    (Space::Torch, elementwise::OTHERS),
    (Space::Method, elementwise::METHODS),
    (Space::Torch, reductions::REDUCTIONS),
    (Space::Torch, sorting::SORTING),
    (Space::Torch, shapes::SHAPES),
    (Space::Method, shapes::METHODS),
    (Space::Torch, indexing::INDEXING),
    (Space::Torch, products::PRODUCTS),
    (Space::Torch, creation::CREATION),
    (Space::Method, creation::METHODS),
    (Space::Torch, losses::LOSSES),
    (Space::Operator, python::OPERATORS),
    (Space::Operator, python::OPERATOR_CALLS),
    (Space::Math, python::MATH),
    (Space::Math, python::MATH_CALLS),
    (Space::Builtin, python::BUILTINS),
];

static ENTRIES: LazyLock<Vec<(Space, Entry)>> = LazyLock::new(|| {
    let entry = |operation: &'static Operation| Entry { operation, parameters: parameters(operation.signature) };
    FAMILIES.iter().flat_map(|(space, family)| family.iter().map(|it| (*space, entry(it)))).collect()
});

static NAMES: LazyLock<BTreeMap<(Space, &'static str), &'static Entry>> = LazyLock::new(|| {
    let entries: &'static [(Space, Entry)] = &ENTRIES;
    let names = |(space, entry): &'static (Space, Entry)| {
        entry.operation.names.split_whitespace().map(move |name| ((*space, name), entry))
    };
    entries.iter().flat_map(names).collect()
});

/// The homes of torch's functions, longest first.
const TORCH_HOMES: &[&str] = &[
    "torch._C._special.special_",
    "torch._C._linalg.",
    "torch._C._nn.",
    "torch.nn.functional.",
    "torch.functional.",
    "torch.Tensor.",
    "torch.special.",
    "torch.linalg.linalg_",
    "torch.",
];

/// The operation that a node of this kind names; `None` when there is none.
pub(super) fn find(kind: NodeKind, target: &str) -> Option<Found> {
    if kind == NodeKind::CallMethod {
        return method(target);
    }
    if let Some(name) = target.strip_prefix("operator.") {
        return plain(Space::Operator, name);
    }
    if let Some(name) = target.strip_prefix("math.") {
        return plain(Space::Math, name);
    }
    let home = TORCH_HOMES.iter().find_map(|home| target.strip_prefix(home));
    match home {
        Some(name) if target.starts_with("torch.Tensor.") => method(name),
        Some(name) => plain(Space::Torch, name),
        None => plain(Space::Builtin, target),
    }
}

fn plain(space: Space, name: &str) -> Option<Found> {
    NAMES.get(&(space, name)).map(|entry| Found { entry, in_place: false })
}

fn method(name: &str) -> Option<Found> {
    let find = |name: &str| plain(Space::Method, name).or_else(|| plain(Space::Torch, name));
    find(name).or_else(|| {
        let base = find(name.strip_suffix('_')?)?;
        // What changes a tensor is told apart by its name; what writes no values cannot change any.
        (base.entry.operation.cost != Cost::Nothing).then_some(Found { in_place: true, ..base })
    })
}

/// The targets most like an unknown one.
pub(super) fn nearest(kind: NodeKind, target: &str) -> Vec<String> {
    let (prefix, name) = match target.rsplit_once('.') {
        _ if kind == NodeKind::CallMethod => ("", target),
        Some((home, name)) => (if home == "operator" || home == "math" { home } else { "torch" }, name),
        None => ("", target),
    };
    let spaces: &[Space] = match prefix {
        "operator" => &[Space::Operator],
        "math" => &[Space::Math],
        "torch" => &[Space::Torch],
        _ => &[Space::Method, Space::Torch],
    };
    let known = NAMES.keys().filter(|(space, _)| spaces.contains(space)).map(|(_, name)| *name);
    let mut known: Vec<&str> = known.filter(|known| known.len() > 2).collect();
    let mut near = Vec::new();
    while near.len() < 5 {
        let Some(next) = twinkle_core::error::nearest(name, known.iter().copied()) else { break };
        known.retain(|known| *known != next);
        near.push(next);
    }
    // A longer or shorter name of the same thing is near, too.
    near.extend(known.into_iter().filter(|known| name.contains(known) || known.contains(name)).take(3));
    let full = |name: &str| if prefix.is_empty() { name.to_owned() } else { format!("{prefix}.{name}") };
    near.into_iter().map(full).collect()
}

/// Every operation.
#[cfg(test)]
pub(super) fn all() -> impl Iterator<Item = &'static Entry> {
    ENTRIES.iter().map(|(_, entry)| entry)
}

/// Every target that is supported, by its usual home, for the documentation.
#[must_use]
pub fn supported() -> Vec<String> {
    let target = |(space, name): &(Space, &'static str)| match space {
        Space::Torch => format!("torch.{name}"),
        Space::Method => format!("Tensor.{name}"),
        Space::Operator => format!("operator.{name}"),
        Space::Math => format!("math.{name}"),
        Space::Builtin => (*name).to_owned(),
    };
    NAMES.keys().map(target).collect()
}
