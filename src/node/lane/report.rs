//! What a lane tells the supervisor: a snapshot behind a lock that is held for moments only.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};

use parking_lot::Mutex;

use crate::core::ledger::TopicPartition;
use crate::core::record::{Offset, TimestampMs};
use crate::core::status::{LastError, PartitionStatus, State};

/// How far a lane is with one partition.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct PartitionReport {
    /// The committed offset, once it is known; until then where it starts.
    pub committed: Option<Offset>,
    /// Whether there is, or was, a committed offset.
    pub is_settled: bool,
    /// The offset after the last stable record, once it is known.
    pub end: Option<Offset>,
    /// The first offset there is, as far as known.
    pub first: Option<Offset>,
    /// Why it stands still: a stable CamelCase word, and in words.
    pub error: Option<(&'static str, String)>,
}

/// How a lane is.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct LaneReport {
    /// What it does.
    pub state: State,
    /// Its partitions.
    pub partitions: BTreeMap<TopicPartition, PartitionReport>,
    /// The last thing that went wrong.
    pub last_error: Option<LastError>,
    /// The generation that it runs.
    pub generation: u64,
    /// The guarantee in force.
    pub delivery: Option<&'static str>,
    /// Whether others have its partitions, now that it has ended.
    pub is_taken: bool,
}

/// The snapshot, shared between a lane and the supervisor.
#[derive(Debug, Default)]
pub struct LaneShared {
    report: Mutex<LaneReport>,
    changed: AtomicBool,
}

impl LaneReport {
    /// Why it failed, in a word: that of its first partition that stands still.
    pub fn reason(&self) -> Option<&'static str> {
        self.partitions.values().find_map(|at| at.error.as_ref().map(|(reason, _)| *reason))
    }
}

impl LaneShared {
    /// The report as it is now.
    pub fn report(&self) -> LaneReport {
        self.report.lock().clone()
    }

    /// Whether something other than offsets changed since the last call.
    pub fn take_changed(&self) -> bool {
        self.changed.swap(false, Ordering::Relaxed)
    }

    /// Changes the report, in a way that readers should learn of soon.
    pub fn change(&self, change: impl FnOnce(&mut LaneReport)) {
        change(&mut self.report.lock());
        self.changed.store(true, Ordering::Relaxed);
    }

    /// Changes offsets, which readers learn of in time.
    pub fn progress(&self, change: impl FnOnce(&mut LaneReport)) {
        change(&mut self.report.lock());
    }

    /// Changes what is said of a lane that has ended. Nothing else moves there, so readers learn soon that records wait, or
    /// no longer.
    pub fn behind(&self, change: impl FnOnce(&mut LaneReport)) {
        let mut report = self.report.lock();
        let is_behind = |report: &LaneReport| report.partitions.values().any(|at| at.lag() > Some(0));
        let was = (report.is_taken, is_behind(&report));
        change(&mut report);
        if was != (report.is_taken, is_behind(&report)) {
            self.changed.store(true, Ordering::Relaxed);
        }
    }

    /// These partitions have a committed offset: readers learn of it soon where that is new.
    pub fn settled<'a>(&self, partitions: impl IntoIterator<Item = &'a TopicPartition>) {
        let mut report = self.report.lock();
        let mut is_new = false;
        for at in partitions {
            if let Some(at) = report.partitions.get_mut(at) {
                is_new |= !std::mem::replace(&mut at.is_settled, true);
            }
        }
        if is_new {
            self.changed.store(true, Ordering::Relaxed);
        }
    }

    /// Notes an error.
    pub fn error(&self, time: TimestampMs, reason: &str, message: String) {
        let error = LastError { time, reason: reason.to_owned(), message };
        self.change(|report| report.last_error = Some(error));
    }
}

impl PartitionReport {
    /// How many offsets are to be done; where it is not known where the partition goes on, all that there are. `None` until
    /// its end is known.
    pub fn lag(&self) -> Option<u64> {
        let first = self.first.unwrap_or(0);
        // What the log has let go is not behind: it will never be read.
        let from = self.committed.map_or(first, |committed| committed.max(first));
        Some(u64::try_from(self.end? - from).unwrap_or(0))
    }

    /// The report in the form of the status topic.
    pub fn to_status(&self, partition: &TopicPartition) -> PartitionStatus {
        PartitionStatus {
            topic: partition.topic.clone(),
            partition: partition.partition,
            offset: self.committed.unwrap_or(0),
            lag: self.lag().unwrap_or(0),
            error: self.error.as_ref().map(|(_, message)| message.clone()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lag_counts_what_is_there_and_not_done() {
        let lag =
            |committed, first, end| PartitionReport { committed, end, first, ..Default::default() }.lag();
        assert_eq!(lag(Some(10), None, None), None);
        assert_eq!(lag(Some(10), Some(0), Some(15)), Some(5));
        assert_eq!(lag(Some(10), Some(0), Some(8)), Some(0), "an end that is known late");
        assert_eq!(lag(Some(0), Some(900), Some(1_000)), Some(100), "the log has let go of the rest");
        assert_eq!(lag(None, Some(900), Some(1_000)), Some(100), "nobody knows where it goes on");
    }
}
