//! Waking the readers of a topic, and nobody else.
//!
//! A reader waits on its own `Signal`; the topics that it reads know the signal. A thousand idle lanes cost a
//! commit nothing unless they read what was committed.

use std::sync::{Arc, Weak};
use std::time::Instant;

use parking_lot::{Condvar, Mutex};

/// Wakes one reader. Raised while nobody waits, it is not lost: the next wait returns at once.
#[derive(Debug, Default)]
pub struct Signal {
    raised: Mutex<bool>,
    changed: Condvar,
}

impl Signal {
    /// Wakes the reader.
    pub fn raise(&self) {
        let mut raised = self.raised.lock();
        if !*raised {
            *raised = true;
            self.changed.notify_all();
        }
    }

    /// Waits until raised, or until `deadline`; lowers it. Whether it was raised.
    pub fn wait_until(&self, deadline: Instant) -> bool {
        let mut raised = self.raised.lock();
        while !*raised {
            if self.changed.wait_until(&mut raised, deadline).timed_out() {
                break;
            }
        }
        std::mem::take(&mut *raised)
    }
}

/// Who reads a topic.
#[derive(Debug, Default)]
pub struct Watchers {
    signals: Mutex<Vec<Weak<Signal>>>,
}

impl Watchers {
    /// Raises `signal` from now on, as long as it lives.
    pub fn add(&self, signal: &Arc<Signal>) {
        let mut signals = self.signals.lock();
        signals.retain(|other| other.strong_count() > 0);
        signals.push(Arc::downgrade(signal));
    }

    /// Wakes every reader.
    pub fn raise(&self) {
        let mut gone = false;
        let mut signals = self.signals.lock();
        for signal in signals.iter() {
            match signal.upgrade() {
                Some(signal) => signal.raise(),
                None => gone = true,
            }
        }
        if gone {
            signals.retain(|other| other.strong_count() > 0);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[test]
    fn a_raised_signal_is_not_lost_and_taken_once() {
        let watchers = Watchers::default();
        let signal = Arc::<Signal>::default();
        watchers.add(&signal);
        watchers.raise();
        assert!(signal.wait_until(Instant::now() + Duration::from_secs(5)));
        assert!(!signal.wait_until(Instant::now()));
    }
}
