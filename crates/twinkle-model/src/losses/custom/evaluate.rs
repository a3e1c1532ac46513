//! Runs a program on one datum, forward and back.

use std::panic::{AssertUnwindSafe, catch_unwind};

use tch::{Kind, Tensor};
use twinkle_core::data::{TensorData, TensorValues};
use twinkle_core::{Error, Result};

use super::arguments::Arguments;
use super::limits::Budget;
use super::operations::Cost;
use super::program::{Expression, Program, Step};
use super::value::{Fault, Value, broadcast_volume, copied, is_floating};

/// What a loss makes of one datum.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct DatumLoss {
    pub(super) value: f64,
    /// By each logprob, in their order.
    pub(super) derivatives: Vec<f32>,
    /// In the order of [`Program::metrics`].
    pub(super) metrics: Vec<f64>,
}

impl Program {
    /// Value, derivatives and metrics of one datum.
    ///
    /// `shape` is that of `logprobs`; `inputs` are the others, in their order. Everything happens on the CPU, in the
    /// dtypes the graph asks for, float32 where it does not say.
    ///
    /// Errors, all of them the user's: an operation refuses its values, a bound is reached, the loss is no scalar or
    /// does not depend on `logprobs`, or something is not finite.
    pub(super) fn run(
        &self,
        logprobs: &[f32],
        shape: &[i64],
        inputs: &[&TensorData],
        budget: &Budget,
    ) -> Result<DatumLoss> {
        // The engine's thread may have recording off.
        tch::with_grad(|| self.run_recorded(logprobs, shape, inputs, budget))
    }

    fn run_recorded(
        &self,
        logprobs: &[f32],
        shape: &[i64],
        inputs: &[&TensorData],
        budget: &Budget,
    ) -> Result<DatumLoss> {
        budget.next_datum();
        let given = Tensor::f_from_slice(logprobs).and_then(|it| it.f_reshape(shape)).map_err(internal)?;
        let logprobs = given.f_set_requires_grad(true).map_err(internal)?;
        let mut values = vec![Value::Tensor(logprobs.shallow_clone())];
        for (input, declared) in inputs.iter().zip(self.inputs.iter().skip(1)) {
            values.push(Value::Tensor(tensor_of(input, declared.rank).map_err(internal)?));
        }
        for step in &self.steps {
            let value = run_step(step, &values, budget).map_err(|fault| {
                Error::invalid(format!(
                    "custom loss `{}`, node `{}` (`{}`): {}",
                    self.name, step.node, step.target, fault.0
                ))
            })?;
            values.push(value);
        }
        let metrics = self.metrics.iter().map(|(name, place)| self.metric(name, values.get(*place)));
        let metrics = metrics.collect::<Result<_>>()?;
        let loss = self.scalar_loss(values.get(self.loss))?;
        let value = loss.f_double_value(&[]).map_err(internal)?;
        if !value.is_finite() {
            return Err(self.wrong(format!("is {value}")));
        }
        let derivatives = self.derivatives(&loss, &logprobs)?;
        Ok(DatumLoss { value, derivatives, metrics })
    }

    fn scalar_loss(&self, value: Option<&Value>) -> Result<Tensor> {
        let Some(Value::Tensor(loss)) = value else {
            return Err(self.wrong("is not a tensor"));
        };
        if loss.dim() != 0 || !is_floating(loss.kind()) {
            return Err(self.wrong(format!(
                "must be a scalar of floats, not {:?} of shape {:?}",
                loss.kind(),
                loss.size()
            )));
        }
        if !loss.requires_grad() {
            return Err(self.wrong("does not depend on `logprobs`"));
        }
        Ok(loss.shallow_clone())
    }

    fn derivatives(&self, loss: &Tensor, logprobs: &Tensor) -> Result<Vec<f32>> {
        loss.f_backward().map_err(|error| self.wrong(format!("cannot be differentiated: {}", Fault::from(error).0)))?;
        let gradient = logprobs.f_grad().map_err(internal)?;
        if !gradient.defined() {
            return Err(self.wrong("does not depend on `logprobs`"));
        }
        let gradient = gradient.f_flatten(0, -1).and_then(|it| it.f_to_dtype(Kind::Float, false, false));
        let derivatives = Vec::<f32>::try_from(gradient.map_err(internal)?).map_err(internal)?;
        match derivatives.iter().position(|derivative| !derivative.is_finite()) {
            None => Ok(derivatives),
            Some(place) => Err(self.wrong(format!(
                "has the derivative {} by logprob {place}; nothing was accumulated",
                derivatives[place]
            ))),
        }
    }

    fn metric(&self, name: &str, value: Option<&Value>) -> Result<f64> {
        let number = value.and_then(super::arguments::number);
        number
            .ok_or_else(|| Error::invalid(format!("metric `{name}` of custom loss `{}` is not one number", self.name)))
    }

