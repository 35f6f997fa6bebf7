//! What callers ask the writer for.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::core::ledger::TopicPartition;
use crate::core::names::ConsumerGroup;
use crate::core::record::{Offset, TimestampMs};
use crate::log::answer::Answer;
use crate::log::catalog::{Topic, offset_key};
use crate::log::engine::Write;
use crate::log::frame::Body;
use crate::log::store::Store;
use crate::ports::LogError;

/// Bodies are closed when they are this long, so that no reader has to load a whole transaction.
pub const BODY_BYTES: usize = 192 << 10;

/// What an edit does once it is durable.
pub type Effect = Box<dyn FnOnce(&Store) + Send>;
/// Decides about an edit, on the writer's thread.
pub type Plan = Box<dyn FnOnce(&Store) -> Result<(Vec<Write>, Effect), LogError> + Send>;

/// Something for the writer to do.
pub enum Request {
    /// Records and offsets, visible together or not at all.
    Commit(Commit),
    /// A change of the catalog or of chunks, alone.
    Edit(Edit),
}

impl Request {
    /// About how much memory it takes.
    pub fn bytes(&self) -> usize {
        match self {
            Self::Commit(commit) => {
                256 + commit.appends.iter().map(|append| 128 + append.body.len()).sum::<usize>()
            }
            Self::Edit(edit) => edit.bytes,
        }
    }

    /// Answers with an error.
    pub fn refuse(self, error: LogError) {
        match self {
            Self::Commit(commit) => commit.answer.give(Err(error)),
            Self::Edit(edit) => edit.answer.give(Err(error)),
        }
    }
}

/// Records and offsets that become visible together.
pub struct Commit {
    /// The records.
    pub appends: Vec<Append>,
    /// The offsets.
    pub offsets: Vec<OffsetChange>,
    /// Who may write.
    pub fence: Option<Fence>,
    /// Where each of the appends went.
    pub answer: Answer<Vec<Appended>>,
}

impl Commit {
    /// Whether it may be written now.
    pub fn check(&self) -> Result<(), LogError> {
        if let Some(fence) = &self.fence {
            fence.check()?;
        }
        for append in &self.appends {
            if append.topic.is_deleted() {
                return Err(LogError::UnknownTopic(append.topic.name.clone()));
            }
            append.topic.partition(append.partition)?;
        }
        for change in &self.offsets {
            if change.topic.is_deleted() {
                return Err(LogError::UnknownTopic(change.topic.name.clone()));
            }
        }
        Ok(())
    }
}

/// Records for one partition.
pub struct Append {
    /// The topic.
    pub topic: Arc<Topic>,
    /// The partition.
    pub partition: u32,
    /// The records.
    pub body: Body,
    /// Their checksum.
    pub hash: u64,
}

impl Append {
    /// Records for a partition, with their checksum worked out on the caller's thread.
    pub fn new(topic: Arc<Topic>, partition: u32, body: Body) -> Self {
        let hash = body.hash();
        Self { topic, partition, body, hash }
    }
}

/// Where records went.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Appended {
    /// The offset of the first.
    pub base: Offset,
    /// When the log took them.
    pub append_ms: TimestampMs,
}

/// A committed offset.
pub struct OffsetChange {
    /// Whose.
    pub group: ConsumerGroup,
    /// The topic.
    pub topic: Arc<Topic>,
    /// The partition.
    pub partition: u32,
    /// The next offset to process.
    pub to: Offset,
}

impl OffsetChange {
    /// The key under which it is stored.
    pub fn key(&self) -> Vec<u8> {
        offset_key(&self.group, &self.topic.name, self.partition)
    }

    /// Which partition.
    pub fn topic_partition(&self) -> TopicPartition {
        TopicPartition::new(&self.topic.name, self.partition)
    }
}

/// A claim to an id: a later one ends it.
#[derive(Debug, Clone)]
pub struct Fence {
    /// What was claimed, for people.
    pub what: String,
    /// The claims so far.
    pub cell: Arc<AtomicU64>,
    /// The number of this claim.
    pub epoch: u64,
}

impl Fence {
    /// Whether the claim still holds.
    pub fn check(&self) -> Result<(), LogError> {
        if self.cell.load(Ordering::Acquire) == self.epoch {
            Ok(())
        } else {
            Err(LogError::Fenced(self.what.clone()))
        }
    }
}

/// A change of the catalog or of chunks.
pub struct Edit {
    /// Decides, on the writer's thread.
    pub plan: Plan,
    /// About how much memory it takes.
    pub bytes: usize,
    /// Whether it was done.
    pub answer: Answer<()>,
}
