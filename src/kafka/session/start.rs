//! Where a partition starts: at its committed offset, or by the start policy. Always a real offset, never
//! the client's own reset.

use std::time::Duration;

use rdkafka::TopicPartitionList;
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::error::{KafkaError, RDKafkaErrorCode as Code};
use rdkafka::topic_partition_list::Offset as KafkaOffset;

use crate::core::deployment::StartOffset;
use crate::core::ledger::TopicPartition;
use crate::core::record::Offset;
use crate::kafka::context::Context;
use crate::kafka::error;
use crate::ports::LogError;

/// A single question to the cluster.
const ASK: Duration = Duration::from_secs(3);

/// Where a partition starts, and whether that is a committed offset.
pub(super) struct Start {
    pub(super) partition: TopicPartition,
    pub(super) offset: Offset,
    pub(super) committed: bool,
}

/// A list as the client wants it.
pub(super) fn list<'a>(offsets: impl Iterator<Item = (&'a TopicPartition, Offset)>) -> TopicPartitionList {
    let mut list = TopicPartitionList::new();
    for (partition, offset) in offsets {
        // Fails only for offsets that are logical; ours are real.
        let number = partition.partition as i32;
        let _ = list.add_partition_offset(partition.topic.as_str(), number, KafkaOffset::Offset(offset));
    }
    list
}

/// Asks where these partitions start.
pub(super) fn positions(
    consumer: &BaseConsumer<Context>,
    partitions: &[TopicPartition],
    start: StartOffset,
) -> Result<Vec<Start>, LogError> {
    if partitions.is_empty() {
        return Ok(Vec::new());
    }
    let committed = consumer
        .committed_offsets(list(partitions.iter().map(|partition| (partition, 0))), ASK)
        .map_err(|e| error::from_kafka(&e, "cannot read the committed offsets"))?;
    let mut starts = Vec::with_capacity(partitions.len());
    for partition in partitions {
        let element = committed.find_partition(partition.topic.as_str(), partition.partition as i32);
        let known = element.and_then(|element| match element.offset() {
            KafkaOffset::Offset(offset) => Some(offset),
            _ => None,
        });
        let offset = match known {
            Some(offset) => offset,
            None => by_policy(consumer, partition, start)?,
        };
        starts.push(Start { partition: partition.clone(), offset, committed: known.is_some() });
    }
    Ok(starts)
}

fn by_policy(
    consumer: &BaseConsumer<Context>,
    partition: &TopicPartition,
    start: StartOffset,
) -> Result<Offset, LogError> {
    let (topic, number) = (partition.topic.as_str(), partition.partition as i32);
    // Committed records only: the second is the last stable offset.
    let (first, end) = consumer
        .fetch_watermarks(topic, number, ASK)
        .map_err(|e| asked(&e, partition, &format!("cannot ask where {partition} starts and ends")))?;
    let count = |records: u64| i64::try_from(records).unwrap_or(i64::MAX);
    Ok(match start {
        StartOffset::Earliest => first,
        StartOffset::Latest => end,
        StartOffset::FromStart { records } => first.saturating_add(count(records)).min(end),
        StartOffset::FromEnd { records } => end.saturating_sub(count(records)).max(first),
        StartOffset::Timestamp { timestamp } => {
            let found = consumer
                .offsets_for_times(list([(partition, timestamp)].into_iter()), ASK)
                .map_err(|e| asked(&e, partition, &format!("cannot ask {partition} for a time")))?;
            match found.find_partition(topic, number).map(|element| element.offset()) {
                Some(KafkaOffset::Offset(offset)) => offset,
                _ => end,
            }
        }
    })
}

fn asked(failed: &KafkaError, partition: &TopicPartition, what: &str) -> LogError {
    match error::code(failed) {
        Some(Code::UnknownPartition | Code::UnknownTopic | Code::UnknownTopicOrPartition) => {
            LogError::UnknownTopic(partition.topic.clone())
        }
        _ => error::from_kafka(failed, what),
    }
}
