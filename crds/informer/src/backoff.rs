//! How long to wait after a failure.

use std::time::Duration;

const FIRST: Duration = Duration::from_millis(500);
const LONGEST: Duration = Duration::from_secs(30);

/// Doubling delays, each drawn between half and the whole of its step: a thousand agents that lost the same
/// API server must not all come back in the same instant.
#[derive(Debug, Default)]
pub struct Backoff {
    failures: u32,
}

impl Backoff {
    /// The delay after one more failure: half a second at first, half a minute at most.
    pub fn delay(&mut self) -> Duration {
        self.drawn(rand::random())
    }

    /// The same, where `draw` is a number in 0.0..=1.0.
    fn drawn(&mut self, draw: f64) -> Duration {
        let step = FIRST.saturating_mul(2u32.saturating_pow(self.failures)).min(LONGEST);
        self.failures = self.failures.saturating_add(1);
        step.mul_f64(0.5 + draw.clamp(0.0, 1.0) / 2.0)
    }

    /// It went well: the next failure is the first one again.
    pub fn reset(&mut self) {
        self.failures = 0;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn doubles_up_to_the_longest_and_starts_again() {
        let mut backoff = Backoff::default();
        let steps: Vec<_> = (0..9).map(|_| backoff.drawn(1.0).as_millis()).collect();
        assert_eq!(steps, [500, 1000, 2000, 4000, 8000, 16000, 30000, 30000, 30000]);
        assert_eq!(backoff.drawn(0.0).as_millis(), 15000);
        backoff.reset();
        assert_eq!(backoff.drawn(0.0).as_millis(), 250);
    }

    #[test]
    fn many_failures_do_not_overflow() {
        let mut backoff = Backoff { failures: u32::MAX };
        assert_eq!(backoff.drawn(1.0), LONGEST);
    }
}
