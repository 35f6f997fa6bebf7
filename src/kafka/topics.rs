//! What a topic looks like: partitions, limits, configuration, and how ours map to Kafka's.

use std::time::{Duration, Instant};

use rdkafka::ClientContext;
use rdkafka::client::Client;
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::error::{KafkaError, KafkaResult, RDKafkaErrorCode as Code};
use rdkafka::metadata::MetadataTopic;
use rdkafka::topic_partition_list::{Offset as KafkaOffset, TopicPartitionList};

use super::context::Context;
use super::{error, ffi};
use crate::core::names::TopicName;
use crate::core::record::{Offset, Payload, TimestampMs};
use crate::ports::{Cleanup, LogError, TopicConfig, TopicInfo};

/// What an output record must fit.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct TopicShape {
    pub(super) partitions: u32,
    /// `None` where the cluster does not let us know.
    limits: Option<Limits>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Limits {
    max_bytes: usize,
    needs_key: bool,
}

/// What a batch of one record adds to the record: its header (61 bytes) and the record's own length, attributes,
/// timestamp and offset (at most 5 + 1 + 10 + 5). The broker's limit counts them.
const BATCH_OVERHEAD: usize = 61 + 21;

impl TopicShape {
    /// Whether the topic takes such a record.
    pub(super) fn check(&self, topic: &TopicName, payload: &Payload<'_>, len: usize) -> Result<(), LogError> {
        let Some(limits) = self.limits else { return Ok(()) };
        let reason = if len + BATCH_OVERHEAD > limits.max_bytes {
            format!(
                "it has {len} bytes, the topic's max.message.bytes of {} takes {}",
                limits.max_bytes,
                limits.max_bytes.saturating_sub(BATCH_OVERHEAD)
            )
        } else if limits.needs_key && payload.key.is_none() {
            "it has no key, and the topic is compacted".to_owned()
        } else {
            return Ok(());
        };
        Err(LogError::RecordRefused { topic: topic.clone(), reason })
    }

    /// The limits of a configuration, where it is known; how many partitions there are is yet to be asked.
    pub(super) fn limited_by(config: Option<&TopicConfig>) -> Self {
        let limits = config.map(|config| Limits {
            max_bytes: config.max_record_bytes,
            needs_key: config.cleanup != Cleanup::Delete,
        });
        Self { partitions: 0, limits }
    }

    /// The topic's `max.message.bytes`.
    pub(super) fn max_bytes(&self) -> Option<usize> {
        self.limits.map(|limits| limits.max_bytes)
    }
}

/// Asks how many partitions a topic has; that each has a leader is not asked.
pub(super) fn partitions_of<C: ClientContext>(
    client: &Client<C>,
    topic: &TopicName,
    wait: Duration,
) -> Result<u32, LogError> {
    let what = || format!("cannot ask about topic {topic}");
    let metadata =
        client.fetch_metadata(Some(topic.as_str()), wait).map_err(|e| error::from_kafka(&e, &what()))?;
    let found = metadata.topics().first();
    let refused: Option<Code> = found.and_then(MetadataTopic::error).map(Into::into);
    match (refused, found) {
        (None, Some(found)) if !found.partitions().is_empty() => Ok(found.partitions().len() as u32),
        (Some(Code::UnknownTopicOrPartition | Code::UnknownTopic) | None, _) => {
            Err(LogError::UnknownTopic(topic.clone()))
        }
        (Some(code), _) => Err(error::from_code(code, &what())),
    }
}

/// First and last stable offset of a partition. Asked again while its leader does not know yet that it is the leader, as
/// for a moment after the topic was made.
pub(super) fn watermarks(
    consumer: &BaseConsumer<Context>,
    topic: &str,
    partition: i32,
    wait: Duration,
) -> KafkaResult<(Offset, Offset)> {
    let deadline = Instant::now() + wait;
    loop {
        let found = consumer.fetch_watermarks(topic, partition, wait);
        let is_new = |e: &KafkaError| {
            matches!(error::code(e), Some(Code::NotLeaderForPartition | Code::LeaderNotAvailable))
        };
        if Instant::now() > deadline || !found.as_ref().err().is_some_and(is_new) {
            return found;
        }
        std::thread::sleep(Duration::from_millis(50));
    }
}

