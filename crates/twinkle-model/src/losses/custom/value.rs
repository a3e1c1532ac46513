//! What a node of a graph can be: a tensor, or one of the plain values Python code computes with.

use tch::{Kind, TchError, Tensor};

/// Why a node could not be computed, without its name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Fault(pub(super) String);

impl Fault {
    pub(super) fn new(text: impl Into<String>) -> Self {
        Self(text.into())
    }
}

impl From<TchError> for Fault {
    /// libtorch adds where in its own sources it noticed; only its first line is for users.
    fn from(error: TchError) -> Self {
        let text = match error {
            TchError::Torch(text) => text,
            other => other.to_string(),
        };
        Self(text.lines().next().unwrap_or_default().trim_end_matches('.').to_owned())
    }
}

/// A node's value.
#[derive(Debug)]
pub(super) enum Value {
    None,
    Bool(bool),
    Int(i64),
    Float(f64),
    Text(String),
    Tensor(Tensor),
    List(Vec<Self>),
    Tuple(Vec<Self>),
    /// `start:stop:step`.
    Slice(Box<[Self; 3]>),
    Ellipsis,
    /// A tensor's type of number.
    Kind(Kind),
    /// A device, a layout or a memory format: there is one of each.
    Place,
}

impl Value {
    /// Its type's name in Python.
    pub(super) const fn kind_name(&self) -> &'static str {
        match self {
            Self::None => "None",
            Self::Bool(_) => "a bool",
            Self::Int(_) => "an int",
            Self::Float(_) => "a float",
            Self::Text(_) => "a str",
            Self::Tensor(_) => "a tensor",
            Self::List(_) => "a list",
            Self::Tuple(_) => "a tuple",
            Self::Slice(_) => "a slice",
            Self::Ellipsis => "an ellipsis",
            Self::Kind(_) => "a dtype",
            Self::Place => "a device, layout or memory format",
        }
    }

    /// The items of a list or tuple.
    pub(super) fn items(&self) -> Option<&[Self]> {
        match self {
            Self::List(items) | Self::Tuple(items) => Some(items),
            _ => None,
        }
    }

    /// Calls `visit` with every tensor in it.
    pub(super) fn each_tensor(&self, visit: &mut impl FnMut(&Tensor)) {
        match self {
            Self::Tensor(tensor) => visit(tensor),
            Self::List(items) | Self::Tuple(items) => items.iter().for_each(|item| item.each_tensor(visit)),
            Self::Slice(items) => items.iter().for_each(|item| item.each_tensor(visit)),
            _ => {}
        }
    }
}

impl Clone for Value {
    /// A tensor's clone is another handle on it, as in Python.
    fn clone(&self) -> Self {
        match self {
            Self::None => Self::None,
            Self::Bool(value) => Self::Bool(*value),
            Self::Int(value) => Self::Int(*value),
            Self::Float(value) => Self::Float(*value),
            Self::Text(text) => Self::Text(text.clone()),
            Self::Tensor(tensor) => Self::Tensor(tensor.shallow_clone()),
            Self::List(items) => Self::List(items.clone()),
            Self::Tuple(items) => Self::Tuple(items.clone()),
            Self::Slice(items) => Self::Slice(items.clone()),
            Self::Ellipsis => Self::Ellipsis,
            Self::Kind(kind) => Self::Kind(*kind),
            Self::Place => Self::Place,
        }
    }
}

impl From<Tensor> for Value {
    fn from(tensor: Tensor) -> Self {
        Self::Tensor(tensor)
    }
}

impl From<(Tensor, Tensor)> for Value {
    fn from((first, second): (Tensor, Tensor)) -> Self {
        Self::Tuple(vec![Self::Tensor(first), Self::Tensor(second)])
    }
}

impl From<Vec<Tensor>> for Value {
    fn from(tensors: Vec<Tensor>) -> Self {
        Self::Tuple(tensors.into_iter().map(Self::Tensor).collect())
    }
}

/// The kinds of number a graph may use, by their names in torch.
const KINDS: &[(&str, Kind)] = &[
    ("float32", Kind::Float),
    ("float", Kind::Float),
    ("float64", Kind::Double),
    ("double", Kind::Double),
    ("float16", Kind::Half),
    ("half", Kind::Half),
    ("bfloat16", Kind::BFloat16),
    ("int64", Kind::Int64),
    ("long", Kind::Int64),
    ("int32", Kind::Int),
    ("int", Kind::Int),
    ("int16", Kind::Int16),
    ("short", Kind::Int16),
    ("int8", Kind::Int8),
    ("uint8", Kind::Uint8),
    ("bool", Kind::Bool),
];

/// The kind of that name, with or without `torch.`.
pub(super) fn kind_of(name: &str) -> Result<Kind, Fault> {
    let name = name.strip_prefix("torch.").unwrap_or(name);
    let found = KINDS.iter().find(|(known, _)| *known == name);
    found.map(|(_, kind)| *kind).ok_or_else(|| Fault::new(format!("dtype `{name}` is not supported")))
}

/// Whether numbers of this kind have fractions.
pub(super) const fn is_floating(kind: Kind) -> bool {
    matches!(kind, Kind::Half | Kind::BFloat16 | Kind::Float | Kind::Double)
}

/// One number as a tensor without dimensions.
pub(super) fn scalar(value: f64, kind: Kind) -> Result<Tensor, Fault> {
    Ok(Tensor::f_from_slice(&[value])?.f_reshape([0_i64; 0])?.f_to_dtype(kind, false, false)?)
}

/// One whole number as a tensor without dimensions.
pub(super) fn whole_scalar(value: i64, kind: Kind) -> Result<Tensor, Fault> {
    Ok(Tensor::f_from_slice(&[value])?.f_reshape([0_i64; 0])?.f_to_dtype(kind, false, false)?)
}

/// The same values in memory of their own.
pub(super) fn copied(tensor: &Tensor) -> Result<Tensor, Fault> {
    let mut copy = tensor.f_zeros_like()?;
    copy.f_copy_(tensor)?;
    Ok(copy)
}

/// A number of Python beside a tensor: torch gives it the tensor's kind, unless that would lose its fraction.
pub(super) fn beside(value: &Value, like: Kind) -> Result<Tensor, Fault> {
    match value {
        Value::Tensor(tensor) => Ok(tensor.shallow_clone()),
        Value::Float(value) => scalar(*value, if is_floating(like) { like } else { Kind::Float }),
        Value::Int(value) => whole_scalar(*value, if like == Kind::Bool { Kind::Int64 } else { like }),
        Value::Bool(value) => whole_scalar(i64::from(*value), like),
        other => Err(Fault::new(format!("{} stands where a tensor or a number is needed", other.kind_name()))),
    }
}

/// How many numbers a shape holds; `None` when nobody could count them.
pub(super) fn volume(shape: &[i64]) -> Option<u64> {
    shape.iter().try_fold(1_u64, |product, size| product.checked_mul(u64::try_from(*size).ok()?))
}

/// How many numbers tensors of these shapes have together once broadcast; the largest of each dimension from the right.
pub(super) fn broadcast_volume(shapes: &[Vec<i64>]) -> Option<u64> {
    let rank = shapes.iter().map(Vec::len).max().unwrap_or(0);
    let largest = |place: usize| {
        let sizes = shapes.iter().filter_map(|shape| shape.iter().rev().nth(place).copied());
        sizes.max().unwrap_or(1)
    };
    volume(&(0..rank).map(largest).collect::<Vec<_>>())
}
