//! Reading a partition in order: the one way in which readers, lanes and folds get at records.

use fjall::Slice;

use crate::core::ledger::TopicPartition;
use crate::core::names::TopicName;
use crate::core::record::{Offset, TimestampMs};
use crate::log::catalog::Topic;
use crate::log::engine::Engine;
use crate::log::frame::{Frame, PartitionId, frames};
use crate::ports::{Extent, LogError};

/// Where a reader stands in a partition. Keeps the chunk that it is in, so that a batch that ends in the middle of a
/// chunk does not fetch it again.
#[derive(Debug, Default)]
pub struct Cursor {
    next: Offset,
    chunk: Option<Chunk>,
}

#[derive(Debug)]
struct Chunk {
    bytes: Slice,
    /// Where the frame with `next` begins in `bytes`, and the first offset of that frame.
    at: usize,
    base: Offset,
}

/// A record as the cursor lends it.
#[derive(Debug, Clone, Copy)]
pub struct Found<'a> {
    /// Its offset.
    pub offset: Offset,
    /// Its timestamp.
    pub timestamp: TimestampMs,
    /// When the log took it.
    pub append_ms: TimestampMs,
    /// Key, value and headers.
    pub payload: &'a [u8],
}

impl Cursor {
    /// A cursor that stands before `next`.
    pub fn at(next: Offset) -> Self {
        Self { next, chunk: None }
    }

    /// The offset that comes next.
    pub fn next(&self) -> Offset {
        self.next
    }

    /// Hands out the records up to `end`, until `take` says that it has enough: it returns whether it took the
    /// record. Moves past offsets that compaction emptied. Reads at most one chunk.
    pub fn read(
        &mut self,
        engine: &Engine,
        topic: &Topic,
        partition: u32,
        mut take: impl FnMut(Found<'_>) -> bool,
    ) -> Result<(), LogError> {
        let place = topic.partition(partition)?;
        let extent = place.extent();
        if topic.is_deleted() {
            return Err(LogError::UnknownTopic(topic.name.clone()));
        }
        in_range(topic, partition, self.next, extent)?;
        if self.next >= extent.end {
            return Ok(());
        }
        let at = Place { id: place.id, topic: &topic.name, partition };
        let chunk = match self.chunk.take() {
            Some(chunk) => chunk,
            // Retention may have removed it just now: then that is what to say.
            None => find(engine, at, self.next)
                .or_else(|error| in_range(topic, partition, self.next, place.extent()).and(Err(error)))?,
        };
        self.chunk = self.read_chunk(chunk, at, extent.end, &mut take)?;
        Ok(())
    }

    fn read_chunk(
        &mut self,
        chunk: Chunk,
        at: Place<'_>,
        end: Offset,
        take: &mut impl FnMut(Found<'_>) -> bool,
    ) -> Result<Option<Chunk>, LogError> {
        let Chunk { bytes, at: mut start, mut base } = chunk;
        for frame in frames(&bytes[start..], at.id, base) {
            let frame = frame.map_err(|error| at.damaged(base, &error.to_string()))?;
            if frame.header.base >= end {
                break;
            }
            if !self.read_frame(&frame, take) {
                return Ok(Some(Chunk { bytes, at: start, base }));
            }
            self.next = self.next.max(frame.header.next);
            start += frame.len();
            base = frame.header.next;
        }
        Ok(None)
    }

    /// Whether the whole frame was taken.
    fn read_frame(&mut self, frame: &Frame<'_>, take: &mut impl FnMut(Found<'_>) -> bool) -> bool {
        for record in frame.records() {
            if record.offset < self.next {
                continue;
            }
            let found = Found {
                offset: record.offset,
                timestamp: record.timestamp,
                append_ms: frame.header.append_ms,
                payload: record.payload,
            };
            if !take(found) {
                return false;
            }
            self.next = record.offset + 1;
        }
        true
    }
}

/// Whether there is such an offset, or it is the next one.
pub fn in_range(topic: &Topic, partition: u32, wanted: Offset, extent: Extent) -> Result<(), LogError> {
    let Extent { first, end } = extent;
    if (first..=end).contains(&wanted) {
        return Ok(());
    }
    let partition = TopicPartition::new(&topic.name, partition);
    Err(LogError::OffsetOutOfRange { partition, wanted, first, end })
}

#[derive(Clone, Copy)]
struct Place<'a> {
    id: PartitionId,
    topic: &'a TopicName,
    partition: u32,
}

