//! Reading a topic without a group.

use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::core::record::{Offset, Record};
use crate::log::LONGEST_WAIT;
use crate::log::catalog::Topic;
use crate::log::cursor::{Cursor, in_range, offset_at};
use crate::log::signal::Signal;
use crate::log::store::Store;
use crate::ports::{Fetched, LogError, ReadFrom, Reader};

/// Most records of one fetch.
const MAX_RECORDS: usize = 1_000;
/// About the most payload bytes of one fetch.
const MAX_BYTES: usize = 1 << 20;

/// Reads some partitions of a topic, one after another.
pub struct TopicReader {
    store: Arc<Store>,
    topic: Arc<Topic>,
    signal: Arc<Signal>,
    positions: Vec<Position>,
    /// Whose turn it is.
    turn: usize,
}

struct Position {
    partition: u32,
    cursor: Cursor,
    /// Where the partition ended when last asked.
    target: Offset,
}

impl TopicReader {
    /// A reader of these partitions, or of all.
    pub fn open(
        store: Arc<Store>,
        topic: Arc<Topic>,
        partitions: Option<&[u32]>,
        from: ReadFrom,
    ) -> Result<Self, LogError> {
        let partitions: Vec<u32> = match partitions {
            Some(partitions) => partitions.to_vec(),
            None => (0..topic.partitions.len() as u32).collect(),
        };
        let is_only = partitions.len() == 1;
        let positions: Result<Vec<_>, _> = partitions
            .into_iter()
            .map(|partition| {
                let start = start(&store, &topic, partition, from, is_only)?;
                let target = topic.partition(partition)?.extent().end;
                Ok(Position { partition, cursor: Cursor::at(start), target })
            })
            .collect();
        let signal = Arc::<Signal>::default();
        topic.watchers.add(&signal);
        Ok(Self { positions: positions?, store, topic, signal, turn: 0 })
    }

    fn read(&mut self) -> Result<Vec<Fetched>, LogError> {
        let mut fetched = Vec::new();
        let mut bytes = 0;
        for _ in 0..self.positions.len() {
            let index = self.turn % self.positions.len();
            let position = &mut self.positions[index];
            position.read(&self.store, &self.topic, &mut fetched, &mut bytes)?;
            if fetched.len() >= MAX_RECORDS || bytes >= MAX_BYTES {
                break;
            }
            self.turn = index + 1;
        }
        Ok(fetched)
    }
}

fn start(
    store: &Store,
    topic: &Topic,
    partition: u32,
    from: ReadFrom,
    is_only: bool,
) -> Result<Offset, LogError> {
    let extent = topic.partition(partition)?.extent();
    Ok(match from {
        ReadFrom::Start => extent.first,
        ReadFrom::End => extent.end,
        ReadFrom::Timestamp(timestamp) => offset_at(&store.engine, topic, partition, timestamp)?,
        ReadFrom::Last(records) => {
            let records = Offset::try_from(records).unwrap_or(Offset::MAX);
            extent.end.saturating_sub(records).max(extent.first)
        }
        ReadFrom::Offset(offset) if is_only => {
            in_range(topic, partition, offset, extent)?;
            offset
        }
        // One offset for several partitions is a wish.
        ReadFrom::Offset(offset) => offset.clamp(extent.first, extent.end),
    })
}

impl Position {
    fn read(
        &mut self,
        store: &Store,
        topic: &Topic,
        fetched: &mut Vec<Fetched>,
        bytes: &mut usize,
    ) -> Result<(), LogError> {
        loop {
            let before = self.cursor.next();
            let mut damaged = None;
            self.cursor.read(&store.engine, topic, self.partition, |record| {
                if fetched.len() >= MAX_RECORDS || *bytes >= MAX_BYTES {
                    return false;
                }
                *bytes += record.payload.len();
                match Record::from_payload(record.payload, record.timestamp) {
                    Ok(copy) => fetched.push(Fetched {
                        partition: self.partition,
                        offset: record.offset,
                        appended_ms: record.append_ms,
                        record: copy,
                    }),
                    Err(error) => damaged = Some(error),
                }
                damaged.is_none()
            })?;
            if let Some(error) = damaged {
                return Err(LogError::Corrupt(format!("topic {}: {error}", topic.name)));
            }
            if self.cursor.next() == before || fetched.len() >= MAX_RECORDS || *bytes >= MAX_BYTES {
                return Ok(());
            }
        }
    }
}

impl Reader for TopicReader {
    fn fetch(&mut self, wait: Duration) -> Result<Vec<Fetched>, LogError> {
        let deadline = Instant::now() + wait.min(LONGEST_WAIT);
        loop {
            let fetched = self.read()?;
            if !fetched.is_empty() || !self.signal.wait_until(deadline) {
                return Ok(fetched);
            }
        }
    }

    fn is_caught_up(&mut self) -> Result<bool, LogError> {
        let is_there = self.positions.iter().all(|position| position.cursor.next() >= position.target);
        if is_there {
            for position in &mut self.positions {
                position.target = self.topic.partition(position.partition)?.extent().end;
            }
        }
        Ok(is_there)
    }
}
