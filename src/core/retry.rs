//! The waits between retries: exponential, capped, with jitter that the caller supplies.

use std::time::Duration;

/// Exponential back-off: `initial`, then twice as long each time, at most `max`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RetrySchedule {
    /// The first wait.
    pub initial: Duration,
    /// The longest wait.
    pub max: Duration,
}

impl RetrySchedule {
    /// The wait before retry number `attempt`, counted from 1. `jitter` between 0 and 1 takes away up to half of
    /// it, so that what failed together is not tried again together.
    pub fn delay(&self, attempt: u32, jitter: f64) -> Duration {
        let doublings = attempt.saturating_sub(1).min(32);
        let full = self.initial.saturating_mul(1u32.checked_shl(doublings).unwrap_or(u32::MAX)).min(self.max);
        full.mul_f64(1.0 - jitter.clamp(0.0, 1.0) / 2.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const SCHEDULE: RetrySchedule =
        RetrySchedule { initial: Duration::from_millis(100), max: Duration::from_secs(30) };

    #[test]
    fn doubles_up_to_its_maximum() {
        let waits = [1, 2, 3, 9, 10, 100].map(|attempt| SCHEDULE.delay(attempt, 0.0).as_millis());
        assert_eq!(waits, [100, 200, 400, 25_600, 30_000, 30_000]);
    }

    proptest! {
        #[test]
        fn stays_within_its_bounds(attempt: u32, jitter in -1.0f64..2.0) {
            let wait = SCHEDULE.delay(attempt, jitter);
            prop_assert!(wait >= SCHEDULE.initial / 2 && wait <= SCHEDULE.max);
        }
    }
}
