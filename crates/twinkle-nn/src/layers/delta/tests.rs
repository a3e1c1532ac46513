//! The recurrence against its definition, token by token in fp64, differentiated by libtorch.

use tch::{Device, Kind, Tensor};
use twinkle_torch::Frozen;

use super::convolution::ShortConvolution;
use super::features::FeatureMap;
use super::gates::Gates;
use super::norm::GatedNorm;
use super::sequence::Rows;
use super::shape::Shape;
use super::state::DeltaState;
use super::weights::WeightSums;
use crate::config::DeltaConfig;

const CPU: Device = Device::Cpu;

/// Key heads, value heads, their widths.
const SHAPES: [(usize, usize, usize, usize); 3] = [(2, 4, 8, 6), (1, 3, 16, 24), (2, 2, 16, 16)];

struct Case {
    config: DeltaConfig,
    taps: Tensor,
    a_log: Tensor,
    dt_bias: Tensor,
    map: FeatureMap,
}

impl Case {
    fn new((key_head_count, value_head_count, key_head_dim, value_head_dim): (usize, usize, usize, usize)) -> Self {
        tch::manual_seed(3);
        let config = DeltaConfig { key_head_count, value_head_count, key_head_dim, value_head_dim, conv_kernel: 4 };
        let heads = value_head_count as i64;
        let uniform = |low: f64, high: f64| Tensor::rand([heads], (Kind::Float, CPU)) * (high - low) + low;
        let taps = Tensor::randn([config.conv_channels() as i64, 1, 4], (Kind::Float, CPU)) * 0.5;
        let (a_log, dt_bias) = (uniform(0.05, 8.0).log(), uniform(-4.0, 1.0));
        let map = FeatureMap {
            shape: Shape::new(&config),
            convolution: ShortConvolution::new(Frozen::new(taps.copy())).unwrap(),
            gates: Gates::new(Frozen::new(a_log.copy()), Frozen::new(dt_bias.copy()), Kind::Float).unwrap(),
            kind: Kind::Float,
        };
        Self { config, taps, a_log, dt_bias, map }
    }

    fn rows(&self, count: i64, seed: i64) -> Rows {
        tch::manual_seed(seed);
        let heads = self.config.value_head_count as i64;
        let random = |width: i64| Tensor::randn([count, width], (Kind::Float, CPU));
        Rows { qkv: random(self.config.conv_channels() as i64), b: random(heads), a: random(heads) }
    }

    fn empty(&self) -> DeltaState {
        DeltaState::empty(&self.config, Kind::Float, CPU)
    }

    fn width(&self) -> i64 {
        self.config.value_width() as i64
    }

    fn scan(&self, rows: &Rows, state: &DeltaState) -> (Tensor, DeltaState) {
        let out = Tensor::empty([rows.qkv.size()[0], self.width()], (Kind::Float, CPU));
        let after = self.map.scan(rows, state, &out).unwrap();
        (out, after)
    }

    fn scan_native(&self, rows: &Rows, state: &DeltaState) -> (Tensor, DeltaState) {
        let (out, mut after) = self.map.scan_native(rows, &[rows.qkv.size()[0] as usize], &[state]).unwrap();
        (out, after.remove(0))
    }

    /// The definition, in fp64 and with operations that libtorch can differentiate.
    fn mirror(&self, rows: &Rows) -> (Tensor, Tensor) {
        self.mirror_of(rows, &[&self.taps, &self.a_log, &self.dt_bias].map(|weight| weight.to_kind(Kind::Double)))
    }

