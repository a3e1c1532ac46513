//! How often and when a request is tried again.

use std::time::Duration;

/// Most attempts of one file, however well each of them goes: a bound against a server that gives a byte at a time.
const MOST_ATTEMPTS: u32 = 200;

/// How patient a download is with a hub.
#[derive(Clone, Copy, Debug)]
pub struct Patience {
    /// Attempts in a row that bring nothing before a request fails.
    pub attempts: u32,
    /// The wait after the first of them; it doubles each time.
    pub first_wait: Duration,
    /// The longest wait; a hub that asks for a longer one (`Retry-After`) is not asked again.
    pub longest_wait: Duration,
    /// How long a connection may take, and how long it may bring nothing.
    pub silence: Duration,
}

impl Default for Patience {
    fn default() -> Self {
        Self {
            attempts: 6,
            first_wait: Duration::from_secs(1),
            longest_wait: Duration::from_mins(5),
            silence: Duration::from_mins(1),
        }
    }
}

/// The attempts of one request so far.
pub(crate) struct Attempts {
    patience: Patience,
    total: u32,
    in_vain: u32,
}

impl Attempts {
    pub(crate) fn new(patience: Patience) -> Self {
        Self { patience, total: 0, in_vain: 0 }
    }

    /// Counts an attempt that failed, and says how long to wait before the next, if there may be one.
    ///
    /// `progressed`: it brought some bytes before it failed.
    pub(crate) fn failed(&mut self, progressed: bool, retry_after: Option<Duration>) -> Option<Duration> {
        self.total += 1;
        self.in_vain = if progressed { 0 } else { self.in_vain + 1 };
        if self.in_vain >= self.patience.attempts || self.total >= MOST_ATTEMPTS {
            return None;
        }
        if let Some(wait) = retry_after {
            return (wait <= self.patience.longest_wait).then_some(wait);
        }
        let doubled = self.patience.first_wait * 2_u32.saturating_pow(self.in_vain.saturating_sub(1).min(16));
        Some(doubled.min(self.patience.longest_wait))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    fn attempts() -> Attempts {
        let patience = Patience { attempts: 4, first_wait: SECOND, longest_wait: SECOND * 3, silence: SECOND };
        Attempts::new(patience)
    }

    #[test]
    fn waits_double_to_a_bound_and_then_it_is_over() {
        let mut attempts = attempts();
        assert_eq!(attempts.failed(false, None), Some(SECOND));
        assert_eq!(attempts.failed(false, None), Some(SECOND * 2));
        assert_eq!(attempts.failed(false, None), Some(SECOND * 3));
        assert_eq!(attempts.failed(false, None), None);
    }

    #[test]
    fn the_hubs_own_wait_is_kept_unless_it_is_too_long() {
        let mut attempts = attempts();
        assert_eq!(attempts.failed(false, Some(Duration::ZERO)), Some(Duration::ZERO));
        assert_eq!(attempts.failed(false, Some(SECOND * 3)), Some(SECOND * 3));
        assert_eq!(attempts.failed(false, Some(SECOND * 4)), None);
    }

    #[test]
    fn progress_is_rewarded_but_not_for_ever() {
        let mut attempts = attempts();
        assert!((1..MOST_ATTEMPTS).all(|_| attempts.failed(true, None) == Some(SECOND)));
        assert_eq!(attempts.failed(true, None), None);
    }
}