/// The offset of the first committed record that is not older; `None` where there is none.
///
/// Each partition has its own question, and its answer is looked at: a partition that the client could not ask comes back
/// with the time where its offset would be, beside others that it could.
pub(super) fn offset_at(
    consumer: &BaseConsumer<Context>,
    topic: &str,
    partition: i32,
    timestamp: TimestampMs,
    wait: Duration,
) -> KafkaResult<Option<Offset>> {
    let mut list = TopicPartitionList::new();
    list.add_partition_offset(topic, partition, KafkaOffset::Offset(timestamp.max(0)))?;
    let found = consumer.offsets_for_times(list, wait)?;
    // The first answer is not the last one where the client has asked twice.
    for element in found.elements() {
        element.error()?;
    }
    match found.find_partition(topic, partition).map(|element| element.offset()) {
        Some(KafkaOffset::Offset(offset)) => Ok(Some(offset)),
        Some(KafkaOffset::End) => Ok(None),
        _ => Err(KafkaError::OffsetFetch(Code::InvalidTimestamp)),
    }
}

/// A topic's id and number of partitions; `None` when there is none.
pub(super) fn identity(
    client: &Client<Context>,
    topic: &TopicName,
    wait: Duration,
) -> Result<Option<(String, u32)>, LogError> {
    match ffi::describe_topic(client.native_ptr(), topic.as_str(), wait) {
        Ok(found) => Ok(Some(found)),
        Err(Code::UnknownTopicOrPartition | Code::UnknownTopic) => Ok(None),
        Err(code) => Err(error::from_code(code, &format!("cannot ask about topic {topic}"))),
    }
}

/// Reads the configuration of topics; `None` where there is no such topic.
pub(super) fn configs<C: ClientContext>(
    client: &Client<C>,
    topics: &[(TopicName, u32)],
    wait: Duration,
) -> Result<Vec<Option<TopicConfig>>, LogError> {
    if topics.is_empty() {
        return Ok(Vec::new());
    }
    let names: Vec<&str> = topics.iter().map(|(topic, _)| topic.as_str()).collect();
    let answers = ffi::topic_settings(client.native_ptr(), &names, wait)
        .map_err(|code| error::from_code(code, "cannot read the configuration of topics"))?;
    let config = |(answer, (topic, partitions)): (ffi::Settings, &(TopicName, u32))| match answer {
        Ok(settings) => Ok(Some(from_settings(&settings, *partitions, topic))),
        Err(Code::UnknownTopicOrPartition) => Ok(None),
        Err(code) => Err(error::from_code(code, &format!("cannot read the configuration of {topic}"))),
    };
    answers.into_iter().zip(topics).map(config).collect()
}

