//! Where the owned partitions start and end. Called by the intake alone.
//!
//! Of a partition that it reads on, the client knows the high watermark as of its last fetch, and nothing of open
//! transactions; of one that stands still it knows what was true when it stopped. So those that are not at their end are
//! asked for now and then, without waiting for the answer.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use super::messages::Slot;
use crate::core::ledger::TopicPartition;
use crate::core::record::Offset;
use crate::kafka::ffi::{self, Asked, Client, Which};
use crate::ports::Extent;

/// How often is asked.
const EVERY: Duration = Duration::from_secs(2);
/// How long an answer may take.
const WITHIN: Duration = Duration::from_secs(10);

/// What was told of a partition.
#[derive(Debug, Clone, Copy, Default)]
struct Told {
    first: Option<Offset>,
    /// The last stable offset.
    end: Option<Offset>,
    /// How many offsets open transactions took above it.
    above: Offset,
}

/// What is known of the owned partitions beyond what the client says.
#[derive(Default)]
pub(super) struct Ends {
    asked: Vec<(Which, Asked)>,
    since: Option<Instant>,
    told: BTreeMap<TopicPartition, Told>,
}

impl Ends {
    /// Takes answers, and asks again where it is time to.
    pub(super) fn look(&mut self, client: Client, slots: &[Slot]) {
        let mut answers = Vec::new();
        self.asked.retain(|(which, asked)| match asked.answer() {
            None => true,
            Some(answer) => {
                answers.extend(answer.into_iter().flatten().map(|(at, offset)| (*which, at, offset)));
                false
            }
        });
        for (which, at, offset) in answers {
            let seen = high_watermark(client, &at);
            let told = self.told.entry(at).or_default();
            match which {
                Which::First => told.first = Some(offset),
                Which::End => {
                    told.end = Some(offset);
                    told.above = seen.map_or(0, |high| (high - offset).max(0));
                }
            }
        }
        self.told.retain(|at, _| slots.iter().any(|slot| slot.partition == *at && !is_at_end(slot)));
        let is_due = self.since.is_none_or(|since| since.elapsed() >= EVERY);
        if !self.asked.is_empty() || !is_due || slots.iter().all(is_at_end) {
            return;
        }
        self.since = Some(Instant::now());
        let mut ask = |which, wanted: &dyn Fn(&Slot) -> bool| {
            let of = slots.iter().filter(|slot| wanted(slot)).map(|slot| &slot.partition);
            self.asked.push((which, Asked::ask(client, of, which, WITHIN)));
        };
        ask(Which::End, &|slot| !is_at_end(slot));
        // The log lets go of what nobody reads.
        if slots.iter().any(|slot| !slot.is_open()) {
            ask(Which::First, &|slot| !slot.is_open());
        }
    }

    /// Where a partition starts and ends, as far as known.
    pub(super) fn extent(&self, client: Client, slot: &Slot) -> Option<Extent> {
        let at = &slot.partition;
        let told = self.told.get(at).copied().unwrap_or_default();
        let first = told.first.unwrap_or(0);
        let end = if is_at_end(slot) {
            slot.end
        } else if slot.is_open() {
            // Newer than what was told, but for the records of open transactions.
            high_watermark(client, at).map(|high| (high - told.above).max(slot.next)).or(told.end)
        } else {
            told.end.or_else(|| high_watermark(client, at))
        };
        end.map(|end| Extent { first, end })
    }
}

/// Whether it is read, and was read to its end.
fn is_at_end(slot: &Slot) -> bool {
    slot.is_open() && slot.end.is_some()
}

fn high_watermark(client: Client, at: &TopicPartition) -> Option<Offset> {
    ffi::cached_watermarks(client, at.topic.as_str(), at.partition).map(|(_, high)| high)
}
