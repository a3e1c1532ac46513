//! What a request may ask for beside its tokens, compared with what Hugging Face and PEFT compute, and with itself.

use std::fs;

use proptest::prelude::*;
use serde::Deserialize;
use twinkle_core::call::{
    CellLayout, SampleExtras, SampleOutcome, SampleRequest, SamplingSource, SparseLayout, Stop, TargetTokens,
};
use twinkle_core::ids::SamplingSessionId;

use crate::adapters::save_fixture_adapter;
use crate::house::{House, VARIANTS, fixture, greedy, prompt, request};

/// Of logprobs in fp32, as in `tests/golden/README.md`.
const TOLERANCE: f32 = 1e-4;

#[derive(Deserialize)]
struct Golden {
    temperature: f32,
    cases: Vec<Case>,
}

#[derive(Deserialize)]
struct Case {
    adapter: Option<String>,
    tokens: Vec<u32>,
    rows: Vec<Row>,
}

#[derive(Deserialize)]
struct Row {
    next: f32,
    likeliest: Vec<u32>,
    logprobs: Vec<f32>,
    is_clear: bool,
    targets: Vec<u32>,
    target_logprobs: Vec<f32>,
    drawn_best: f32,
}

fn golden(variant: &str) -> Golden {
    serde_json::from_slice(&fs::read(fixture(variant).join("scores.json")).unwrap()).unwrap()
}

fn close(ours: f32, theirs: f32) -> bool {
    (ours - theirs).abs() <= TOLERANCE * theirs.abs().max(1.0)
}

/// Everything that can be asked of this prompt, and one token.
fn everything(tokens: &[u32], targets: TargetTokens, k: u32) -> SampleRequest {
    let mut wanted = SampleRequest { prompt_logprobs: true, ..request(tokens) };
    wanted.params.max_tokens = Some(1);
    wanted.extras = SampleExtras {
        prompt_logprobs_last_n: None,
        topk_prompt_logprobs: k,
        topk_sample_logprobs: k,
        target_prompt_logprobs: Some(targets),
        prompt_alt_tokens_k: k,
    };
    wanted
}

fn dense(rows: usize, columns: usize, cells: Vec<Option<u32>>) -> TargetTokens {
    TargetTokens { layout: CellLayout { rows, columns, sparse: None }, cells }
}

#[tokio::test]
async fn likeliest_and_given_tokens_have_the_references_logprobs() {
    for variant in VARIANTS {
        let house = House::open(variant).await;
        for case in golden(variant).cases {
            let targets = case.rows.iter().flat_map(|row| &row.targets).map(|token| Some(*token)).collect();
            let mut wanted = everything(&case.tokens, dense(case.rows.len(), 3, targets), 5);
            if let Some(adapter) = &case.adapter {
                wanted.source = SamplingSource::Checkpoint(save_fixture_adapter(&house, adapter, adapter));
            }
            let outcome = house.ask(wanted).await.unwrap();
            let own = outcome.prompt_logprobs.unwrap();
            let top = outcome.topk_prompt_logprobs.unwrap().rows;
            let scored = outcome.target_prompt_logprobs.unwrap().logprobs;
            assert_eq!((own.len(), top.len()), (case.tokens.len(), case.tokens.len()));
            assert!(own[0].is_none() && top[0].is_empty());
            for (index, row) in case.rows.iter().enumerate() {
                let what = format!("{variant}, {:?}, row {index}", case.adapter);
                assert!(close(own[index + 1].unwrap(), row.next), "{what}");
                let (ids, logprobs): (Vec<u32>, Vec<f32>) = top[index + 1].iter().copied().unzip();
                assert!(logprobs.iter().zip(&row.logprobs).all(|(ours, theirs)| close(*ours, *theirs)), "{what}");
                assert!(!row.is_clear || ids == row.likeliest, "{what}: {ids:?}, not {:?}", row.likeliest);
                let scored = &scored[3 * index..3 * index + 3];
                assert!(scored.iter().zip(&row.target_logprobs).all(|(ours, theirs)| close(*ours, *theirs)), "{what}");
            }
        }
    }
}