/// One topic, `None` when there is none of that name. A topic that was just made is known to some brokers before
/// others: those that do not know it yet are asked again.
pub(super) fn look_at(
    client: &Client<Context>,
    name: &TopicName,
    wait: Duration,
) -> Result<Option<TopicInfo>, LogError> {
    let deadline = Instant::now() + wait;
    loop {
        let Some((id, partitions)) = identity(client, name, wait)? else { return Ok(None) };
        if let Some(config) = configs(client, &[(name.clone(), partitions)], wait)?.pop().flatten() {
            return Ok(Some(TopicInfo { name: name.clone(), id, config }));
        }
        if Instant::now() > deadline {
            return Err(LogError::Unavailable(format!("topic {name} is not known to every broker yet")));
        }
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// After how long tombstones of a topic may go.
pub(super) fn delete_retention(
    client: &Client<Context>,
    topic: &TopicName,
    wait: Duration,
) -> Result<Duration, LogError> {
    // Who may not know does with Kafka's own.
    let settings = settings(client, topic, wait)?.unwrap_or_default();
    let found = settings.iter().find(|setting| setting.name == "delete.retention.ms");
    let millis = found.and_then(|setting| setting.value.parse().ok()).unwrap_or(86_400_000);
    Ok(Duration::from_millis(millis))
}

fn settings(client: &Client<Context>, topic: &TopicName, wait: Duration) -> Result<ffi::Settings, LogError> {
    let mut answers = ffi::topic_settings(client.native_ptr(), &[topic.as_str()], wait)
        .map_err(|code| error::from_code(code, "cannot read the configuration of topics"))?;
    Ok(answers.pop().unwrap_or(Err(Code::Fail)))
}

/// What a topic was given itself, to be given to one like it.
pub(super) fn own_settings(
    client: &Client<Context>,
    topic: &TopicName,
    wait: Duration,
) -> Result<Vec<(String, String)>, LogError> {
    let own = settings(client, topic, wait)?
        .map_err(|code| error::from_code(code, &format!("cannot read the configuration of {topic}")))?;
    let own = own.into_iter().filter(|setting| setting.is_own && is_for_others(&setting.name));
    Ok(own.map(|setting| (setting.name, setting.value)).collect())
}

/// Whether a setting says the same of another topic. Throttled replicas are numbers of brokers; a vendor's settings may
/// contradict what Kafka is asked for; and what is derived keeps the timestamps of its source, however old they are.
fn is_for_others(name: &str) -> bool {
    let not = ["message.timestamp.", "confluent.", "redpanda."];
    !name.ends_with("throttled.replicas") && !not.iter().any(|prefix| name.starts_with(prefix))
}

fn from_settings(settings: &[ffi::Setting], partitions: u32, topic: &TopicName) -> TopicConfig {
    let text = |name: &str| {
        settings.iter().find(|setting| setting.name == name).map(|setting| setting.value.as_str())
    };
    // Negative means no limit.
    let number = |name: &str| text(name).and_then(|text| text.parse::<u64>().ok());
    let policy = text("cleanup.policy").unwrap_or("delete");
    let cleanup = match (policy.contains("compact"), policy.contains("delete")) {
        (true, true) => Cleanup::CompactAndDelete,
        (true, false) => Cleanup::Compact,
        _ => Cleanup::Delete,
    };
    let max = number("max.message.bytes").and_then(|max| usize::try_from(max).ok());
    TopicConfig {
        partitions,
        cleanup,
        retention_ms: number("retention.ms"),
        retention_bytes: number("retention.bytes"),
        max_record_bytes: max.unwrap_or(1 << 20),
        materialized: topic.as_materialized().is_some(),
    }
}

/// Our configuration in Kafka's words.
pub(super) fn entries(config: &TopicConfig) -> Vec<(&'static str, String)> {
    let limit = |value: Option<u64>| value.map_or_else(|| "-1".to_owned(), |value| value.to_string());
    let cleanup = match config.cleanup {
        Cleanup::Delete => "delete",
        Cleanup::Compact => "compact",
        Cleanup::CompactAndDelete => "compact,delete",
    };
    vec![
        ("cleanup.policy", cleanup.to_owned()),
        ("retention.ms", limit(config.retention_ms)),
        ("retention.bytes", limit(config.retention_bytes)),
        ("max.message.bytes", config.max_record_bytes.to_string()),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::core::record::Record;

    #[test]
    fn a_record_has_to_fit_the_topic() {
        let topic: TopicName = "t".parse().unwrap();
        let config = TopicConfig { max_record_bytes: 200, ..TopicConfig::compacted() };
        let shape = TopicShape::limited_by(Some(&config));
        let cases = [
            (Record::new(Some(b"k"), None), None),
            (Record::new(None, Some(b"v")), Some("no key")),
            (Record::new(Some(b"k"), Some(&[0; 200])), Some("max.message.bytes")),
        ];
        for (record, refused) in cases {
            let bytes = record.payload();
            let checked = shape.check(&topic, &Payload::parse(&bytes).unwrap(), bytes.len());
            match refused {
                None => assert!(checked.is_ok()),
                Some(says) => assert!(checked.unwrap_err().to_string().contains(says)),
            }
        }
    }
}
