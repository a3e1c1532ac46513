//! How much a piece of work allocates.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use twinkle_torch::memory::allocated_bytes;

/// How often is looked.
const INTERVAL: Duration = Duration::from_millis(2);

/// The most memory that was allocated beyond what was when the watch began.
///
/// A thread asks the allocator now and then. What the kernel says will not do: it takes pages away and gives them back as
/// it likes, and does not see what is taken from blocks that were freed before.
#[derive(Debug)]
pub struct Growth {
    before: u64,
    most: Arc<AtomicU64>,
    done: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Growth {
    /// Begins to watch; `None` where the system does not tell.
    #[must_use]
    pub fn watch() -> Option<Self> {
        let before = allocated_bytes()?;
        let (most, done) = (Arc::new(AtomicU64::new(before)), Arc::new(AtomicBool::new(false)));
        let (seen, stop) = (Arc::clone(&most), Arc::clone(&done));
        let look = move || {
            while !stop.load(Ordering::Relaxed) {
                seen.fetch_max(allocated_bytes().unwrap_or(0), Ordering::Relaxed);
                thread::sleep(INTERVAL);
            }
        };
        let thread = thread::Builder::new().name("memory-watch".to_owned()).spawn(look).ok();
        Some(Self { before, most, done, thread })
    }

    /// The most it grew since, in bytes.
    #[must_use]
    pub fn peak(&self) -> u64 {
        self.most.fetch_max(allocated_bytes().unwrap_or(0), Ordering::Relaxed);
        self.most.load(Ordering::Relaxed).saturating_sub(self.before)
    }

    /// By how much more is allocated now than when the watch began, in bytes.
    #[must_use]
    pub fn now(&self) -> u64 {
        allocated_bytes().unwrap_or(0).saturating_sub(self.before)
    }
}

impl Drop for Growth {
    fn drop(&mut self) {
        self.done.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            // It has nothing to say.
            let _ = thread.join();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_taken_is_seen_and_what_was_freed_is_not() {
        const BYTES: u64 = 48 << 20;
        let Some(growth) = Growth::watch() else { return };
        let block = vec![7_u8; BYTES as usize];
        let peak = growth.peak();
        drop(block);
        assert!(peak >= BYTES - (1 << 20), "{peak}");
        let now = growth.now();
        assert!(now < BYTES / 2, "{now}");
        assert!(growth.peak() >= peak, "what has gone was there");
    }
}