    /// The same of other weights: the convolution, `A_log` and `dt_bias`, in fp64.
    fn mirror_of(&self, rows: &Rows, [weight, a_log, dt_bias]: &[Tensor; 3]) -> (Tensor, Tensor) {
        let [qkv, b, a] = [&rows.qkv, &rows.b, &rows.a].map(|x| x.to_kind(Kind::Double));
        let (count, heads) = (qkv.size()[0], self.config.value_head_count as i64);
        let channels = self.config.conv_channels() as i64;
        let padded = qkv.tr().unsqueeze(0);
        let convolved =
            padded.conv1d(weight, None::<Tensor>, 1, 3, 1, channels).narrow(2, 0, count).squeeze_dim(0).tr();
        let activated = convolved.silu();
        let (keys, dim) = (self.config.key_width() as i64, self.config.key_head_dim as i64);
        let group = heads / self.config.key_head_count as i64;
        let unit = |start: i64| {
            let x = activated.narrow(1, start, keys).reshape([count, -1, dim]);
            let length = (x.square().sum_dim_intlist(-1_i64, true, Kind::Double) + 1e-6).sqrt();
            (x / length).repeat_interleave_self_int(group, 1, None)
        };
        let (q, k) = (unit(0) / (dim as f64).sqrt(), unit(keys));
        let values = activated.narrow(1, 2 * keys, self.width()).reshape([count, heads, -1]);
        let beta = b.sigmoid();
        let decay = (-a_log.exp() * (a + dt_bias).softplus()).exp();
        let mut memory = Tensor::zeros([heads, dim, self.config.value_head_dim as i64], (Kind::Double, CPU));
        let mut answers = vec![];
        for t in 0..count {
            let decayed = &memory * decay.get(t).view([heads, 1, 1]);
            let key = k.get(t).unsqueeze(-1);
            let predicted = (&decayed * &key).sum_dim_intlist(1_i64, false, Kind::Double);
            let correction = (values.get(t) - predicted) * beta.get(t).unsqueeze(-1);
            memory = decayed + key * correction.unsqueeze(1);
            answers.push((&memory * q.get(t).unsqueeze(-1)).sum_dim_intlist(1_i64, false, Kind::Double).view([-1]));
        }
        (Tensor::stack(&answers, 0), memory)
    }
}

fn error(found: &Tensor, expected: &Tensor) -> f64 {
    (found.to_kind(Kind::Double) - expected).abs().max().double_value(&[])
}

#[test]
fn chunks_agree_with_the_recurrence_at_every_length() {
    for shape in SHAPES {
        let case = Case::new(shape);
        for count in [1, 2, 3, 4, 63, 64, 65, 130, 200] {
            let rows = case.rows(count, count);
            let (out, after) = case.scan(&rows, &case.empty());
            let (expected, memory) = case.mirror(&rows);
            assert!(error(&out, &expected) <= 1e-5, "{shape:?}, {count} rows: off by {}", error(&out, &expected));
            assert!(error(&after.memory, &memory) <= 2e-5, "{shape:?}, {count} rows");
            let (out, after) = case.scan_native(&rows, &case.empty());
            assert!(error(&out, &expected) <= 1e-5, "{shape:?}, {count} rows: off by {}", error(&out, &expected));
            assert!(error(&after.memory, &memory) <= 2e-5, "{shape:?}, {count} rows");
        }
    }
}

#[test]
fn the_gradient_is_that_of_the_recurrence() {
    for shape in SHAPES {
        let case = Case::new(shape);
        for count in [1, 5, 64, 65, 150] {
            let rows = case.rows(count, 7 + count);
            let leaves = [&rows.qkv, &rows.b, &rows.a].map(|x| x.to_kind(Kind::Double).set_requires_grad(true));
            let [qkv, b, a] = leaves.each_ref().map(Tensor::shallow_clone);
            let weights =
                [&case.taps, &case.a_log, &case.dt_bias].map(|w| w.to_kind(Kind::Double).set_requires_grad(true));
            let (expected_out, _) = case.mirror_of(&Rows { qkv, b, a }, &weights);
            let d_out = Tensor::randn([count, case.width()], (Kind::Float, CPU));
            (expected_out * d_out.to_kind(Kind::Double)).sum(Kind::Double).backward();

            let into = rows.empty_like().unwrap();
            let mut sums = WeightSums::zeros(&case.map, CPU).unwrap();
            case.map.scan_backward(&rows, &d_out, &into, Some(&mut sums)).unwrap();
            let mut own = [Some(WeightSums::zeros(&case.map, CPU).unwrap())];
            let native = case.map.scan_backward_native(&rows, &[count as usize], &d_out, &mut own).unwrap();
            let own = own[0].take().unwrap();
            let taps = weights[0].grad().squeeze_dim(1).tr();
            let (a_log, dt_bias) = (weights[1].grad(), weights[2].grad());
            let [d_qkv, d_b, d_a] = leaves.each_ref().map(Tensor::grad);
            for (name, found, expected) in [
                ("qkv", &into.qkv, &d_qkv),
                ("b", &into.b, &d_b),
                ("a", &into.a, &d_a),
                ("taps", &sums.taps, &taps),
                ("A_log", &sums.a_log, &a_log),
                ("dt_bias", &sums.dt_bias, &dt_bias),
                ("native qkv", &native.qkv, &d_qkv),
                ("native b", &native.b, &d_b),
                ("native a", &native.a, &d_a),
                ("native taps", &own.taps, &taps),
                ("native A_log", &own.a_log, &a_log),
                ("native dt_bias", &own.dt_bias, &dt_bias),
            ] {
                let largest = expected.abs().max().double_value(&[]);
                let off = error(found, expected);
                // Those of the gates' weights are sums over all rows, in which much cancels.
                let allowed = if name.ends_with("A_log") || name.ends_with("dt_bias") { 3e-4 } else { 5e-5 };
                assert!(
                    off <= allowed * largest,
                    "{shape:?}, {count} rows, {name}: off by {off}, the largest is {largest}"
                );
            }
        }
    }
}

