//! Where a partition starts: at its committed offset, or by the start policy. Always a real offset, never
//! the client's own reset.

use std::collections::BTreeMap;
use std::time::Duration;

use rdkafka::TopicPartitionList;
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::error::{KafkaError, RDKafkaErrorCode as Code};
use rdkafka::topic_partition_list::Offset as KafkaOffset;

use crate::core::deployment::StartOffset;
use crate::core::ledger::TopicPartition;
use crate::core::record::Offset;
use crate::kafka::context::Context;
use crate::kafka::{error, topics};
use crate::ports::{History, LogError};

/// A single question to the cluster.
const ASK: Duration = Duration::from_secs(3);

/// Where a partition goes on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Place {
    At(Offset),
    /// It had a committed offset, and has none any more: nobody knows where.
    Gone,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Known {
    /// What the start policy said, not committed yet.
    Found(Offset),
    /// There is, or was, a committed offset.
    Committed,
}

/// What a session knows of where partitions start. The start policy is asked once for each: later it may have another
/// answer, and records between the two would be left out or done again.
#[derive(Default)]
pub(super) struct Memory {
    /// What others know who had the partitions before.
    history: Option<Box<dyn History>>,
    known: BTreeMap<TopicPartition, Known>,
    /// How many are found and not committed.
    found: usize,
}

impl Memory {
    /// From now on a partition that others knew an offset of is none that starts.
    pub(super) fn recall(&mut self, history: Box<dyn History>) {
        self.history = Some(history);
    }

    /// The partitions of these with a committed offset.
    pub(super) fn settled<'a>(
        &'a self,
        of: impl Iterator<Item = &'a TopicPartition>,
    ) -> impl Iterator<Item = &'a TopicPartition> {
        of.filter(|partition| self.known.get(partition) == Some(&Known::Committed))
    }

    /// Whether every start offset is committed.
    pub(super) fn is_settled(&self) -> bool {
        self.found == 0
    }

    /// The partitions of these that start where the policy said, with no commit that says so yet.
    pub(super) fn uncommitted<'a>(
        &'a self,
        of: impl Iterator<Item = &'a TopicPartition>,
    ) -> impl Iterator<Item = (&'a TopicPartition, Offset)> {
        of.filter_map(|partition| match self.known.get(partition) {
            Some(Known::Found(offset)) => Some((partition, *offset)),
            _ => None,
        })
    }

    /// Offsets of these partitions were committed.
    pub(super) fn committed<'a>(&mut self, partitions: impl IntoIterator<Item = &'a TopicPartition>) {
        for partition in partitions {
            match self.known.get_mut(partition) {
                Some(Known::Committed) => {}
                Some(found) => {
                    *found = Known::Committed;
                    self.found -= 1;
                }
                None => drop(self.known.insert(partition.clone(), Known::Committed)),
            }
        }
    }

    /// Where a partition goes on, given its committed offset; `policy` says where one starts that is new.
    fn place(
        &mut self,
        partition: &TopicPartition,
        committed: Option<Offset>,
        policy: impl FnOnce() -> Result<Offset, LogError>,
    ) -> Result<Place, LogError> {
        if let Some(offset) = committed {
            self.committed([partition]);
            return Ok(Place::At(offset));
        }
        match self.known.get(partition) {
            Some(Known::Committed) => Ok(Place::Gone),
            Some(Known::Found(offset)) => Ok(Place::At(*offset)),
            None if self
                .history
                .as_ref()
                .map_or(Ok(false), |history| history.had_committed(partition))? =>
            {
                self.known.insert(partition.clone(), Known::Committed);
                Ok(Place::Gone)
            }
            None => {
                let offset = policy()?;
                self.known.insert(partition.clone(), Known::Found(offset));
                self.found += 1;
                Ok(Place::At(offset))
            }
        }
    }
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

/// Asks where these partitions go on.
pub(super) fn places(
    consumer: &BaseConsumer<Context>,
    partitions: &[TopicPartition],
    start: StartOffset,
    memory: &mut Memory,
) -> Result<Vec<(TopicPartition, Place)>, LogError> {
    if partitions.is_empty() {
        return Ok(Vec::new());
    }
    let what = "cannot read the committed offsets";
    let committed = consumer
        .committed_offsets(list(partitions.iter().map(|partition| (partition, 0))), ASK)
        .map_err(|e| error::from_kafka(&e, what))?;
    let mut places = Vec::with_capacity(partitions.len());
    for partition in partitions {
        let element = committed.find_partition(partition.topic.as_str(), partition.partition as i32);
        // An answer that is none must not be taken for "nothing is committed".
        if let Some(refused) = element.as_ref().and_then(|element| element.error().err()) {
            return Err(asked(consumer, &refused, partition, &format!("{what} of {partition}")));
        }
        let known = element.and_then(|element| match element.offset() {
            KafkaOffset::Offset(offset) => Some(offset),
            _ => None,
        });
        let place = memory.place(partition, known, || by_policy(consumer, partition, start))?;
        places.push((partition.clone(), place));
    }
    Ok(places)
}