#[tokio::test]
async fn drawn_tokens_have_the_references_distribution_at_the_temperature() {
    const DRAWS: u32 = 1024;
    for variant in ["llama3", "qwen3"] {
        let house = House::open(variant).await;
        let golden = golden(variant);
        for case in golden.cases {
            let mut wanted = request(&case.tokens);
            wanted.params.max_tokens = Some(1);
            wanted.params.temperature = golden.temperature;
            // They are of the draws, not of the alternatives.
            (wanted.params.top_k, wanted.params.top_p) = (Some(1), 0.1);
            wanted.extras.prompt_alt_tokens_k = DRAWS;
            if let Some(adapter) = &case.adapter {
                wanted.source = SamplingSource::Checkpoint(save_fixture_adapter(&house, adapter, adapter));
            }
            let drawn = house.ask(wanted).await.unwrap().prompt_alt_tokens.unwrap();
            assert_eq!((drawn.k, drawn.tokens.len()), (DRAWS as usize, DRAWS as usize * case.rows.len()));
            for (row, tokens) in case.rows.iter().zip(drawn.tokens.chunks(DRAWS as usize)) {
                let seen = tokens.iter().filter(|token| **token == row.likeliest[0]).count() as f32;
                let expected = row.drawn_best * DRAWS as f32;
                let deviation = (expected * (1.0 - row.drawn_best)).sqrt().max(1.0);
                assert!(!row.is_clear || (seen - expected).abs() < 5.0 * deviation, "{seen} of {expected}");
            }
        }
    }
}

/// The bits of every number that concerns the prompt.
fn prompt_bits(outcome: &SampleOutcome) -> Vec<Vec<u32>> {
    let own = outcome.prompt_logprobs.iter().flatten().map(|logprob| logprob.map_or(0, f32::to_bits));
    let top = outcome.topk_prompt_logprobs.iter().flat_map(|top| &top.rows).flatten();
    let scored = outcome.target_prompt_logprobs.iter().flat_map(|targets| &targets.logprobs);
    let drawn = outcome.prompt_alt_tokens.iter();
    vec![
        own.collect(),
        top.flat_map(|(token, logprob)| [*token, logprob.to_bits()]).collect(),
        scored.map(|logprob| logprob.to_bits()).collect(),
        drawn.clone().flat_map(|drawn| drawn.tokens.clone()).collect(),
        drawn.flat_map(|drawn| drawn.logprobs.iter().map(|logprob| logprob.to_bits())).collect(),
    ]
}

#[tokio::test]
async fn every_way_to_ask_for_a_tokens_logprob_gives_the_same_bits() {
    for variant in VARIANTS {
        let house = House::open(variant).await;
        let source = SamplingSource::Checkpoint(save_fixture_adapter(&house, "attn_mlp_unembed", "a"));
        let tokens = prompt(150, 9);
        let own: Vec<Option<u32>> = tokens[1..].iter().map(|token| Some(*token)).collect();
        let first = SampleRequest { source: source.clone(), ..everything(&tokens, dense(149, 1, own), 4) };
        let first = house.ask(first).await.unwrap();
        let plain = SampleRequest { source: source.clone(), prompt_logprobs: true, ..request(&tokens) };
        let plain = house.ask(plain).await.unwrap();
        assert_eq!(first.prompt_logprobs, plain.prompt_logprobs);
        let own: Vec<f32> = first.prompt_logprobs.unwrap().into_iter().flatten().collect();
        assert_eq!(first.target_prompt_logprobs.unwrap().logprobs, own);

        // The likeliest and the drawn tokens, asked for by name.
        let top = first.topk_prompt_logprobs.unwrap().rows;
        let drawn = first.prompt_alt_tokens.unwrap();
        let cells = (0..149).flat_map(|row| {
            let top = top[row + 1].iter().map(|(token, _)| Some(*token));
            top.chain(drawn.tokens[4 * row..4 * row + 4].iter().map(|token| Some(*token))).collect::<Vec<_>>()
        });
        let mut named = SampleRequest { source: source.clone(), ..request(&tokens) };
        named.extras.target_prompt_logprobs = Some(dense(149, 8, cells.collect()));
        let named = house.ask(named).await.unwrap().target_prompt_logprobs.unwrap().logprobs;
        for row in 0..149 {
            let expected =
                top[row + 1].iter().map(|(_, logprob)| *logprob).chain(drawn.logprobs[4 * row..4 * row + 4].to_vec());
            assert_eq!(named[8 * row..8 * row + 8], expected.collect::<Vec<_>>(), "{variant}, row {row}");
        }
    }
}

