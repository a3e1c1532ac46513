//! From the graph a client sent to steps that can be run: everything that can be known without data is checked here.

use std::collections::HashMap;

use tch::Kind;
use twinkle_core::call::{GraphArgument, GraphInput, GraphNode, LossGraph, NodeKind};
use twinkle_core::{Error, Result};

use super::arguments::{Kinds, Parameter, torch_name};
use super::limits::{MAX_DEPTH, MAX_GRAPH_BYTES, MAX_ITEMS, MAX_NODES};
use super::operations::{self, Found};
use super::value::kind_of;

/// Inputs of a graph, `logprobs` included.
const MAX_INPUTS: usize = 16;
/// Characters of a name.
const MAX_NAME: usize = 128;
/// Metrics of a graph.
const MAX_METRICS: usize = 64;

/// A checked graph.
pub(super) struct Program {
    pub(super) name: String,
    /// `logprobs` first; the values of the first steps are those of the inputs.
    pub(super) inputs: Vec<GraphInput>,
    pub(super) steps: Vec<Step>,
    /// Which value is the loss.
    pub(super) loss: usize,
    /// Which values are the metrics.
    pub(super) metrics: Vec<(String, usize)>,
}

/// One operation to run.
pub(super) struct Step {
    /// The node's name and target, for messages.
    pub(super) node: String,
    pub(super) target: String,
    pub(super) found: Found,
    /// In the order of the operation's parameters.
    pub(super) arguments: Vec<Expression>,
}

/// An argument before the values are known.
#[derive(Clone, Debug)]
pub(super) enum Expression {
    None,
    Bool(bool),
    Int(i64),
    Float(f64),
    Text(String),
    /// The value of an input or a step.
    Value(usize),
    List(Vec<Self>),
    Tuple(Vec<Self>),
    Slice(Box<[Self; 3]>),
    Ellipsis,
    Kind(Kind),
    Place,
}

/// Checks a graph and prepares it.
///
/// Errors: it is too large, refers to what is not there, or uses an operation or arguments that are not supported; the
/// text names the node.
pub(super) fn compile(graph: &LossGraph) -> Result<Program> {
    check_size(graph)?;
    check_inputs(&graph.inputs)?;
    let mut compiler = Compiler { places: HashMap::new() };
    let (inputs, rest) = graph.nodes.split_at(graph.inputs.len().min(graph.nodes.len()));
    for (place, (node, input)) in inputs.iter().zip(&graph.inputs).enumerate() {
        if node.op != NodeKind::Placeholder || node.target != input.name {
            let text = format!("node `{}` must be the placeholder of input `{}`", node.name, input.name);
            return Err(Error::invalid(text).hint("a graph begins with its inputs, in their order"));
        }
        compiler.define(&node.name, place)?;
    }
    let Some((output, calls)) = rest.split_last().filter(|(last, _)| last.op == NodeKind::Output) else {
        return Err(Error::invalid("the graph does not end with its output"));
    };
    let mut steps = Vec::with_capacity(calls.len());
    for node in calls {
        let step = compiler.step(node).map_err(|error| in_node(node, error))?;
        compiler.define(&node.name, graph.inputs.len() + steps.len())?;
        steps.push(step);
    }
    let (loss, metrics) = compiler.output(output).map_err(|error| in_node(output, error))?;
    Ok(Program { name: graph.name.clone(), inputs: graph.inputs.clone(), steps, loss, metrics })
}

fn in_node(node: &GraphNode, error: Error) -> Error {
    Error { message: format!("node `{}`: {}", node.name, error.message), ..error }
}

