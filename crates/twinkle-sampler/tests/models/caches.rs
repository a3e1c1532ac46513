//! The memory of caches: what is planned for them is a bound, whatever is asked.

use std::task::Poll;

use futures::future::try_join_all;
use twinkle_core::call::SampleRequest;
use twinkle_nn::KvCache;
use twinkle_sampler::memory::CacheBudget;

use crate::house::{House, prompt, request};

/// Attention alone, and mixed with linear attention.
const BOTH: [&str; 2] = ["qwen3", "qwen3_5"];

#[tokio::test]
async fn a_cache_takes_no_more_than_it_is_counted_as_however_it_grows() {
    for variant in BOTH {
        let house = House::open(variant).await;
        let budget = CacheBudget::new(&house.base.cost(), 1 << 20);
        for tiles in [vec![1; 140], vec![64, 64, 1, 1], vec![63, 2, 64], vec![7, 130, 5, 60], vec![200]] {
            let mut cache = KvCache::new(&house.base);
            for tile in tiles {
                let _ = house.base.prefill(&prompt(tile, 3), &mut cache, None).unwrap();
                let counted = budget.bytes_per_sequence + cache.len() as u64 * budget.bytes_per_token;
                let (taken, forked) = (cache.bytes() as u64, cache.fork().bytes() as u64);
                assert!(taken <= counted && forked <= counted, "{variant}: {} tokens take {taken}", cache.len());
            }
        }
    }
}

#[tokio::test]
async fn all_caches_together_stay_within_what_is_planned_for_them() {
    for variant in BOTH {
        let cost = House::open(variant).await.base.cost();
        // Three of the longest requests below.
        let budget =
            CacheBudget::new(&cost, 3 * (cost.cache_bytes(0) + 90 * CacheBudget::new(&cost, 0).bytes_per_token));
        let house = House::open_within(variant, budget).await;
        assert_eq!(house.sampler.capabilities().kv_tokens, budget.tokens());
        let questions = (0..12).map(|place| {
            let asked = request(&prompt(1 + 6 * place, place as u32));
            house.ask(SampleRequest { num_samples: 1 + place as u32 % 3, ..asked })
        });
        let mut answers = Box::pin(try_join_all(questions));
        let mut most = 0;
        let outcomes = loop {
            most = most.max(house.sampler.stats().cache_bytes());
            if let Poll::Ready(outcomes) = futures::poll!(&mut answers) {
                break outcomes.unwrap();
            }
            tokio::task::yield_now().await;
        };
        assert!(most <= budget.bytes, "{variant}: caches took {most}, {} were planned", budget.bytes);
        assert_eq!(outcomes.len(), 12, "{variant}: everybody is served in turn");
    }
}

#[tokio::test]
async fn a_request_that_never_fits_is_refused_and_others_are_not() {
    let cost = House::open("qwen3").await.base.cost();
    let budget = CacheBudget::new(&cost, 2 * cost.cache_bytes(40));
    let house = House::open_within("qwen3", budget).await;
    assert!(house.ask(request(&prompt(200, 1))).await.is_err());
    assert!(house.ask(request(&prompt(20, 1))).await.is_ok());
}
