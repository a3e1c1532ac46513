//! Losses that clients write: a graph traced by `torch.fx`, as the SDK encodes it.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::Tag;
use crate::call::{GraphArgument, GraphInput, GraphNode, LossGraph, NodeKind};
use crate::error::{Error, Result};

/// Most lists in lists, before anything is known about the graph.
const MAX_DEPTH: usize = 16;

/// `POST create_custom_loss`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct CreateCustomLoss {
    /// The session it belongs to.
    pub session_id: String,
    /// Its number within the session; the same number again is the same loss.
    pub custom_loss_seq_id: u64,
    /// The function's name.
    pub name: String,
    /// What it is given, `logprobs` first.
    pub inputs: Vec<GraphInput>,
    /// The traced function.
    pub graph: CustomLossGraph,
}

/// A traced function.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct CustomLossGraph {
    /// How it is written: 1.
    #[serde(default = "first_format")]
    pub format: u32,
    /// In order of execution.
    pub nodes: Vec<CustomLossNode>,
}

const fn first_format() -> u32 {
    1
}

/// One node.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct CustomLossNode {
    /// What kind of node it is.
    pub op: NodeKind,
    /// Its name.
    pub name: String,
    /// What it calls.
    pub target: String,
    /// Its arguments by place.
    #[serde(default)]
    pub args: Vec<Value>,
    /// Its arguments by name.
    #[serde(default)]
    pub kwargs: Map<String, Value>,
}

/// The result of `create_custom_loss`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct CustomLossCreated {
    /// What `forward_backward` names it by.
    pub loss_id: String,
    /// `create_custom_loss`.
    #[serde(rename = "type", default)]
    pub kind: Tag,
}

impl CustomLossGraph {
    /// The graph as this program knows it.
    ///
    /// Errors: another format, or an argument that is none of Python's constants.
    pub fn into_graph(self, name: String, inputs: Vec<GraphInput>) -> Result<LossGraph> {
        if self.format != 1 {
            return Err(Error::unsupported(format!("the graph has format {}, not 1", self.format)));
        }
        let node = |node: CustomLossNode| {
            let CustomLossNode { op, name, target, args, kwargs } = node;
            let located = |error: Error| Error { message: format!("node `{name}`: {}", error.message), ..error };
            let args = args.into_iter().map(|value| argument(value, 0)).collect::<Result<_>>().map_err(located)?;
            let kwargs = by_name(kwargs, 0).map_err(located)?;
            Ok(GraphNode { op, name, target, args, kwargs })
        };
        Ok(LossGraph { name, inputs, nodes: self.nodes.into_iter().map(node).collect::<Result<_>>()? })
    }
}

fn by_name(values: Map<String, Value>, depth: usize) -> Result<BTreeMap<String, GraphArgument>> {
    values.into_iter().map(|(name, value)| Ok((name, argument(value, depth)?))).collect()
}

/// Scalars and lists stand for themselves; anything else is an object with one key that says what it is.
fn argument(value: Value, depth: usize) -> Result<GraphArgument> {
    if depth > MAX_DEPTH {
        return Err(Error::invalid(format!("an argument is nested more than {MAX_DEPTH} times")));
    }
    Ok(match value {
        Value::Null => GraphArgument::None,
        Value::Bool(value) => GraphArgument::Bool(value),
        Value::Number(number) => match (number.as_i64(), number.as_f64()) {
            (Some(whole), _) => GraphArgument::Int(whole),
            (None, Some(float)) if !number.is_u64() => GraphArgument::Float(float),
            _ => return Err(Error::invalid(format!("the whole number {number} does not fit into 64 bits"))),
        },
        Value::String(text) => GraphArgument::Text(text),
        Value::Array(items) => GraphArgument::List(list(items, depth)?),
        Value::Object(object) => tagged(object, depth)?,
    })
}

fn list(items: Vec<Value>, depth: usize) -> Result<Vec<GraphArgument>> {
    items.into_iter().map(|item| argument(item, depth + 1)).collect()
}

fn tagged(object: Map<String, Value>, depth: usize) -> Result<GraphArgument> {
    let mut entries = object.into_iter();
    let (Some((kind, value)), None) = (entries.next(), entries.next()) else {
        return Err(Error::invalid("an argument that is an object must have one key, such as `ref` or `tuple`"));
    };
    match (kind.as_str(), value) {
        ("ref", Value::String(name)) => Ok(GraphArgument::Node(name)),
        ("tuple", Value::Array(items)) => list(items, depth).map(GraphArgument::Tuple),
        ("slice", Value::Array(items)) if items.len() == 3 => list(items, depth).map(GraphArgument::Slice),
        ("dict", Value::Object(items)) => by_name(items, depth + 1).map(GraphArgument::Dict),
        ("ellipsis", Value::Bool(true)) => Ok(GraphArgument::Ellipsis),
        ("float", Value::String(text)) => match text.as_str() {
            "inf" => Ok(GraphArgument::Float(f64::INFINITY)),
            "-inf" => Ok(GraphArgument::Float(f64::NEG_INFINITY)),
            "nan" => Ok(GraphArgument::Float(f64::NAN)),
            _ => Err(Error::invalid(format!("`{text}` is not `inf`, `-inf` or `nan`"))),
        },
        ("dtype", Value::String(name)) => Ok(GraphArgument::Dtype(name)),
        ("device", Value::String(name)) => Ok(GraphArgument::Device(name)),
        ("layout", Value::String(name)) => Ok(GraphArgument::Layout(name)),
        ("memory_format", Value::String(name)) => Ok(GraphArgument::MemoryFormat(name)),
        (kind, _) => Err(Error::invalid(format!("an argument of the kind `{kind}` is unknown or has a wrong value"))
            .hint("known kinds: `ref`, `tuple`, `slice`, `dict`, `ellipsis`, `float`, `dtype`, `device`, `layout`, `memory_format`")),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn one(value: Value) -> Result<GraphArgument> {
        argument(value, 0)
    }

    #[test]
    fn python_constants_keep_their_kinds() {
        assert_eq!(one(json!(1)).unwrap(), GraphArgument::Int(1));
        assert_eq!(one(json!(1.0)).unwrap(), GraphArgument::Float(1.0));
        assert_eq!(one(json!(true)).unwrap(), GraphArgument::Bool(true));
        assert_eq!(one(json!({"float": "-inf"})).unwrap(), GraphArgument::Float(f64::NEG_INFINITY));
        assert_eq!(
            one(json!({"tuple": [{"ellipsis": true}, {"slice": [null, 2, null]}]})).unwrap(),
            GraphArgument::Tuple(vec![
                GraphArgument::Ellipsis,
                GraphArgument::Slice(vec![GraphArgument::None, GraphArgument::Int(2), GraphArgument::None]),
            ])
        );
        assert_eq!(one(json!({"dtype": "float32"})).unwrap(), GraphArgument::Dtype("float32".into()));
    }

    #[test]
    fn what_is_no_constant_is_refused() {
        for wrong in [json!({}), json!({"ref": 1}), json!({"ref": "a", "b": 1}), json!({"tensor": [1]})] {
            assert!(one(wrong.clone()).is_err(), "{wrong}");
        }
        assert!(one(json!(u64::MAX)).is_err());
        let deep = (0..40).fold(json!(1), |inner, _| json!([inner]));
        assert!(one(deep).unwrap_err().message.contains("nested"));
    }
}
