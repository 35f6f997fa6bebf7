//! Records, and the one form in which they travel through the process.
//!
//! A record's key, value and headers are kept as one *payload*: the tail of a Kafka v2 record, without
//! length, attributes, timestamp and offset. It is lossless (null is not empty, headers are an ordered list
//! with duplicates, keys and values are bytes), it is what the transform ABI hands to guests, and so a record
//! is copied from the log to the guest and back without being taken apart.
//!
//! ```text
//! keyLen    zigzag varint, -1 = null        nHeaders  zigzag varint, >= 0
//! key       bytes                           nHeaders x { hKeyLen, hKey, hValueLen (-1 = null), hValue }
//! valueLen  zigzag varint, -1 = null
//! value     bytes
//! ```
//! Source: <https://kafka.apache.org/documentation/#record>.

use crate::core::names::TopicName;

/// Milliseconds since the Unix epoch.
pub type TimestampMs = i64;
/// The position of a record in its partition.
pub type Offset = i64;

/// A payload that does not keep to the format, with the reason.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BadPayload {
    /// The bytes end inside a field.
    #[error("the payload ends inside its {0}")]
    Truncated(&'static str),
    /// A length or count that cannot be.
    #[error("the payload says a length of {length} for its {field}")]
    BadLength {
        /// Which field.
        field: &'static str,
        /// What was said.
        length: i64,
    },
    /// A varint of more than ten bytes.
    #[error("the payload has a number of more than 10 bytes for its {0}")]
    LongVarint(&'static str),
    /// Bytes after the last header.
    #[error("the payload has {0} bytes after its last header")]
    TrailingBytes(usize),
}

/// Appends `value` as a zigzag varint (1 to 10 bytes).
pub fn put_varint(out: &mut Vec<u8>, value: i64) {
    let mut rest = ((value << 1) ^ (value >> 63)) as u64;
    while rest >= 0x80 {
        out.push(rest as u8 | 0x80);
        rest >>= 7;
    }
    out.push(rest as u8);
}

/// Reads a zigzag varint at the start of `bytes`: its value and what follows it.
pub fn take_varint<'a>(bytes: &'a [u8], field: &'static str) -> Result<(i64, &'a [u8]), BadPayload> {
    // Nearly every length is below 8192: one byte or two.
    match bytes {
        [first @ ..0x80, rest @ ..] => return Ok((unzigzag(u64::from(*first)), rest)),
        [first, second @ ..0x80, rest @ ..] => {
            return Ok((unzigzag(u64::from(first & 0x7f) | u64::from(*second) << 7), rest));
        }
        _ => {}
    }
    let mut value = 0u64;
    for (i, &byte) in bytes.iter().take(10).enumerate() {
        value |= u64::from(byte & 0x7f) << (7 * i);
        if byte < 0x80 {
            return Ok((unzigzag(value), &bytes[i + 1..]));
        }
    }
    if bytes.len() < 10 { Err(BadPayload::Truncated(field)) } else { Err(BadPayload::LongVarint(field)) }
}

fn unzigzag(value: u64) -> i64 {
    (value >> 1) as i64 ^ -((value & 1) as i64)
}

fn put_bytes(out: &mut Vec<u8>, bytes: Option<&[u8]>) {
    match bytes {
        None => put_varint(out, -1),
        Some(bytes) => {
            put_varint(out, bytes.len() as i64);
            out.extend_from_slice(bytes);
        }
    }
}

fn take_bytes<'a>(bytes: &'a [u8], field: &'static str) -> Result<(Option<&'a [u8]>, &'a [u8]), BadPayload> {
    let (length, rest) = take_varint(bytes, field)?;
    match usize::try_from(length) {
        Ok(length) if length <= rest.len() => {
            let (value, rest) = rest.split_at(length);
            Ok((Some(value), rest))
        }
        Ok(_) => Err(BadPayload::Truncated(field)),
        Err(_) if length == -1 => Ok((None, rest)),
        Err(_) => Err(BadPayload::BadLength { field, length }),
    }
}

/// A header: its key and its value, which may be null.
pub type Header<'a> = (&'a [u8], Option<&'a [u8]>);

/// Appends the payload of a record to `out`.
pub fn put_payload<'h>(
    out: &mut Vec<u8>,
    key: Option<&[u8]>,
    value: Option<&[u8]>,
    headers: impl ExactSizeIterator<Item = Header<'h>>,
) {
    put_bytes(out, key);
    put_bytes(out, value);
    put_varint(out, headers.len() as i64);
    for (name, value) in headers {
        put_bytes(out, Some(name));
        put_bytes(out, value);
    }
}

