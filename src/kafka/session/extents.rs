//! Where the owned partitions start and end. Called by the intake alone.
//!
//! Of a partition that it reads on, the client knows the high watermark as of its last fetch, and nothing of open
//! transactions; of one that stands still it knows what was true when it stopped. So those that are not at their end are
//! asked for.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Instant;

use super::messages::Slot;
use crate::core::ledger::TopicPartition;
use crate::core::record::Offset;
use crate::kafka::ends::Ends;
use crate::kafka::ffi::{self, Client};
use crate::ports::Extent;

/// The gap between high watermark and last stable offset: what open transactions take.
#[derive(Debug, Clone, Copy)]
struct Gap {
    as_of: Instant,
    offsets: Offset,
}

/// What is known of the owned partitions.
pub(super) struct Extents {
    ends: Arc<Ends>,
    gaps: BTreeMap<TopicPartition, Gap>,
}

impl Extents {
    pub(super) fn new(ends: Arc<Ends>) -> Self {
        Self { ends, gaps: BTreeMap::new() }
    }

    /// Where each partition starts and ends, as far as known.
    pub(super) fn of(&mut self, client: Client, slots: &[Slot]) -> Vec<(TopicPartition, Extent)> {
        self.gaps.retain(|at, _| slots.iter().any(|slot| slot.partition == *at && !is_at_end(slot)));
        let known = |slot: &Slot| Some((slot.partition.clone(), self.extent(client, slot)?));
        slots.iter().filter_map(known).collect()
    }

    fn extent(&mut self, client: Client, slot: &Slot) -> Option<Extent> {
        if is_at_end(slot) {
            return slot.end.map(|end| Extent { first: 0, end });
        }
        let at = &slot.partition;
        let seen = ffi::cached_watermarks(client, at.topic.as_str(), at.partition).map(|(_, high)| high);
        let told = self.ends.of(at);
        if !slot.is_open() {
            let seen = seen.map(|end| Extent { first: 0, end });
            return told.map(|(extent, _)| extent).or(seen);
        }
        let (Some(high), Some((extent, as_of))) = (seen, told) else {
            return told.map(|(extent, _)| extent).or(seen.map(|end| Extent { first: 0, end }));
        };
        // The high watermark is newer than what was told, but for the records of open transactions.
        let fresh = Gap { as_of, offsets: (high - extent.end).max(0) };
        let gap = self.gaps.entry(at.clone()).or_insert(fresh);
        if gap.as_of != as_of {
            *gap = fresh;
        }
        Some(Extent { first: extent.first, end: (high - gap.offsets).max(slot.next) })
    }
}

/// Whether it is read, and was read to its end.
fn is_at_end(slot: &Slot) -> bool {
    slot.is_open() && slot.end.is_some()
}
