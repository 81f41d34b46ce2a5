//! Pauses between attempts to connect.

use std::time::Duration;

/// A connection that held this long counts as good: the next pause is short again.
const STABLE: Duration = Duration::from_secs(30);

/// Pauses that double from one attempt to the next, with jitter, so that a fleet does not come back in step.
#[derive(Clone, Copy, Debug)]
pub struct Backoff {
    min: Duration,
    max: Duration,
    next: Duration,
}

impl Backoff {
    /// Begins with `min` and doubles up to `max`.
    pub fn new(min: Duration, max: Duration) -> Self {
        Self { min, max, next: min }
    }

    /// The pause after an attempt that ended after `held`. `jitter` is random, between 0 and 1.
    pub fn pause(&mut self, held: Duration, jitter: f64) -> Duration {
        if held >= STABLE {
            self.next = self.min;
        }
        let pause = self.next.mul_f64(0.5 + jitter.clamp(0.0, 1.0) / 2.0);
        self.next = (self.next * 2).min(self.max);
        pause
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_double_and_begin_anew_after_a_good_connection() {
        let seconds = Duration::from_secs;
        let mut backoff = Backoff::new(seconds(1), seconds(5));
        let short = Duration::ZERO;
        let mut check = |held, jitter, expect: f64| {
            assert_eq!(backoff.pause(held, jitter), Duration::from_secs_f64(expect));
        };
        check(short, 1.0, 1.0);
        check(short, 1.0, 2.0);
        check(short, 0.0, 2.0);
        check(short, 1.0, 5.0);
        check(short, 0.5, 3.75);
        check(STABLE, 1.0, 1.0);
        check(short, 1.0, 2.0);
    }
}
