//! By how much this process grows while it works.

use std::fs;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::{self, JoinHandle};
use std::time::Duration;

/// How often is looked.
const INTERVAL: Duration = Duration::from_millis(2);

/// Watches the process's own memory from a thread. Mapped files do not count.
pub(super) struct Growth {
    before: u64,
    most: Arc<AtomicU64>,
    done: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Growth {
    pub(super) fn watch() -> Self {
        let before = own_bytes();
        let (most, done) = (Arc::new(AtomicU64::new(before)), Arc::new(AtomicBool::new(false)));
        let (seen, stop) = (Arc::clone(&most), Arc::clone(&done));
        let look = move || {
            while !stop.load(Ordering::Relaxed) {
                seen.fetch_max(own_bytes(), Ordering::Relaxed);
                thread::sleep(INTERVAL);
            }
        };
        let thread = thread::Builder::new().name("memory-watch".to_owned()).spawn(look).ok();
        Self { before, most, done, thread }
    }

    /// The most it grew since the watch began.
    pub(super) fn peak(mut self) -> u64 {
        self.done.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            // It has nothing to say.
            let _ = thread.join();
        }
        self.most.load(Ordering::Relaxed).saturating_sub(self.before)
    }
}

/// Memory of this process that no file backs; 0 where the system does not tell.
fn own_bytes() -> u64 {
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("RssAnon:"));
    line.and_then(|line| line.trim().trim_end_matches("kB").trim().parse::<u64>().ok()).unwrap_or(0) * 1024
}
