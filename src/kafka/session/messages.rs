//! From librdkafka's messages to records, ends of partitions and failures. Called by the intake alone.

use std::time::Duration;

use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::error::{KafkaResult, RDKafkaErrorCode as Code};

use super::start::Place;
use crate::core::ledger::TopicPartition;
use crate::core::record::{Batch, Offset};
use crate::kafka::context::Context;
use crate::kafka::error;
use crate::kafka::ffi::Message;
use crate::ports::{Event, LogError};

/// A single question to the cluster.
const ASK: Duration = Duration::from_secs(5);

/// A partition that the lane owns.
pub(super) struct Slot {
    pub(super) partition: TopicPartition,
    /// The offset at which the next record to hand out is, at least.
    pub(super) next: Offset,
    /// Where the partition ended, at the last stable offset, when it was last seen to.
    pub(super) end: Option<Offset>,
    pub(super) paused: bool,
    /// Its committed offset is gone: nothing of it is handed out.
    pub(super) is_gone: bool,
    /// How the client stands to it.
    pub(super) client: ClientSide,
}

/// What the client knows of a partition.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum ClientSide {
    /// It was not given it: the committed offset was gone at the time.
    Unassigned,
    /// It reads it.
    Assigned,
    /// It has given up on its position, and takes no seek until it is assigned anew.
    Adrift,
}

impl Slot {
    pub(super) fn at((partition, place): (TopicPartition, Place)) -> Self {
        let (next, is_gone, client) = match place {
            Place::At(offset) => (offset, false, ClientSide::Assigned),
            Place::Gone => (0, true, ClientSide::Unassigned),
        };
        Self { partition, next, end: None, paused: false, is_gone, client }
    }

    /// Where the client is to read, where it is known.
    pub(super) fn position(&self) -> Option<(&TopicPartition, Offset)> {
        (!self.is_gone).then_some((&self.partition, self.next))
    }

    /// Whether records of it are handed out.
    pub(super) fn is_open(&self) -> bool {
        !self.paused && !self.is_gone
    }
}

pub(super) fn owned_partitions(partitions: &[(String, u32)]) -> Vec<TopicPartition> {
    let parse =
        |(topic, partition): &(String, u32)| Some(TopicPartition::new(&topic.parse().ok()?, *partition));
    partitions.iter().filter_map(parse).collect()
}

pub(super) fn concerns(message: &Message<'_>, partitions: &[TopicPartition]) -> bool {
    partitions.iter().any(|p| p.partition == message.partition() && p.topic.as_str() == message.topic())
}

pub(super) fn find(slots: &[Slot], message: &Message<'_>) -> Option<usize> {
    let (topic, partition) = (message.topic(), message.partition());
    slots.iter().position(|s| s.partition.partition == partition && s.partition.topic.as_str() == topic)
}

pub(super) fn push(batch: &mut Batch, message: &Message<'_>) {
    let (timestamp, _) = message.timestamp();
    batch.push_parts(message.offset(), timestamp, message.key(), message.value(), message.headers());
}

pub(super) fn on_partition_error(
    consumer: &BaseConsumer<Context>,
    slot: &mut Slot,
    code: Code,
    message: &Message<'_>,
) -> Option<Event> {
    match code {
        Code::PartitionEOF => {
            if message.offset() < slot.next || !slot.is_open() {
                return None;
            }
            slot.next = message.offset();
            slot.end = Some(message.offset());
            Some(Event::CaughtUp { partition: slot.partition.clone(), next_offset: slot.next })
        }
        Code::AutoOffsetReset | Code::OffsetOutOfRange if slot.is_gone => None,
        Code::AutoOffsetReset | Code::OffsetOutOfRange => {
            let ends = ends_of(consumer, &slot.partition);
            let (partition, wanted) = (slot.partition.clone(), slot.next);
            slot.client = ClientSide::Adrift;
            // No answer is no proof that records are gone.
            let (first, end) = match ends {
                Ok(ends) => ends,
                Err(error) => {
                    let what = format!("cannot ask where {partition} starts and ends");
                    return Some(Event::Failed(LogError::Unavailable(format!("{what}: {error}"))));
                }
            };
            // The client says the same of a position that it lost while an assignment changed.
            if (first..=end).contains(&wanted) {
                let text = message.error_text();
                return Some(Event::Failed(LogError::Unavailable(format!(
                    "{partition} must be sought: {text}"
                ))));
            }
            let error = LogError::OffsetOutOfRange { partition: partition.clone(), wanted, first, end };
            Some(Event::Stuck { partition, error })
        }
        Code::UnknownTopicOrPartition | Code::UnknownTopic | Code::UnknownPartition => {
            Some(Event::Failed(LogError::UnknownTopic(slot.partition.topic.clone())))
        }
        code if error::mends_itself(code) => None,
        code => {
            let what = format!("cannot read {}: {}", slot.partition, message.error_text());
            match error::from_code(code, &what) {
                error @ LogError::Corrupt(_) => {
                    Some(Event::Stuck { partition: slot.partition.clone(), error })
                }
                error => Some(Event::Failed(error)),
            }
        }
    }
}

/// First offset and end of a partition, asked of its broker.
fn ends_of(consumer: &BaseConsumer<Context>, at: &TopicPartition) -> KafkaResult<(Offset, Offset)> {
    fail::fail_point!("kafka-ends", |_| Err(rdkafka::error::KafkaError::MetadataFetch(
        Code::OperationTimedOut
    )));
    consumer.fetch_watermarks(at.topic.as_str(), at.partition as i32, ASK)
}
