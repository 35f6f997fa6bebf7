//! Whether a request of a transaction may have a twin under way. Called by the outlet alone.

use std::time::Duration;

use crate::kafka::config::{was_asked_twice, were_offsets_sent_twice};

/// What speaks for a twin: librdkafka repeats requests on its own.
#[derive(Debug, Default)]
pub(super) struct Doubt {
    /// Lost connections of the producer before the transaction began.
    losses: u64,
    /// Whether the offsets took so long that they may have been sent twice.
    was_slow: bool,
    /// Whether this producer has sent offsets before: the first time takes it a connection to the group's coordinator.
    is_acquainted: bool,
}

impl Doubt {
    /// A transaction begins, after so many lost connections.
    pub(super) fn begin(&mut self, losses: u64) {
        (self.losses, self.was_slow) = (losses, false);
    }

    /// Its offsets were sent, or not.
    pub(super) fn offsets_sent(&mut self, took: Duration) {
        // A connection that a new producer has lost is always told.
        self.was_slow = self.is_acquainted && were_offsets_sent_twice(took);
        self.is_acquainted = true;
    }

    /// Whether it was right, with so many lost connections by now, after the request to end it took so long. A late request
    /// to end it would end the next one; late offsets would take the place of the next one's, which are higher.
    pub(super) fn is_justified(&self, losses: u64, took: Duration) -> bool {
        losses != self.losses || self.was_slow || was_asked_twice(took)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn ms(ms: u64) -> Duration {
        Duration::from_millis(ms)
    }

    #[test]
    fn what_may_have_been_sent_twice_is_in_doubt() {
        let mut doubt = Doubt::default();
        doubt.begin(3);
        doubt.offsets_sent(ms(900));
        assert!(!doubt.is_justified(3, ms(5)), "the first time it looked for the coordinator");
        doubt.begin(3);
        doubt.offsets_sent(ms(390));
        assert!(!doubt.is_justified(3, ms(5)), "twice the way to a distant broker");
        doubt.offsets_sent(ms(400));
        assert!(doubt.is_justified(3, ms(5)));
        doubt.begin(3);
        assert!(doubt.is_justified(3, ms(200)) && doubt.is_justified(4, ms(5)));
    }
}
