//! Kubernetes' back-off for restarts and pulls: at once, then 10 s doubling to 300 s, forgotten after ten
//! minutes of quiet.

use jiff::{SignedDuration, Timestamp};
use serde::{Deserialize, Serialize};

/// The first delay.
const FIRST_S: u32 = 10;
/// The longest delay.
const MAX_S: u32 = 300;
/// A retry that is followed by this much quiet makes the next failure the first again.
const FORGET_S: i64 = 600;

/// How long to wait before the next retry.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Backoff {
    delay_s: u32,
    last_retry: Option<Timestamp>,
}

impl Backoff {
    /// Notes a retry at `now`: the wait before the one after it doubles.
    pub fn retried(&mut self, now: Timestamp) {
        self.delay_s = if self.delay_s == 0 { FIRST_S } else { (self.delay_s * 2).min(MAX_S) };
        self.last_retry = Some(now);
    }

    /// How many seconds a failure at `now` has to wait for its retry.
    pub fn delay_s(&mut self, now: Timestamp) -> u32 {
        if self.last_retry.is_some_and(|at| now.duration_since(at) > SignedDuration::from_secs(FORGET_S)) {
            *self = Self::default();
        }
        self.delay_s
    }

    /// Forgets all failures.
    pub fn reset(&mut self) {
        *self = Self::default();
    }
}

/// `at` plus some seconds.
pub(crate) fn after(at: Timestamp, seconds: u32) -> Timestamp {
    at.checked_add(SignedDuration::from_secs(seconds.into())).unwrap_or(Timestamp::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn doubles_to_its_limit_and_forgets() {
        let mut now = Timestamp::from_second(1_000_000).expect("in range");
        let mut backoff = Backoff::default();
        for expected in [0, 10, 20, 40, 80, 160, 300, 300] {
            assert_eq!(backoff.delay_s(now), expected);
            now = after(now, expected);
            backoff.retried(now);
        }
        assert_eq!(backoff.delay_s(after(now, 600)), 300);
        assert_eq!(backoff.delay_s(after(now, 601)), 0);
    }
}
