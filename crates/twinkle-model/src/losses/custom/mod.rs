//! `custom`: a loss that a client wrote in Python, traced by the SDK, sent as a graph and computed here.
//!
//! The graph is data. Each of its nodes names an operation of our own table ([`operations`]); what is not there is
//! refused when the loss is created. [`program`] checks a graph, [`evaluate`] runs it on one datum with libtorch's
//! autograd on the CPU, [`limits`] bounds what that may cost. The loss is computed datum by datum and added in float64,
//! so that any split of a batch gives the same.

mod arguments;
mod evaluate;
mod limits;
mod operations;
mod program;
#[cfg(test)]
mod robustness_tests;
#[cfg(test)]
mod tests;
mod value;

use std::collections::BTreeMap;

use twinkle_core::call::{LossGraph, LossSpec};
use twinkle_core::data::TensorData;
use twinkle_core::{Error, Result};

use super::{DatumView, Inputs, Loss, PerBatch, Scope, WholeLoss};
use crate::batch::Example;
use limits::Budget;
use program::Program;

pub use limits::{MAX_GRAPH_BYTES, MAX_NODES, MAX_TIME, MAX_VALUES, MAX_WORK};
pub use operations::supported;

/// Its name among the losses.
pub const NAME: &str = "custom";

struct Custom {
    program: Program,
}

/// Checks a graph as far as it can be without data; every mistake is the user's.
pub fn check(graph: &LossGraph) -> Result<()> {
    program::compile(graph).map(drop)
}

/// Builds the loss of a graph, which the front has put in place of its id.
pub(super) fn build(spec: &LossSpec) -> Result<Box<dyn Loss>> {
    let Some(graph) = &spec.graph else {
        return Err(Error::invalid("loss `custom` needs the setting `loss_id`")
            .hint("create the loss first, with `create_custom_loss`"));
    };
    if let Some(setting) = spec.config.keys().next() {
        return Err(Error::invalid(format!("loss `custom` has no setting `{setting}`")).hint("it has `loss_id` only"));
    }
    Ok(Box::new(Custom { program: program::compile(graph)? }))
}

impl Loss for Custom {
    fn inputs(&self) -> Inputs<'_> {
        Inputs::AsSent
    }

    fn scope(&self) -> Scope<'_> {
        Scope::Batch(self)
    }

    fn takes_candidates(&self) -> bool {
        true
    }

    fn check(&self, example: &Example) -> Result<()> {
        for input in &self.program.inputs {
            let sent = if input.name == "logprobs" { "target_tokens" } else { &input.name };
            let name = &self.program.name;
            let Some(tensor) = example.sent.get(sent) else {
                return Err(Error::invalid(format!("there is no `{sent}`, which custom loss `{name}` reads")));
            };
            // Protobuf cannot tell one number without dimensions from a vector of one.
            if input.rank == 0 && tensor.len() == 1 {
                continue;
            }
            let rank = tensor.shape.len();
            if rank != usize::from(input.rank) {
                return Err(Error::invalid(format!(
                    "`{sent}` has rank {rank}, but custom loss `{name}` declared `{}` with rank {}",
                    input.name, input.rank
                )));
            }
            if tensor.shape.iter().product::<usize>() != tensor.len() {
                let (shape, count) = (&tensor.shape, tensor.len());
                return Err(Error::invalid(format!(
                    "`{sent}` has {count} values, which do not fill its shape {shape:?}"
                )));
            }
        }
        Ok(())
    }
}

impl PerBatch for Custom {
    fn batch(&self, data: &[DatumView]) -> Result<WholeLoss> {
        let Program { inputs, metrics: names, .. } = &self.program;
        let budget = Budget::new();
        let mut whole = WholeLoss { value: 0.0, derivatives: Vec::with_capacity(data.len()), metrics: BTreeMap::new() };
        for (index, datum) in data.iter().enumerate() {
            let example = datum.example;
            let mut shape = vec![example.tokens.len() as i64];
            shape.extend(example.candidates.map(|candidates| candidates as i64));
            let others: Option<Vec<&TensorData>> =
                inputs.iter().skip(1).map(|input| example.sent.get(&input.name)).collect();
            let others = others.ok_or_else(|| Error::internal("an input of a custom loss was not checked"))?;
            let found = self.program.run(datum.logprobs, &shape, &others, &budget);
            let found =
                found.map_err(|error| Error { message: format!("datum {index}: {}", error.message), ..error })?;
            whole.value += found.value;
            whole.derivatives.push(found.derivatives);
            for ((name, _), value) in names.iter().zip(found.metrics) {
                *whole.metrics.entry(name.clone()).or_insert(0.0) += value;
            }
        }
        for (name, value) in &mut whole.metrics {
            if name.ends_with(":mean") {
                *value /= data.len().max(1) as f64;
            }
        }
        Ok(whole)
    }
}
