//! How much memory this machine has.

use std::fs;

/// Memory of a machine or of the control group this process is in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MachineMemory {
    /// What there is.
    pub total: u64,
    /// What can be taken without swapping; pages of files count, since they can be dropped.
    pub available: u64,
}

impl MachineMemory {
    /// What Linux reports, and no more than the control group allows; `None` where the system does not tell.
    #[must_use]
    pub fn now() -> Option<Self> {
        let machine = parse_meminfo(&fs::read_to_string("/proc/meminfo").ok()?)?;
        Some(match ControlGroup::read() {
            Some(group) => Self {
                total: machine.total.min(group.limit),
                available: machine.available.min(group.limit.saturating_sub(group.used)),
            },
            None => machine,
        })
    }

    /// The same after the blocks that this process has freed and kept have gone back to the system.
    #[must_use]
    pub fn with_freed_blocks_back() -> Option<Self> {
        twinkle_torch::memory::give_back_freed_blocks();
        Self::now()
    }
}

fn parse_meminfo(text: &str) -> Option<MachineMemory> {
    let field = |name: &str| -> Option<u64> {
        let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))?;
        let kibibytes: u64 = line.trim().trim_end_matches("kB").trim().parse().ok()?;
        Some(kibibytes * 1024)
    };
    Some(MachineMemory { total: field("MemTotal")?, available: field("MemAvailable")? })
}

/// The limit of the control group and what counts against it.
struct ControlGroup {
    limit: u64,
    used: u64,
}

impl ControlGroup {
    fn read() -> Option<Self> {
        let text = |name: &str| fs::read_to_string(format!("/sys/fs/cgroup/{name}")).ok();
        let (limit, used, stat) = if let Some(limit) = text("memory.max") {
            (limit, text("memory.current"), text("memory.stat"))
        } else {
            let name = |file: &str| format!("memory/memory.{file}");
            (text(&name("limit_in_bytes"))?, text(&name("usage_in_bytes")), text(&name("stat")))
        };
        // A group without a limit says `max`.
        let limit = limit.trim().parse().ok()?;
        let used: u64 = used.and_then(|used| used.trim().parse().ok()).unwrap_or(0);
        Some(Self { limit, used: used.saturating_sub(inactive_file(&stat.unwrap_or_default())) })
    }
}

/// Pages of files that the kernel drops first when the group needs room.
fn inactive_file(stat: &str) -> u64 {
    stat.lines().find_map(|line| line.strip_prefix("inactive_file ")?.trim().parse().ok()).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_fields_of_meminfo_are_found_whatever_stands_between() {
        let text = "MemTotal:       24684096 kB\nMemFree:  5 kB\nMemAvailable:   22718000 kB\nBuffers: 1 kB\n";
        let found = parse_meminfo(text).unwrap();
        assert_eq!(found, MachineMemory { total: 24_684_096 << 10, available: 22_718_000 << 10 });
        assert_eq!(parse_meminfo("MemTotal: 5 kB\n"), None);
    }

    #[test]
    fn pages_that_can_be_dropped_are_not_in_use() {
        assert_eq!(inactive_file("anon 7\ninactive_file 4096\nactive_file 5\n"), 4096);
        assert_eq!(inactive_file(""), 0);
    }

    #[test]
    fn this_machine_has_memory() {
        if let Some(memory) = MachineMemory::now() {
            assert!(memory.available <= memory.total && memory.available > 0, "{memory:?}");
        }
    }
}
