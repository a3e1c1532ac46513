//! What holds for every model: independence of rows, agreement of the passes, gradients of the loss.

mod common;
#[path = "properties/head.rs"]
mod head;

use std::sync::Arc;

use common::{datums, floats, forward_backward, load, load_adapter, load_tiled, max_abs};
use proptest::prelude::*;
use tch::Tensor;
use twinkle_core::call::LoraSpec;
use twinkle_nn::{Adapter, AdapterLayout, BaseModel, Gradients, KvCache, Pack, Pick, Precision};

const PRECISIONS: [Precision; 2] = [Precision::Float32, Precision::BFloat16];

fn spec(rank: u32, seed: u64, train_unembed: bool) -> LoraSpec {
    LoraSpec { rank, seed, train_unembed, ..LoraSpec::default() }
}

/// An adapter whose `B` is not zero.
fn random_adapter(base: &BaseModel, spec: &LoraSpec) -> (Arc<AdapterLayout>, Tensor, Arc<Adapter>) {
    let layout = Arc::new(AdapterLayout::new(base.config(), spec).unwrap());
    let a = layout.initialise(base.device());
    let other = AdapterLayout::new(base.config(), &LoraSpec { seed: spec.seed + 1000, ..spec.clone() }).unwrap();
    let noise = other.initialise(base.device()).roll(7, 0) * 0.3;
    let flat = &a + noise;
    let adapter = Arc::new(Adapter::from_parameters(&layout, &flat, base.kind(), base.device()));
    (layout, flat, adapter)
}

fn tokens(base: &BaseModel, length: usize, seed: u64) -> Vec<u32> {
    let stream = twinkle_nn::philox::Philox::new(seed, 5);
    (0..length).map(|i| (stream.uniform(i as u64) * base.config().vocab_size as f32) as u32).collect()
}

/// How far the passes of a model may be from each other: linear attention rounds differently token by token and in chunks.
fn between_passes(base: &BaseModel) -> f32 {
    if base.config().delta.is_some() { 5e-4 } else { 1e-5 }
}

/// The fixture's adapter with the most modules.
fn widest_adapter(variant: &str) -> &'static str {
    common::adapters(variant).last().unwrap()
}

fn bits(tensor: &Tensor) -> Vec<u32> {
    floats(tensor).into_iter().map(f32::to_bits).collect()
}

#[test]
fn an_adapter_whose_b_is_zero_changes_no_bit() {
    for precision in PRECISIONS {
        let base = load("qwen2", precision);
        let layout = Arc::new(AdapterLayout::new(base.config(), &spec(8, 3, true)).unwrap());
        let flat = layout.initialise(base.device());
        let fresh = Arc::new(Adapter::from_parameters(&layout, &flat, base.kind(), base.device()));
        let tokens = tokens(&base, 70, 1);
        let without = base.forward(&Pack::single(&tokens, None), &[]).unwrap();
        let with = base.forward(&Pack::single(&tokens, Some(0)), &[Arc::clone(&fresh)]).unwrap();
        assert!(without.equal(&with));
        let without = base.logits(&without, &[None; 70]).unwrap();
        let with = base.logits(&with, &[Some(&fresh); 70]).unwrap();
        assert!(without.equal(&with));
    }
}

