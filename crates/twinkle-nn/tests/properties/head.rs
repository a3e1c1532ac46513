//! What a head tells of a row, and the gradient of it, does not depend on the rows beside it or on what else is asked for.

use std::ops::Range;
use std::sync::Arc;

use tch::Tensor;
use twinkle_nn::{Adapter, BaseModel, Gradients, HeadOptions, HeadTask, Pack, RowFacts, Scored, Slopes};

use super::{PRECISIONS, bits, random_adapter, spec, tokens};
use crate::common::{floats, load, max_abs};

/// A loss that reads everything: what it found for one sequence.
struct Read {
    logprobs: Vec<u32>,
    facts: Vec<RowFacts>,
    d_hidden: Vec<u32>,
    gradients: Vec<u32>,
}

/// One sequence through the head, alone or behind another one with an adapter of its own.
fn read(base: &BaseModel, adapters: [&Arc<Adapter>; 2], options: HeadOptions, behind: Option<usize>) -> Read {
    let own = tokens(base, 50, 9);
    let mut pack = Pack::new();
    if let Some(length) = behind {
        pack.push(&tokens(base, length, 3), Some(1));
    }
    let start = pack.len();
    pack.push(&own, Some(0));
    let adapters: Vec<Arc<Adapter>> = adapters.into_iter().cloned().collect();
    let hidden = base.forward(&pack, &adapters).unwrap();
    let mut gradients: Vec<Gradients> =
        adapters.iter().map(|adapter| Gradients::zeros(adapter.layout(), base.device())).collect();
    let mut loss = |rows: Range<usize>, _: Scored<'_>, slopes: Slopes<'_>| {
        for (place, row) in rows.clone().enumerate() {
            let weight = ((row + 50).wrapping_sub(start) % 7) as f32 - 2.5;
            slopes.logprobs[2 * place] = weight;
            slopes.logprobs[2 * place + 1] = -0.5 * weight;
            if let Some(slope) = slopes.facts.get_mut(place) {
                *slope = RowFacts { normaliser: 0.3 * weight, entropy: weight, mean_logprob: 0.7 };
            }
        }
    };
    let targets: Vec<u32> = pack.tokens.iter().flat_map(|token| [*token, (token + 3) % 250]).collect();
    let task = HeadTask { targets: &targets, options };
    let mut sums: Vec<&mut Gradients> = gradients.iter_mut().collect();
    let outcome = base.head_rows(&hidden, &pack, &adapters, task, &mut loss, Some(&mut sums)).unwrap();
    let rows = |tensor: &Tensor| bits(&tensor.narrow(0, start as i64, own.len() as i64));
    Read {
        logprobs: outcome.logprobs[2 * start..].iter().map(|logprob| logprob.to_bits()).collect(),
        facts: outcome.facts.get(start..).unwrap_or_default().to_vec(),
        d_hidden: rows(&outcome.d_hidden.unwrap()),
        gradients: bits(gradients[0].flat()),
    }
}

#[test]
fn what_a_head_tells_of_a_row_does_not_depend_on_its_neighbours() {
    let everything = HeadOptions { temperature: 0.7, softcap: Some(4.0), facts: true, logits: false };
    for precision in PRECISIONS {
        let base = load("llama3_tied", precision);
        let (_, _, own) = random_adapter(&base, &spec(4, 1, true));
        let (_, _, other) = random_adapter(&base, &spec(2, 2, true));
        let alone = read(&base, [&own, &other], everything, None);
        assert!(alone.facts.iter().all(|facts| facts.entropy > 0.0 && facts.mean_logprob < 0.0));
        for behind in [1, 15, 70] {
            let beside = read(&base, [&own, &other], everything, Some(behind));
            assert_eq!(beside.logprobs, alone.logprobs, "{precision:?} behind {behind}");
            assert_eq!(beside.facts, alone.facts, "{precision:?} behind {behind}");
            // The slopes depend on the row's place in its sequence only.
            assert_eq!(beside.d_hidden, alone.d_hidden, "{precision:?} behind {behind}");
            assert_eq!(beside.gradients, alone.gradients, "{precision:?} behind {behind}");
        }
    }
}

#[test]
fn logprobs_have_the_same_bits_whatever_else_is_asked_for() {
    for precision in PRECISIONS {
        let base = load("qwen3", precision);
        let (_, _, own) = random_adapter(&base, &spec(4, 1, true));
        let adapters = [&own, &own];
        let plain = read(&base, adapters, HeadOptions::default(), None);
        let kept = read(&base, adapters, HeadOptions { logits: true, ..HeadOptions::default() }, None);
        assert_eq!(kept.logprobs, plain.logprobs, "{precision:?}");
        let [kept, plain] =
            [kept, plain].map(|read| read.d_hidden.into_iter().map(f32::from_bits).collect::<Vec<f32>>());
        let largest = plain.iter().fold(0.0_f32, |largest, value| largest.max(value.abs()));
        let error = max_abs(&kept, &plain) / largest;
        assert!(error <= if base.kind() == tch::Kind::Float { 1e-5 } else { 2e-2 }, "{precision:?}: off by {error}");
    }
}

#[test]
fn an_embedding_is_of_length_one_and_of_its_own_sequence() {
    for precision in PRECISIONS {
        let base = load("qwen3", precision);
        let (first, second) = (tokens(&base, 20, 1), tokens(&base, 31, 2));
        let mut pack = Pack::single(&first, None);
        pack.push(&second, None);
        let hidden = base.forward(&pack, &[]).unwrap();
        let both = base.embeddings(&hidden, &pack).unwrap();
        for embedding in &both {
            let length = embedding.iter().map(|value| value * value).sum::<f32>().sqrt();
            assert!((length - 1.0).abs() < 1e-5, "{length}");
        }
        let alone = Pack::single(&second, None);
        let own = base.forward(&alone, &[]).unwrap();
        assert_eq!(both[1..], base.embeddings(&own, &alone).unwrap());

        // A direction along the embedding changes nothing; any other goes to the last row alone.
        let zeros = vec![0.0; both[0].len()];
        let d_hidden = base.embeddings_backward(&hidden, &pack, &[&zeros, &both[1]]).unwrap();
        assert!(floats(&d_hidden).iter().all(|value| value.abs() < 1e-5));
        let mut along_first = zeros.clone();
        along_first[0] = 1.0;
        let d_hidden = base.embeddings_backward(&hidden, &pack, &[&zeros, &along_first]).unwrap();
        let rows: Vec<f32> =
            (0..51).map(|row| floats(&d_hidden.get(row)).iter().map(|value| value.abs()).sum()).collect();
        assert!(rows[50] > 0.0 && rows[..50].iter().all(|sum| *sum == 0.0), "{rows:?}");
        assert!(base.embeddings_backward(&hidden, &pack, &[&zeros]).is_err());
    }
}
