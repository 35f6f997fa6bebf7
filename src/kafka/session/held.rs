//! Records that were emitted before their transaction could begin. Called by the outlet alone.

use crate::core::record::TimestampMs;

/// Bytes that are held at most.
const MOST: usize = 2 << 20;

/// The records, in their order. Their memory is used again.
#[derive(Default)]
pub(super) struct Held {
    data: Vec<u8>,
    entries: Vec<Entry>,
}

struct Entry {
    target: usize,
    partition: u32,
    timestamp: TimestampMs,
    end: usize,
}

/// One of them, borrowed.
pub(super) struct HeldRecord<'a> {
    /// Index of the topic that it goes to.
    pub(super) target: usize,
    pub(super) partition: u32,
    pub(super) timestamp: TimestampMs,
    /// Key, value and headers, well-formed.
    pub(super) payload: &'a [u8],
}

impl Held {
    pub(super) fn push(&mut self, record: &HeldRecord<'_>) {
        let HeldRecord { target, partition, timestamp, payload } = *record;
        self.data.extend_from_slice(payload);
        self.entries.push(Entry { target, partition, timestamp, end: self.data.len() });
    }

    /// Whether no more should be held.
    pub(super) fn is_full(&self) -> bool {
        self.data.len() >= MOST
    }

    pub(super) fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = HeldRecord<'_>> {
        let mut start = 0;
        self.entries.iter().map(move |&Entry { target, partition, timestamp, end }| {
            let payload = &self.data[start..end];
            start = end;
            HeldRecord { target, partition, timestamp, payload }
        })
    }

    /// Forgets all of them.
    pub(super) fn clear(&mut self) {
        self.data.clear();
        self.entries.clear();
    }
}