/// Hidden rows, logprobs and gradients of one sequence inside a pack.
fn in_pack(
    base: &BaseModel,
    before: &[(Vec<u32>, usize)],
    own: &[u32],
    after: &[(Vec<u32>, usize)],
    adapters: &[Arc<Adapter>],
    layouts: &[Arc<AdapterLayout>],
) -> (Vec<u32>, Vec<u32>, Vec<u32>) {
    let mut pack = Pack::new();
    for (tokens, adapter) in before {
        pack.push(tokens, Some(*adapter));
    }
    let start = pack.len();
    pack.push(own, Some(0));
    for (tokens, adapter) in after {
        pack.push(tokens, Some(*adapter));
    }
    let mut targets = pack.tokens.clone();
    targets.rotate_left(1);
    // The target of the sequence's last row must not be a neighbour's token.
    targets[start + own.len() - 1] = 1;
    let hidden = base.forward(&pack, adapters).unwrap().narrow(0, start as i64, own.len() as i64);
    let mut sums: Vec<Gradients> = layouts.iter().map(|layout| Gradients::zeros(layout, base.device())).collect();
    let mut borrowed: Vec<&mut Gradients> = sums.iter_mut().collect();
    let loss =
        |row: usize, logprob: f32| (f64::from(logprob), -0.5 - 0.1 * ((row + own.len() * 64 - start) % 3) as f32);
    let (_, logprobs) = forward_backward(base, &pack, adapters, &targets, &loss, &mut borrowed);
    let own_logprobs = logprobs[start..start + own.len()].iter().map(|value| value.to_bits()).collect();
    (bits(&hidden), own_logprobs, bits(sums[0].flat()))
}

#[test]
fn a_sequence_has_the_same_bits_alone_and_in_any_pack() {
    for precision in PRECISIONS {
        for variant in ["qwen2", "qwen3", "llama3_tied", "qwen3_5"] {
            let base = load(variant, precision);
            let (layout_a, _, first) = random_adapter(&base, &spec(4, 1, true));
            let (layout_b, _, second) = random_adapter(&base, &spec(6, 2, false));
            let (adapters, layouts) = ([first, second], [layout_a, layout_b]);
            let own = tokens(&base, 75, 9);
            let other = |length, seed| (tokens(&base, length, seed), 1);
            let alone = in_pack(&base, &[], &own, &[], &adapters, &layouts);
            for (before, after) in [
                (vec![other(1, 2)], vec![]),
                (vec![], vec![other(130, 3)]),
                (vec![other(33, 4), other(64, 5)], vec![other(7, 6)]),
                (vec![other(63, 7)], vec![other(2, 8)]),
            ] {
                let packed = in_pack(&base, &before, &own, &after, &adapters, &layouts);
                assert!(alone.0 == packed.0, "{variant} {precision:?}: hidden rows differ");
                assert!(alone.1 == packed.1, "{variant} {precision:?}: logprobs differ");
                assert!(alone.2 == packed.2, "{variant} {precision:?}: gradients differ");
            }
        }
    }
}

#[test]
fn many_calls_and_one_call_add_up_to_the_same_bits() {
    for (precision, variant) in PRECISIONS.into_iter().flat_map(|of| [(of, "qwen2_untied"), (of, "qwen3_5")]) {
        let base = load(variant, precision);
        let (layout, _, adapter) = random_adapter(&base, &spec(4, 1, true));
        let sequences: Vec<Vec<u32>> =
            [5, 64, 17, 130].iter().zip(20..).map(|(length, seed)| tokens(&base, *length, seed)).collect();
        let loss = |_: usize, logprob: f32| (f64::from(logprob), -1.0);
        let run = |packs: &[Vec<&Vec<u32>>]| {
            let mut sum = Gradients::zeros(&layout, base.device());
            for sequences in packs {
                let mut pack = Pack::new();
                let mut targets = vec![];
                for tokens in sequences {
                    pack.push(tokens, Some(0));
                    targets.extend(tokens.iter().rev());
                }
                forward_backward(&base, &pack, &[Arc::clone(&adapter)], &targets, &loss, &mut [&mut sum]);
            }
            bits(sum.flat())
        };
        let all: Vec<&Vec<u32>> = sequences.iter().collect();
        let joined = run(std::slice::from_ref(&all));
        assert!(joined == run(&[all[..2].to_vec(), all[2..].to_vec()]), "{precision:?}");
        assert!(joined == run(&all.iter().map(|tokens| vec![*tokens]).collect::<Vec<_>>()), "{precision:?}");
    }
}

