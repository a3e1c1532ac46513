//! How fast the durable store takes sessions: `cargo run -p twinkle-core --example state_bench`.
#![forbid(unsafe_code)]
#![expect(clippy::print_stdout, reason = "the numbers are its output")]

use std::collections::BTreeMap;
use std::time::Duration;

use tokio::time::Instant;
use twinkle_core::Result;
use twinkle_core::call::SessionRecord;
use twinkle_core::ids::{SessionId, TenantId};
use twinkle_core::state::StateStore;

const CALLERS: usize = 64;
const PER_CALLER: usize = 400;
const ALONE: usize = 2000;

#[tokio::main]
async fn main() -> Result<()> {
    let folder = std::env::temp_dir().join(format!("twinkle-state-bench-{}", std::process::id()));
    let store = StateStore::open(&folder.join("state.sqlite")).await?;

    let mut alone = Vec::with_capacity(ALONE);
    for _ in 0..ALONE {
        alone.push(create(&store).await?);
    }
    report("one caller", &mut alone, None);

    let started = Instant::now();
    let mut callers = tokio::task::JoinSet::new();
    for _ in 0..CALLERS {
        let store = store.clone();
        callers.spawn(async move {
            let mut times = Vec::with_capacity(PER_CALLER);
            for _ in 0..PER_CALLER {
                times.push(create(&store).await?);
            }
            Ok::<_, twinkle_core::Error>(times)
        });
    }
    let mut together = Vec::new();
    for times in callers.join_all().await {
        together.extend(times?);
    }
    report("64 callers", &mut together, Some(started.elapsed()));

    store.close().await;
    if let Err(error) = std::fs::remove_dir_all(&folder) {
        println!("`{}` was left behind: {error}", folder.display());
    }
    Ok(())
}

async fn create(store: &StateStore) -> Result<Duration> {
    let session = SessionRecord {
        id: SessionId::fresh(),
        tenant: TenantId::of_key("bench"),
        tags: vec!["bench".to_owned()],
        user_metadata: BTreeMap::new(),
        sdk_version: Some("0.38.0".to_owned()),
        finished: false,
        created_at: jiff::Timestamp::now(),
        project_id: None,
        display_name: None,
        client_end: None,
    };
    let started = Instant::now();
    store.create_session(&session).await?;
    Ok(started.elapsed())
}

fn report(who: &str, times: &mut [Duration], wall: Option<Duration>) {
    times.sort();
    let at = |share: f64| times.get((times.len() as f64 * share) as usize).copied().unwrap_or_default();
    let rate = times.len() as f64 / wall.unwrap_or_else(|| times.iter().sum()).as_secs_f64();
    println!("{who}: {rate:.0} create_session/s, p50 {:.3?}, p99 {:.3?}", at(0.5), at(0.99));
}
