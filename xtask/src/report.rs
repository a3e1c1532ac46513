//! The table at the end of `cargo xtask test`.

use std::io::{self, Write};

/// What one step did.
#[derive(Clone, Debug)]
pub(crate) struct Line {
    pub(crate) step: &'static str,
    pub(crate) passed: u64,
    pub(crate) failed: u64,
    pub(crate) skipped: u64,
    pub(crate) seconds: f64,
}

/// Prints the table, why tests were skipped and, last, `N passed, N failed`; returns whether nothing failed.
pub(crate) fn print(lines: &[Line], skips: &[String]) -> io::Result<bool> {
    let mut out = io::stdout().lock();
    out.write_all(table(lines, skips).as_bytes())?;
    out.flush()?;
    Ok(lines.iter().all(|line| line.failed == 0))
}

fn table(lines: &[Line], skips: &[String]) -> String {
    let head = format!("\n{:<12} {:>7} {:>7} {:>7} {:>9}\n", "step", "passed", "failed", "skipped", "time");
    let row = |line: &Line| {
        let Line { step, passed, failed, skipped, seconds } = line;
        format!("{step:<12} {passed:>7} {failed:>7} {skipped:>7} {seconds:>7.1} s\n")
    };
    let rows: String = lines.iter().map(row).collect();
    let passed: u64 = lines.iter().map(|line| line.passed).sum();
    let failed: u64 = lines.iter().map(|line| line.failed).sum();
    let reasons = skips.iter().fold(String::new(), |text, skip| text + "skipped: " + skip + "\n");
    format!("{head}{rows}{reasons}{passed} passed, {failed} failed\n")
}

/// Counts passed and failed tests in the output of a test runner.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Counts {
    pub(crate) passed: u64,
    pub(crate) failed: u64,
}

impl Counts {
    /// Reads one line: the summary of `cargo nextest`, or of one binary under `cargo test`.
    pub(crate) fn watch(&mut self, line: &str) {
        let line = line.trim_start();
        let summary = match (line.strip_prefix("Summary ["), line.strip_prefix("test result: ")) {
            (Some(summary), _) => summary.split_once(':').map(|(_, counts)| counts),
            (None, Some(summary)) => summary.split_once(". ").map(|(_, counts)| counts),
            (None, None) => None,
        };
        for count in summary.unwrap_or_default().split([',', ';']) {
            let mut words = count.split_whitespace();
            let Some(number) = words.next().and_then(|word| word.parse::<u64>().ok()) else { continue };
            match words.next() {
                Some("passed") => self.passed += number,
                // nextest tells apart: failed, exec failed, timed out.
                Some("failed" | "exec" | "timed") => self.failed += number,
                _ => {}
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn counted(lines: &[&str]) -> (u64, u64) {
        let mut counts = Counts::default();
        for line in lines {
            counts.watch(line);
        }
        (counts.passed, counts.failed)
    }

    #[test]
    fn the_summary_of_nextest_is_read() {
        assert_eq!(counted(&["     Summary [   0.013s] 3 tests run: 3 passed (1 slow), 0 skipped"]), (3, 0));
        let line = "     Summary [   0.3s] 7 tests run: 3 passed, 2 failed, 1 exec failed, 1 timed out, 4 skipped";
        assert_eq!(counted(&[line]), (3, 4));
        assert_eq!(counted(&["        PASS [   0.013s] twinkle-core ids::tests::passed"]), (0, 0));
    }

    #[test]
    fn the_summaries_of_cargo_test_are_added_up() {
        let lines = [
            "test result: ok. 12 passed; 0 failed; 0 ignored; 0 measured; 0 filtered out; finished in 0.01s",
            "test result: FAILED. 3 passed; 2 failed; 0 ignored; 0 measured; 0 filtered out; finished in 0.01s",
        ];
        assert_eq!(counted(&lines), (15, 2));
    }

    #[test]
    fn the_last_line_is_plain() {
        let line = |step, passed, failed| Line { step, passed, failed, skipped: 1, seconds: 1.25 };
        let table = table(&[line("format", 1, 0), line("unit", 41, 2)], &["a test: no database".to_owned()]);
        assert!(table.contains("\nskipped: a test: no database\n"), "{table}");
        assert!(table.ends_with("\n42 passed, 2 failed\n"), "{table}");
    }
}
