//! Frames: how records lie in the store. Pure; called by the writer, the readers and housekeeping.
//!
//! What one caller appends to one partition is a *frame*: a header of 64 bytes and the records after it, each in
//! the payload form of `core::record`, so that a batch is filled by copying slices. A *chunk*, one value of the
//! engine, is one frame or several in a row. Frames cover the offsets of a partition without a gap (a frame that
//! lost records to compaction still covers their offsets), so a missing chunk is noticed, and both halves of a
//! frame carry a checksum, so a damaged one is.
//!
//! ```text
//! 0  u32 magic "cpf1"            32 i64 timestamp of the first record
//! 4  u32 checksum of 8..64       40 i64 largest timestamp in the partition up to the end of this frame
//!        and the partition's id  48 u32 length of the body, in bytes
//! 8  i64 first offset            52 u32 number of records
//! 16 i64 offset after the last   56 u64 checksum of the body (xxh3)
//! 24 i64 append time, ms         64 body: per record the zigzag varints
//!                                   length of its payload, offsets skipped, timestamp - first; then the payload
//! ```

use xxhash_rust::xxh3::{xxh3_64, xxh3_64_with_seed};

use crate::core::record::{Offset, TimestampMs, put_varint, take_varint};

/// Bytes of a frame's header.
pub const HEADER_BYTES: usize = 64;
const MAGIC: u32 = u32::from_le_bytes(*b"cpf1");

/// Identifies a partition of one topic for ever: ids are never given out twice.
pub type PartitionId = u64;

/// Why bytes are no frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum BadFrame {
    /// Fewer bytes than it says.
    #[error("it is cut off")]
    Truncated,
    /// The header is not one, or not of this place.
    #[error("its header is damaged")]
    Header,
    /// The body is not what was written.
    #[error("its records are damaged")]
    Body,
    /// It covers other offsets than it should.
    #[error("offsets are missing before it")]
    Gap,
}

/// What a frame's header says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Header {
    /// The first offset that it covers.
    pub base: Offset,
    /// The offset after the last that it covers.
    pub next: Offset,
    /// When the log took it, in milliseconds since the epoch; never goes back within a store.
    pub append_ms: TimestampMs,
    /// The timestamp of its first record.
    pub first_timestamp: TimestampMs,
    /// The largest timestamp of the partition up to its end, so that timestamps can be bisected.
    pub max_timestamp: TimestampMs,
    /// Bytes of the body.
    pub body_len: u32,
    /// Number of records.
    pub count: u32,
    /// Checksum of the body.
    pub body_hash: u64,
}

impl Header {
    /// Appends the header to `out`.
    pub fn put(&self, partition: PartitionId, out: &mut Vec<u8>) {
        let start = out.len();
        out.extend_from_slice(&MAGIC.to_le_bytes());
        out.extend_from_slice(&[0; 4]);
        for number in [self.base, self.next, self.append_ms, self.first_timestamp, self.max_timestamp] {
            out.extend_from_slice(&number.to_le_bytes());
        }
        out.extend_from_slice(&self.body_len.to_le_bytes());
        out.extend_from_slice(&self.count.to_le_bytes());
        out.extend_from_slice(&self.body_hash.to_le_bytes());
        let hash = xxh3_64_with_seed(&out[start + 8..], partition) as u32;
        out[start + 4..start + 8].copy_from_slice(&hash.to_le_bytes());
    }

    fn take(bytes: &[u8], partition: PartitionId) -> Result<Self, BadFrame> {
        let header = bytes.get(..HEADER_BYTES).ok_or(BadFrame::Truncated)?;
        let hash = xxh3_64_with_seed(&header[8..], partition) as u32;
        if le_u32(header, 0) != MAGIC || le_u32(header, 4) != hash {
            return Err(BadFrame::Header);
        }
        Ok(Self {
            base: le_i64(header, 8),
            next: le_i64(header, 16),
            append_ms: le_i64(header, 24),
            first_timestamp: le_i64(header, 32),
            max_timestamp: le_i64(header, 40),
            body_len: le_u32(header, 48),
            count: le_u32(header, 52),
            body_hash: le_i64(header, 56) as u64,
        })
    }
}

fn le_u32(bytes: &[u8], at: usize) -> u32 {
    bytes.get(at..at + 4).and_then(|b| b.try_into().ok()).map_or(0, u32::from_le_bytes)
}

