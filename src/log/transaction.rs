//! Records that wait for their commit, in the form in which they are stored.

use std::collections::BTreeMap;
use std::sync::Arc;

use crate::core::record::TimestampMs;
use crate::log::catalog::Topic;
use crate::log::frame::Body;
use crate::log::request::{Append, BODY_BYTES};

/// Records by partition, each in its order.
#[derive(Default)]
pub struct Transaction {
    bodies: BTreeMap<(u64, u32), (Arc<Topic>, Vec<Body>)>,
}

/// Where a record stands among the appends of a transaction.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ticket {
    topic_id: u64,
    partition: u32,
    body: usize,
    index: u32,
}

impl Transaction {
    /// Adds a record that the topic takes.
    pub fn push(
        &mut self,
        topic: &Arc<Topic>,
        partition: u32,
        timestamp: TimestampMs,
        payload: &[u8],
    ) -> Ticket {
        let (_, bodies) =
            self.bodies.entry((topic.id, partition)).or_insert_with(|| (topic.clone(), Vec::new()));
        let is_full = |body: &Body| !body.is_empty() && body.len() + payload.len() > BODY_BYTES;
        if bodies.last().is_none_or(is_full) {
            bodies.push(Body::default());
        }
        let at = bodies.len() - 1;
        let index = bodies[at].count();
        bodies[at].push(timestamp, payload);
        Ticket { topic_id: topic.id, partition, body: at, index }
    }

    /// Forgets all records.
    pub fn clear(&mut self) {
        self.bodies.clear();
    }

    /// Takes the records for a commit, and leaves the transaction empty.
    pub fn take(&mut self) -> Vec<Append> {
        let bodies = std::mem::take(&mut self.bodies);
        let appends = bodies.into_iter().flat_map(|((_, partition), (topic, bodies))| {
            bodies.into_iter().map(move |body| Append::new(topic.clone(), partition, body))
        });
        appends.collect()
    }
}

impl Ticket {
    /// Which of the appends has the record, and which of its records it is.
    pub fn find(&self, appends: &[(u64, u32)]) -> Option<(usize, u32)> {
        let first = appends.iter().position(|at| *at == (self.topic_id, self.partition))?;
        Some((first + self.body, self.index))
    }
}
