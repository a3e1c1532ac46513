//! By how much this process grows while it works, as the kernel counts it.

use std::fs;

/// The most memory that this process has taken beyond what it had when the watch began, pages of files left out.
///
/// The kernel keeps the largest resident size and forgets it when `5` is written to `clear_refs`, so nothing is missed
/// between two looks. Blocks that the allocator holds for later are given back first: else what is taken from them would
/// not be seen. Pages of files, such as code that runs for the first time, come and go as the kernel likes: those that are
/// there at the end are taken off.
#[derive(Debug)]
pub struct Growth {
    before: u64,
}

impl Growth {
    /// Begins to watch; `None` where the system does not tell.
    #[must_use]
    pub fn watch() -> Option<Self> {
        twinkle_torch::memory::give_back_freed_blocks();
        fs::write("/proc/self/clear_refs", "5").ok()?;
        Some(Self { before: field("RssAnon:")? })
    }

    /// The most it grew since, in bytes.
    #[must_use]
    pub fn peak(&self) -> u64 {
        let [most, of_files] = ["VmHWM:", "RssFile:"].map(|name| field(name).unwrap_or(0));
        most.saturating_sub(of_files).saturating_sub(self.before)
    }

    /// By how much it is larger now than when the watch began, in bytes, freed blocks left out.
    #[must_use]
    pub fn now(&self) -> u64 {
        twinkle_torch::memory::give_back_freed_blocks();
        field("RssAnon:").unwrap_or(0).saturating_sub(self.before)
    }
}

/// A number of `/proc/self/status`, in bytes.
fn field(name: &str) -> Option<u64> {
    let status = fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix(name))?;
    let kibibytes: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    Some(kibibytes * 1024)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_taken_and_freed_since_is_seen() {
        const BYTES: u64 = 48 << 20;
        let Some(growth) = Growth::watch() else { return };
        drop(vec![7_u8; BYTES as usize]);
        let (peak, now) = (growth.peak(), growth.now());
        assert!(peak >= BYTES - (1 << 20), "{peak}");
        assert!(now < BYTES / 2, "{now}");
    }
}
