//! Topics and partitions as the running store knows them, and how they are written down.

use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU32, Ordering};

use parking_lot::Mutex;
use serde::{Deserialize, Serialize};

use crate::core::names::{ConsumerGroup, TopicName};
use crate::core::record::{Offset, Payload, TimestampMs};
use crate::log::frame::PartitionId;
use crate::log::signal::Watchers;
use crate::ports::{Cleanup, Extent, LogError, TopicConfig, TopicInfo};

/// Key of the number of the last commit.
pub const COMMIT_KEY: &[u8] = b"g";
/// Key of the next id for a topic or partition.
pub const NEXT_ID_KEY: &[u8] = b"i";
/// Key of the append time of the last commit, which the next one is not before.
pub const CLOCK_KEY: &[u8] = b"c";
/// Keys of topics begin with this.
pub const TOPIC_PREFIX: &[u8] = b"t/";
/// Keys of committed offsets begin with this.
pub const OFFSET_PREFIX: &[u8] = b"o/";
/// Keys of what partitions hold begin with this.
pub const SPAN_PREFIX: &[u8] = b"s/";
/// Keys of partitions whose chunks are to be removed begin with this.
pub const TRASH_PREFIX: &[u8] = b"x/";

/// Most partitions of a topic.
pub const MAX_PARTITIONS: u32 = 10_000;

/// A partition of a topic.
#[derive(Debug)]
pub struct Partition {
    /// Its id, which no other partition ever had.
    pub id: PartitionId,
    first: AtomicI64,
    end: AtomicI64,
    max_timestamp: AtomicI64,
    /// How compaction left it, since the store was opened.
    pub cleaned: Mutex<Cleaned>,
}

/// How compaction left a partition.
#[derive(Debug, Clone, Copy, Default)]
pub struct Cleaned {
    /// Up to here it has seen it.
    pub until: Offset,
    /// Records that were left.
    pub records: u64,
    /// When the first of the tombstones that were left may go.
    pub next_expiry_ms: Option<TimestampMs>,
    /// Bytes of the chunks before this offset, where they were counted.
    pub counted: Option<(Offset, u64)>,
}

impl Partition {
    /// A partition that holds this.
    pub fn new(id: PartitionId, span: Span) -> Self {
        Self {
            id,
            first: AtomicI64::new(span.first),
            end: AtomicI64::new(span.end),
            max_timestamp: AtomicI64::new(span.max_timestamp),
            cleaned: Mutex::default(),
        }
    }

    /// First and next offset. What is below `end` is committed and may be read.
    pub fn extent(&self) -> Extent {
        // In this order: both only grow, and so `first <= end` holds in what is seen.
        let first = self.first.load(Ordering::Acquire);
        let end = self.end.load(Ordering::Acquire);
        Extent { first, end }
    }

    /// The largest timestamp so far.
    pub fn max_timestamp(&self) -> TimestampMs {
        self.max_timestamp.load(Ordering::Acquire)
    }

    /// Makes records visible up to `end`.
    pub fn publish(&self, end: Offset, max_timestamp: TimestampMs) {
        self.max_timestamp.store(max_timestamp, Ordering::Release);
        self.end.store(end, Ordering::Release);
    }

    /// Says that what is before `first` is gone.
    pub fn cut(&self, first: Offset) {
        self.first.store(first, Ordering::Release);
    }
}

/// A topic.
#[derive(Debug)]
pub struct Topic {
    /// Its name.
    pub name: TopicName,
    /// Its id, which no other topic ever had.
    pub id: u64,
    /// How it is to be.
    pub config: TopicConfig,
    /// Its partitions.
    pub partitions: Vec<Partition>,
    /// Who reads it.
    pub watchers: Watchers,
    /// Where the next record without key goes.
    pub next_partition: AtomicU32,
    deleted: AtomicBool,
}

impl Topic {
    /// A topic with these partitions.
    pub fn new(name: TopicName, id: u64, config: TopicConfig, partitions: Vec<Partition>) -> Self {
        Self {
            name,
            id,
            config,
            partitions,
            watchers: Watchers::default(),
            next_partition: AtomicU32::new(0),
            deleted: AtomicBool::new(false),
        }
    }

    /// Whether the topic was deleted while somebody still holds it.
    pub fn is_deleted(&self) -> bool {
        self.deleted.load(Ordering::Acquire)
    }