#[test]
fn prompts_in_parts_and_steps_agree_with_the_full_pass() {
    for variant in common::VARIANTS {
        let base = load(variant, Precision::Float32);
        let loaded = load_adapter(&base, variant, "attn_mlp");
        for adapter in [None, Some(&loaded.adapter)] {
            let tokens = tokens(&base, 90, 4);
            let adapters: Vec<Arc<Adapter>> = adapter.cloned().into_iter().collect();
            let full = base.forward(&Pack::single(&tokens, adapter.map(|_| 0)), &adapters).unwrap();
            for split in [vec![90], vec![40, 50], vec![1, 64, 20], vec![3, 1, 80]] {
                let mut cache = KvCache::new(&base);
                let mut rows = vec![];
                let mut start = 0;
                for length in split {
                    rows.push(base.prefill(&tokens[start..start + length], &mut cache, adapter).unwrap());
                    start += length;
                }
                for token in &tokens[start..] {
                    rows.push(base.decode(&[*token], &mut [&mut cache], &[adapter]).unwrap());
                }
                assert_eq!(cache.len(), 90);
                let error = max_abs(&floats(&Tensor::cat(&rows, 0)), &floats(&full));
                assert!(error <= between_passes(&base), "{variant}: off by {error}");
            }
        }
    }
}

#[test]
fn trainer_and_sampler_agree_on_logprobs() {
    for variant in common::VARIANTS {
        let base = load(variant, Precision::Float32);
        let loaded = load_adapter(&base, variant, widest_adapter(variant));
        let tokens = tokens(&base, 100, 4);
        let mut targets = tokens[1..].to_vec();
        targets.push(0);
        let pack = Pack::single(&tokens, Some(0));
        let adapters = [Arc::clone(&loaded.adapter)];
        let hidden = base.forward(&pack, &adapters).unwrap();
        let trained = base.head_loss(&hidden, &pack, &adapters, &targets, &mut |_, _, _| {}, None).unwrap().logprobs;
        let mut cache = KvCache::new(&base);
        let hidden = base.prefill(&tokens, &mut cache, Some(&loaded.adapter)).unwrap();
        let picks: Vec<Pick> = targets.iter().enumerate().map(|(row, token)| Pick { row, token: *token }).collect();
        let sampled = base.prompt_scores(&hidden, &picks, None, Some(&loaded.adapter)).unwrap();
        assert!(max_abs(&trained, &sampled) <= between_passes(&base), "{variant}");
    }
}

/// In bf16 on a processor with our own kernels for it; through libtorch the passes agree within rounding only.
#[test]
fn a_row_has_the_same_bits_in_training_in_a_prompt_and_in_a_step() {
    if !twinkle_kernels::has_bf16_products() {
        return;
    }
    for variant in ["qwen2", "qwen3", "llama3_tied"] {
        let base = load(variant, Precision::BFloat16);
        let (_, _, adapter) = random_adapter(&base, &spec(4, 1, true));
        let tokens = tokens(&base, 100, 4);
        let trained = base.forward(&Pack::single(&tokens, Some(0)), &[Arc::clone(&adapter)]).unwrap();
        let mut cache = KvCache::new(&base);
        let mut sampled = vec![
            base.prefill(&tokens[..37], &mut cache, Some(&adapter)).unwrap(),
            base.prefill(&tokens[37..77], &mut cache, Some(&adapter)).unwrap(),
        ];
        for token in &tokens[77..] {
            sampled.push(base.decode(&[*token], &mut [&mut cache], &[Some(&adapter)]).unwrap());
        }
        assert!(Tensor::cat(&sampled, 0).equal(&trained), "{variant}");
    }
}

