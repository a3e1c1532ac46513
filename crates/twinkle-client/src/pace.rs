//! How fast samples are submitted: at full speed until the server says that it has enough.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use tokio::sync::{OwnedSemaphorePermit, Semaphore, SemaphorePermit};
use tokio::time::{Instant, sleep_until};

/// The pause of all submissions after "slow down" to a usual prompt, and to a very long one.
const PAUSES: [Duration; 2] = [Duration::from_secs(1), Duration::from_secs(5)];
/// From how many bytes on a request is a very long one.
const LONG_REQUEST: usize = 128 << 10;
/// For how long after it only a few are submitted at the same time.
const SLOW_PHASE: Duration = Duration::from_secs(10);
/// How many.
const SLOW_SUBMISSIONS: usize = 10;

/// Shared by the copies of one sampling client.
#[derive(Debug)]
pub(crate) struct Pace {
    /// One permit for each sample that may be under way.
    in_flight: Arc<Semaphore>,
    slow: Semaphore,
    started: Instant,
    /// Milliseconds after `started` until which nothing is submitted.
    paused_until: AtomicU64,
    /// Milliseconds after `started` until which only a few are submitted at the same time.
    slow_until: AtomicU64,
}

impl Pace {
    /// Lets at most so many samples be under way.
    pub(crate) fn new(most_in_flight: u64) -> Self {
        let most = usize::try_from(most_in_flight).unwrap_or(usize::MAX).clamp(1, Semaphore::MAX_PERMITS);
        Self {
            in_flight: Arc::new(Semaphore::new(most)),
            slow: Semaphore::new(SLOW_SUBMISSIONS),
            started: Instant::now(),
            paused_until: AtomicU64::new(0),
            slow_until: AtomicU64::new(0),
        }
    }

    /// Waits until another sample may be under way. It is while the permit lives; `None`: nobody counts any more.
    pub(crate) async fn enter(&self) -> Option<OwnedSemaphorePermit> {
        self.in_flight.clone().acquire_owned().await.ok()
    }

    /// Waits until a request may be submitted; in the slow phase the permit says for how long it counts.
    pub(crate) async fn submit(&self) -> Option<SemaphorePermit<'_>> {
        let permit = if self.is_before(&self.slow_until) { self.slow.acquire().await.ok() } else { None };
        while self.is_before(&self.paused_until) {
            sleep_until(self.started + Duration::from_millis(self.paused_until.load(Ordering::Relaxed))).await;
        }
        permit
    }

    /// The server said "slow down" to a request of so many bytes, and perhaps for how long.
    pub(crate) fn slow_down(&self, request_bytes: usize, wish: Option<Duration>) {
        let [usual, long] = PAUSES;
        let pause = wish.unwrap_or(if request_bytes > LONG_REQUEST { long } else { usual });
        let after = |duration: Duration| (self.started.elapsed() + duration).as_millis() as u64;
        self.paused_until.fetch_max(after(pause), Ordering::Relaxed);
        self.slow_until.fetch_max(after(pause + SLOW_PHASE), Ordering::Relaxed);
    }

    fn is_before(&self, end: &AtomicU64) -> bool {
        (self.started.elapsed().as_millis() as u64) < end.load(Ordering::Relaxed)
    }
}

#[cfg(test)]
mod tests {
    use futures::FutureExt;
    use tokio::time::advance;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn after_slow_down_all_pause_and_then_a_few_go_at_a_time() {
        let pace = Pace::new(100);
        assert!(pace.submit().now_or_never().expect("at full speed").is_none());
        pace.slow_down(10, None);
        assert!(pace.submit().now_or_never().is_none());
        let begun = Instant::now();
        let first = pace.submit().await;
        assert_eq!(begun.elapsed(), PAUSES[0]);
        let mut permits = vec![first];
        while permits.len() < SLOW_SUBMISSIONS {
            permits.push(pace.submit().now_or_never().expect("a few at a time"));
        }
        assert!(permits.iter().all(Option::is_some) && pace.submit().now_or_never().is_none());
        permits.pop();
        assert!(pace.submit().now_or_never().is_some());
        advance(SLOW_PHASE).await;
        assert!(pace.submit().now_or_never().expect("at full speed again").is_none());
    }

    #[tokio::test(start_paused = true)]
    async fn a_long_request_and_the_servers_wish_pause_longer() {
        for (bytes, wish, expected) in
            [(LONG_REQUEST + 1, None, PAUSES[1]), (1, Some(Duration::from_secs(7)), Duration::from_secs(7))]
        {
            let pace = Pace::new(1);
            pace.slow_down(bytes, wish);
            let begun = Instant::now();
            pace.submit().await;
            assert_eq!(begun.elapsed(), expected);
        }
    }

    #[tokio::test]
    async fn only_so_many_samples_are_under_way() {
        let pace = Pace::new(2);
        let (first, _second) = (pace.enter().await, pace.enter().await);
        assert!(pace.enter().now_or_never().is_none());
        drop(first);
        assert!(pace.enter().now_or_never().is_some());
    }
}