impl Place<'_> {
    fn damaged(&self, offset: Offset, what: &str) -> LogError {
        LogError::Corrupt(format!(
            "topic {}, partition {}, the chunk at offset {offset}: {what}; restore the store from a backup, or delete the topic",
            self.topic, self.partition
        ))
    }
}

/// The chunk that covers `offset`, which is in the partition.
fn find(engine: &Engine, at: Place<'_>, offset: Offset) -> Result<Chunk, LogError> {
    // Reading on from the end of a chunk, the next one begins just there: a lookup is cheaper than a walk.
    if let Some(bytes) = engine.chunk(at.id, offset)? {
        return Ok(Chunk { bytes, at: 0, base: offset });
    }
    let missing = || at.damaged(offset, "it is missing");
    let (base, bytes) = engine.chunk_before(at.id, offset)?.ok_or_else(missing)?;
    let mut covered = base;
    let (mut start, mut frame_base) = (0, base);
    for frame in frames(&bytes, at.id, base) {
        let frame = frame.map_err(|error| at.damaged(covered, &error.to_string()))?;
        covered = frame.header.next;
        if covered > offset {
            return Ok(Chunk { bytes, at: start, base: frame_base });
        }
        start += frame.len();
        frame_base = covered;
    }
    Err(missing())
}

/// When the log took the chunk that covers an offset, its largest timestamp so far, and the offset after it.
#[derive(Debug, Clone, Copy)]
pub struct Milestone {
    /// The first offset of the chunk.
    pub base: Offset,
    /// The offset after its last.
    pub next: Offset,
    /// The append time of its last frame.
    pub append_ms: TimestampMs,
    /// The largest timestamp up to its end.
    pub max_timestamp: TimestampMs,
}

/// The milestone at `offset`, which is in the partition.
pub fn milestone(
    engine: &Engine,
    topic: &Topic,
    partition: u32,
    offset: Offset,
) -> Result<Milestone, LogError> {
    let at = Place { id: topic.partition(partition)?.id, topic: &topic.name, partition };
    let missing = || at.damaged(offset, "it is missing");
    let (base, bytes) = engine.chunk_before(at.id, offset)?.ok_or_else(missing)?;
    let mut found = None;
    for frame in frames(&bytes, at.id, base) {
        let header = frame.map_err(|error| at.damaged(base, &error.to_string()))?.header;
        found = Some(Milestone {
            base,
            next: header.next,
            append_ms: header.append_ms,
            max_timestamp: header.max_timestamp,
        });
    }
    found.filter(|milestone| milestone.next > offset).ok_or_else(missing)
}

/// The first offset of the first chunk for which `reached` holds, or the end. `reached` must hold for every chunk
/// after the first for which it holds.
pub fn bisect(
    engine: &Engine,
    topic: &Topic,
    partition: u32,
    reached: impl Fn(&Milestone) -> bool,
) -> Result<Offset, LogError> {
    let extent = topic.partition(partition)?.extent();
    let (mut low, mut high) = (extent.first, extent.end);
    while low < high {
        let middle = low + (high - low) / 2;
        let milestone = milestone(engine, topic, partition, middle)?;
        if reached(&milestone) {
            high = milestone.base.clamp(low, middle);
        } else {
            low = milestone.next;
        }
    }
    Ok(low.min(extent.end))
}

/// The first offset whose record has at least this timestamp, or the end.
pub fn offset_at(
    engine: &Engine,
    topic: &Topic,
    partition: u32,
    timestamp: TimestampMs,
) -> Result<Offset, LogError> {
    let start = bisect(engine, topic, partition, |milestone| milestone.max_timestamp >= timestamp)?;
    let end = topic.partition(partition)?.extent().end;
    let mut cursor = Cursor::at(start);
    let mut found = None;
    // Mostly the first chunk has it; compaction may have removed just that record.
    while found.is_none() && cursor.next() < end {
        cursor.read(engine, topic, partition, |record| {
            if record.timestamp >= timestamp {
                found = Some(record.offset);
            }
            found.is_none()
        })?;
    }
    Ok(found.unwrap_or(end).min(end))
}