#[test]
fn a_logprob_has_the_same_bits_picked_alone_among_others_or_in_its_whole_row() {
    for variant in common::VARIANTS {
        let base = load(variant, Precision::Float32);
        let loaded = load_adapter(&base, variant, widest_adapter(variant));
        let adapter = Some(&loaded.adapter);
        let hidden = base.prefill(&tokens(&base, 150, 4), &mut KvCache::new(&base), adapter).unwrap();
        let mut rows = vec![];
        let all = base.prompt_scores(&hidden, &[], Some(&mut |_, row| rows.push(row.to_vec())), adapter).unwrap();
        assert!(all.is_empty());
        assert_eq!(rows.len(), 150);
        for first in [0, 1, 17, 63, 64, 130, 149] {
            let some = hidden.narrow(0, first, 150 - first);
            let picks: Vec<Pick> = (0..150 - first as usize)
                .flat_map(|row| [7, 0, 101, 7].map(|token| Pick { row, token }).into_iter().take(row % 5))
                .collect();
            let scores = base.prompt_scores(&some, &picks, None, adapter).unwrap();
            for (pick, score) in picks.iter().zip(scores) {
                let whole = rows[first as usize + pick.row][pick.token as usize];
                assert_eq!(score.to_bits(), whole.to_bits(), "{variant}, from row {first}: {pick:?}");
            }
        }
        assert!(base.prompt_scores(&hidden, &[Pick { row: 150, token: 0 }], None, adapter).is_err());
        assert!(base.prompt_scores(&hidden, &[Pick { row: 0, token: 9999 }], None, adapter).is_err());
    }
}

#[test]
fn forks_and_truncated_caches_continue_on_their_own() {
    let base = load("qwen3", Precision::Float32);
    let tokens = tokens(&base, 30, 4);
    let mut cache = KvCache::new(&base);
    let _ = base.prefill(&tokens, &mut cache, None).unwrap();
    let mut fork = cache.fork();
    let other = base.decode(&[9], &mut [&mut fork], &[None]).unwrap();
    let own = base.decode(&[7], &mut [&mut cache], &[None]).unwrap();
    cache.truncate(30).unwrap();
    assert_eq!((cache.len(), fork.len()), (30, 31));
    assert!(cache.bytes() > 0);
    assert!(base.decode(&[9], &mut [&mut cache], &[None]).unwrap().equal(&other));
    cache.truncate(30).unwrap();
    assert!(base.decode(&[7], &mut [&mut cache], &[None]).unwrap().equal(&own));
}

#[test]
fn the_derivative_along_any_direction_is_the_slope_of_the_loss() {
    for variant in ["llama3", "qwen2", "qwen3"] {
        let base = load(variant, Precision::Float32);
        let loaded = load_adapter(&base, variant, widest_adapter(variant));
        let data = datums(&common::Golden::read(variant), widest_adapter(variant));
        let row_loss = |row: usize, logprob: f32| (f64::from(-data.weights[row] * logprob), -data.weights[row]);
        let loss_at = |flat: &Tensor| {
            let adapter = Arc::new(Adapter::from_parameters(&loaded.layout, flat, base.kind(), base.device()));
            let hidden = base.forward(&data.pack, &[Arc::clone(&adapter)]).unwrap();
            let outcome =
                base.head_loss(&hidden, &data.pack, &[adapter], &data.targets, &mut |_, _, _| {}, None).unwrap();
            outcome.logprobs.iter().enumerate().map(|(row, logprob)| row_loss(row, *logprob).0).sum::<f64>()
        };
        let mut gradients = Gradients::zeros(&loaded.layout, base.device());
        let adapters = [Arc::clone(&loaded.adapter)];
        forward_backward(&base, &data.pack, &adapters, &data.targets, &row_loss, &mut [&mut gradients]);
        for seed in 0..5 {
            let spec = LoraSpec { seed, ..loaded.layout.spec().clone() };
            let direction = AdapterLayout::new(base.config(), &spec).unwrap().initialise(base.device()).roll(11, 0);
            let direction = &direction / direction.norm();
            let step = 0.02;
            let slope = (loss_at(&(&loaded.flat + &direction * step)) - loss_at(&(&loaded.flat - &direction * step)))
                / (2.0 * step);
            let expected = (gradients.flat() * &direction).sum(tch::Kind::Double).double_value(&[]);
            let scale = expected.abs().max(0.02 * gradients.flat().norm().double_value(&[]));
            assert!((slope - expected).abs() <= 5e-3 * scale, "{variant}: slope {slope}, derivative {expected}");
        }
    }
}