fn le_i64(bytes: &[u8], at: usize) -> i64 {
    bytes.get(at..at + 8).and_then(|b| b.try_into().ok()).map_or(0, i64::from_le_bytes)
}

/// Records of one partition on their way in; the writer gives them their offsets.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Body {
    bytes: Vec<u8>,
    count: u32,
    span: i64,
    first_timestamp: TimestampMs,
    max_timestamp: TimestampMs,
}

impl Body {
    /// Appends a record behind the last one.
    pub fn push(&mut self, timestamp: TimestampMs, payload: &[u8]) {
        self.push_after(0, timestamp, payload);
    }

    /// Appends a record after leaving out `skipped` offsets, which compaction emptied.
    pub fn push_after(&mut self, skipped: i64, timestamp: TimestampMs, payload: &[u8]) {
        if self.count == 0 {
            self.first_timestamp = timestamp;
            self.max_timestamp = timestamp;
        }
        self.max_timestamp = self.max_timestamp.max(timestamp);
        put_varint(&mut self.bytes, payload.len() as i64);
        put_varint(&mut self.bytes, skipped);
        put_varint(&mut self.bytes, timestamp.wrapping_sub(self.first_timestamp));
        self.bytes.extend_from_slice(payload);
        self.count += 1;
        self.span += 1 + skipped;
    }

    /// How many records there are.
    pub fn count(&self) -> u32 {
        self.count
    }

    /// How many offsets the records take, those left out included.
    pub fn span(&self) -> i64 {
        self.span
    }

    /// Bytes in memory.
    pub fn len(&self) -> usize {
        self.bytes.len()
    }

    /// Whether there is no record.
    pub fn is_empty(&self) -> bool {
        self.count == 0
    }

    /// The largest timestamp of the records.
    pub fn max_timestamp(&self) -> TimestampMs {
        self.max_timestamp
    }

    /// The checksum of the records: callers work it out, so that the one writer thread need not.
    pub fn hash(&self) -> u64 {
        xxh3_64(&self.bytes)
    }

    /// Appends a whole frame to `out` and returns its header.
    pub fn put_frame(&self, place: &Place, hash: u64, out: &mut Vec<u8>) -> Header {
        let header = Header {
            base: place.base,
            next: place.next,
            append_ms: place.append_ms,
            first_timestamp: self.first_timestamp,
            max_timestamp: place.max_timestamp,
            body_len: self.bytes.len() as u32,
            count: self.count,
            body_hash: hash,
        };
        header.put(place.partition, out);
        out.extend_from_slice(&self.bytes);
        header
    }
}

/// Where a frame goes.
#[derive(Debug, Clone, Copy)]
pub struct Place {
    /// The partition.
    pub partition: PartitionId,
    /// The first offset that it covers.
    pub base: Offset,
    /// The offset after the last that it covers.
    pub next: Offset,
    /// When the log took it.
    pub append_ms: TimestampMs,
    /// The largest timestamp of the partition up to its end.
    pub max_timestamp: TimestampMs,
}

/// A record in a frame, borrowed from it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FrameRecord<'a> {
    /// Its offset.
    pub offset: Offset,
    /// Its timestamp.
    pub timestamp: TimestampMs,
    /// Key, value and headers.
    pub payload: &'a [u8],
}

/// A frame whose checksums agree.
#[derive(Debug, Clone, Copy)]
pub struct Frame<'a> {
    /// Its header.
    pub header: Header,
    body: &'a [u8],
}

impl<'a> Frame<'a> {
    /// Bytes of the whole frame.
    pub fn len(&self) -> usize {
        HEADER_BYTES + self.body.len()
    }

    /// The records, ascending.
    pub fn records(&self) -> Records<'a> {
        Records {
            body: self.body,
            left: self.header.count,
            offset: self.header.base,
            first_timestamp: self.header.first_timestamp,
        }
    }
}

/// Iterates over the records of a frame.
#[derive(Debug, Clone)]
pub struct Records<'a> {
    body: &'a [u8],
    left: u32,
    offset: Offset,
    first_timestamp: TimestampMs,
}

impl<'a> Iterator for Records<'a> {
    type Item = FrameRecord<'a>;

