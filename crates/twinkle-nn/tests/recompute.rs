//! Layers that are computed twice: the same bits in less memory, and as many of them as the budget asks for.

mod common;

use std::sync::Arc;

use common::{floats, load};
use proptest::prelude::*;
use tch::{Kind, Tensor};
use twinkle_core::call::LoraSpec;
use twinkle_nn::{
    Adapter, AdapterLayout, BaseModel, CostModel, Gradients, ModelConfig, Pack, PassShape, Precision, Recompute,
};

/// An adapter whose `B` is not zero.
fn adapter(base: &BaseModel, rank: u32) -> (Arc<AdapterLayout>, Arc<Adapter>) {
    let spec = LoraSpec { rank, seed: 1, train_unembed: false, ..LoraSpec::default() };
    let layout = Arc::new(AdapterLayout::new(base.config(), &spec).unwrap());
    let flat = layout.initialise(base.device()).roll(11, 0) * 0.5;
    let adapter = Arc::new(Adapter::from_parameters(&layout, &flat, base.kind(), base.device()));
    (layout, adapter)
}

fn pack(base: &BaseModel, lengths: &[usize]) -> Pack {
    let vocabulary = base.config().vocab_size;
    let mut pack = Pack::new();
    for (sequence, length) in lengths.iter().enumerate() {
        let tokens: Vec<u32> =
            (0..*length).map(|place| ((place * 37 + sequence * 5 + 3) % vocabulary) as u32).collect();
        pack.push(&tokens, Some(0));
    }
    pack
}

/// The final rows and the adapter's gradients, as bits.
fn train(base: &BaseModel, pack: &Pack, recompute: Recompute) -> (Vec<u32>, Vec<u32>) {
    let (layout, adapter) = adapter(base, 4);
    let adapters = [adapter];
    let (hidden, tape) = base.forward_recomputing(pack, &adapters, recompute).unwrap();
    let mut gradients = Gradients::zeros(&layout, base.device());
    let d_hidden = (&hidden * 0.25 + 0.5).to_kind(base.kind());
    base.backward(tape, d_hidden, pack, &adapters, &mut [&mut gradients]).unwrap();
    let bits = |tensor: &Tensor| floats(tensor).into_iter().map(f32::to_bits).collect();
    (bits(&hidden), bits(gradients.flat()))
}

#[test]
fn gradients_have_the_same_bits_whatever_is_recomputed() {
    for precision in [Precision::Float32, Precision::BFloat16] {
        for variant in ["llama3", "qwen3", "qwen3_5", "qwen3_moe"] {
            let base = load(variant, precision);
            let pack = pack(&base, &[5, 70, 1, 64]);
            let kept = train(&base, &pack, Recompute::NOTHING);
            assert!(kept.1.iter().any(|bits| *bits != 0), "{variant}: there is a gradient");
            for layers in 1..=base.config().layer_count + 1 {
                let recomputed = train(&base, &pack, Recompute { layers });
                assert!(kept == recomputed, "{variant} {precision:?}: {layers} layers recomputed differ");
            }
        }
    }
}

#[test]
fn the_weights_that_are_counted_are_those_in_the_files() {
    for variant in ["llama3", "llama3_tied", "qwen2", "qwen2_untied", "qwen3", "qwen3_5", "qwen3_moe", "qwen3_5_moe"] {
        let base = load(variant, Precision::Float32);
        let cost = CostModel::new(base.config(), Kind::Float, 64);
        assert_eq!(cost.weight_bytes(), base.weight_bytes(), "{variant}");
    }
}

/// The costs of a model of half a billion weights, whose dimensions are known.
fn half_a_billion() -> CostModel {
    let config = serde_json::json!({
        "model_type": "qwen2", "vocab_size": 151_936, "hidden_size": 896, "intermediate_size": 4864,
        "num_hidden_layers": 24, "num_attention_heads": 14, "num_key_value_heads": 2,
        "max_position_embeddings": 32768, "tie_word_embeddings": true, "rope_theta": 1_000_000.0
    });
    CostModel::new(&ModelConfig::from_json(&config, None).unwrap(), Kind::BFloat16, 256)
}

#[test]
fn the_figures_of_a_known_model_come_out() {
    let cost = half_a_billion();
    assert_eq!(cost.weight_count(), 494_032_768, "as Hugging Face counts Qwen2.5-0.5B");
    assert_eq!(cost.cache_bytes_per_token(), 12 << 10);
    let lora = LoraSpec { rank: 16, train_unembed: false, ..LoraSpec::default() };
    assert_eq!(cost.adapter_parameters(&lora).unwrap(), 8_798_208, "as PEFT counts all-linear of rank 16");
    assert_eq!(cost.run_bytes(8_798_208), 8_798_208 * 18);
    // 2 × 2 × (body + head) forward and back, without gradients of frozen weights.
    let products = cost.training_operations(256, Recompute::NOTHING).products;
    assert!((products / (4.0 * 494.0e6) - 1.0).abs() < 0.01, "{products}");
}

#[test]
fn a_pass_that_fits_recomputes_nothing_and_one_that_never_fits_says_what_it_needs() {
    let cost = half_a_billion();
    let shape = PassShape::training(2048, 256, 16);
    let whole = cost.pass_bytes(shape, Recompute::NOTHING);
    assert_eq!(cost.recompute_within(shape, whole), Ok(Recompute::NOTHING));
    assert_eq!(cost.recompute_within(shape, whole - 1).map(|recompute| recompute.layers > 0), Ok(true));
    let least = cost.pass_bytes(shape, Recompute { layers: 23 });
    assert!(least < whole / 2, "{least} of {whole}");
    assert_eq!(cost.recompute_within(shape, least), Ok(Recompute { layers: 23 }));
    assert_eq!(cost.recompute_within(shape, least - 1), Err(least));
}

proptest! {
    #[test]
    fn as_few_layers_are_recomputed_as_the_budget_allows(
        rows in 1_usize..20_000, share in 0.0_f64..1.0, rank in 1_usize..128
    ) {
        let cost = half_a_billion();
        let shape = PassShape::training(rows, 1000, rank);
        let (most, least) = (cost.pass_bytes(shape, Recompute::NOTHING), cost.pass_bytes(shape, Recompute { layers: 23 }));
        let budget = least + ((most - least) as f64 * share) as u64;
        let bytes = |layers: usize| cost.pass_bytes(shape, Recompute { layers });
        let Recompute { layers } = cost.recompute_within(shape, budget).unwrap();
        prop_assert!(bytes(layers) <= budget);
        prop_assert!(layers == 0 || bytes(layers - 1) > budget);
    }

    #[test]
    fn the_most_rows_of_a_budget_fit_and_one_more_does_not(budget in 1_u64 << 28..1 << 36, rank in 1_usize..128) {
        let cost = half_a_billion();
        let shape = |rows: usize| PassShape::training(rows, 512, rank);
        let rows = cost.rows_within(budget, Recompute::NOTHING, shape);
        let bytes = |rows: usize| cost.pass_bytes(shape(rows), Recompute::NOTHING);
        prop_assert!(rows == 0 || bytes(rows) <= budget);
        prop_assert!(bytes(rows + 1) > budget);
    }
}
