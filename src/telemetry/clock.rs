//! The system's clock, the one place that asks for it.

use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use crate::core::record::TimestampMs;
use crate::ports::Clock;

/// The system's clock.
#[derive(Debug, Clone)]
pub struct SystemClock {
    start: Instant,
}

impl Default for SystemClock {
    fn default() -> Self {
        Self { start: Instant::now() }
    }
}

impl Clock for SystemClock {
    fn monotonic(&self) -> Duration {
        self.start.elapsed()
    }

    #[expect(clippy::disallowed_methods, reason = "this is the clock that everybody else is given")]
    fn wall_ms(&self) -> TimestampMs {
        let since_epoch = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        TimestampMs::try_from(since_epoch.as_millis()).unwrap_or(TimestampMs::MAX)
    }

    fn sleep(&self, time: Duration) {
        std::thread::sleep(time);
    }
}
