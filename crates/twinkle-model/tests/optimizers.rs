//! Optimizers, schedules and clipping against torch's numbers, and what must be equal bit for bit.

use std::collections::{BTreeMap, HashMap};
use std::path::Path;

use serde::Deserialize;
use serde_json::{Map, Value};
use tch::{Device, Kind, Tensor};
use twinkle_core::call::{AdamParams, GradientClip, GradientNorm, OptimizerOverrides, OptimizerSpec, SchedulerSpec};
use twinkle_model::optimizer::shape::ParameterShape;
use twinkle_model::optimizer::{Optimizer, Parameters, clip};

/// `tests/golden/optimizers.json`.
#[derive(Deserialize)]
struct Golden {
    shapes: Vec<Vec<i64>>,
    parameters: Vec<f32>,
    gradients: Vec<Vec<f32>>,
    optimizers: Vec<OptimizerCase>,
    schedules: Vec<ScheduleCase>,
    clips: Vec<ClipCase>,
}

#[derive(Deserialize)]
struct OptimizerCase {
    name: String,
    settings: Map<String, Value>,
    after: BTreeMap<String, Vec<f32>>,
}

#[derive(Deserialize)]
struct ScheduleCase {
    name: String,
    settings: Map<String, Value>,
    optimizer: String,
    optimizer_settings: Map<String, Value>,
    rates: Vec<f64>,
    momenta: Vec<Option<f64>>,
}

#[derive(Deserialize)]
struct ClipCase {
    norm_type: GradientNorm,
    max_norm: f64,
    norm: f64,
    after: Vec<f32>,
}

fn golden() -> Golden {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/golden/optimizers.json");
    serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap()
}

/// Parameters one after the other, and what an optimizer does to them.
struct Bench {
    shapes: Vec<ParameterShape>,
    values: Tensor,
    optimizer: Optimizer,
}

impl Bench {
    fn new(spec: OptimizerSpec, shapes: &[Vec<i64>], values: &[f32]) -> Self {
        let mut start = 0;
        let mut placed = Vec::new();
        for dimensions in shapes {
            placed.push(ParameterShape { start, dimensions: dimensions.clone(), decays: true });
            start += dimensions.iter().product::<i64>();
        }
        let values = Tensor::from_slice(&values[..usize::try_from(start).unwrap()]);
        let optimizer = Optimizer::fresh(spec, &placed, Device::Cpu).unwrap();
        Self { shapes: placed, values, optimizer }
    }

    fn step(&mut self, gradients: &[f32]) {
        let gradients = Tensor::from_slice(&gradients[..self.values.numel()]);
        self.optimizer.step(Parameters { values: &self.values, gradients: &gradients, shapes: &self.shapes });
    }

    fn floats(&self) -> Vec<f32> {
        Vec::try_from(&self.values).unwrap()
    }

    /// As it comes back from disk.
    fn saved_and_restored(self) -> Self {
        let saved = serde_json::to_vec(&self.optimizer.saved()).unwrap();
        let mut tensors: HashMap<String, Tensor> =
            self.optimizer.tensors().map(|(name, tensor)| (name.to_owned(), tensor.copy())).collect();
        let saved = serde_json::from_slice(&saved).unwrap();
        let steps = self.optimizer.steps();
        let optimizer = Optimizer::restored(Some(saved), steps, &mut tensors, &self.shapes, Device::Cpu).unwrap();
        assert!(tensors.is_empty());
        Self { optimizer, ..self }
    }
}

fn shapes_for(name: &str, golden: &Golden) -> Vec<Vec<i64>> {
    let shapes = golden.shapes.iter().filter(|shape| name != "Muon" || shape.len() > 1);
    shapes.cloned().collect()
}

#[test]
fn every_optimizer_steps_as_torchs_does() {
    let golden = golden();
    for name in OptimizerSpec::NAMES {
        assert!(golden.optimizers.iter().any(|case| case.name == name), "torch never stepped `{name}`");
    }
    for case in &golden.optimizers {
        let spec = OptimizerSpec::named(&case.name, case.settings.clone()).unwrap();
        // Muon rounds to bf16 on the way: one unit there is 2⁻⁸ of an update.
        let tolerance = if case.name == "Muon" { 4e-3 * spec.lr() } else { 1e-6 };
        let mut bench = Bench::new(spec, &shapes_for(&case.name, &golden), &golden.parameters);
        for (number, gradients) in golden.gradients.iter().enumerate() {
            bench.step(gradients);
            let Some(expected) = case.after.get(&(number + 1).to_string()) else { continue };
            for (place, (value, expected)) in bench.floats().iter().zip(expected).enumerate() {
                let difference = f64::from((value - expected).abs());
                assert!(
                    difference <= tolerance * f64::from(expected.abs()).max(1.0),
                    "{} {:?}, step {}, number {place}: {value}, not {expected}",
                    case.name,
                    case.settings,
                    number + 1
                );
            }
        }
    }
}

