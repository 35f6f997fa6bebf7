//! Compaction: of the records with one key the last stays, offsets do not change.
//!
//! Two walks over a partition: the first finds the last offset of each key that is new since the last time, the second
//! rewrites the chunks that lost something, and puts small ones together. Where there are more new keys than memory for
//! them, the two are done for one part after another. A frame that lost all its records still covers its offsets, so that a
//! hole is never mistaken for damage.

use std::collections::HashMap;
use std::sync::Arc;

use xxhash_rust::xxh3::xxh3_128;

use crate::core::record::{Offset, Payload, TimestampMs};
use crate::log::catalog::{Cleaned, Topic};
use crate::log::engine::{Space, Write, chunk_key};
use crate::log::frame::{Body, Frame, PartitionId, Place, frames};
use crate::log::request::Effect;
use crate::log::store::Store;
use crate::ports::LogError;

/// New records below which a run is not worth it.
const MIN_DIRTY: u64 = 100;
/// Chunks are put together up to this size.
const CHUNK_BYTES: usize = 256 << 10;
/// Most chunks that are put together.
const MAX_INPUTS: usize = 512;

/// Compacts a partition up to where it ends now. Without `now`, only when that is worth it. Bytes removed.
pub fn run(store: &Store, topic: &Arc<Topic>, number: u32, now: bool) -> Result<u64, LogError> {
    let partition = topic.partition(number)?;
    let cleaned = *partition.cleaned.lock();
    let extent = partition.extent();
    let dirty = (extent.end - cleaned.until.max(extent.first)).max(0) as u64;
    let is_worth_it = dirty >= MIN_DIRTY.max(cleaned.records / 2) || (now && dirty > 0);
    let has_expired = cleaned.next_expiry_ms.is_some_and(|expiry| expiry <= store.now_ms());
    if !is_worth_it && !has_expired {
        return Ok(0);
    }
    let mut removed = 0;
    let mut from = cleaned.until.max(extent.first);
    loop {
        let (last, until) = last_offsets(store, partition.id, from, extent.end)?;
        let mut run = Run {
            store,
            topic,
            number,
            id: partition.id,
            end: until,
            last,
            tombstones_before: store.now_ms().saturating_sub_unsigned(store.delete_retention_ms),
            removed: 0,
            result: Cleaned { until, ..Cleaned::default() },
        };
        run.rewrite()?;
        removed += run.removed;
        *partition.cleaned.lock() = run.result;
        if until >= extent.end {
            return Ok(removed);
        }
        from = until;
    }
}

/// The last offset of each key from `from` on, and where that walk ended: at `end`, or before the first key that
/// there was no room for. What is before `from` has one record a key already.
fn last_offsets(
    store: &Store,
    id: PartitionId,
    from: Offset,
    end: Offset,
) -> Result<(HashMap<u128, Offset>, Offset), LogError> {
    let mut last = HashMap::new();
    // The chunk that covers `from` may begin before it.
    let mut at = store.engine.chunk_before(id, from)?.map_or(from, |(base, _)| base);
    while let Some((base, bytes)) = store.engine.chunk_after(id, at)?.filter(|(base, _)| *base < end) {
        for frame in frames(&bytes, id, base) {
            let frame = frame.map_err(|error| damaged(base, error))?;
            for record in frame.records().filter(|record| (from..end).contains(&record.offset)) {
                let Some(key) = key_of(record.payload) else { continue };
                if last.len() >= store.compaction_keys && !last.contains_key(&key) {
                    return Ok((last, record.offset));
                }
                last.insert(key, record.offset);
            }
            at = frame.header.next;
        }
        at = at.max(base + 1);
    }
    Ok((last, end))
}

fn key_of(payload: &[u8]) -> Option<u128> {
    Payload::parse(payload).ok()?.key.map(xxh3_128)
}

fn damaged(base: Offset, error: crate::log::frame::BadFrame) -> LogError {
    LogError::Corrupt(format!("the chunk at offset {base}: {error}; restore the store from a backup"))
}

struct Run<'a> {
    store: &'a Store,
    topic: &'a Arc<Topic>,
    number: u32,
    id: PartitionId,
    end: Offset,
    last: HashMap<u128, Offset>,
    tombstones_before: TimestampMs,
    removed: u64,
    result: Cleaned,
}