fn by_policy(
    consumer: &BaseConsumer<Context>,
    partition: &TopicPartition,
    start: StartOffset,
) -> Result<Offset, LogError> {
    let (topic, number) = (partition.topic.as_str(), partition.partition as i32);
    // Committed records only: the second is the last stable offset.
    let (first, end) = topics::watermarks(consumer, topic, number, ASK).map_err(|e| {
        asked(consumer, &e, partition, &format!("cannot ask where {partition} starts and ends"))
    })?;
    let count = |records: u64| i64::try_from(records).unwrap_or(i64::MAX);
    Ok(match start {
        StartOffset::Earliest => first,
        StartOffset::Latest => end,
        StartOffset::FromStart { records } => first.saturating_add(count(records)).min(end),
        StartOffset::FromEnd { records } => end.saturating_sub(count(records)).max(first),
        StartOffset::Timestamp { timestamp } => {
            let what = format!("cannot ask {partition} for a time");
            topics::offset_at(consumer, topic, number, timestamp, ASK)
                .map_err(|e| asked(consumer, &e, partition, &what))?
                .unwrap_or(end)
        }
    })
}

fn asked(
    consumer: &BaseConsumer<Context>,
    failed: &KafkaError,
    partition: &TopicPartition,
    what: &str,
) -> LogError {
    match error::code(failed) {
        // The client says the first also of a partition that has no leader at the moment.
        Some(Code::UnknownPartition) => match topics::partitions_of(consumer.client(), &partition.topic, ASK)
        {
            Ok(count) if partition.partition < count => {
                LogError::Unavailable(format!("{what}: it has no leader, is the broker down that has it?"))
            }
            Ok(_) => LogError::UnknownTopic(partition.topic.clone()),
            Err(error) => error,
        },
        Some(Code::UnknownTopic | Code::UnknownTopicOrPartition) => {
            LogError::UnknownTopic(partition.topic.clone())
        }
        _ => error::from_kafka(failed, what),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_start_policy_is_asked_once() {
        let partition = TopicPartition::new(&"t".parse().unwrap(), 0);
        let mut memory = Memory::default();
        let mut place = |committed, policy| memory.place(&partition, committed, || Ok(policy)).unwrap();
        assert_eq!(place(None, 100), Place::At(100));
        // Latest has moved on, and nothing is committed yet.
        assert_eq!(place(None, 150), Place::At(100));
        assert_eq!(place(Some(120), 0), Place::At(120));
        assert_eq!(place(None, 0), Place::Gone, "somebody removed what was committed");
        assert_eq!(place(Some(7), 0), Place::At(7), "and set it again");
    }

    /// Others knew an offset of partition 1, and do not say of partition 2.
    struct Others;

    impl History for Others {
        fn had_committed(&self, at: &TopicPartition) -> Result<bool, LogError> {
            match at.partition {
                2 => Err(LogError::Unavailable("not now".to_owned())),
                partition => Ok(partition == 1),
            }
        }
    }

    #[test]
    fn what_others_committed_is_no_start() {
        let at = |partition| TopicPartition::new(&"t".parse().unwrap(), partition);
        let mut memory = Memory::default();
        memory.recall(Box::new(Others));
        let mut place = |partition, committed| memory.place(&at(partition), committed, || Ok(100));
        assert_eq!(place(0, None).unwrap(), Place::At(100));
        assert_eq!(place(1, None).unwrap(), Place::Gone);
        assert_eq!(place(1, Some(7)).unwrap(), Place::At(7), "somebody decided");
        assert!(place(2, None).is_err(), "no answer is not a no");
        assert_eq!(place(2, Some(3)).unwrap(), Place::At(3), "nobody is asked where there is one");
    }

    #[test]
    fn what_was_found_is_to_be_committed_once() {
        let partition = TopicPartition::new(&"t".parse().unwrap(), 0);
        let mut memory = Memory::default();
        memory.place(&partition, None, || Ok(5)).unwrap();
        let left = |memory: &Memory| memory.uncommitted([&partition].into_iter()).count();
        assert_eq!((left(&memory), memory.is_settled()), (1, false));
        memory.committed([&partition]);
        memory.committed([&partition]);
        assert_eq!((left(&memory), memory.is_settled()), (0, true));
    }
}