fn check_size(graph: &LossGraph) -> Result<()> {
    if graph.nodes.len() > MAX_NODES {
        let count = graph.nodes.len();
        return Err(Error::invalid(format!("the graph has {count} nodes, more than {MAX_NODES}"))
            .hint("a loop in Python becomes one node for each round; let one tensor operation do its work"));
    }
    let bytes = serde_json::to_vec(graph).map_or(usize::MAX, |bytes| bytes.len());
    if bytes > MAX_GRAPH_BYTES {
        return Err(Error::invalid(format!("the graph takes {bytes} bytes, more than {MAX_GRAPH_BYTES}"))
            .hint("send large constants as loss inputs of the datums"));
    }
    if graph.name.len() > MAX_NAME || graph.nodes.iter().any(|node| node.name.len() > MAX_NAME) {
        return Err(Error::invalid(format!("a name of the graph has more than {MAX_NAME} characters")));
    }
    Ok(())
}

fn check_inputs(inputs: &[GraphInput]) -> Result<()> {
    let Some(logprobs) = inputs.first().filter(|input| input.name == "logprobs") else {
        return Err(Error::invalid("the first input of a custom loss must be `logprobs`"));
    };
    if logprobs.rank == 0 {
        return Err(Error::invalid("input `logprobs` has rank 1 or 2, not 0"));
    }
    if inputs.len() > MAX_INPUTS {
        return Err(Error::invalid(format!("the loss has {} inputs, more than {MAX_INPUTS}", inputs.len())));
    }
    for (place, input) in inputs.iter().enumerate() {
        if !is_input_name(&input.name) {
            let text = format!("input `{}` must be a lowercase name of letters, digits and underscores", input.name);
            return Err(Error::invalid(text));
        }
        if input.rank > 2 {
            return Err(Error::invalid(format!("input `{}` has rank {}, not 0, 1 or 2", input.name, input.rank)));
        }
        if inputs[..place].iter().any(|other| other.name == input.name) {
            return Err(Error::invalid(format!("input `{}` is named twice", input.name)));
        }
    }
    Ok(())
}

fn is_input_name(name: &str) -> bool {
    name.len() <= 64
        && name.starts_with(|first: char| first.is_ascii_lowercase() || first == '_')
        && name.chars().all(|letter| letter.is_ascii_lowercase() || letter.is_ascii_digit() || letter == '_')
}

/// `custom/<name>:sum` or `custom/<name>:mean`.
fn is_metric_name(name: &str) -> bool {
    let inner = name.strip_prefix("custom/");
    let inner = inner.and_then(|rest| rest.strip_suffix(":sum").or_else(|| rest.strip_suffix(":mean")));
    inner.is_some_and(|inner| {
        (1..=64).contains(&inner.len())
            && inner.chars().all(|letter| {
                letter.is_ascii_lowercase() || letter.is_ascii_digit() || matches!(letter, '_' | '.' | '/' | '-')
            })
    })
}

/// The names that are known so far.
struct Compiler<'a> {
    places: HashMap<&'a str, usize>,
}

impl<'a> Compiler<'a> {
    fn define(&mut self, name: &'a str, place: usize) -> Result<()> {
        match self.places.insert(name, place) {
            None => Ok(()),
            Some(_) => Err(Error::invalid(format!("two nodes are named `{name}`"))),
        }
    }

    fn step(&self, node: &GraphNode) -> Result<Step> {
        let target = &node.target;
        match node.op {
            NodeKind::CallFunction | NodeKind::CallMethod => {}
            NodeKind::Placeholder => return Err(Error::invalid(format!("`{target}` is not among the inputs"))),
            NodeKind::Output => return Err(Error::invalid("the output is not the last node")),
            NodeKind::GetAttr => {
                return Err(Error::unsupported(format!("the captured tensor `{target}` is not supported"))
                    .hint("send it as a loss input of the datums"));
            }
            NodeKind::CallModule => {
                return Err(Error::unsupported(format!("module `{target}` is not supported"))
                    .hint("use functions, such as those of `torch.nn.functional`"));
            }
        }
        let found = operations::find(node.op, target).ok_or_else(|| unknown(node))?;
        let arguments = self.bind(node, &found.entry.parameters)?;
        Ok(Step { node: node.name.clone(), target: target.clone(), found, arguments })
    }

