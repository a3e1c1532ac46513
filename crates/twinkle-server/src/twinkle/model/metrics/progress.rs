//! `TrainMetric`: learning rate, steps and speed.

use std::time::Duration;

use serde::{Deserialize, Serialize};
use tokio::time::Instant;
use twinkle_core::error::Result;

use super::{Found, Metric, Moment, Observation, from_bytes, to_bytes};

/// Above this the elapsed time is told in minutes.
const LONG: Duration = Duration::from_mins(1);

/// When it was made, and where it was when it was last asked.
#[derive(Debug)]
pub(super) struct Progress {
    began: Instant,
    asked: Instant,
    step: u64,
    has_seen: bool,
}

impl Progress {
    pub(super) fn new(now: Instant) -> Self {
        Self { began: now, asked: now, step: 0, has_seen: false }
    }
}

impl Metric for Progress {
    fn observe(&mut self, _: &Observation<'_>) -> Result<()> {
        self.has_seen = true;
        Ok(())
    }

    fn take(&mut self, at: &Moment, found: &mut Found) {
        if let Some(rate) = at.learning_rate.filter(|_| self.has_seen) {
            // The original has two groups of parameters, one that decays and one that does not.
            for group in 1..=2 {
                found.text(format!("learning rate(param group {group})"), rate, exponent(rate));
            }
        }
        // The original counts from 0.
        let step = at.cur_step.saturating_sub(1);
        let every = at.accumulation_steps.max(1);
        let iterations = step / every;
        found.shown.insert("iters".to_owned(), iterations.into());
        found.numbers.insert("iters".to_owned(), iterations.into());
        let (interval, elapsed) = (at.now - self.asked, at.now - self.began);
        let seconds = elapsed.as_secs_f64();
        let shown =
            if interval < LONG { format!("{seconds:.0} seconds") } else { format!("{:.1} minutes", seconds / 60.0) };
        found.text("total time elapse", seconds, shown);
        let done = step.saturating_sub(self.step) as f64 / every as f64;
        let speed = if interval.is_zero() { 0.0 } else { done / interval.as_secs_f64() };
        found.text("speed", speed, format!("{speed:.2} iters/s"));
        (self.asked, self.step) = (at.now, step);
    }

    fn saved(&self, now: Instant) -> Result<Vec<u8>> {
        let Self { began, asked, step, has_seen } = *self;
        to_bytes(&Saved {
            began_ago: (now - began).as_secs_f64(),
            asked_ago: (now - asked).as_secs_f64(),
            step,
            has_seen,
        })
    }

    fn take_up(&mut self, saved: &[u8], now: Instant) -> Result<()> {
        let Saved { began_ago, asked_ago, step, has_seen } = from_bytes(saved)?;
        *self = Self { began: before(now, began_ago), asked: before(now, asked_ago), step, has_seen };
        Ok(())
    }
}

/// The same with times as seconds: those in which the server did not run are not counted.
#[derive(Serialize, Deserialize)]
struct Saved {
    began_ago: f64,
    asked_ago: f64,
    step: u64,
    has_seen: bool,
}

/// So many seconds ago, or as long ago as this machine's clock goes.
fn before(now: Instant, seconds: f64) -> Instant {
    Duration::try_from_secs_f64(seconds).ok().and_then(|ago| now.checked_sub(ago)).unwrap_or(now)
}

/// As Python writes `%.6e`: the exponent has a sign and at least two digits.
fn exponent(number: f64) -> String {
    let text = format!("{number:.6e}");
    let (digits, exponent) = text.split_once('e').unwrap_or((&text, "0"));
    let exponent: i32 = exponent.parse().unwrap_or_default();
    let sign = if exponent < 0 { '-' } else { '+' };
    format!("{digits}e{sign}{:02}", exponent.unsigned_abs())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_look_as_in_python() {
        assert_eq!(exponent(4.666_667e-3), "4.666667e-03");
        assert_eq!(exponent(1.0), "1.000000e+00");
        assert_eq!(exponent(0.0), "0.000000e+00");
        assert_eq!(exponent(1.5e-120), "1.500000e-120");
    }
}