    fn wrong(&self, what: impl std::fmt::Display) -> Error {
        Error::invalid(format!("the value of custom loss `{}` {what}", self.name))
    }
}

fn internal(error: impl std::fmt::Display) -> Error {
    Error::internal(format!("a custom loss could not be prepared: {}", first_line(&error.to_string())))
}

fn first_line(text: &str) -> &str {
    text.lines().next().unwrap_or_default()
}

/// An input of rank 0 is one number, whether or not it came as a vector of one.
fn tensor_of(data: &TensorData, rank: u8) -> Result<Tensor, tch::TchError> {
    let sizes = if rank == 0 { &[] } else { data.shape.as_slice() };
    let shape: Vec<i64> = sizes.iter().map(|size| *size as i64).collect();
    let flat = match &data.values {
        TensorValues::Float32(values) => Tensor::f_from_slice(values)?,
        TensorValues::Int64(values) => Tensor::f_from_slice(values)?,
    };
    flat.f_reshape(shape)
}

pub(super) fn run_step(step: &Step, values: &[Value], budget: &Budget) -> Result<Value, Fault> {
    let arguments: Vec<Value> = step.arguments.iter().map(|it| evaluate(it, values)).collect::<Result<_, _>>()?;
    let mut shapes = Vec::new();
    for argument in &arguments {
        argument.each_tensor(&mut |tensor| shapes.push(tensor.size()));
    }
    let read = shapes.iter().filter_map(|shape| super::value::volume(shape)).fold(0_u64, u64::saturating_add);
    budget.begin(read)?;
    let operation = step.found.entry.operation;
    match operation.cost {
        Cost::Broadcast => budget.reserve(broadcast_volume(&shapes))?,
        Cost::Inputs => budget.reserve(Some(read))?,
        Cost::Nothing | Cost::Own => {}
    }
    let compute = |values| {
        let arguments = Arguments { values, parameters: &step.found.entry.parameters, budget };
        caught(|| (operation.run)(&arguments))
    };
    if !step.found.in_place {
        return compute(arguments);
    }
    let Some(Value::Tensor(target)) = arguments.first().cloned() else {
        return Err(Fault::new("only a tensor can be changed in place"));
    };
    // The derivative needs the values that were there before: the operation gets a copy of them.
    let mut arguments = arguments;
    arguments[0] = Value::Tensor(copied(&target)?);
    let Value::Tensor(result) = compute(arguments)? else {
        return Err(Fault::new("only a tensor can be put in a tensor's place"));
    };
    write(target, &result)
}

/// tch gives numbers to libtorch in objects that panic when they are dropped after an operation has failed: that is the
/// operation's error.
fn caught(compute: impl FnOnce() -> Result<Value, Fault>) -> Result<Value, Fault> {
    catch_unwind(AssertUnwindSafe(compute)).unwrap_or_else(|panic| {
        let text = panic.downcast_ref::<String>().map_or("", String::as_str);
        let reason = text.split_once("Torch(\"").map_or("it cannot be computed with these values", |(_, rest)| rest);
        Err(Fault::new(reason.split(['\n', '\\', '"']).next().unwrap_or_default()))
    })
}

/// Writes into a tensor, which keeps its shape and dtype.
fn write(mut target: Tensor, result: &Tensor) -> Result<Value, Fault> {
    if is_floating(result.kind()) && !is_floating(target.kind()) {
        return Err(Fault::new("a tensor of whole numbers cannot hold the result"));
    }
    if result.size() != target.size() {
        return Err(Fault::new(format!("a result of shape {:?} has no place in {:?}", result.size(), target.size())));
    }
    target.f_copy_(result)?;
    Ok(Value::Tensor(target))
}

fn evaluate(expression: &Expression, values: &[Value]) -> Result<Value, Fault> {
    let all = |items: &[Expression]| items.iter().map(|item| evaluate(item, values)).collect::<Result<Vec<_>, _>>();
    Ok(match expression {
        Expression::None => Value::None,
        Expression::Bool(value) => Value::Bool(*value),
        Expression::Int(value) => Value::Int(*value),
        Expression::Float(value) => Value::Float(*value),
        Expression::Text(text) => Value::Text(text.clone()),
        Expression::Value(place) => values.get(*place).cloned().ok_or_else(|| Fault::new("a value is missing"))?,
        Expression::List(items) => Value::List(all(items)?),
        Expression::Tuple(items) => Value::Tuple(all(items)?),
        Expression::Slice(bounds) => {
            let [start, end, step] = bounds.as_ref();
            Value::Slice(Box::new([evaluate(start, values)?, evaluate(end, values)?, evaluate(step, values)?]))
        }
        Expression::Ellipsis => Value::Ellipsis,
        Expression::Kind(kind) => Value::Kind(*kind),
        Expression::Place => Value::Place,
    })
}