    /// Puts every argument in its parameter's place.
    fn bind(&self, node: &GraphNode, parameters: &[Parameter]) -> Result<Vec<Expression>> {
        let target = &node.target;
        let mut bound: Vec<Option<Expression>> = vec![None; parameters.len()];
        let mut rest = node.args.as_slice();
        for (parameter, place) in parameters.iter().zip(&mut bound) {
            let [first, others @ ..] = rest else { break };
            if parameter.variadic && !others.is_empty() {
                *place = Some(Expression::List(self.all(rest, 0)?));
                rest = &[];
            } else {
                *place = Some(self.expression(first, 0)?);
                rest = others;
            }
        }
        if !rest.is_empty() {
            let (most, count) = (parameters.len(), node.args.len());
            return Err(Error::invalid(format!("`{target}` takes at most {most} arguments, not {count}")));
        }
        for (name, argument) in &node.kwargs {
            let exact = parameters.iter().position(|parameter| parameter.name == name);
            let place = exact.or_else(|| parameters.iter().position(|parameter| parameter.name == torch_name(name)));
            let Some(place) = place else {
                let known: Vec<&str> = parameters.iter().map(|parameter| parameter.name).collect();
                return Err(Error::unsupported(format!("argument `{name}` of `{target}` is not supported"))
                    .hint(format!("known arguments: `{}`", known.join("`, `"))));
            };
            if bound[place].replace(self.expression(argument, 0)?).is_some() {
                return Err(Error::invalid(format!("argument `{name}` of `{target}` is given twice")));
            }
        }
        let checked = parameters.iter().zip(bound).map(|(parameter, expression)| match expression {
            Some(expression) if accepts(parameter, &expression) => Ok(expression),
            Some(_) => {
                let (name, expected) = (parameter.name, parameter.expected());
                Err(Error::invalid(format!("argument `{name}` of `{target}` must be {expected}")))
            }
            None if parameter.optional => Ok(Expression::None),
            None => Err(Error::invalid(format!("argument `{}` of `{target}` is missing", parameter.name))),
        });
        checked.collect()
    }

    fn all(&self, arguments: &[GraphArgument], depth: usize) -> Result<Vec<Expression>> {
        if arguments.len() > MAX_ITEMS {
            return Err(Error::invalid(format!("a list has {} items, more than {MAX_ITEMS}", arguments.len())));
        }
        arguments.iter().map(|argument| self.expression(argument, depth)).collect()
    }

    fn expression(&self, argument: &GraphArgument, depth: usize) -> Result<Expression> {
        if depth > MAX_DEPTH {
            return Err(Error::invalid(format!("an argument is nested more than {MAX_DEPTH} times")));
        }
        Ok(match argument {
            GraphArgument::None => Expression::None,
            GraphArgument::Bool(value) => Expression::Bool(*value),
            GraphArgument::Int(value) => Expression::Int(*value),
            GraphArgument::Float(value) => Expression::Float(*value),
            GraphArgument::Text(text) if text.len() > MAX_ITEMS => {
                return Err(Error::invalid(format!("a text has more than {MAX_ITEMS} characters")));
            }
            GraphArgument::Text(text) => Expression::Text(text.clone()),
            GraphArgument::Node(name) => Expression::Value(self.place(name)?),
            GraphArgument::List(items) => Expression::List(self.all(items, depth + 1)?),
            GraphArgument::Tuple(items) => Expression::Tuple(self.all(items, depth + 1)?),
            GraphArgument::Slice(bounds) => {
                let bounds: [Expression; 3] = self
                    .all(bounds, depth + 1)?
                    .try_into()
                    .map_err(|_| Error::invalid("a slice must have a start, a stop and a step"))?;
                Expression::Slice(Box::new(bounds))
            }
            GraphArgument::Dict(_) => return Err(Error::unsupported("a dict is supported as the metrics only")),
            GraphArgument::Ellipsis => Expression::Ellipsis,
            GraphArgument::Dtype(name) => Expression::Kind(kind_of(name).map_err(|fault| Error::unsupported(fault.0))?),
            GraphArgument::Device(device) if device != "cpu" => {
                return Err(Error::unsupported(format!("device `{device}` is not supported"))
                    .hint("a custom loss runs on `cpu`; use the device of `logprobs`"));
            }
            GraphArgument::Layout(layout) if layout != "strided" => {
                return Err(Error::unsupported(format!("layout `{layout}` is not supported")));
            }
            GraphArgument::Device(_) | GraphArgument::Layout(_) | GraphArgument::MemoryFormat(_) => Expression::Place,
        })
    }

