//! The end of a consumer: it leaves its group in order, and within a bound.

use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use rdkafka::consumer::Consumer;
use tracing::{info, warn};

use super::Intake;
use crate::kafka::config::Assignor;
use crate::kafka::ffi;

/// How long a member without partitions may take to say that it leaves.
const SAY_GOODBYE: Duration = Duration::from_secs(1);

impl Drop for Intake {
    /// Leaves the group, within a bound: rust-rdkafka's own drop would wait for ever.
    fn drop(&mut self) {
        let context = self.consumer.context().clone();
        context.close();
        let is_owing = self.is_owing || context.has_rebalance();
        if self.assignor == Assignor::Cooperative && self.slots.is_empty() && !is_owing {
            self.unsubscribe();
        }
        if let Err(error) = self.consumer.close_queue() {
            warn!(%error, "could not leave the group in order");
            return;
        }
        // A rebalance that waits for its answer would hold the close up. Answered before, the client would join anew first.
        if is_owing {
            let _ = self.consumer.unassign();
        }
        let deadline = Instant::now() + self.budget;
        while !self.consumer.closed() {
            let _ = self.consumer.poll(Duration::from_millis(20));
            if Instant::now() > deadline {
                info!(
                    "the group does not let the lane go yet, as in a rebalance: its consumer ends by itself"
                );
                self.leave_behind();
                return;
            }
        }
    }
}

impl Intake {
    /// Says that it leaves: of a cooperative member without partitions librdkafka closes the connection without a word, and
    /// the group waits for it until the session times out.
    fn unsubscribe(&self) {
        self.consumer.unsubscribe();
        let deadline = Instant::now() + SAY_GOODBYE;
        while ffi::generation(self.client()).is_some() && Instant::now() < deadline {
            let _ = self.consumer.poll(Duration::from_millis(10));
        }
    }

    /// Has a thread of its own wait for the end of the consumer. A request to leave is sent on a connection that may be
    /// waiting for the answer to an earlier one to join, and that comes when the group is complete.
    fn leave_behind(&self) {
        let consumer = Arc::clone(&self.consumer);
        let wait = move || {
            while !consumer.closed() {
                let _ = consumer.poll(Duration::from_millis(100));
            }
            // The queues go before their client, and they go with what is dropped now.
            while Arc::strong_count(&consumer) > 1 {
                thread::sleep(Duration::from_millis(10));
            }
            drop(consumer);
        };
        let kept = Arc::clone(&self.consumer);
        if let Err(error) = thread::Builder::new().name("closing".to_owned()).spawn(wait) {
            warn!(%error, "no thread to end a consumer: it stays");
            std::mem::forget(kept);
        }
    }
}