#[test]
fn an_optimizer_that_was_saved_goes_on_in_the_same_bits() {
    let golden = golden();
    for case in &golden.optimizers {
        let run = |saves: bool| {
            let spec = OptimizerSpec::named(&case.name, case.settings.clone()).unwrap();
            let mut bench = Bench::new(spec, &shapes_for(&case.name, &golden), &golden.parameters);
            let schedule = SchedulerSpec::named("ExponentialLR", Map::from_iter([("gamma".into(), 0.7.into())]));
            bench.optimizer.schedule(schedule.unwrap()).unwrap();
            for gradients in &golden.gradients {
                bench.step(gradients);
                let rates = bench.optimizer.next_rates(bench.optimizer.spec()).unwrap().unwrap();
                bench.optimizer.set_rates(rates);
                if saves {
                    bench = bench.saved_and_restored();
                }
            }
            bench.floats().into_iter().map(f32::to_bits).collect::<Vec<_>>()
        };
        assert_eq!(run(true), run(false), "{} {:?}", case.name, case.settings);
    }
}

#[test]
fn every_schedule_gives_torchs_rates_and_momenta() {
    let golden = golden();
    for name in SchedulerSpec::NAMES {
        assert!(golden.schedules.iter().any(|case| case.name == name), "torch never scheduled `{name}`");
    }
    for case in &golden.schedules {
        let mut settings = case.optimizer_settings.clone();
        settings.insert("lr".into(), 0.05.into());
        let spec = OptimizerSpec::named(&case.optimizer, settings).unwrap();
        let mut optimizer = Bench::new(spec, &[vec![1]], &[0.0]).optimizer;
        optimizer.schedule(SchedulerSpec::named(&case.name, case.settings.clone()).unwrap()).unwrap();
        for (step, (rate, momentum)) in case.rates.iter().zip(&case.momenta).enumerate() {
            if step > 0 {
                let rates = optimizer.next_rates(optimizer.spec()).unwrap().unwrap();
                optimizer.set_rates(rates);
            }
            let label = format!("{} {:?}, step {step}", case.name, case.settings);
            let close = |value: f64, expected: f64| (value - expected).abs() <= 1e-15 + 1e-12 * expected.abs();
            assert!(close(optimizer.learning_rate(), *rate), "{label}: {}, not {rate}", optimizer.learning_rate());
            if let Some(momentum) = momentum {
                let found = optimizer.spec().clone().momentum_mut().copied().unwrap();
                assert!(close(found, *momentum), "{label}: momentum {found}, not {momentum}");
            }
        }
    }
}

#[test]
fn a_cycle_ends_and_says_so() {
    let mut optimizer = Bench::new(OptimizerSpec::default(), &[vec![1]], &[0.0]).optimizer;
    let settings = Map::from_iter([("max_lr".into(), 0.1.into()), ("total_steps".into(), 2.into())]);
    optimizer.schedule(SchedulerSpec::named("OneCycleLR", settings).unwrap()).unwrap();
    for _ in 0..2 {
        let rates = optimizer.next_rates(optimizer.spec()).unwrap().unwrap();
        optimizer.set_rates(rates);
    }
    let error = optimizer.next_rates(optimizer.spec()).unwrap_err();
    assert!(error.to_string().contains("is over"), "{error}");
}

#[test]
fn a_schedule_that_cycles_momentum_needs_an_optimizer_that_has_one() {
    let spec = OptimizerSpec::named("Adagrad", Map::new()).unwrap();
    let mut optimizer = Bench::new(spec, &[vec![1]], &[0.0]).optimizer;
    let settings = Map::from_iter([("max_lr".into(), 0.1.into()), ("total_steps".into(), 9.into())]);
    let error = optimizer.schedule(SchedulerSpec::named("OneCycleLR", settings).unwrap()).unwrap_err();
    assert!(error.to_string().contains("`cycle_momentum`"), "{error}");
    assert!(optimizer.scheduler().is_none());
}

#[test]
fn gradients_are_clipped_as_torch_clips_them() {
    let golden = golden();
    for case in &golden.clips {
        let gradients = Tensor::from_slice(&golden.gradients[0]);
        let norm = clip::gradient_norm(&gradients, case.norm_type);
        assert!((norm - case.norm).abs() <= 1e-6 * case.norm, "{norm}, not {}", case.norm);
        let limit = GradientClip { max_norm: case.max_norm, norm: case.norm_type };
        clip::scale(&gradients, clip::clip_factor(norm, limit));
        for (value, expected) in Vec::<f32>::try_from(&gradients).unwrap().iter().zip(&case.after) {
            assert!((value - expected).abs() <= 1e-6 * expected.abs(), "{value}, not {expected}");
        }
    }
}

#[test]
fn a_norm_with_a_nan_in_it_is_nan() {
    let gradients = Tensor::from_slice(&[1.0_f32, f32::NAN, 2.0]);
    assert!(clip::gradient_norm(&gradients, GradientNorm::Two).is_nan());
    assert!(clip::gradient_norm(&gradients, GradientNorm::Infinity).is_nan());
}

