//! Mixtures of experts: independence of rows and of order, both layouts of the files, both layouts of adapters.

mod common;

use std::collections::HashMap;
use std::sync::Arc;

use common::{fixture, floats, forward_backward, load, logits_of};
use safetensors::SafeTensors;
use safetensors::tensor::{Dtype, TensorView};
use tch::Tensor;
use twinkle_core::call::{ExpertFactors, LoraSpec};
use twinkle_nn::{Adapter, AdapterLayout, BaseModel, ExpertLoad, Gradients, KvCache, LoadOptions, Pack, Precision};

/// All experts sparse; a dense layer among them and no renormalisation; a shared expert.
const VARIANTS: [&str; 3] = ["qwen3_moe", "qwen3_moe_mixed", "qwen3_5_moe"];
const PRECISIONS: [Precision; 2] = [Precision::Float32, Precision::BFloat16];

fn tokens(base: &BaseModel, length: usize, seed: u64) -> Vec<u32> {
    let stream = twinkle_nn::philox::Philox::new(seed, 5);
    (0..length).map(|i| (stream.uniform(i as u64) * base.config().vocab_size as f32) as u32).collect()
}

fn bits(tensor: &Tensor) -> Vec<u32> {
    floats(tensor).into_iter().map(f32::to_bits).collect()
}

/// An adapter on everything but the head whose `B` is not zero.
fn random_adapter(base: &BaseModel, factors: ExpertFactors, seed: u64) -> (Arc<AdapterLayout>, Arc<Adapter>) {
    let spec = |seed| LoraSpec {
        rank: 4,
        seed,
        train_unembed: false,
        expert_rank: Some(3),
        expert_factors: factors,
        ..LoraSpec::default()
    };
    let layout = Arc::new(AdapterLayout::new(base.config(), &spec(seed)).unwrap());
    let noise = AdapterLayout::new(base.config(), &spec(seed + 1000)).unwrap().initialise(base.device());
    let flat = layout.initialise(base.device()) + noise.roll(7, 0) * 0.3;
    let adapter = Arc::new(Adapter::from_parameters(&layout, &flat, base.kind(), base.device()));
    (layout, adapter)
}

/// The rows, the gradients and the expert load of the first adapter's sequence `own` among others.
fn in_pack(
    base: &BaseModel,
    before: &[usize],
    own: &[u32],
    after: &[usize],
    adapters: &[Arc<Adapter>],
) -> (Vec<u32>, Vec<u32>, ExpertLoad) {
    let mut pack = Pack::new();
    for length in before {
        pack.push(&tokens(base, *length, *length as u64), Some(1));
    }
    let start = pack.len();
    pack.push(own, Some(0));
    for length in after {
        pack.push(&tokens(base, *length, *length as u64), Some(1));
    }
    let rows = start..start + own.len();
    let (hidden, tape) = base.forward_training(&pack, adapters).unwrap();
    let load = tape.expert_load(&rows);
    drop(tape);
    let mut targets = pack.tokens.clone();
    targets.rotate_left(1);
    targets[rows.end - 1] = 1;
    let mut sums: Vec<Gradients> =
        adapters.iter().map(|adapter| Gradients::zeros(adapter.layout(), base.device())).collect();
    let mut borrowed: Vec<&mut Gradients> = sums.iter_mut().collect();
    let loss = |row: usize, logprob: f32| (f64::from(logprob), -0.5 - 0.1 * ((row + 64 - start % 64) % 3) as f32);
    forward_backward(base, &pack, adapters, &targets, &loss, &mut borrowed);
    (bits(&hidden.narrow(0, start as i64, own.len() as i64)), bits(sums[0].flat()), load)
}

