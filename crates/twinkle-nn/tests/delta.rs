//! Models with linear attention: what their caches remember, and what neighbours cannot change.

mod common;

use common::{floats, load, max_abs};
use tch::Tensor;
use twinkle_nn::{BaseModel, KvCache, Pack, Precision};

const VARIANTS: [&str; 2] = ["qwen3_5", "qwen3_5_vl"];

fn tokens(base: &BaseModel, length: usize, seed: u64) -> Vec<u32> {
    let stream = twinkle_nn::philox::Philox::new(seed, 5);
    (0..length).map(|i| (stream.uniform(i as u64) * base.config().vocab_size as f32) as u32).collect()
}

#[test]
fn prompts_in_parts_and_steps_agree_with_the_full_pass() {
    for variant in VARIANTS {
        let base = load(variant, Precision::Float32);
        let tokens = tokens(&base, 200, 4);
        let full = base.forward(&Pack::single(&tokens, None), &[]).unwrap();
        for split in [vec![200], vec![64, 136], vec![40, 50], vec![1, 64, 20], vec![3, 1, 180]] {
            let mut cache = KvCache::new(&base);
            let (mut rows, mut start) = (vec![], 0);
            for length in split {
                rows.push(base.prefill(&tokens[start..start + length], &mut cache, None).unwrap());
                start += length;
            }
            for token in &tokens[start..] {
                rows.push(base.decode(&[*token], &mut [&mut cache], &[None]).unwrap());
            }
            assert_eq!(cache.len(), 200);
            let error = max_abs(&floats(&Tensor::cat(&rows, 0)), &floats(&full));
            assert!(error <= 5e-4, "{variant}: off by {error}");
        }
    }
}

/// Where products, attention and the memory have kernels of their own, every pass is the same computation.
#[test]
fn training_prompts_and_steps_have_the_same_bits_in_bf16() {
    let base = load("qwen3_5", Precision::BFloat16);
    let tokens = tokens(&base, 150, 6);
    let trained = base.forward(&Pack::single(&tokens, None), &[]).unwrap();
    let mut cache = KvCache::new(&base);
    let mut rows: Vec<Tensor> =
        tokens[..100].chunks(64).map(|tile| base.prefill(tile, &mut cache, None).unwrap()).collect();
    for token in &tokens[100..] {
        rows.push(base.decode(&[*token], &mut [&mut cache], &[None]).unwrap());
    }
    let sampled = Tensor::cat(&rows, 0);
    if twinkle_kernels::has_bf16_products() {
        assert!(sampled.equal(&trained));
    }
    let error = max_abs(&floats(&sampled), &floats(&trained));
    assert!(error <= 0.5, "{error}");
}

#[test]
fn a_memory_can_be_forked_but_not_go_back() {
    let base = load("qwen3_5", Precision::Float32);
    let tokens = tokens(&base, 70, 4);
    let mut cache = KvCache::new(&base);
    let _ = base.prefill(&tokens, &mut cache, None).unwrap();
    let (mut fork, mut other) = (cache.fork(), cache.fork());
    let expected = base.decode(&[9], &mut [&mut cache], &[None]).unwrap();
    let _ = base.decode(&[7], &mut [&mut fork], &[None]).unwrap();
    assert!(base.decode(&[9], &mut [&mut other], &[None]).unwrap().equal(&expected));

    let error = cache.truncate(70).unwrap_err();
    assert!(error.message.contains("cannot go back to `70`"), "{}", error.message);
    cache.truncate(71).unwrap();
    assert_eq!(cache.len(), 71);
}

#[test]
fn a_memory_does_not_grow_with_the_sequence() {
    let base = load("qwen3_5", Precision::Float32);
    let config = base.config();
    let attention = config.layers.iter().filter(|layer| layer.mixer == twinkle_nn::config::MixerKind::FullAttention);
    let row = 2 * attention.count() * config.kv_head_count * config.head_dim * 4;
    let bytes = |length: usize| {
        let mut cache = KvCache::new(&base);
        let _ = base.prefill(&tokens(&base, length, 4), &mut cache, None).unwrap();
        cache.bytes()
    };
    assert_eq!(bytes(192) - bytes(64), 128 * row);
    assert!(KvCache::new(&base).bytes() > 0, "the memories are there from the start");
}

/// A prompt that fails must not leave half a step behind.
#[test]
fn a_refused_prompt_leaves_the_memory_as_it_was() {
    let base = load("qwen3_5", Precision::Float32);
    let mut cache = KvCache::new(&base);
    let _ = base.prefill(&tokens(&base, 20, 4), &mut cache, None).unwrap();
    let mut untouched = cache.fork();
    assert!(base.prefill(&[5, u32::MAX], &mut cache, None).is_err());
    let expected = base.decode(&[9], &mut [&mut untouched], &[None]).unwrap();
    assert!(base.decode(&[9], &mut [&mut cache], &[None]).unwrap().equal(&expected));
}