/// The parts of a payload, borrowed from it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Payload<'a> {
    /// The key; `None` is null, which is not empty.
    pub key: Option<&'a [u8]>,
    /// The value; `None` is null: a tombstone on a compacted topic.
    pub value: Option<&'a [u8]>,
    header_count: usize,
    header_bytes: &'a [u8],
}

impl<'a> Payload<'a> {
    /// Takes a payload apart, after checking all of it: past this point nothing about it can fail.
    pub fn parse(bytes: &'a [u8]) -> Result<Self, BadPayload> {
        let (key, rest) = take_bytes(bytes, "key")?;
        let (value, rest) = take_bytes(rest, "value")?;
        let (count, header_bytes) = take_varint(rest, "header count")?;
        // Each header takes two bytes at least, so a count that cannot be is refused before any loop.
        let header_count = usize::try_from(count)
            .ok()
            .filter(|count| *count <= header_bytes.len() / 2)
            .ok_or(BadPayload::BadLength { field: "header count", length: count })?;
        let mut rest = header_bytes;
        for _ in 0..header_count {
            (_, rest) = take_bytes(rest, "header key")?;
            (_, rest) = take_bytes(rest, "header value")?;
        }
        if rest.is_empty() {
            Ok(Self { key, value, header_count, header_bytes })
        } else {
            Err(BadPayload::TrailingBytes(rest.len()))
        }
    }

    /// The headers in their order, duplicates kept. A null key, which the format allows, reads as empty.
    pub fn headers(&self) -> Headers<'a> {
        Headers { left: self.header_count, bytes: self.header_bytes }
    }
}

/// Iterates over the headers of a payload.
#[derive(Debug, Clone)]
pub struct Headers<'a> {
    left: usize,
    bytes: &'a [u8],
}

impl<'a> Iterator for Headers<'a> {
    type Item = Header<'a>;

    fn next(&mut self) -> Option<Header<'a>> {
        self.left = self.left.checked_sub(1)?;
        // `Payload::parse` has read these bytes once, so neither call fails here.
        let (key, rest) = take_bytes(self.bytes, "header key").ok()?;
        let (value, rest) = take_bytes(rest, "header value").ok()?;
        self.bytes = rest;
        Some((key.unwrap_or_default(), value))
    }

    fn size_hint(&self) -> (usize, Option<usize>) {
        (self.left, Some(self.left))
    }
}

impl ExactSizeIterator for Headers<'_> {}

/// One record of a batch, borrowed from it.
#[derive(Debug, Clone, Copy)]
pub struct RecordRef<'a> {
    /// Its position in the partition.
    pub offset: Offset,
    /// Its timestamp.
    pub timestamp: TimestampMs,
    /// Key, value and headers; well-formed, because only well-formed payloads enter a batch.
    pub payload: &'a [u8],
}

/// A record that owns its bytes, for the places where speed does not matter.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Record {
    /// The key; `None` is null.
    pub key: Option<Vec<u8>>,
    /// The value; `None` is null.
    pub value: Option<Vec<u8>>,
    /// Headers in their order.
    pub headers: Vec<(Vec<u8>, Option<Vec<u8>>)>,
    /// Its timestamp; `None` lets the log choose.
    pub timestamp: Option<TimestampMs>,
}

impl Record {
    /// A record with just a key and a value.
    pub fn new(key: Option<&[u8]>, value: Option<&[u8]>) -> Self {
        Self { key: key.map(<[u8]>::to_vec), value: value.map(<[u8]>::to_vec), ..Self::default() }
    }

    /// Copies a payload into a record of its own.
    pub fn from_payload(payload: &[u8], timestamp: TimestampMs) -> Result<Self, BadPayload> {
        let parts = Payload::parse(payload)?;
        Ok(Self {
            key: parts.key.map(<[u8]>::to_vec),
            value: parts.value.map(<[u8]>::to_vec),
            headers: parts
                .headers()
                .map(|(name, value)| (name.to_vec(), value.map(<[u8]>::to_vec)))
                .collect(),
            timestamp: Some(timestamp),
        })
    }

    /// Appends the record's payload to `out`.
    pub fn put_payload(&self, out: &mut Vec<u8>) {
        let headers = self.headers.iter().map(|(name, value)| (name.as_slice(), value.as_deref()));
        put_payload(out, self.key.as_deref(), self.value.as_deref(), headers);
    }

    /// The record's payload.
    pub fn payload(&self) -> Vec<u8> {
        let mut out = Vec::new();
        self.put_payload(&mut out);
        out
    }
}

#[derive(Debug, Clone, Copy)]
struct Entry {
    end: usize,
    offset: Offset,
    timestamp: TimestampMs,
}

