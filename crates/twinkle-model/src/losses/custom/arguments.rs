//! The arguments of an operation: what it takes, and what it was given.
//!
//! A signature is written as `input:T dim:D? keepdim:B?`: names in Python's order, each with the letter of what it may
//! be, `?` when it may be left out, and `*` for a number of integers that may stand there without brackets.

use tch::{Kind, Tensor};

use super::limits::Budget;
use super::value::{Fault, Value, beside, kind_of};

/// What an argument may be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kinds {
    /// `T`: a tensor.
    Tensor,
    /// `O`: a tensor or a number.
    Operand,
    /// `L`: several tensors.
    Tensors,
    /// `F`: a number.
    Number,
    /// `I`: a whole number.
    Int,
    /// `D`: a whole number or several.
    Dims,
    /// `B`: true or false.
    Bool,
    /// `S`: a text.
    Text,
    /// `K`: a dtype.
    Dtype,
    /// `P`: a device, a layout or a memory format.
    Place,
    /// `N`: nothing; the argument has no meaning here.
    Nothing,
    /// `A`: the operation looks for itself.
    Any,
}

/// One parameter of a signature.
#[derive(Clone, Copy, Debug)]
pub(super) struct Parameter {
    pub(super) name: &'static str,
    pub(super) kinds: Kinds,
    pub(super) optional: bool,
    /// Takes the rest of the positional arguments when they are integers.
    pub(super) variadic: bool,
}

/// Reads a signature.
pub(super) fn parameters(signature: &'static str) -> Vec<Parameter> {
    signature.split_whitespace().filter_map(parameter).collect()
}

fn parameter(text: &'static str) -> Option<Parameter> {
    let (name, letters) = text.split_once(':')?;
    let kinds = match letters.chars().next()? {
        'T' => Kinds::Tensor,
        'O' => Kinds::Operand,
        'L' => Kinds::Tensors,
        'F' => Kinds::Number,
        'I' => Kinds::Int,
        'D' => Kinds::Dims,
        'B' => Kinds::Bool,
        'S' => Kinds::Text,
        'K' => Kinds::Dtype,
        'P' => Kinds::Place,
        'N' => Kinds::Nothing,
        _ => Kinds::Any,
    };
    Some(Parameter { name, kinds, optional: letters.contains('?'), variadic: letters.contains('*') })
}

impl Parameter {
    /// What it takes, for messages.
    pub(super) const fn expected(&self) -> &'static str {
        match self.kinds {
            Kinds::Tensor => "a tensor",
            Kinds::Operand => "a tensor or a number",
            Kinds::Tensors => "a list of tensors",
            Kinds::Number => "a number",
            Kinds::Int => "an int",
            Kinds::Dims => "an int or a list of ints",
            Kinds::Bool => "a bool",
            Kinds::Text => "a str",
            Kinds::Dtype => "a dtype",
            Kinds::Place => "a device",
            Kinds::Nothing => "left out",
            Kinds::Any => "a value",
        }
    }
}

/// Names that numpy's users give and torch understands.
pub(super) fn torch_name(name: &str) -> &str {
    match name {
        "axis" => "dim",
        "keepdims" => "keepdim",
        "x" | "self" => "input",
        other => other,
    }
}

/// The values of an operation's arguments, in the order of its signature.
pub(super) struct Arguments<'a> {
    pub(super) values: Vec<Value>,
    pub(super) parameters: &'a [Parameter],
    pub(super) budget: &'a Budget,
}

