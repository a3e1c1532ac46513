//! The decode half of a step: one token of every running sample.

use std::collections::BTreeMap;
use std::sync::Arc;

use twinkle_nn::Adapter;

use crate::logits::RowTask;
use crate::scheduler::{JobId, SampleRef};
use crate::sequence::Request;

/// The running samples of one step, with their caches taken out.
pub(crate) struct Batch<Cache> {
    pub(crate) samples: Vec<SampleRef>,
    pub(crate) tokens: Vec<u32>,
    pub(crate) caches: Vec<Cache>,
    pub(crate) adapters: Vec<Option<Arc<Adapter>>>,
    pub(crate) tasks: Vec<RowTask>,
}

impl<Cache> Batch<Cache> {
    /// Takes what these samples need for one more token; those that are gone are left out.
    pub(crate) fn gather(samples: &[SampleRef], requests: &mut BTreeMap<JobId, Request<Cache>>) -> Self {
        let mut batch = Self { samples: vec![], tokens: vec![], caches: vec![], adapters: vec![], tasks: vec![] };
        for sample in samples {
            let Some(request) = requests.get_mut(&sample.job) else { continue };
            let Some(sequence) = request.running(sample.sample) else { continue };
            let (Some(token), generated) = (sequence.last_token(), sequence.generated()) else { continue };
            let seen = sequence.seen();
            let Some(cache) = sequence.cache.take() else { continue };
            batch.samples.push(*sample);
            batch.tokens.push(token);
            batch.caches.push(cache);
            batch.adapters.push(request.adapter().cloned());
            batch.tasks.push(request.row_task(sample.sample, generated, seen));
        }
        batch
    }
}