/// Records of one partition at ascending offsets, in one buffer that is used again.
#[derive(Debug, Default)]
pub struct Batch {
    topic: Option<TopicName>,
    partition: u32,
    data: Vec<u8>,
    entries: Vec<Entry>,
}

impl Batch {
    /// Empties the batch, keeps its memory, and says where the next records come from.
    pub fn reset(&mut self, topic: &TopicName, partition: u32) {
        self.topic = Some(topic.clone());
        self.partition = partition;
        self.data.clear();
        self.entries.clear();
    }

    /// Appends a record. The payload must be well-formed: the log that fills the batch has checked it.
    pub fn push(&mut self, offset: Offset, timestamp: TimestampMs, payload: &[u8]) {
        debug_assert!(Payload::parse(payload).is_ok(), "a batch holds well-formed payloads only");
        self.data.extend_from_slice(payload);
        self.entries.push(Entry { end: self.data.len(), offset, timestamp });
    }

    /// Appends a record from its parts.
    pub fn push_parts<'h>(
        &mut self,
        offset: Offset,
        timestamp: TimestampMs,
        key: Option<&[u8]>,
        value: Option<&[u8]>,
        headers: impl ExactSizeIterator<Item = Header<'h>>,
    ) {
        put_payload(&mut self.data, key, value, headers);
        self.entries.push(Entry { end: self.data.len(), offset, timestamp });
    }

    /// The topic, once `reset` has named it.
    pub fn topic(&self) -> Option<&TopicName> {
        self.topic.as_ref()
    }

    /// The partition.
    pub fn partition(&self) -> u32 {
        self.partition
    }

    /// How many records there are.
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// Whether there is no record.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// The payload bytes of all records together.
    pub fn bytes(&self) -> usize {
        self.data.len()
    }

    /// The record at `index`.
    pub fn get(&self, index: usize) -> Option<RecordRef<'_>> {
        let entry = self.entries.get(index)?;
        let start = index.checked_sub(1).map_or(0, |before| self.entries[before].end);
        Some(RecordRef {
            offset: entry.offset,
            timestamp: entry.timestamp,
            payload: &self.data[start..entry.end],
        })
    }

    /// The records in their order.
    pub fn iter(&self) -> impl ExactSizeIterator<Item = RecordRef<'_>> {
        let mut start = 0;
        self.entries.iter().map(move |entry| {
            let payload = &self.data[start..entry.end];
            start = entry.end;
            RecordRef { offset: entry.offset, timestamp: entry.timestamp, payload }
        })
    }

    /// Bytes of memory that the batch holds on to.
    pub fn capacity(&self) -> usize {
        self.data.capacity() + self.entries.capacity() * size_of::<Entry>()
    }
}

/// One record that a guest wrote.
#[derive(Debug, Clone, Copy)]
pub struct OutputRef<'a> {
    /// Which of the declared outputs, by its place in the list.
    pub topic: u16,
    /// The index in the input batch of the record that the guest was reading.
    pub source: usize,
    /// Key, value and headers, well-formed.
    pub payload: &'a [u8],
}

#[derive(Debug, Clone, Copy)]
struct OutputEntry {
    end: usize,
    topic: u16,
    source: u32,
}

/// What a guest wrote, in order, in one buffer that is used again.
#[derive(Debug, Default)]
pub struct Outputs {
    data: Vec<u8>,
    entries: Vec<OutputEntry>,
}

impl Outputs {
    /// Forgets everything, keeps the memory.
    pub fn clear(&mut self) {
        self.data.clear();
        self.entries.clear();
    }

    /// Appends an output whose payload `fill` writes to the buffer; when `fill` fails nothing is kept.
    pub fn push_with<E>(
        &mut self,
        topic: u16,
        source: usize,
        fill: impl FnOnce(&mut Vec<u8>) -> Result<(), E>,
    ) -> Result<(), E> {
        let start = self.data.len();
        match fill(&mut self.data) {
            Ok(()) => {
                self.entries.push(OutputEntry { end: self.data.len(), topic, source: source as u32 });
                Ok(())
            }
            Err(error) => {
                self.data.truncate(start);
                Err(error)
            }
        }
    }

    /// Appends an output. The payload must be well-formed.
    pub fn push(&mut self, topic: u16, source: usize, payload: &[u8]) {
        self.data.extend_from_slice(payload);
        self.entries.push(OutputEntry { end: self.data.len(), topic, source: source as u32 });
    }

    /// Drops the outputs of the records from `source` on: what a record wrote that was not finished.
    pub fn drop_from(&mut self, source: usize) {
        while self.entries.last().is_some_and(|entry| entry.source as usize >= source) {
            self.entries.pop();
        }
        self.data.truncate(self.entries.last().map_or(0, |entry| entry.end));
    }

