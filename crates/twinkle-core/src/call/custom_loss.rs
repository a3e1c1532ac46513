//! A loss that a client wrote: a traced graph of tensor operations, as data.
//!
//! The SDK traces a Python function with `torch.fx` and sends its nodes. Nothing in them is executable: the trainer
//! looks every target up in its own table of operations and computes it itself.

use std::collections::BTreeMap;
use std::ops::Deref;
use std::sync::Arc;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::ids::{CustomLossId, SessionId, TenantId};

/// A traced loss: what it reads, and its nodes in order of execution.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct LossGraph {
    /// The function's name, for messages.
    pub name: String,
    /// What it is given, `logprobs` first.
    pub inputs: Vec<GraphInput>,
    /// In order of execution; the last one is the output.
    pub nodes: Vec<GraphNode>,
}

/// One input of a graph.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct GraphInput {
    /// `logprobs`, or the name of a loss input of the datum.
    pub name: String,
    /// How many dimensions every datum's value has: 0, 1 or 2.
    pub rank: u8,
}

/// One node: a named value and how it is computed.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct GraphNode {
    /// What kind of node it is.
    pub op: NodeKind,
    /// Its name; later nodes refer to it.
    pub name: String,
    /// The input's name, the function's qualified name, or the method's name.
    pub target: String,
    /// Its arguments by place.
    pub args: Vec<GraphArgument>,
    /// Its arguments by name.
    pub kwargs: BTreeMap<String, GraphArgument>,
}

/// The kinds of node that `torch.fx` knows.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "snake_case")]
pub enum NodeKind {
    /// An input.
    Placeholder,
    /// A captured tensor.
    GetAttr,
    /// A function such as `torch.exp` or `operator.mul`.
    CallFunction,
    /// A method of a tensor.
    CallMethod,
    /// A neural network module.
    CallModule,
    /// What the loss returns.
    Output,
}

/// An argument: a constant of Python, or another node's value.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum GraphArgument {
    /// `None`.
    None,
    /// `True` or `False`.
    Bool(bool),
    /// A whole number.
    Int(i64),
    /// A number, perhaps not finite.
    Float(f64),
    /// A text.
    Text(String),
    /// The value of the node of that name.
    Node(String),
    /// `[…]`.
    List(Vec<GraphArgument>),
    /// `(…)`.
    Tuple(Vec<GraphArgument>),
    /// `{…}`.
    Dict(BTreeMap<String, GraphArgument>),
    /// `start:stop:step`; always three.
    Slice(Vec<GraphArgument>),
    /// `…`.
    Ellipsis,
    /// `torch.float32` and such, without the prefix.
    Dtype(String),
    /// Where a tensor would be.
    Device(String),
    /// A tensor's layout.
    Layout(String),
    /// A tensor's order in memory.
    MemoryFormat(String),
}

/// A graph that many operations share.
#[derive(Clone, Debug, PartialEq)]
pub struct SharedGraph(Arc<LossGraph>);

impl From<LossGraph> for SharedGraph {
    fn from(graph: LossGraph) -> Self {
        Self(Arc::new(graph))
    }
}

impl Deref for SharedGraph {
    type Target = LossGraph;

    fn deref(&self) -> &LossGraph {
        &self.0
    }
}

impl Serialize for SharedGraph {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        self.0.serialize(serializer)
    }
}

impl<'de> Deserialize<'de> for SharedGraph {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        LossGraph::deserialize(deserializer).map(Self::from)
    }
}

/// A client's loss as the store knows it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct CustomLossRecord {
    /// Its id.
    pub id: CustomLossId,
    /// Its owner.
    pub tenant: TenantId,
    /// The session it belongs to; only runs of that session may use it.
    pub session: SessionId,
    /// The graph.
    pub graph: SharedGraph,
}