    /// Says that the topic is deleted.
    pub fn mark_deleted(&self) {
        self.deleted.store(true, Ordering::Release);
    }

    /// The id as others see it.
    pub fn public_id(&self) -> String {
        format!("{:016x}", self.id)
    }

    /// What is known of it.
    pub fn info(&self) -> TopicInfo {
        TopicInfo { name: self.name.clone(), id: self.public_id(), config: self.config.clone() }
    }

    /// A partition by its number.
    pub fn partition(&self, partition: u32) -> Result<&Partition, LogError> {
        self.partitions.get(partition as usize).ok_or_else(|| LogError::UnknownPartition {
            topic: self.name.clone(),
            partition,
            count: self.partitions.len() as u32,
        })
    }

    /// Whether old records with the key of a newer one go.
    pub fn is_compacted(&self) -> bool {
        matches!(self.config.cleanup, Cleanup::Compact | Cleanup::CompactAndDelete)
    }

    /// Whether the topic takes this payload: its form, its size, its key.
    pub fn check<'a>(&self, payload: &'a [u8]) -> Result<Payload<'a>, LogError> {
        let refused = |reason| LogError::RecordRefused { topic: self.name.clone(), reason };
        let parts = Payload::parse(payload).map_err(|error| refused(error.to_string()))?;
        if payload.len() > self.config.max_record_bytes {
            return Err(refused(format!(
                "it has {} bytes, more than the {} that the topic takes",
                payload.len(),
                self.config.max_record_bytes
            )));
        }
        if parts.key.is_none() && self.is_compacted() {
            return Err(refused("it has no key, and the topic is compacted by key".into()));
        }
        Ok(parts)
    }
}

/// What a partition holds, as it is written down with every commit to it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Span {
    /// The first offset there is.
    pub first: Offset,
    /// The next offset.
    pub end: Offset,
    /// The largest timestamp so far.
    pub max_timestamp: TimestampMs,
}

impl Span {
    /// What a new partition holds.
    pub const NEW: Self = Self { first: 0, end: 0, max_timestamp: TimestampMs::MIN };

    /// As it is stored.
    pub fn to_bytes(self) -> Vec<u8> {
        [self.first, self.end, self.max_timestamp].iter().flat_map(|number| number.to_be_bytes()).collect()
    }

    /// Reads what `to_bytes` wrote.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, LogError> {
        let number =
            |at: usize| bytes.get(at..at + 8).and_then(|b| b.try_into().ok()).map(i64::from_be_bytes);
        match (number(0), number(8), number(16), bytes.len()) {
            (Some(first), Some(end), Some(max_timestamp), 24) => Ok(Self { first, end, max_timestamp }),
            _ => Err(corrupt("what a partition holds")),
        }
    }
}

/// A topic as it is stored.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct StoredTopic {
    /// Its id.
    pub id: u64,
    /// The ids of its partitions.
    pub partitions: Vec<PartitionId>,
    cleanup: StoredCleanup,
    retention_ms: Option<u64>,
    retention_bytes: Option<u64>,
    max_record_bytes: u64,
    materialized: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum StoredCleanup {
    Delete,
    Compact,
    CompactAndDelete,
}

impl StoredTopic {
    /// A topic that begins here, its id and the ones after it for its partitions.
    pub fn new(id: u64, config: &TopicConfig) -> Self {
        Self {
            id,
            partitions: (0..u64::from(config.partitions)).map(|number| id + 1 + number).collect(),
            cleanup: match config.cleanup {
                Cleanup::Delete => StoredCleanup::Delete,
                Cleanup::Compact => StoredCleanup::Compact,
                Cleanup::CompactAndDelete => StoredCleanup::CompactAndDelete,
            },
            retention_ms: config.retention_ms,
            retention_bytes: config.retention_bytes,
            max_record_bytes: config.max_record_bytes as u64,
            materialized: config.materialized,
        }
    }

    /// The configuration.
    pub fn config(&self) -> TopicConfig {
        TopicConfig {
            partitions: self.partitions.len() as u32,
            cleanup: match self.cleanup {
                StoredCleanup::Delete => Cleanup::Delete,
                StoredCleanup::Compact => Cleanup::Compact,
                StoredCleanup::CompactAndDelete => Cleanup::CompactAndDelete,
            },
            retention_ms: self.retention_ms,
            retention_bytes: self.retention_bytes,
            max_record_bytes: usize::try_from(self.max_record_bytes).unwrap_or(usize::MAX),
            materialized: self.materialized,
        }
    }