    /// How many outputs there are.
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// The payload bytes of all outputs together.
    pub fn bytes(&self) -> usize {
        self.data.len()
    }

    /// The output at `index`.
    pub fn get(&self, index: usize) -> Option<OutputRef<'_>> {
        let entry = self.entries.get(index)?;
        let start = index.checked_sub(1).map_or(0, |before| self.entries[before].end);
        Some(OutputRef {
            topic: entry.topic,
            source: entry.source as usize,
            payload: &self.data[start..entry.end],
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn arbitrary_record() -> impl Strategy<Value = Record> {
        let bytes = || proptest::option::of(proptest::collection::vec(any::<u8>(), 0..200));
        let header = (proptest::collection::vec(any::<u8>(), 0..20), bytes());
        (bytes(), bytes(), proptest::collection::vec(header, 0..6), any::<i64>()).prop_map(
            |(key, value, headers, timestamp)| Record { key, value, headers, timestamp: Some(timestamp) },
        )
    }

    proptest! {
        #[test]
        fn varints_go_both_ways(value: i64) {
            let mut bytes = Vec::new();
            put_varint(&mut bytes, value);
            bytes.push(7);
            prop_assert_eq!(take_varint(&bytes, "x"), Ok((value, &[7u8][..])));
        }

        #[test]
        fn payloads_go_both_ways(record in arbitrary_record()) {
            let copy = Record::from_payload(&record.payload(), record.timestamp.unwrap());
            prop_assert_eq!(copy, Ok(record));
        }

        #[test]
        fn no_bytes_make_the_parser_fail_badly(bytes in proptest::collection::vec(any::<u8>(), 0..64)) {
            if let Ok(payload) = Payload::parse(&bytes) {
                prop_assert_eq!(payload.headers().count(), payload.headers().len());
            }
        }

        #[test]
        fn a_cut_payload_is_refused(record in arbitrary_record(), cut in 1usize..50) {
            let bytes = record.payload();
            let cut = bytes.len().saturating_sub(cut);
            prop_assert!(Payload::parse(&bytes[..cut]).is_err());
        }
    }

    #[test]
    fn null_is_not_empty() {
        let null = Record::new(None, None).payload();
        let empty = Record::new(Some(b""), Some(b"")).payload();
        assert_eq!(null, [1, 1, 0]);
        assert_eq!(empty, [0, 0, 0]);
        assert_eq!(Payload::parse(&null).unwrap().key, None);
        assert_eq!(Payload::parse(&empty).unwrap().key, Some(&b""[..]));
    }

    #[test]
    fn malformed_payloads_are_refused() {
        let cases: [(&[u8], &str); 7] = [
            (&[], "ends inside its key"),
            (&[3], "length of -2 for its key"),
            (&[4, b'a'], "ends inside its key"),
            (&[1, 1, 1], "length of -1 for its header count"),
            (&[1, 1, 200, 1], "for its header count"),
            (&[1, 1, 0, 9], "1 bytes after its last header"),
            (&[0xff; 12], "more than 10 bytes"),
        ];
        for (bytes, says) in cases {
            let error = Payload::parse(bytes).expect_err(says).to_string();
            assert!(error.contains(says), "{bytes:?}: {error}");
        }
    }

    #[test]
    fn a_null_header_key_reads_as_empty() {
        let payload = Payload::parse(&[1, 1, 2, 1, 1]).unwrap();
        assert_eq!(payload.headers().collect::<Vec<_>>(), [(&b""[..], None)]);
    }

    #[test]
    fn batches_lend_their_records() {
        let mut batch = Batch::default();
        batch.reset(&"t".parse().unwrap(), 3);
        batch.push(5, 100, &Record::new(None, Some(b"a")).payload());
        batch.push(9, 101, &Record::new(Some(b"k"), None).payload());
        assert_eq!(batch.len(), 2);
        let second = batch.get(1).unwrap();
        assert_eq!((second.offset, second.timestamp), (9, 101));
        assert_eq!(Payload::parse(second.payload).unwrap().key, Some(&b"k"[..]));
        assert!(batch.get(2).is_none());
    }

    #[test]
    fn unfinished_outputs_are_dropped_whole() {
        let mut outputs = Outputs::default();
        outputs.push(0, 0, b"aa");
        outputs.push(0, 1, b"bb");
        outputs.push(1, 1, b"cc");
        assert_eq!(
            outputs.push_with(0, 1, |out| {
                out.push(1);
                Err("no")
            }),
            Err("no")
        );
        assert_eq!(outputs.bytes(), 6);
        outputs.drop_from(1);
        assert_eq!((outputs.len(), outputs.bytes()), (1, 2));
        assert_eq!(outputs.get(0).unwrap().payload, b"aa");
    }
}
