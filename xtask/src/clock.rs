//! Time for the reports.

/// Measures how long something takes.
pub(crate) struct Stopwatch {
    #[expect(clippy::disallowed_types, reason = "nothing here is async, and no test pauses this clock")]
    start: std::time::Instant,
}

impl Stopwatch {
    /// Starts now.
    #[expect(clippy::disallowed_types, reason = "nothing here is async, and no test pauses this clock")]
    pub(crate) fn start() -> Self {
        Self { start: std::time::Instant::now() }
    }

    /// Seconds since the start.
    pub(crate) fn seconds(&self) -> f64 {
        self.start.elapsed().as_secs_f64()
    }
}
