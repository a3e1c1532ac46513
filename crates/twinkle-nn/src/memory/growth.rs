//! By how much this process grows while it works.

use std::fs;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::{self, JoinHandle};
use std::time::Duration;

/// How often is looked.
const INTERVAL: Duration = Duration::from_millis(2);

/// The most memory that this process has taken beyond what it had when the watch began, pages of files left out.
///
/// A thread looks now and then. The kernel's own high-water mark will not do: pages of files are in it, which come and go
/// as the kernel likes. Blocks that the allocator holds for later are given back first: else what is taken from them would
/// not be seen.
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
        twinkle_torch::memory::give_back_freed_blocks();
        let before = own_bytes()?;
        let (most, done) = (Arc::new(AtomicU64::new(before)), Arc::new(AtomicBool::new(false)));
        let (seen, stop) = (Arc::clone(&most), Arc::clone(&done));
        let look = move || {
            while !stop.load(Ordering::Relaxed) {
                seen.fetch_max(own_bytes().unwrap_or(0), Ordering::Relaxed);
                thread::sleep(INTERVAL);
            }
        };
        let thread = thread::Builder::new().name("memory-watch".to_owned()).spawn(look).ok();
        Some(Self { before, most, done, thread })
    }

    /// The most it grew since, in bytes.
    #[must_use]
    pub fn peak(&self) -> u64 {
        self.most.fetch_max(own_bytes().unwrap_or(0), Ordering::Relaxed);
        self.most.load(Ordering::Relaxed).saturating_sub(self.before)
    }

    /// By how much it is larger now than when the watch began, in bytes, freed blocks left out.
    #[must_use]
    pub fn now(&self) -> u64 {
        twinkle_torch::memory::give_back_freed_blocks();
        own_bytes().unwrap_or(0).saturating_sub(self.before)
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

/// Memory of this process that no file backs.
fn own_bytes() -> Option<u64> {
    let status = fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("RssAnon:"))?;
    let kibibytes: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    Some(kibibytes * 1024)
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