#[test]
fn a_sequence_may_come_in_any_parts() {
    let case = Case::new(SHAPES[0]);
    let rows = case.rows(200, 5);
    let (whole, last) = case.scan(&rows, &case.empty());
    for cuts in [vec![64, 128], vec![128], vec![1, 2, 3, 90], vec![63, 64, 65, 199]] {
        let on_grid = cuts.iter().all(|cut| cut % 64 == 0);
        let (mut state, mut start, mut parts) = (case.empty(), 0, vec![]);
        for cut in cuts.into_iter().chain([200]) {
            let (out, after) = case.scan(&rows.narrow(start, cut - start).unwrap(), &state);
            parts.push(out);
            (state, start) = (after, cut);
        }
        let parts = Tensor::cat(&parts, 0);
        assert!(state.tail.equal(&last.tail));
        if on_grid {
            assert!(parts.equal(&whole) && state.memory.equal(&last.memory), "whole chunks have the same bits");
        }
        assert!(error(&parts, &whole.to_kind(Kind::Double)) <= 2e-5);
        assert!(error(&state.memory, &last.memory.to_kind(Kind::Double)) <= 2e-5);
    }
}

#[test]
fn the_kernel_gives_a_row_the_same_bits_in_any_parts_among_any_others() {
    for shape in SHAPES {
        let case = Case::new(shape);
        let rows = case.rows(100, 21);
        let (whole, last) = case.scan_native(&rows, &case.empty());
        for cuts in [vec![64], vec![1, 2, 3, 90], vec![63, 65, 99]] {
            let (mut state, mut start, mut parts) = (case.empty(), 0, vec![]);
            for cut in cuts.into_iter().chain([100]) {
                let (out, after) = case.scan_native(&rows.narrow(start, cut - start).unwrap(), &state);
                parts.push(out);
                (state, start) = (after, cut);
            }
            assert!(Tensor::cat(&parts, 0).equal(&whole) && state.memory.equal(&last.memory), "{shape:?}");
            assert!(state.tail.equal(&last.tail), "{shape:?}");
        }
        let before = case.rows(37, 22);
        let join = |x: &Tensor, y: &Tensor| Tensor::cat(&[x, y], 0);
        let both = Rows { qkv: join(&before.qkv, &rows.qkv), b: join(&before.b, &rows.b), a: join(&before.a, &rows.a) };
        let (out, _) = case.map.scan_native(&both, &[37, 100], &[&case.empty(), &case.empty()]).unwrap();
        assert!(out.narrow(0, 37, 100).equal(&whole), "{shape:?}");
        let d_out = Tensor::randn([137, case.width()], (Kind::Float, CPU));
        let wanted = || Some(WeightSums::zeros(&case.map, CPU).unwrap());
        let (mut sums, mut own) = ([wanted(), wanted()], [wanted()]);
        let packed = case.map.scan_backward_native(&both, &[37, 100], &d_out, &mut sums).unwrap();
        let alone = case.map.scan_backward_native(&rows, &[100], &d_out.narrow(0, 37, 100), &mut own).unwrap();
        assert!(packed.qkv.narrow(0, 37, 100).equal(&alone.qkv), "{shape:?}");
        assert!(packed.b.narrow(0, 37, 100).equal(&alone.b) && packed.a.narrow(0, 37, 100).equal(&alone.a));
        let (packed, alone) = (sums[1].take().unwrap(), own[0].take().unwrap());
        assert!(packed.taps.equal(&alone.taps) && packed.a_log.equal(&alone.a_log), "{shape:?}");
        assert!(packed.dt_bias.equal(&alone.dt_bias), "{shape:?}");
    }
}

