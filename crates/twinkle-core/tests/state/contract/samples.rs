//! Samples that clients wait for, and the clients of a sampling session.

use std::time::Duration;

use twinkle_core::ErrorCode;
use twinkle_core::call::{SamplingSessionRecord, SamplingSource};
use twinkle_core::ids::{RequestId, SamplingSessionId, SessionId};
use twinkle_core::state::{AwaitedSample, Retention};

use crate::fixtures::{alice, mallory, session};
use crate::lab::Lab;

fn sample(client: u64) -> AwaitedSample {
    let session = SamplingSessionId::new("s:sample:0");
    AwaitedSample { request: RequestId::ephemeral(), tenant: alice(), session, client }
}

pub(crate) async fn awaited_samples_are_known_until_they_are_forgotten_or_old(lab: &Lab) {
    let store = lab.store().await;
    let samples = [sample(0), sample(1), sample(9_223_372_036)];
    for kept in &samples {
        store.keep_sample(kept.clone()).await.unwrap();
        store.keep_sample(kept.clone()).await.unwrap();
    }
    store.forget_samples(vec![samples[1].request.clone(), RequestId::ephemeral()]).await.unwrap();
    let mut known = store.awaited_samples().await.unwrap();
    known.sort_by_key(|sample| sample.client);
    assert_eq!(known, [samples[0].clone(), samples[2].clone()]);
    store.sweep(&Retention::default()).await.unwrap();
    assert_eq!(store.awaited_samples().await.unwrap().len(), 2);
    store.sweep(&Retention { results: Duration::ZERO, ..Retention::default() }).await.unwrap();
    assert_eq!(store.awaited_samples().await.unwrap(), []);
}

pub(crate) async fn every_client_that_joins_has_a_number_of_its_own(lab: &Lab) {
    let store = lab.store().await;
    store.create_session(&session("s")).await.unwrap();
    let id = SamplingSessionId::new("s:sample:0");
    let record = SamplingSessionRecord {
        id: id.clone(),
        tenant: alice(),
        session: SessionId::new("s"),
        base_model: "tiny".to_owned(),
        source: SamplingSource::Base,
    };
    store.create_sampling_session(&record).await.unwrap();
    let alice = alice();
    let joining = (0..8).map(|_| store.join_sampling_session(&alice, &id));
    let mut numbers: Vec<u64> = futures::future::try_join_all(joining).await.unwrap();
    numbers.sort_unstable();
    assert_eq!(numbers, (1..=8).collect::<Vec<_>>());
    let absent = SamplingSessionId::new("s:sample:9");
    for (tenant, id) in [(&mallory(), &id), (&alice, &absent)] {
        let error = store.join_sampling_session(tenant, id).await.unwrap_err();
        assert_eq!(error.code, ErrorCode::NotFound);
        assert_eq!(error.message, format!("sampling session `{id}` does not exist"));
    }
    assert_eq!(store.create_sampling_session(&record).await.unwrap(), record, "asking for it again changes nothing");
}