#[test]
fn a_sequence_has_the_same_bits_whatever_experts_its_neighbours_choose() {
    for (precision, variant) in PRECISIONS.into_iter().flat_map(|of| VARIANTS.map(|variant| (of, variant))) {
        let base = load(variant, precision);
        for factors in [ExpertFactors::Shared, ExpertFactors::PerExpert] {
            let (_, first) = random_adapter(&base, factors, 1);
            let (_, second) = random_adapter(&base, ExpertFactors::Shared, 2);
            let adapters = [first, second];
            let own = tokens(&base, 70, 9);
            let alone = in_pack(&base, &[], &own, &[], &adapters);
            // 192 rows shift the loss's pattern by a multiple of its period.
            for (before, after) in [(vec![192], vec![]), (vec![], vec![130]), (vec![64, 127, 1], vec![7])] {
                let packed = in_pack(&base, &before, &own, &after, &adapters);
                assert!(alone.0 == packed.0, "{variant} {precision:?} {factors:?}: hidden rows differ");
                assert!(alone.1 == packed.1, "{variant} {precision:?} {factors:?}: gradients differ");
                assert_eq!(alone.2, packed.2, "{variant} {precision:?}: the load is of other rows too");
            }
        }
    }
}

#[test]
fn many_calls_and_one_call_add_up_to_the_same_bits() {
    for (precision, variant) in PRECISIONS.into_iter().flat_map(|of| VARIANTS.map(|variant| (of, variant))) {
        let base = load(variant, precision);
        for factors in [ExpertFactors::Shared, ExpertFactors::PerExpert] {
            let (layout, adapter) = random_adapter(&base, factors, 1);
            let sequences: Vec<Vec<u32>> =
                [5, 64, 17, 90].iter().zip(20..).map(|(length, seed)| tokens(&base, *length, seed)).collect();
            let loss = |_: usize, logprob: f32| (f64::from(logprob), -1.0);
            let run = |packs: &[&[Vec<u32>]]| {
                let mut sum = Gradients::zeros(&layout, base.device());
                for sequences in packs {
                    let mut pack = Pack::new();
                    let mut targets = vec![];
                    for tokens in *sequences {
                        pack.push(tokens, Some(0));
                        targets.extend(tokens.iter().rev());
                    }
                    forward_backward(&base, &pack, &[Arc::clone(&adapter)], &targets, &loss, &mut [&mut sum]);
                }
                bits(sum.flat())
            };
            let joined = run(&[&sequences]);
            assert!(joined == run(&[&sequences[..2], &sequences[2..]]), "{variant} {precision:?} {factors:?}");
            assert!(joined == run(&sequences.chunks(1).collect::<Vec<_>>()), "{variant} {precision:?} {factors:?}");
        }
    }
}

#[test]
fn a_decoded_row_has_the_same_bits_alone_and_beside_others() {
    for (precision, variant) in PRECISIONS.into_iter().flat_map(|of| VARIANTS.map(|variant| (of, variant))) {
        let base = load(variant, precision);
        let (_, first) = random_adapter(&base, ExpertFactors::PerExpert, 1);
        let (_, second) = random_adapter(&base, ExpertFactors::Shared, 2);
        let adapters = [Some(&first), None, Some(&second), Some(&first), Some(&second), Some(&first)];
        let filled: Vec<KvCache> = (0..adapters.len())
            .map(|place| {
                let mut cache = KvCache::new(&base);
                let _ = base.prefill(&tokens(&base, 3 + place, place as u64), &mut cache, adapters[place]).unwrap();
                cache
            })
            .collect();
        let step = |places: &[usize]| {
            let mut caches: Vec<KvCache> = places.iter().map(|place| filled[*place].fork()).collect();
            let mut borrowed: Vec<&mut KvCache> = caches.iter_mut().collect();
            let next: Vec<u32> = places.iter().map(|place| 7 + *place as u32).collect();
            let own: Vec<_> = places.iter().map(|place| adapters[*place]).collect();
            base.decode(&next, &mut borrowed, &own).unwrap()
        };
        let together = step(&[0, 1, 2, 3, 4, 5]);
        for places in [vec![0], vec![5, 3, 0], vec![2, 1], vec![4, 5, 1, 2]] {
            let some = step(&places);
            for (row, place) in places.iter().enumerate() {
                let (alone, among) = (some.narrow(0, row as i64, 1), together.narrow(0, *place as i64, 1));
                assert!(alone.equal(&among), "{variant} {precision:?}: row {place} of {places:?}");
            }
        }
    }
}

