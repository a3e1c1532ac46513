//! Whatever an operation is given, it answers: with a value or with an error, never by ending the program.

use tch::{Kind, Tensor};

use super::evaluate::run_step;
use super::limits::Budget;
use super::operations::{Found, all};
use super::program::{Expression, Step};
use super::value::Value;

/// How often each operation is tried, sometimes in place.
const TRIALS: usize = 60;

/// A small generator, so that a failure comes again.
struct Random(u64);

impl Random {
    fn below(&mut self, count: usize) -> usize {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) as usize % count
    }
}

fn tensors() -> Vec<Value> {
    let floats = |values: &[f32], shape: &[i64]| {
        Value::Tensor(Tensor::from_slice(values).reshape(shape).set_requires_grad(true))
    };
    let wholes = |values: &[i64], shape: &[i64]| Value::Tensor(Tensor::from_slice(values).reshape(shape));
    vec![
        floats(&[-1.0, -0.5, -2.0], &[3]),
        floats(&[-1.0, f32::NAN, f32::INFINITY, 0.0, -0.0, 1e30], &[2, 3]),
        floats(&[-0.25], &[]),
        floats(&[], &[0]),
        floats(&[0.5; 4], &[1, 2, 2]),
        wholes(&[0, 2, 1], &[3]),
        wholes(&[i64::MIN, -1, i64::MAX], &[3]),
        wholes(&[-1], &[]),
        wholes(&[0, 0, 1, 1, 2, 2], &[2, 3]),
        Value::Tensor(Tensor::from_slice(&[true, false, true])),
        Value::Tensor(Tensor::from_slice(&[1.0_f64, -1.0, 0.0]).to_kind(Kind::Half)),
    ]
}

/// Any value that a graph can have.
fn any(random: &mut Random, depth: usize) -> Value {
    let several = |random: &mut Random| (0..random.below(4)).map(|_| any(random, depth + 1)).collect();
    match random.below(if depth > 2 { 9 } else { 12 }) {
        0..4 => {
            let mut tensors = tensors();
            tensors.swap_remove(random.below(tensors.len()))
        }
        4 => Value::Int([0, 1, -1, 2, 3, 7][random.below(6)]),
        5 => Value::Int([i64::MIN, i64::MAX, 1 << 40, -(1 << 40), 64][random.below(5)]),
        6 => Value::Float([0.5, -1.0, 0.0, f64::NAN, f64::INFINITY, 1e300][random.below(6)]),
        7 => {
            [Value::None, Value::Bool(true), Value::Bool(false), Value::Ellipsis, Value::Place][random.below(5)].clone()
        }
        8 => match random.below(2) {
            0 => Value::Kind([Kind::Float, Kind::Int64, Kind::Bool, Kind::Half, Kind::Double][random.below(5)]),
            _ => Value::Text(
                ["mean", "none", "sum", "floor", "ij,jk->ik", "shape", "T", "values", "->"][random.below(9)].into(),
            ),
        },
        9 => Value::List(several(random)),
        10 => Value::Tuple(several(random)),
        _ => Value::Slice(Box::new([any(random, depth + 2), any(random, depth + 2), any(random, depth + 2)])),
    }
}

#[test]
fn no_operation_ends_the_program_whatever_it_is_given() {
    let mut random = Random(7);
    let mut answered = 0;
    for entry in all() {
        for trial in 0..TRIALS {
            let values: Vec<Value> = entry.parameters.iter().map(|_| any(&mut random, 0)).collect();
            let arguments = entry.parameters.iter().enumerate().map(|(place, parameter)| {
                // What may be left out mostly is, or hardly anything would fit.
                if parameter.optional && random.below(3) > 0 { Expression::None } else { Expression::Value(place) }
            });
            let step = Step {
                node: "node".into(),
                target: "target".into(),
                found: Found { entry, in_place: trial % 4 == 3 },
                arguments: arguments.collect(),
            };
            let result = run_step(&step, &values, &Budget::new());
            let Ok(Value::Tensor(result)) = result else { continue };
            answered += 1;
            if result.requires_grad() {
                let _ = result.f_sum(None).and_then(|sum| sum.f_backward());
            }
        }
    }
    assert!(answered > 1000, "only {answered} trials were worth it");
}
