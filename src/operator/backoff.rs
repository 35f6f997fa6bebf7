//! Waits between attempts, for each object by itself: kube-rs has none.

use std::collections::HashMap;
use std::hash::Hash;
use std::time::Duration;

use parking_lot::Mutex;

use crate::core::retry::RetrySchedule;

const SCHEDULE: RetrySchedule =
    RetrySchedule { initial: Duration::from_secs(1), max: Duration::from_mins(5) };

/// How often in a row each object failed.
#[derive(Debug, Default)]
pub struct Backoff<K> {
    failures: Mutex<HashMap<K, u32>>,
}

impl<K: Eq + Hash> Backoff<K> {
    /// Notes a failure: how long to wait before the next attempt.
    pub fn failed(&self, object: K) -> Duration {
        let mut failures = self.failures.lock();
        let count = failures.entry(object).or_default();
        *count = count.saturating_add(1);
        SCHEDULE.delay(*count, 0.0)
    }

    /// Notes a success, or that the object is gone.
    pub fn succeeded(&self, object: &K) {
        self.failures.lock().remove(object);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_object_waits_for_itself() {
        let backoff = Backoff::default();
        let waits: Vec<u64> = (0..12).map(|_| backoff.failed("a").as_secs()).collect();
        assert_eq!(waits, [1, 2, 4, 8, 16, 32, 64, 128, 256, 300, 300, 300]);
        assert_eq!(backoff.failed("b").as_secs(), 1);
        backoff.succeeded(&"a");
        assert_eq!(backoff.failed("a").as_secs(), 1);
    }
}