/// Both factors for every expert, made of an adapter whose experts share one side, give the same function.
#[test]
fn shared_factors_are_per_expert_factors_that_repeat() {
    for variant in VARIANTS {
        let base = load(variant, Precision::Float32);
        let (shared, _) = random_adapter(&base, ExpertFactors::Shared, 1);
        let (own, _) = random_adapter(&base, ExpertFactors::PerExpert, 1);
        let values = floats(&(shared.initialise(base.device()) + 0.01));
        let mut repeated = vec![0.0_f32; own.parameter_count()];
        for (from, to) in shared.modules().iter().zip(own.modules()) {
            assert_eq!(from.site, to.site);
            for (from, to) in [(from.a_range(), to.a_range()), (from.b_range(), to.b_range())] {
                let source = &values[from];
                for (place, target) in repeated[to].iter_mut().enumerate() {
                    *target = source[place % source.len()];
                }
            }
        }
        let adapter = |layout: &Arc<AdapterLayout>, values: &[f32]| {
            Arc::new(Adapter::from_parameters(layout, &Tensor::from_slice(values), base.kind(), base.device()))
        };
        let (shared, own) = (adapter(&shared, &values), adapter(&own, &repeated));
        let tokens = tokens(&base, 40, 3);
        let (shared, own) = (logits_of(&base, &tokens, Some(&shared)), logits_of(&base, &tokens, Some(&own)));
        assert!(common::max_abs(&shared, &own) <= 1e-4, "{variant}");
        assert!(common::max_abs(&shared, &logits_of(&base, &tokens, None)) > 1e-2, "the adapter does something");
    }
}

/// One expert's tensor: the expert, the projection, the shape and the numbers.
type ExpertPart = (usize, String, Vec<usize>, Vec<u8>);

/// Writes `variant` with its experts in the other layout.
fn other_layout(variant: &str, directory: &std::path::Path) {
    std::fs::copy(fixture(variant).join("config.json"), directory.join("config.json")).unwrap();
    let bytes = std::fs::read(fixture(variant).join("model.safetensors")).unwrap();
    let file = SafeTensors::deserialize(&bytes).unwrap();
    let mut tensors: HashMap<String, (Vec<usize>, Vec<u8>)> = HashMap::new();
    let mut apart: HashMap<String, Vec<ExpertPart>> = HashMap::new();
    for (name, view) in file.iter() {
        assert_eq!(view.dtype(), Dtype::F32);
        let Some((layer, rest)) = name.split_once(".mlp.experts.") else {
            tensors.insert(name.to_owned(), (view.shape().to_vec(), view.data().to_vec()));
            continue;
        };
        let experts = format!("{layer}.mlp.experts");
        if let Some((expert, projection)) = rest.split_once('.') {
            let part = (expert.parse().unwrap(), projection.to_owned(), view.shape().to_vec(), view.data().to_vec());
            apart.entry(experts).or_default().push(part);
            continue;
        }
        let [count, rows, columns] = *view.shape() else { panic!("{name} is not of all experts") };
        let parts: &[&str] = if rest == "down_proj" { &["down_proj"] } else { &["gate_proj", "up_proj"] };
        let size = rows / parts.len() * columns * 4;
        for (place, data) in view.data().chunks_exact(size).enumerate() {
            let (expert, part) = (place / parts.len(), parts[place % parts.len()]);
            let shape = vec![rows / parts.len(), columns];
            tensors.insert(format!("{experts}.{expert}.{part}.weight"), (shape, data.to_vec()));
        }
        assert_eq!(view.data().len(), size * count * parts.len());
    }
    for (experts, mut parts) in apart {
        // By expert, the gate before the up projection.
        parts.sort();
        for (fused, leaves) in [("gate_up_proj", ["gate_proj", "up_proj"]), ("down_proj", ["down_proj", ""])] {
            let own: Vec<_> =
                parts.iter().filter(|part| leaves.contains(&part.1.trim_end_matches(".weight"))).collect();
            let count = own.iter().map(|part| part.0).max().unwrap() + 1;
            let shape = vec![count, own.len() / count * own[0].2[0], own[0].2[1]];
            let data = own.iter().flat_map(|part| part.3.iter().copied()).collect();
            tensors.insert(format!("{experts}.{fused}"), (shape, data));
        }
    }
    let views = tensors
        .iter()
        .map(|(name, (shape, data))| (name.clone(), TensorView::new(Dtype::F32, shape.clone(), data).unwrap()));
    let bytes = safetensors::serialize(views.collect::<Vec<_>>(), None).unwrap();
    std::fs::write(directory.join("model.safetensors"), bytes).unwrap();
}