/// A number's bits depend on nothing but its own history: not on where it lies, what lies beside it, how many there are.
#[test]
fn a_number_steps_alike_anywhere_in_a_vector_of_any_length() {
    tch::manual_seed(3);
    let length = 100_003;
    let values = Tensor::randn([length], (Kind::Float, Device::Cpu));
    let steps: Vec<Tensor> = (0..3).map(|_| Tensor::randn([length], (Kind::Float, Device::Cpu))).collect();
    for name in OptimizerSpec::NAMES.into_iter().filter(|name| !["Adafactor", "Muon"].contains(name)) {
        let spec = OptimizerSpec::named(name, Map::from_iter([("weight_decay".into(), 0.1.into())])).unwrap();
        let stepped = |start: i64, count: i64| {
            let floats = |tensor: &Tensor| Vec::<f32>::try_from(tensor.narrow(0, start, count)).unwrap();
            let mut bench = Bench::new(spec.clone(), &[vec![count]], &floats(&values));
            for gradients in &steps {
                bench.step(&floats(gradients));
            }
            bench.floats().into_iter().map(f32::to_bits).collect::<Vec<_>>()
        };
        let whole = stepped(0, length);
        for (start, count) in [(0, 1), (32_767, 2), (65_537, 333), (99_990, 13)] {
            let part = start..start + count;
            let expected = &whole[usize::try_from(part.start).unwrap()..usize::try_from(part.end).unwrap()];
            assert_eq!(stepped(start, count), expected, "{name} {part:?}");
        }
    }
}

#[test]
fn norms_and_biases_do_not_decay() {
    let spec = OptimizerSpec::named("SGD", Map::from_iter([("weight_decay".into(), 0.5.into())])).unwrap();
    let mut bench = Bench::new(spec, &[vec![2, 1], vec![2], vec![1, 1]], &[1.0; 5]);
    bench.shapes[1].decays = false;
    bench.step(&[0.0; 5]);
    let decayed = 1.0 - 1e-3 * 0.5;
    assert_eq!(bench.floats(), [decayed, decayed, 1.0, 1.0, decayed]);
}

#[test]
fn muon_refuses_what_is_no_matrix() {
    let spec = OptimizerSpec::named("Muon", Map::new()).unwrap();
    let vector = ParameterShape { start: 0, dimensions: vec![3], decays: true };
    let error = Optimizer::fresh(spec, &[vector], Device::Cpu).unwrap_err();
    assert!(error.to_string().contains("matrices"), "{error}");
}

#[test]
fn settings_change_only_where_the_optimizer_has_them() {
    let optimizer = Bench::new(OptimizerSpec::named("SGD", Map::new()).unwrap(), &[vec![1]], &[0.0]).optimizer;
    let changed = optimizer.overridden(&OptimizerOverrides { lr: Some(0.5), ..OptimizerOverrides::default() }).unwrap();
    assert!((changed.lr() - 0.5).abs() < 1e-12);
    let wrong = OptimizerOverrides { betas: Some([0.9, 0.9]), ..OptimizerOverrides::default() };
    let error = optimizer.overridden(&wrong).unwrap_err();
    assert!(error.to_string().contains("`betas`"), "{error}");
}

#[test]
fn tinkers_step_is_adam_w_and_nothing_else() {
    let mut bench = Bench::new(OptimizerSpec::default(), &[vec![3]], &[1.0; 3]);
    let gradients = Tensor::from_slice(&[0.5_f32, -3.0, 0.0]);
    let at = Parameters { values: &bench.values, gradients: &gradients, shapes: &bench.shapes };
    bench.optimizer.step_adam(&AdamParams { learning_rate: 0.1, ..AdamParams::default() }, at);
    for (value, expected) in bench.floats().iter().zip([0.9, 1.1, 1.0]) {
        assert!((value - expected).abs() < 1e-6, "{value}, not {expected}");
    }
    let sgd = Bench::new(OptimizerSpec::named("SGD", Map::new()).unwrap(), &[vec![1]], &[0.0]).optimizer;
    let error = sgd.check_adam(&AdamParams::default()).unwrap_err();
    assert!(error.to_string().contains("`SGD`"), "{error}");
}

#[test]
fn settings_of_tinkers_step_that_are_out_of_range_are_named() {
    let optimizer = Bench::new(OptimizerSpec::default(), &[vec![1]], &[0.0]).optimizer;
    let error = optimizer.check_adam(&AdamParams { learning_rate: f64::NAN, ..AdamParams::default() }).unwrap_err();
    assert!(error.to_string().contains("`learning_rate` is NaN"), "{error}");
    assert!(optimizer.check_adam(&AdamParams { beta2: 1.0, ..AdamParams::default() }).is_err());
    assert!(optimizer.check_adam(&AdamParams { learning_rate: 0.0, ..AdamParams::default() }).is_ok());
}