#[tokio::test]
async fn the_last_ones_alone_have_the_bits_they_have_among_all() {
    let house = House::open("qwen3").await;
    let tokens = prompt(150, 2);
    let ask = |last: Option<u32>| {
        let mut wanted = SampleRequest { prompt_logprobs: true, ..request(&tokens) };
        wanted.extras.topk_prompt_logprobs = 3;
        wanted.extras.prompt_logprobs_last_n = last;
        house.ask(wanted)
    };
    let all = ask(None).await.unwrap();
    for last in [1, 2, 22, 64, 86, 149_usize] {
        let some = ask(Some(last as u32)).await.unwrap();
        assert_eq!(some.sequences, all.sequences);
        let (some, all) = (some.prompt_logprobs.unwrap(), all.prompt_logprobs.as_ref().unwrap());
        assert!(some[..150 - last].iter().all(Option::is_none));
        assert_eq!(some[150 - last..], all[150 - last..], "last {last}");
    }
    let some = ask(Some(40)).await.unwrap().topk_prompt_logprobs.unwrap().rows;
    assert!(some[..110].iter().all(Vec::is_empty));
    assert_eq!(some[110..], all.topk_prompt_logprobs.unwrap().rows[110..]);
}

#[tokio::test]
async fn targets_are_answered_in_the_layout_they_were_sent_in() {
    let house = House::open("qwen2").await;
    let tokens = prompt(70, 3);
    let ask = |targets| {
        let mut wanted = request(&tokens);
        wanted.extras.target_prompt_logprobs = Some(targets);
        house.ask(wanted)
    };
    let (mut cells, mut starts, mut columns, mut listed) = (vec![None; 69 * 4], vec![0], vec![], vec![]);
    for row in 0..69 {
        for column in (row % 5..4).filter(|_| row % 3 == 0) {
            let token = ((row * 31 + column) % 290) as u32;
            cells[4 * row + column] = Some(token);
            listed.push(Some(token));
            columns.push(column);
        }
        starts.push(listed.len());
    }
    let layout = CellLayout { rows: 69, columns: 4, sparse: Some(SparseLayout { row_starts: starts, columns }) };
    let sparse = ask(TargetTokens { layout: layout.clone(), cells: listed }).await.unwrap();
    let dense = ask(dense(69, 4, cells.clone())).await.unwrap().target_prompt_logprobs.unwrap();
    let sparse = sparse.target_prompt_logprobs.unwrap();
    assert_eq!(sparse.layout, layout);
    let named: Vec<f32> =
        dense.logprobs.iter().zip(&cells).filter(|(_, cell)| cell.is_some()).map(|(logprob, _)| *logprob).collect();
    assert_eq!(sparse.logprobs, named);
    assert!(sparse.logprobs.iter().all(|logprob| *logprob < 0.0));
    assert!(dense.logprobs.iter().zip(&cells).all(|(logprob, cell)| cell.is_some() || *logprob == 0.0));
}