#[test]
fn the_chunk_of_the_head_does_not_change_the_result() {
    let (small, large) = (load_tiled("qwen2", Precision::Float32, 16), load_tiled("qwen2", Precision::Float32, 256));
    let data = datums(&common::Golden::read("qwen2"), "attn_mlp");
    let run = |base: &BaseModel| {
        let loaded = load_adapter(base, "qwen2", "attn_mlp");
        let mut gradients = Gradients::zeros(&loaded.layout, base.device());
        let row_loss = |row: usize, _: f32| (0.0, -data.weights[row]);
        let (_, logprobs) =
            forward_backward(base, &data.pack, &[loaded.adapter], &data.targets, &row_loss, &mut [&mut gradients]);
        (logprobs, floats(gradients.flat()))
    };
    let (left, right) = (run(&small), run(&large));
    assert!(max_abs(&left.0, &right.0) <= 1e-5);
    let largest = left.1.iter().fold(0.0_f32, |largest, value| largest.max(value.abs()));
    assert!(max_abs(&left.1, &right.1) <= 1e-5 * largest);
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 12, ..ProptestConfig::default() })]

    /// One sequence's step has the same bits whoever else decodes, and wherever in the batch it stands.
    #[test]
    fn a_decoding_step_does_not_depend_on_its_neighbours(
        neighbours in proptest::collection::vec((1_usize..40, 0_usize..3), 0..20),
        place in 0_usize..20,
        bf16 in any::<bool>(),
        linear in any::<bool>(),
    ) {
        let precision = if bf16 { Precision::BFloat16 } else { Precision::Float32 };
        let base = load(if linear { "qwen3_5" } else { "qwen2" }, precision);
        let (_, _, first) = random_adapter(&base, &spec(4, 1, true));
        let (_, _, second) = random_adapter(&base, &spec(6, 2, false));
        let choices = [None, Some(&first), Some(&second)];

        let own = tokens(&base, 21, 77);
        let mut alone = KvCache::new(&base);
        let _ = base.prefill(&own, &mut alone, Some(&first)).unwrap();
        let mut batched = alone.fork();
        let expected = base.decode(&[5], &mut [&mut alone], &[Some(&first)]).unwrap();
        let expected_logits = base.logits(&expected, &[Some(&first)]).unwrap();

        let mut others: Vec<(KvCache, Option<&Arc<Adapter>>)> = neighbours
            .iter()
            .zip(100..)
            .map(|((length, choice), seed)| {
                let mut cache = KvCache::new(&base);
                let _ = base.prefill(&tokens(&base, *length, seed), &mut cache, choices[*choice]).unwrap();
                (cache, choices[*choice])
            })
            .collect();
        let place = place.min(others.len());
        let mut adapters: Vec<Option<&Arc<Adapter>>> = others.iter().map(|(_, adapter)| *adapter).collect();
        adapters.insert(place, Some(&first));
        let mut caches: Vec<&mut KvCache> = others.iter_mut().map(|(cache, _)| cache).collect();
        caches.insert(place, &mut batched);
        let mut step: Vec<u32> = (0..adapters.len() as u32).collect();
        step[place] = 5;
        let found = base.decode(&step, &mut caches, &adapters).unwrap();
        let found_logits = base.logits(&found, &adapters).unwrap();
        prop_assert!(found.narrow(0, place as i64, 1).equal(&expected));
        prop_assert!(found_logits.narrow(0, place as i64, 1).equal(&expected_logits));
    }
}
