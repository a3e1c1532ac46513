//! How the process's allocator treats large blocks.

/// Keeps freed blocks for the next allocation instead of giving them back to the system.
///
/// A pass allocates and frees the same blocks of megabytes over and over; given back, every one of them is mapped, cleared
/// and unmapped again, which takes a tenth of a training step. The process stays as large as it was at its largest.
pub fn keep_freed_blocks() {
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    #[expect(unsafe_code, reason = "calls the C library")]
    {
        // The largest threshold that glibc accepts: blocks below it come from its heap.
        const LARGEST_THRESHOLD: i32 = 32 << 20;
        // SAFETY: sets two numbers of the allocator; what it refuses stays as it was.
        unsafe {
            libc::mallopt(libc::M_MMAP_THRESHOLD, LARGEST_THRESHOLD);
            libc::mallopt(libc::M_TRIM_THRESHOLD, i32::MAX);
        }
    }
}

/// Gives blocks that were freed and kept for later back to the system.
///
/// The next pass has to take them again, so this is for a machine that is short of memory, and for whoever measures.
pub fn give_back_freed_blocks() {
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    #[expect(unsafe_code, reason = "calls the C library")]
    {
        // SAFETY: takes a number, and touches nothing but blocks that nobody has.
        unsafe {
            libc::malloc_trim(0);
        }
    }
}

/// Bytes that are allocated now, by libtorch and by everything else in this process; `None` where the C library does not
/// tell. What was freed and is kept for later does not count.
#[must_use]
pub fn allocated_bytes() -> Option<u64> {
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    #[expect(unsafe_code, reason = "calls the C library")]
    {
        // SAFETY: takes nothing and returns numbers by value.
        let information = unsafe { libc::mallinfo2() };
        Some((information.uordblks + information.hblkhd) as u64)
    }
    #[cfg(not(all(target_os = "linux", target_env = "gnu")))]
    None
}