/// Chunks that become one.
struct Output {
    inputs: Vec<Offset>,
    input_bytes: usize,
    bytes: Vec<u8>,
    /// Offsets from here on are not covered yet: what was there is gone.
    uncovered: Option<(Offset, Place)>,
    changed: bool,
}

impl Run<'_> {
    fn rewrite(&mut self) -> Result<(), LogError> {
        let mut output = Output::new();
        let mut at = 0;
        while let Some((base, bytes)) = self.store.engine.chunk_after(self.id, at)? {
            if base >= self.end {
                break;
            }
            let is_full = output.bytes.len() + bytes.len() > CHUNK_BYTES || output.inputs.len() >= MAX_INPUTS;
            if is_full && !output.inputs.is_empty() {
                self.put(std::mem::replace(&mut output, Output::new()))?;
            }
            output.inputs.push(base);
            output.input_bytes += bytes.len();
            for frame in frames(&bytes, self.id, base) {
                let frame = frame.map_err(|error| damaged(base, error))?;
                self.take(&frame, &mut output);
                at = frame.header.next;
            }
            at = at.max(base + 1);
        }
        self.put(output)
    }

    fn take(&mut self, frame: &Frame<'_>, output: &mut Output) {
        let header = frame.header;
        let base = output.uncovered.take().map_or(header.base, |(base, _)| base);
        let mut body = Body::default();
        let mut next = base;
        for record in frame.records() {
            if self.stays(record.offset, record.payload, header.append_ms) {
                body.push_after(record.offset - next, record.timestamp, record.payload);
                next = record.offset + 1;
                self.result.records += 1;
            }
        }
        let place = Place {
            partition: self.id,
            base,
            next: header.next,
            append_ms: header.append_ms,
            max_timestamp: header.max_timestamp,
        };
        output.changed |= body.count() != header.count;
        if body.is_empty() {
            output.uncovered = Some((base, place));
        } else {
            body.put_frame(&place, body.hash(), &mut output.bytes);
        }
    }

    fn stays(&mut self, offset: Offset, payload: &[u8], append_ms: TimestampMs) -> bool {
        if offset >= self.end {
            return true;
        }
        let Ok(parts) = Payload::parse(payload) else { return true };
        let Some(key) = parts.key else { return true };
        match self.last.get(&xxh3_128(key)) {
            Some(last) if *last > offset => return false,
            // Or it is not there: then this is the last one from before the walk.
            _ => {}
        }
        if parts.value.is_some() {
            return true;
        }
        if append_ms < self.tombstones_before {
            return false;
        }
        let expiry = append_ms.saturating_add_unsigned(self.store.delete_retention_ms).saturating_add(1);
        self.result.next_expiry_ms = Some(self.result.next_expiry_ms.map_or(expiry, |next| next.min(expiry)));
        true
    }

    fn put(&mut self, mut output: Output) -> Result<(), LogError> {
        let Some(base) = output.inputs.first().copied() else { return Ok(()) };
        if !output.changed && output.inputs.len() == 1 {
            return Ok(());
        }
        if let Some((base, place)) = output.uncovered.take() {
            let empty = Body::default();
            empty.put_frame(&Place { base, ..place }, empty.hash(), &mut output.bytes);
        }
        self.removed += (output.input_bytes.saturating_sub(output.bytes.len())) as u64;
        let (topic, number, id) = (self.topic.clone(), self.number, self.id);
        self.store.edit(output.bytes.len(), move |_| {
            // Retention runs on this thread too, so only a deletion of the topic can have come between.
            if topic.is_deleted() || topic.partition(number)?.id != id {
                return Err(LogError::UnknownTopic(topic.name.clone()));
            }
            let gone = output.inputs.iter().skip(1);
            let mut writes: Vec<_> =
                gone.map(|base| Write::Remove(Space::Records, chunk_key(id, *base).to_vec())).collect();
            writes.push(Write::Put(Space::Records, chunk_key(id, base).to_vec(), output.bytes));
            Ok((writes, Box::new(|_: &Store| {}) as Effect))
        })
    }
}

impl Output {
    fn new() -> Self {
        Self { inputs: Vec::new(), input_bytes: 0, bytes: Vec::new(), uncovered: None, changed: false }
    }
}