    /// As it is stored.
    pub fn to_bytes(&self) -> Result<Vec<u8>, LogError> {
        serde_json::to_vec(self).map_err(|error| LogError::BadConfig(format!("topic configuration: {error}")))
    }

    /// Reads what `to_bytes` wrote.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, LogError> {
        serde_json::from_slice(bytes).map_err(|_| corrupt("the description of a topic"))
    }
}

/// Refuses a configuration that no topic can have.
pub fn check_config(name: &TopicName, config: &TopicConfig) -> Result<(), LogError> {
    let bad = |what: String| Err(LogError::BadConfig(format!("topic {name}: {what}")));
    if config.partitions == 0 || config.partitions > MAX_PARTITIONS {
        return bad(format!("{} partitions, it takes 1 to {MAX_PARTITIONS}", config.partitions));
    }
    if config.max_record_bytes == 0 || config.max_record_bytes > crate::log::MAX_RECORD_BYTES {
        return bad(format!(
            "records of at most {} bytes, it takes 1 to {}",
            config.max_record_bytes,
            crate::log::MAX_RECORD_BYTES
        ));
    }
    Ok(())
}

/// The key under which a topic is stored.
pub fn topic_key(name: &TopicName) -> Vec<u8> {
    [TOPIC_PREFIX, name.as_str().as_bytes()].concat()
}

/// The key under which it is stored what a partition holds.
pub fn span_key(partition: PartitionId) -> Vec<u8> {
    [SPAN_PREFIX, &partition.to_be_bytes()].concat()
}

/// The key that says that a partition's chunks are to be removed.
pub fn trash_key(partition: PartitionId) -> Vec<u8> {
    [TRASH_PREFIX, &partition.to_be_bytes()].concat()
}

/// The key under which a committed offset is stored. Group ids and topic names have no control characters.
pub fn offset_key(group: &ConsumerGroup, topic: &TopicName, partition: u32) -> Vec<u8> {
    let mut key = OFFSET_PREFIX.to_vec();
    key.extend_from_slice(group.as_str().as_bytes());
    key.push(0);
    key.extend_from_slice(topic.as_str().as_bytes());
    key.push(0);
    key.extend_from_slice(&partition.to_be_bytes());
    key
}

/// Reads what `offset_key` wrote.
pub fn parse_offset_key(key: &[u8]) -> Result<(ConsumerGroup, TopicName, u32), LogError> {
    let parse = || {
        let rest = key.strip_prefix(OFFSET_PREFIX)?;
        let mut parts = rest.splitn(3, |byte| *byte == 0);
        let group = std::str::from_utf8(parts.next()?).ok()?.parse().ok()?;
        let topic = std::str::from_utf8(parts.next()?).ok()?.parse().ok()?;
        let partition = u32::from_be_bytes(parts.next()?.try_into().ok()?);
        Some((group, topic, partition))
    };
    parse().ok_or_else(|| corrupt("a committed offset"))
}

/// Reads a number of the meta space.
pub fn number(bytes: &[u8]) -> Result<u64, LogError> {
    bytes.try_into().map(u64::from_be_bytes).map_err(|_| corrupt("a number"))
}

fn corrupt(what: &str) -> LogError {
    LogError::Corrupt(format!("{what} cannot be read: restore the store from a backup"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_stored_is_read_back() {
        let config = TopicConfig {
            partitions: 3,
            cleanup: Cleanup::CompactAndDelete,
            retention_ms: Some(5),
            materialized: true,
            ..TopicConfig::default()
        };
        let stored = StoredTopic::new(7, &config);
        assert_eq!(stored.partitions, [8, 9, 10]);
        let copy = StoredTopic::from_bytes(&stored.to_bytes().unwrap()).unwrap();
        assert_eq!(copy.config(), config);

        let (group, topic) = ("g/1".parse().unwrap(), "t".parse().unwrap());
        assert_eq!(parse_offset_key(&offset_key(&group, &topic, 256)).unwrap(), (group, topic, 256));

        let span = Span { first: 3, end: 9, max_timestamp: -4 };
        assert_eq!(Span::from_bytes(&span.to_bytes()).unwrap(), span);
        assert!(Span::from_bytes(&[0; 23]).is_err());
        assert!(parse_offset_key(b"o/x").is_err());
    }
}