impl Arguments<'_> {
    fn name(&self, place: usize) -> &'static str {
        self.parameters.get(place).map_or("argument", |parameter| parameter.name)
    }

    fn wrong(&self, place: usize, found: &Value) -> Fault {
        let expected = self.parameters.get(place).map_or("a value", Parameter::expected);
        Fault::new(format!("`{}` must be {expected}, not {}", self.name(place), found.kind_name()))
    }

    /// The argument as it is; [`Value::None`] when it was left out.
    pub(super) fn value(&self, place: usize) -> &Value {
        self.values.get(place).unwrap_or(&Value::None)
    }

    pub(super) fn given(&self, place: usize) -> bool {
        !matches!(self.value(place), Value::None)
    }

    pub(super) fn tensor(&self, place: usize) -> Result<&Tensor, Fault> {
        match self.value(place) {
            Value::Tensor(tensor) => Ok(tensor),
            other => Err(self.wrong(place, other)),
        }
    }

    pub(super) fn tensor_or_none(&self, place: usize) -> Result<Option<&Tensor>, Fault> {
        if self.given(place) { self.tensor(place).map(Some) } else { Ok(None) }
    }

    pub(super) fn tensors(&self, place: usize) -> Result<Vec<&Tensor>, Fault> {
        let value = self.value(place);
        let items = value.items().ok_or_else(|| self.wrong(place, value))?;
        items
            .iter()
            .map(|item| match item {
                Value::Tensor(tensor) => Ok(tensor),
                other => Err(self.wrong(place, other)),
            })
            .collect()
    }

    /// Two operands of which at least one is a tensor, both as tensors.
    pub(super) fn pair(&self, first: usize, second: usize) -> Result<(Tensor, Tensor), Fault> {
        let like = self.kind_among(&[first, second])?;
        Ok((self.operand(first, like)?, self.operand(second, like)?))
    }

    /// An operand beside tensors of that kind.
    pub(super) fn operand(&self, place: usize, like: Kind) -> Result<Tensor, Fault> {
        beside(self.value(place), like).map_err(|_| self.wrong(place, self.value(place)))
    }

    pub(super) fn operand_or_none(&self, place: usize, like: Kind) -> Result<Option<Tensor>, Fault> {
        if self.given(place) { self.operand(place, like).map(Some) } else { Ok(None) }
    }

    /// The kind of the first tensor among these arguments, floating ones first.
    pub(super) fn kind_among(&self, places: &[usize]) -> Result<Kind, Fault> {
        let kinds = places.iter().filter_map(|place| match self.value(*place) {
            Value::Tensor(tensor) => Some(tensor.kind()),
            _ => None,
        });
        let kinds: Vec<Kind> = kinds.collect();
        let floating = kinds.iter().copied().find(|kind| super::value::is_floating(*kind));
        floating.or_else(|| kinds.first().copied()).ok_or_else(|| {
            let names: Vec<&str> = places.iter().map(|place| self.name(*place)).collect();
            Fault::new(format!("one of `{}` must be a tensor", names.join("`, `")))
        })
    }

    /// A number; a tensor of one value counts as one, as in Python.
    pub(super) fn number(&self, place: usize) -> Result<f64, Fault> {
        number(self.value(place)).ok_or_else(|| self.wrong(place, self.value(place)))
    }

    pub(super) fn number_or(&self, place: usize, default: f64) -> Result<f64, Fault> {
        if self.given(place) { self.number(place) } else { Ok(default) }
    }

    pub(super) fn int(&self, place: usize) -> Result<i64, Fault> {
        whole(self.value(place)).ok_or_else(|| self.wrong(place, self.value(place)))
    }

    pub(super) fn int_or(&self, place: usize, default: i64) -> Result<i64, Fault> {
        if self.given(place) { self.int(place) } else { Ok(default) }
    }

    pub(super) fn int_or_none(&self, place: usize) -> Result<Option<i64>, Fault> {
        if self.given(place) { self.int(place).map(Some) } else { Ok(None) }
    }

    pub(super) fn bool_or(&self, place: usize, default: bool) -> Result<bool, Fault> {
        match self.value(place) {
            Value::None => Ok(default),
            Value::Bool(value) => Ok(*value),
            Value::Int(value) => Ok(*value != 0),
            other => Err(self.wrong(place, other)),
        }
    }

    pub(super) fn text_or<'a>(&'a self, place: usize, default: &'a str) -> Result<&'a str, Fault> {
        match self.value(place) {
            Value::None => Ok(default),
            Value::Text(text) => Ok(text),
            other => Err(self.wrong(place, other)),
        }
    }

    pub(super) fn kind_or_none(&self, place: usize) -> Result<Option<Kind>, Fault> {
        match self.value(place) {
            Value::None => Ok(None),
            value => kind(value).map(Some).map_err(|_| self.wrong(place, value)),
        }
    }

    /// Whole numbers, from one or from a list.
    pub(super) fn ints(&self, place: usize) -> Result<Vec<i64>, Fault> {
        let value = self.value(place);
        ints(value).ok_or_else(|| self.wrong(place, value))
    }

    pub(super) fn ints_or_none(&self, place: usize) -> Result<Option<Vec<i64>>, Fault> {
        if self.given(place) { self.ints(place).map(Some) } else { Ok(None) }
    }

    /// Accounts for a result of this shape.
    pub(super) fn reserve(&self, shape: &[i64]) -> Result<(), Fault> {
        self.budget.reserve(super::value::volume(shape))
    }
}

/// Refuses dimensions that a tensor does not have.
pub(super) fn check_dims(tensor: &Tensor, dims: &[i64]) -> Result<(), Fault> {
    let rank = (tensor.dim() as i64).max(1);
    match dims.iter().find(|dim| !(-rank..rank).contains(*dim)) {
        None => Ok(()),
        Some(dim) => Err(Fault::new(format!("there is no dimension {dim} in shape {:?}", tensor.size()))),
    }
}

/// A dtype, given as such or as Python's `float`, `int` or `bool` by name.
pub(super) fn kind(value: &Value) -> Result<Kind, Fault> {
    match value {
        Value::Kind(kind) => Ok(*kind),
        Value::Text(text) => kind_of(text),
        other => Err(Fault::new(format!("{} is not a dtype", other.kind_name()))),
    }
}

pub(super) fn number(value: &Value) -> Option<f64> {
    match value {
        Value::Bool(value) => Some(f64::from(u8::from(*value))),
        Value::Int(value) => Some(*value as f64),
        Value::Float(value) => Some(*value),
        Value::Tensor(tensor) if tensor.numel() == 1 => tensor.f_detach().and_then(|it| it.f_double_value(&[])).ok(),
        _ => None,
    }
}

pub(super) fn whole(value: &Value) -> Option<i64> {
    match value {
        Value::Bool(value) => Some(i64::from(*value)),
        Value::Int(value) => Some(*value),
        Value::Tensor(tensor) if tensor.numel() == 1 && !super::value::is_floating(tensor.kind()) => {
            tensor.f_int64_value(&[]).ok()
        }
        _ => None,
    }
}

pub(super) fn ints(value: &Value) -> Option<Vec<i64>> {
    match value.items() {
        Some(items) => items.iter().map(whole).collect(),
        None => whole(value).map(|one| vec![one]),
    }
}
