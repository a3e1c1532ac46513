//! What the native protocol keeps: adapters with their counters, uploads.

use std::time::Duration;

use twinkle_core::Error;
use twinkle_core::call::{AdapterCounters, AdapterRecord, AdapterSettings};
use twinkle_core::ids::{RequestId, RunId, SessionId};
use twinkle_core::state::{Retention, UploadRecord};

use crate::fixtures::{alice, mallory, session};
use crate::lab::Lab;

pub(crate) async fn what_was_counted_belongs_to_a_run(lab: &Lab) {
    let store = lab.store().await;
    store.create_session(&session("s")).await.unwrap();
    let (session, name) = (SessionId::new("s"), "a".to_owned());
    let mut record = AdapterRecord {
        session: session.clone(),
        name: name.clone(),
        tenant: alice(),
        run: RunId::new("s-a"),
        settings: AdapterSettings::default(),
        counters: Vec::new(),
    };
    store.keep_adapter(&record).await.unwrap();
    record.counters = vec![0, 1, 255];
    let AdapterRecord { run, counters, .. } = record.clone();
    let counted = AdapterCounters { session: session.clone(), name: name.clone(), tenant: alice(), run, counters };
    store.keep_counters(AdapterCounters { tenant: mallory(), counters: vec![9], ..counted.clone() }).await.unwrap();
    store.keep_counters(counted).await.unwrap();
    store.keep_adapter(&record).await.unwrap();
    assert_eq!(store.adapter(&alice(), &session, &name).await.unwrap(), Some(record.clone()));
    record.run = RunId::new("s-a~2");
    store.keep_adapter(&record).await.unwrap();
    assert_eq!(store.adapter(&alice(), &session, &name).await.unwrap().unwrap().counters, Vec::<u8>::new());
}

pub(crate) async fn an_upload_is_known_as_it_was_noted_last(lab: &Lab) {
    let store = lab.store().await;
    let mut upload =
        UploadRecord { request: RequestId::new("req_1"), tenant: alice(), sent_bytes: 0, total_bytes: 0, end: None };
    store.keep_upload(&upload).await.unwrap();
    (upload.sent_bytes, upload.total_bytes) = (5_000_000_000, 6_000_000_000);
    upload.end = Some(Err(Error::invalid("the hub said no").hint("ask it")));
    store.keep_upload(&upload).await.unwrap();
    assert_eq!(store.upload(&alice(), &upload.request).await.unwrap(), Some(upload.clone()));
    assert_eq!(store.upload(&mallory(), &upload.request).await.unwrap(), None);
    store.sweep(&Retention::default()).await.unwrap();
    assert!(store.upload(&alice(), &upload.request).await.unwrap().is_some());
    store.sweep(&Retention { uploads: Duration::ZERO, ..Retention::default() }).await.unwrap();
    assert_eq!(store.upload(&alice(), &upload.request).await.unwrap(), None);
}
