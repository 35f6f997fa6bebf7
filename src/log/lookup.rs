//! Records by id: `range`, `revrange` and `length`, after `PipeProc`. The grammar is `core::range`.

use crate::core::names::TopicName;
use crate::core::range::{Bound, Id};
use crate::core::record::{Offset, Record};
use crate::log::EmbeddedLog;
use crate::log::catalog::Topic;
use crate::log::cursor::{Cursor, bisect, milestone};
use crate::log::store::Store;
use crate::ports::LogError;

/// Which records are asked for. The default is all.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct RangeQuery {
    /// Where to begin: the oldest for `range`, the newest for `revrange`.
    pub start: Option<Bound>,
    /// Where to end.
    pub end: Option<Bound>,
    /// Leaves out what the bounds name.
    pub exclusive: bool,
    /// Most records; `None` is no limit.
    pub limit: Option<usize>,
}

/// A record with its id.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Found {
    /// Its id.
    pub id: Id,
    /// The record.
    pub record: Record,
}

impl EmbeddedLog {
    /// The records of a partition from `start` to `end`, the oldest first. Empty when `start` is after `end`;
    /// `OffsetOutOfRange` when a bound `:n` names an offset that is not there.
    pub fn range(
        &self,
        topic: &TopicName,
        partition: u32,
        query: &RangeQuery,
    ) -> Result<Vec<Found>, LogError> {
        let walk = Walk::new(&self.store, topic, partition)?;
        let (low, high) = walk.limits(query.start, query.end, query.exclusive)?;
        walk.forward(low, high, query.limit.unwrap_or(usize::MAX))
    }

    /// As `range`, the newest first: `start` is at or after `end`.
    pub fn revrange(
        &self,
        topic: &TopicName,
        partition: u32,
        query: &RangeQuery,
    ) -> Result<Vec<Found>, LogError> {
        let walk = Walk::new(&self.store, topic, partition)?;
        let (low, high) = walk.limits(query.end, query.start, query.exclusive)?;
        walk.backward(low, high, query.limit.unwrap_or(usize::MAX))
    }

    /// The offset of the newest record of a partition, plus one; 0 when there is none left.
    pub fn length(&self, topic: &TopicName, partition: u32) -> Result<Offset, LogError> {
        let extent = self.store.topic(topic)?.partition(partition)?.extent();
        Ok(if extent.first < extent.end { extent.end } else { 0 })
    }
}

struct Walk<'a> {
    store: &'a Store,
    topic: std::sync::Arc<Topic>,
    partition: u32,
}

impl<'a> Walk<'a> {
    fn new(store: &'a Store, topic: &TopicName, partition: u32) -> Result<Self, LogError> {
        let topic = store.topic(topic)?;
        topic.partition(partition)?;
        Ok(Self { store, topic, partition })
    }

    /// The first offset of the range, and the one after its last.
    fn limits(
        &self,
        from: Option<Bound>,
        to: Option<Bound>,
        exclusive: bool,
    ) -> Result<(Offset, Offset), LogError> {
        let extent = self.topic.partition(self.partition)?.extent();
        let low = match from {
            None => extent.first,
            Some(bound) => {
                self.check(bound)?;
                self.first(time_from(bound), |id| bound.admits_from(id, exclusive))?
            }
        };
        let high = match to {
            None => extent.end,
            Some(bound) => {
                self.check(bound)?;
                self.first(time_to(bound), |id| !bound.admits_to(id, exclusive))?
            }
        };
        Ok((low, high))
    }

    fn check(&self, bound: Bound) -> Result<(), LogError> {
        let Bound::Offset(offset) = bound else { return Ok(()) };
        let extent = self.topic.partition(self.partition)?.extent();
        let exists = (extent.first..extent.end).contains(&offset)
            && self.forward(offset, offset + 1, 1)?.iter().any(|found| found.id.offset == offset);
        if exists {
            return Ok(());
        }
        Err(LogError::OffsetOutOfRange {
            partition: crate::core::ledger::TopicPartition::new(&self.topic.name, self.partition),
            wanted: offset,
            first: extent.first,
            end: extent.end,
        })
    }

    /// The first offset for which `wanted` holds, or the end; it holds for no record before `hint`.
    fn first(&self, hint: Hint, wanted: impl Fn(Id) -> bool) -> Result<Offset, LogError> {
        let extent = self.topic.partition(self.partition)?.extent();
        let start = match hint {
            Hint::Offset(offset) => offset.clamp(extent.first, extent.end),
            Hint::Time(ms) => {
                bisect(&self.store.engine, &self.topic, self.partition, |chunk| chunk.append_ms >= ms)?
            }
        };
        let mut found = None;
        self.read(start, extent.end, |found_here| {
            if wanted(found_here.id) {
                found = Some(found_here.id.offset);
            }
            found.is_none()
        })?;
        Ok(found.unwrap_or(extent.end))
    }

    fn forward(&self, low: Offset, high: Offset, limit: usize) -> Result<Vec<Found>, LogError> {
        let mut all = Vec::new();
        self.read(low, high, |found| {
            let wanted = all.len() < limit;
            if wanted {
                all.push(found);
            }
            wanted
        })?;
        Ok(all)
    }

    fn backward(&self, low: Offset, high: Offset, limit: usize) -> Result<Vec<Found>, LogError> {
        let mut all = Vec::new();
        let mut high = high;
        while high > low && all.len() < limit {
            let base = milestone(&self.store.engine, &self.topic, self.partition, high - 1)?.base;
            let mut chunk = self.forward(base.max(low), high, usize::MAX)?;
            chunk.reverse();
            all.append(&mut chunk);
            high = base;
        }
        all.truncate(limit);
        Ok(all)
    }

    /// Reads from `low` to before `high`, until `take` returns false.
    fn read(&self, low: Offset, high: Offset, mut take: impl FnMut(Found) -> bool) -> Result<(), LogError> {
        let mut cursor = Cursor::at(low);
        let mut is_done = low >= high;
        let mut damaged = None;
        while !is_done && cursor.next() < high {
            let before = cursor.next();
            cursor.read(&self.store.engine, &self.topic, self.partition, |record| {
                if record.offset >= high {
                    is_done = true;
                    return false;
                }
                let id = Id { append_ms: record.append_ms, offset: record.offset };
                match Record::from_payload(record.payload, record.timestamp) {
                    Ok(copy) => is_done = !take(Found { id, record: copy }),
                    Err(error) => damaged = Some(error),
                }
                !is_done && damaged.is_none()
            })?;
            if let Some(error) = damaged {
                return Err(LogError::Corrupt(format!("topic {}: {error}", self.topic.name)));
            }
            is_done |= cursor.next() == before;
        }
        Ok(())
    }
}

/// Where to begin looking.
#[derive(Clone, Copy)]
enum Hint {
    Offset(Offset),
    Time(i64),
}

fn time_from(bound: Bound) -> Hint {
    match bound {
        Bound::Offset(offset) => Hint::Offset(offset),
        Bound::Id(id) => Hint::Time(id.append_ms),
        Bound::Time { from, .. } => Hint::Time(from),
    }
}

fn time_to(bound: Bound) -> Hint {
    match bound {
        Bound::Time { to, .. } => Hint::Time(to),
        other => time_from(other),
    }
}