    fn place(&self, name: &str) -> Result<usize> {
        let place = self.places.get(name).copied();
        place.ok_or_else(|| Error::invalid(format!("there is no node `{name}` before it")))
    }

    /// Reads `(loss, {name: metric})`.
    fn output(&self, node: &GraphNode) -> Result<(usize, Vec<(String, usize)>)> {
        let wrong = || Error::invalid("the loss must return a tensor and a dict of metrics");
        let [GraphArgument::Tuple(parts) | GraphArgument::List(parts)] = node.args.as_slice() else {
            return Err(wrong());
        };
        let [GraphArgument::Node(loss), GraphArgument::Dict(metrics)] = parts.as_slice() else {
            return Err(wrong());
        };
        if metrics.len() > MAX_METRICS {
            return Err(Error::invalid(format!("the loss has {} metrics, more than {MAX_METRICS}", metrics.len())));
        }
        let metric = |(name, value): (&String, &GraphArgument)| {
            if !is_metric_name(name) {
                let text = format!("metric `{name}` must be named `custom/<name>:sum` or `custom/<name>:mean`");
                return Err(Error::invalid(text));
            }
            let GraphArgument::Node(value) = value else {
                return Err(Error::invalid(format!("metric `{name}` must be a tensor")));
            };
            Ok((name.clone(), self.place(value)?))
        };
        Ok((self.place(loss)?, metrics.iter().map(metric).collect::<Result<_>>()?))
    }
}

fn unknown(node: &GraphNode) -> Error {
    let kind = if node.op == NodeKind::CallMethod { "method" } else { "function" };
    let near = operations::nearest(node.op, &node.target);
    let error = Error::unsupported(format!("{kind} `{}` is not supported in a custom loss", node.target));
    let client = "a plain function given to `forward_backward_custom` runs on the client";
    if near.is_empty() {
        return error.hint(client);
    }
    error.hint(format!("the nearest that are: `{}`; {client}", near.join("`, `")))
}

/// Whether a constant can be what a parameter takes; what only the data can tell is accepted.
fn accepts(parameter: &Parameter, expression: &Expression) -> bool {
    use Expression as E;
    match (parameter.kinds, expression) {
        (_, E::None) if parameter.kinds != Kinds::Any => parameter.optional,
        (_, E::Value(_))
        | (Kinds::Any, _)
        | (Kinds::Nothing, E::Bool(false))
        | (Kinds::Text, E::Text(_))
        | (Kinds::Dtype, E::Kind(_))
        | (Kinds::Operand | Kinds::Number, E::Bool(_) | E::Int(_) | E::Float(_))
        | (Kinds::Int | Kinds::Bool, E::Bool(_) | E::Int(_))
        | (Kinds::Dims, E::Int(_))
        | (Kinds::Place, E::Place) => true,
        (Kinds::Place, E::Text(device)) => device == "cpu",
        (Kinds::Dims, E::List(items) | E::Tuple(items)) => {
            items.iter().all(|item| matches!(item, E::Int(_) | E::Bool(_) | E::Value(_)))
        }
        (Kinds::Tensors, E::List(items) | E::Tuple(items)) => items.iter().all(|item| matches!(item, E::Value(_))),
        _ => false,
    }
}
