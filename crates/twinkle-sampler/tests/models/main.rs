//! The sampler over the tiny models of `tests/golden`, through its component: what Hugging Face computes, same seeds,
//! stops, logprobs, adapters from disk and from a live run, aborts, the
//! memory of caches.

mod adapters;
mod caches;
mod golden;
mod house;
mod independence;
mod logprobs;
mod requests;
mod scores;