#[test]
fn both_layouts_of_the_files_are_the_same_model() {
    for variant in VARIANTS {
        let directory = tempfile::tempdir().unwrap();
        other_layout(variant, directory.path());
        let (known, other) =
            (load(variant, Precision::Float32), BaseModel::load(directory.path(), &float_options()).unwrap());
        let tokens = tokens(&known, 50, 8);
        assert_eq!(logits_of(&known, &tokens, None), logits_of(&other, &tokens, None), "{variant}");
        assert_eq!(known.weight_bytes(), other.weight_bytes());
    }
}

fn float_options() -> LoadOptions {
    LoadOptions { precision: Precision::Float32, row_tile: 64, ..LoadOptions::default() }
}

#[test]
fn the_load_counts_every_row_once_per_expert_it_was_given_to() {
    for variant in VARIANTS {
        let base = load(variant, Precision::Float32);
        let moe = base.config().moe.clone().unwrap();
        let mut pack = Pack::single(&tokens(&base, 40, 1), None);
        pack.push(&tokens(&base, 60, 2), None);
        let (_, tape) = base.forward_training(&pack, &[]).unwrap();
        let (mut sum, second) = (tape.expert_load(&(0..40)), tape.expert_load(&(40..100)));
        sum.add(&second);
        assert_eq!(sum, tape.expert_load(&(0..100)), "{variant}");
        let sparse = base.config().layers.iter().filter(|kind| kind.mlp == twinkle_nn::config::MlpKind::Sparse).count();
        assert_eq!(sum.layers.len(), sparse);
        for counts in &sum.layers {
            assert_eq!(counts.len(), moe.expert_count);
            assert_eq!(counts.iter().sum::<u64>(), 100 * moe.experts_per_token as u64);
        }
        assert!(sum.max_violation().unwrap() > 0.0);
    }
}

/// A row that is not finite must not change the experts, the output or the gradients of another.
#[test]
fn a_token_that_is_not_finite_spoils_its_own_sequence_only() {
    let directory = tempfile::tempdir().unwrap();
    std::fs::copy(fixture("qwen3_moe").join("config.json"), directory.path().join("config.json")).unwrap();
    let mut bytes = std::fs::read(fixture("qwen3_moe").join("model.safetensors")).unwrap();
    let place = {
        let file = SafeTensors::deserialize(&bytes).unwrap();
        let embedding = file.tensor("model.embed_tokens.weight").unwrap();
        // The first number of token 5's row.
        embedding.data().as_ptr() as usize - bytes.as_ptr() as usize + 5 * embedding.shape()[1] * 4
    };
    bytes[place..place + 4].copy_from_slice(&f32::NAN.to_le_bytes());
    std::fs::write(directory.path().join("model.safetensors"), bytes).unwrap();
    let base = BaseModel::load(directory.path(), &float_options()).unwrap();
    let clean: Vec<u32> = tokens(&base, 30, 1).into_iter().map(|token| if token == 5 { 6 } else { token }).collect();
    let alone = base.forward(&Pack::single(&clean, None), &[]).unwrap();
    let mut pack = Pack::single(&[1, 5, 2], None);
    pack.push(&clean, None);
    let both = base.forward(&pack, &[]).unwrap();
    assert!(floats(&both.narrow(0, 1, 1)).iter().any(|value| value.is_nan()));
    assert!(both.narrow(0, 3, 30).equal(&alone));
}