#[test]
fn steps_continue_what_chunks_began_whoever_else_steps() {
    for shape in SHAPES {
        let case = Case::new(shape);
        let rows = case.rows(70, 11);
        let (expected, _) = case.mirror(&rows);
        let (_, mut alone) = case.scan(&rows.narrow(0, 66).unwrap(), &case.empty());
        let mut among = alone.fork();
        for t in 66..70 {
            let own = rows.narrow(t, 1).unwrap();
            let out = Tensor::empty([1, case.width()], (Kind::Float, CPU));
            alone = case.map.step(&own, &[&alone], &out).unwrap().remove(0);
            assert!(error(&out.get(0), &expected.get(t)) <= 2e-5, "{shape:?}, row {t}");

            // The same step in a batch of 70, at a place that moves.
            let others = case.rows(70, 100 + t);
            let place = (t - 60) * 7 % 70;
            for (batch, own) in [(&others.qkv, &own.qkv), (&others.b, &own.b), (&others.a, &own.a)] {
                batch.narrow(0, place, 1).copy_(own);
            }
            let (_, strange) = case.scan(&case.rows(3, t), &case.empty());
            let states: Vec<&DeltaState> =
                (0..70).map(|index| if index == place { &among } else { &strange }).collect();
            let batch_out = Tensor::empty([70, case.width()], (Kind::Float, CPU));
            let mut after = case.map.step(&others, &states, &batch_out).unwrap();
            among = after.remove(place as usize);
            assert!(batch_out.narrow(0, place, 1).equal(&out), "{shape:?}, row {t}");
            assert!(among.memory.equal(&alone.memory) && among.tail.equal(&alone.tail), "{shape:?}, row {t}");
        }
    }
}

#[test]
fn the_memory_stays_bounded() {
    let case = Case::new(SHAPES[1]);
    let rows = case.rows(8192, 13);
    let (out, after) = case.scan(&rows, &case.empty());
    let norm = after.memory.norm().double_value(&[]);
    assert!(norm.is_finite() && norm < 100.0, "{norm}");
    assert!(out.isfinite().all().int64_value(&[]) == 1);
}

#[test]
fn the_gated_norm_and_its_gradient_agree_with_autograd() {
    tch::manual_seed(17);
    let random = |rows: i64| Tensor::randn([rows, 24], (Kind::Double, CPU));
    let (o, z) = (random(70).set_requires_grad(true), random(70).set_requires_grad(true));
    let weight = (Tensor::rand([8], (Kind::Double, CPU)) + 0.5).set_requires_grad(true);
    let heads = o.view([70, 3, 8]);
    let variance = heads.square().mean_dim(-1, true, Kind::Double);
    let expected = (&heads / (variance + 1e-5).sqrt() * &weight).view([70, 24]) * z.silu();
    let dy = random(70);
    (&expected * &dy).sum(Kind::Double).backward();

    let single = |x: &Tensor| x.detach().to_kind(Kind::Float);
    let norm = GatedNorm { weight: Frozen::new(single(&weight)), epsilon: 1e-5 };
    assert!(error(&norm.forward(&single(&o), &single(&z)).unwrap(), &expected) <= 1e-5);
    let (d_o, d_z) = norm.backward(&single(&o), &single(&z), &single(&dy)).unwrap();
    assert!(error(&d_o, &o.grad()) <= 1e-5 && error(&d_z, &z.grad()) <= 1e-5);
    let d_weight = norm.weight_gradient(&single(&o), &single(&z), &single(&dy)).unwrap();
    assert!(error(&d_weight, &weight.grad()) <= 5e-5);
}