#[tokio::test]
async fn the_likeliest_new_tokens_are_those_a_prompt_of_them_would_show() {
    let house = House::open("llama3").await;
    let mut wanted = request(&prompt(20, 5));
    wanted.extras.topk_sample_logprobs = 6;
    wanted.num_samples = 2;
    let outcome = house.ask(wanted).await.unwrap();
    for sequence in outcome.sequences {
        let top = sequence.topk_logprobs.unwrap();
        assert_eq!((top.k, top.rows.len()), (6, 16));
        let whole: Vec<u32> = prompt(20, 5).into_iter().chain(sequence.tokens).collect();
        let mut again = request(&whole);
        again.extras.topk_prompt_logprobs = 6;
        let again = house.ask(again).await.unwrap().topk_prompt_logprobs.unwrap();
        for (ours, theirs) in top.rows.iter().zip(&again.rows[20..]) {
            assert!(ours.iter().zip(theirs).all(|(ours, theirs)| close(ours.1, theirs.1)), "{ours:?} and {theirs:?}");
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 12, ..ProptestConfig::default() })]

    /// Whatever else runs, the same request gets the same bits.
    #[test]
    fn extras_do_not_depend_on_what_else_runs(length in 2_usize..140, k in 1_u32..5, seed: u64, crowd in 0_usize..6) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let house = House::open("qwen2").await;
            let tokens = prompt(length, 1);
            let cells = tokens[1..].iter().map(|token| (token % 3 > 0).then_some(token + 1)).collect::<Vec<_>>();
            let cells = if cells.iter().all(Option::is_none) { vec![Some(1); length - 1] } else { cells };
            let mine = || {
                let mut mine = everything(&tokens, dense(length - 1, 1, cells.clone()), k);
                mine.params.seed = Some(seed);
                mine.params.max_tokens = Some(4);
                mine
            };
            let alone = house.ask(mine()).await.unwrap();
            let crowd = (0..crowd).map(|index| house.ask(request(&prompt(1 + 29 * index, index as u32))));
            let (crowded, _) = futures::join!(house.ask(mine()), futures::future::join_all(crowd));
            let crowded = crowded.unwrap();
            assert_eq!(prompt_bits(&alone), prompt_bits(&crowded));
            assert_eq!(alone.sequences, crowded.sequences);
        });
    }
}

#[tokio::test]
async fn requests_wait_for_room_for_what_they_want_and_give_it_back() {
    let house = House::open("qwen3").await;
    let first = house.ask(greedy(&prompt(20, 1))).await.unwrap().sequences[0].tokens[0];
    // Room for 40 samples of 100 tokens: four of these fill it.
    let wanted = |stop| {
        let mut wanted = SampleRequest { num_samples: 40, ..greedy(&prompt(20, 1)) };
        wanted.params.max_tokens = Some(100);
        wanted.params.stop = stop;
        wanted.extras.topk_sample_logprobs = 1024;
        house.ask(wanted)
    };
    // These would draw 16,000 tokens, so they are still at it when the next one asks.
    let mut cancelled: Vec<_> = (0..4).map(|_| wanted(Stop::Tokens(Vec::new()))).collect();
    for each in &mut cancelled {
        assert!(futures::poll!(each).is_pending());
    }
    // These end with their first token.
    let wanted = || wanted(Stop::Tokens(vec![first]));
    let mut waiting = wanted();
    assert!(futures::poll!(&mut waiting).is_pending());
    drop(cancelled);
    let others = futures::future::join_all((0..6).map(|_| wanted()));
    let (queued, others) = futures::join!(waiting, others);
    assert!(queued.is_ok() && others.iter().all(Result::is_ok));
}

#[tokio::test]
async fn a_live_name_that_is_unknown_holds_no_weights() {
    let house = House::open("qwen3").await;
    let source = SamplingSource::Live(SamplingSessionId::new("s:sample:inflight-0"));
    let error = house.ask(SampleRequest { source, ..request(&[1]) }).await.unwrap_err();
    assert_eq!(error.code, twinkle_core::ErrorCode::NotFound);
}