    fn next(&mut self) -> Option<FrameRecord<'a>> {
        self.left = self.left.checked_sub(1)?;
        // The checksum agreed, so these are the bytes that `Body::push` wrote: none of these calls fails.
        let (length, rest) = take_varint(self.body, "length").ok()?;
        let (skipped, rest) = take_varint(rest, "skipped").ok()?;
        let (delta, rest) = take_varint(rest, "timestamp").ok()?;
        let (payload, rest) = rest.split_at_checked(usize::try_from(length).ok()?)?;
        let offset = self.offset + skipped;
        self.offset = offset + 1;
        self.body = rest;
        Some(FrameRecord { offset, timestamp: self.first_timestamp.wrapping_add(delta), payload })
    }
}

/// Iterates over the frames of a chunk, checking each; ends after the first bad one.
#[derive(Debug, Clone)]
pub struct Frames<'a> {
    partition: PartitionId,
    bytes: &'a [u8],
    expected: Option<Offset>,
}

/// The frames of a chunk whose key says that it begins at `base`.
pub fn frames(bytes: &[u8], partition: PartitionId, base: Offset) -> Frames<'_> {
    Frames { partition, bytes, expected: Some(base) }
}

impl<'a> Frames<'a> {
    fn step(&mut self, expected: Offset) -> Result<Frame<'a>, BadFrame> {
        let header = Header::take(self.bytes, self.partition)?;
        if header.base != expected {
            return Err(BadFrame::Gap);
        }
        let end = HEADER_BYTES + header.body_len as usize;
        let body = self.bytes.get(HEADER_BYTES..end).ok_or(BadFrame::Truncated)?;
        if xxh3_64(body) != header.body_hash {
            return Err(BadFrame::Body);
        }
        self.bytes = &self.bytes[end..];
        self.expected = Some(header.next);
        Ok(Frame { header, body })
    }
}

impl<'a> Iterator for Frames<'a> {
    type Item = Result<Frame<'a>, BadFrame>;

    fn next(&mut self) -> Option<Self::Item> {
        let expected = self.expected?;
        if self.bytes.is_empty() {
            return None;
        }
        let step = self.step(expected);
        if step.is_err() {
            self.expected = None;
        }
        Some(step)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn arbitrary_records() -> impl Strategy<Value = Vec<(i64, TimestampMs, Vec<u8>)>> {
        let payload = proptest::collection::vec(any::<u8>(), 0..40);
        proptest::collection::vec((0i64..3, any::<i64>(), payload), 1..20)
    }

    fn frame_of(records: &[(i64, TimestampMs, Vec<u8>)], base: Offset, out: &mut Vec<u8>) -> Header {
        let mut body = Body::default();
        for (skipped, timestamp, payload) in records {
            body.push_after(*skipped, *timestamp, payload);
        }
        let place = Place {
            partition: 9,
            base,
            next: base + body.span(),
            append_ms: 5,
            max_timestamp: body.max_timestamp(),
        };
        body.put_frame(&place, body.hash(), out)
    }

    proptest! {
        #[test]
        fn frames_go_both_ways(first in arbitrary_records(), second in arbitrary_records()) {
            let mut chunk = Vec::new();
            let header = frame_of(&first, 100, &mut chunk);
            frame_of(&second, header.next, &mut chunk);
            let mut offset = 100;
            let mut found = Vec::new();
            for frame in frames(&chunk, 9, 100) {
                for record in frame.unwrap().records() {
                    found.push((record.offset - offset, record.timestamp, record.payload.to_vec()));
                    offset = record.offset + 1;
                }
            }
            let wanted: Vec<_> = first.into_iter().chain(second).collect();
            prop_assert_eq!(found, wanted);
        }

        #[test]
        fn a_flipped_bit_is_noticed(records in arbitrary_records(), at: prop::sample::Index, bit in 0u8..8) {
            let mut chunk = Vec::new();
            frame_of(&records, 0, &mut chunk);
            let at = at.index(chunk.len());
            chunk[at] ^= 1 << bit;
            prop_assert!(frames(&chunk, 9, 0).any(|frame| frame.is_err()));
        }

        #[test]
        fn a_cut_or_misplaced_chunk_is_noticed(records in arbitrary_records(), cut: prop::sample::Index) {
            let mut chunk = Vec::new();
            frame_of(&records, 0, &mut chunk);
            prop_assert!(frames(&chunk, 8, 0).any(|frame| frame.is_err()), "another partition's");
            prop_assert!(frames(&chunk, 9, 1).any(|frame| frame.is_err()), "another offset's");
            let cut = cut.index(chunk.len() - 1) + 1;
            prop_assert!(frames(&chunk[..cut], 9, 0).any(|frame| frame.is_err()));
        }
    }
}
