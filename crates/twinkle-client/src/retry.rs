//! When a request is sent again, and after how long.

use std::time::Duration;

use reqwest::header::HeaderMap;

use crate::answer::Answer;

/// How patient the client is.
///
/// Sent again are lost connections, the statuses 408, 409, 429 and from 500 on, and whatever the server marks with
/// `x-should-retry: true`. The pause is what the server asks for in `retry-after`, up to a minute, else it doubles.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RetryPolicy {
    /// The first pause; each further one is twice as long.
    pub first_pause: Duration,
    /// The longest pause.
    pub longest_pause: Duration,
    /// Failures in a row for this long are given up on: long enough for a server to be restarted.
    pub give_up_after: Duration,
    /// How long a refusal for want of payment (402) is waited out, by asking every five seconds.
    pub wait_for_payment: Duration,
}

impl Default for RetryPolicy {
    fn default() -> Self {
        Self {
            first_pause: Duration::from_millis(500),
            longest_pause: Duration::from_secs(10),
            give_up_after: Duration::from_mins(5),
            wait_for_payment: Duration::from_hours(1),
        }
    }
}

/// The longest `retry-after` that is believed.
const LONGEST_WISH: Duration = Duration::from_mins(1);
/// The pause after a refusal for want of payment.
const PAYMENT_PAUSE: Duration = Duration::from_secs(5);

/// The pauses of one request.
#[derive(Debug)]
pub(crate) struct Backoff {
    policy: RetryPolicy,
    failures: u32,
    waited: Duration,
    waited_for_payment: Duration,
}

impl Backoff {
    pub(crate) fn new(policy: &RetryPolicy) -> Self {
        Self { policy: policy.clone(), failures: 0, waited: Duration::ZERO, waited_for_payment: Duration::ZERO }
    }

    /// The pause after an answer that is no success; `None`: it is final, or it is time to give up.
    pub(crate) fn after(&mut self, answer: &Answer) -> Option<Duration> {
        if answer.status == 402 && self.waited_for_payment < self.policy.wait_for_payment {
            self.waited_for_payment += PAYMENT_PAUSE;
            return Some(PAYMENT_PAUSE);
        }
        is_retryable(answer).then(|| self.next(wish(&answer.headers)))?
    }

    /// The next pause, or `None` when it is time to give up. `wish` is what the server asked for.
    pub(crate) fn next(&mut self, wish: Option<Duration>) -> Option<Duration> {
        if self.waited >= self.policy.give_up_after {
            return None;
        }
        let doubled = self.policy.first_pause.saturating_mul(1_u32.checked_shl(self.failures).unwrap_or(u32::MAX));
        let pause = wish.unwrap_or_else(|| with_jitter(doubled.min(self.policy.longest_pause)));
        self.failures = self.failures.saturating_add(1);
        self.waited += pause;
        Some(pause)
    }

    /// A success: the next failure is the first again.
    pub(crate) fn reset(&mut self) {
        self.failures = 0;
        self.waited = Duration::ZERO;
        self.waited_for_payment = Duration::ZERO;
    }
}

/// Up to a quarter less, so that a crowd that failed together does not return together.
fn with_jitter(pause: Duration) -> Duration {
    let random = (uuid::Uuid::new_v4().as_u128() & 0xffff) as f64 / 65536.0;
    pause.mul_f64(1.0 - 0.25 * random)
}

/// Whether an answer may be another one the next time; the server's own opinion wins. A 400 that says nothing is not
/// the server's: a proxy on the way has mangled something.
fn is_retryable(answer: &Answer) -> bool {
    match answer.headers.get("x-should-retry").map(reqwest::header::HeaderValue::as_bytes) {
        Some(b"true") => true,
        Some(b"false") => false,
        _ => match answer.status {
            400 => answer.body.is_empty(),
            status => matches!(status, 408 | 409 | 429) || status >= 500,
        },
    }
}

/// The pause a server asks for, in `retry-after-ms` or `retry-after` (seconds).
pub(crate) fn wish(headers: &HeaderMap) -> Option<Duration> {
    let number = |name: &str| headers.get(name)?.to_str().ok()?.parse::<f64>().ok();
    let seconds =
        number("retry-after-ms").map(|milliseconds| milliseconds / 1000.0).or_else(|| number("retry-after"))?;
    let wish = Duration::try_from_secs_f64(seconds).ok()?;
    (wish > Duration::ZERO && wish <= LONGEST_WISH).then_some(wish)
}

#[cfg(test)]
mod tests {
    use reqwest::header::HeaderValue;

    use super::*;

    fn headers(name: &'static str, value: &'static str) -> HeaderMap {
        HeaderMap::from_iter([(reqwest::header::HeaderName::from_static(name), HeaderValue::from_static(value))])
    }

    #[test]
    fn pauses_double_up_to_the_longest_and_end() {
        let policy = RetryPolicy { give_up_after: Duration::from_mins(1), ..RetryPolicy::default() };
        let mut backoff = Backoff::new(&policy);
        let pauses: Vec<f64> = std::iter::from_fn(|| backoff.next(None)).map(|pause| pause.as_secs_f64()).collect();
        for (pause, most) in pauses.iter().zip([0.5, 1.0, 2.0, 4.0, 8.0, 10.0, 10.0]) {
            assert!((0.75 * most..=most).contains(pause), "{pause} for at most {most}");
        }
        assert!((60.0..70.0).contains(&pauses.iter().sum::<f64>()), "{pauses:?}");
    }

    #[test]
    fn a_success_starts_the_pauses_again() {
        let mut backoff = Backoff::new(&RetryPolicy::default());
        for _ in 0..5 {
            backoff.next(None);
        }
        backoff.reset();
        assert!(backoff.next(None).is_some_and(|pause| pause <= Duration::from_millis(500)));
    }

    #[test]
    fn the_server_may_ask_for_a_pause_of_up_to_a_minute() {
        assert_eq!(wish(&headers("retry-after-ms", "250")), Some(Duration::from_millis(250)));
        assert_eq!(wish(&headers("retry-after", "2")), Some(Duration::from_secs(2)));
        for strange in ["0", "3600", "-1", "NaN", "Wed, 21 Oct 2026 07:28:00 GMT"] {
            assert_eq!(wish(&headers("retry-after", strange)), None, "{strange}");
        }
    }

    fn answer(status: u16, headers: HeaderMap) -> Answer {
        Answer { status, headers, body: b"{}".as_slice().into() }
    }

    #[test]
    fn the_servers_opinion_about_retrying_wins() {
        let plain = |status| is_retryable(&answer(status, HeaderMap::new()));
        assert!(plain(503) && plain(429) && !plain(400) && !plain(404));
        assert!(!is_retryable(&answer(503, headers("x-should-retry", "false"))));
        assert!(is_retryable(&answer(400, headers("x-should-retry", "true"))));
    }

    #[test]
    fn a_refusal_without_a_word_is_a_proxys_and_tried_again() {
        let silent = Answer { body: Vec::new().into(), ..answer(400, HeaderMap::new()) };
        assert!(Backoff::new(&RetryPolicy::default()).after(&silent).is_some());
    }

    #[test]
    fn payment_is_waited_for_and_then_given_up_on() {
        let policy = RetryPolicy { wait_for_payment: Duration::from_secs(12), ..RetryPolicy::default() };
        let mut backoff = Backoff::new(&policy);
        let unpaid = answer(402, HeaderMap::new());
        let pauses: Vec<_> = std::iter::from_fn(|| backoff.after(&unpaid)).collect();
        assert_eq!(pauses, [PAYMENT_PAUSE; 3]);
    }
}
