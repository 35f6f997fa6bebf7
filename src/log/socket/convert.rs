//! Between the port's types and the wire's. Errors go over losslessly, as the details of a status.

use prost::Message;
use tonic::{Code, Status};

use super::generated as wire;
use crate::core::ledger::TopicPartition;
use crate::core::record::{Offset, Record};
use crate::ports::{Cleanup, Fetched, FoldEvent, Keyed, LogError, Produce, ReadFrom, TopicConfig, TopicInfo};

use wire::error::Kind;

/// A name of the wire's.
pub fn name<T: std::str::FromStr<Err: std::fmt::Display>>(text: &str) -> Result<T, LogError> {
    text.parse().map_err(|error: T::Err| LogError::BadConfig(error.to_string()))
}

/// What has to be there and is not.
pub fn missing(what: &str) -> LogError {
    LogError::BadConfig(format!("the message has no {what}: use the same version of coproc on both sides"))
}

/// A configuration for the wire.
pub fn config_out(config: &TopicConfig) -> wire::TopicConfig {
    wire::TopicConfig {
        partitions: config.partitions,
        cleanup: match config.cleanup {
            Cleanup::Delete => wire::Cleanup::Delete,
            Cleanup::Compact => wire::Cleanup::Compact,
            Cleanup::CompactAndDelete => wire::Cleanup::CompactAndDelete,
        }
        .into(),
        retention_ms: config.retention_ms,
        retention_bytes: config.retention_bytes,
        max_record_bytes: config.max_record_bytes as u64,
        materialized: config.materialized,
    }
}

/// A configuration from the wire.
pub fn config_in(config: Option<wire::TopicConfig>) -> Result<TopicConfig, LogError> {
    let config = config.ok_or_else(|| missing("configuration"))?;
    Ok(TopicConfig {
        partitions: config.partitions,
        cleanup: match wire::Cleanup::try_from(config.cleanup) {
            Ok(wire::Cleanup::Delete) => Cleanup::Delete,
            Ok(wire::Cleanup::Compact) => Cleanup::Compact,
            Ok(wire::Cleanup::CompactAndDelete) => Cleanup::CompactAndDelete,
            Err(_) => return Err(missing("clean-up policy")),
        },
        retention_ms: config.retention_ms,
        retention_bytes: config.retention_bytes,
        max_record_bytes: usize::try_from(config.max_record_bytes).unwrap_or(usize::MAX),
        materialized: config.materialized,
    })
}

/// A topic for the wire.
pub fn topic_out(info: &TopicInfo) -> wire::Topic {
    wire::Topic { name: info.name.to_string(), id: info.id.clone(), config: Some(config_out(&info.config)) }
}

/// A topic from the wire.
pub fn topic_in(topic: wire::Topic) -> Result<TopicInfo, LogError> {
    Ok(TopicInfo { name: name(&topic.name)?, id: topic.id, config: config_in(topic.config)? })
}

/// A record for the wire.
pub fn record_out(record: &Record) -> wire::Record {
    wire::Record { payload: record.payload(), timestamp_ms: record.timestamp }
}

/// A record from the wire.
pub fn record_in(record: Option<wire::Record>) -> Result<Record, LogError> {
    let record = record.ok_or_else(|| missing("record"))?;
    let copy = Record::from_payload(&record.payload, 0)
        .map_err(|error| LogError::BadConfig(format!("a record that is none: {error}")))?;
    Ok(Record { timestamp: record.timestamp_ms, ..copy })
}

/// A record to produce, for the wire.
pub fn produce_out(produce: &Produce) -> wire::ProduceRecord {
    wire::ProduceRecord {
        topic: produce.topic.to_string(),
        partition: produce.partition,
        record: Some(record_out(&produce.record)),
    }
}

/// A record to produce, from the wire.
pub fn produce_in(produce: wire::ProduceRecord) -> Result<Produce, LogError> {
    Ok(Produce {
        topic: name(&produce.topic)?,
        partition: produce.partition,
        record: record_in(produce.record)?,
    })
}

/// A record that was read, for the wire.
pub fn fetched_out(fetched: &Fetched) -> wire::Fetched {
    wire::Fetched {
        partition: fetched.partition,
        offset: fetched.offset,
        appended_ms: fetched.appended_ms,
        record: Some(record_out(&fetched.record)),
    }
}

/// A record that was read, from the wire.
pub fn fetched_in(fetched: wire::Fetched) -> Result<Fetched, LogError> {
    Ok(Fetched {
        partition: fetched.partition,
        offset: fetched.offset,
        appended_ms: fetched.appended_ms,
        record: record_in(fetched.record)?,
    })
}

/// A keyed record for the wire.
pub fn keyed_out(keyed: &Keyed) -> wire::Keyed {
    wire::Keyed { key: keyed.key.clone(), value: keyed.value.clone() }
}

/// A keyed record from the wire.
pub fn keyed_in(keyed: wire::Keyed) -> Keyed {
    Keyed { key: keyed.key, value: keyed.value }
}

/// A committed offset for the wire.
pub fn offset_out(at: &TopicPartition, offset: Offset) -> wire::PartitionOffset {
    wire::PartitionOffset { topic: at.topic.to_string(), partition: at.partition, offset }
}

/// A committed offset from the wire.
pub fn offset_in(offset: &wire::PartitionOffset) -> Result<(TopicPartition, Offset), LogError> {
    let at = TopicPartition { topic: name(&offset.topic)?, partition: offset.partition };
    Ok((at, offset.offset))
}

/// Where a reader starts, for the wire.
pub fn from_out(from: ReadFrom) -> wire::open_reader::From {
    match from {
        ReadFrom::Start => wire::open_reader::From::Start(wire::Empty {}),
        ReadFrom::End => wire::open_reader::From::End(wire::Empty {}),
        ReadFrom::Offset(offset) => wire::open_reader::From::Offset(offset),
        ReadFrom::Timestamp(ms) => wire::open_reader::From::TimestampMs(ms),
        ReadFrom::Last(records) => wire::open_reader::From::Last(records),
    }
}

/// Where a reader starts, from the wire.
pub fn from_in(from: Option<wire::open_reader::From>) -> Result<ReadFrom, LogError> {
    Ok(match from.ok_or_else(|| missing("place to read from"))? {
        wire::open_reader::From::Start(_) => ReadFrom::Start,
        wire::open_reader::From::End(_) => ReadFrom::End,
        wire::open_reader::From::Offset(offset) => ReadFrom::Offset(offset),
        wire::open_reader::From::TimestampMs(ms) => ReadFrom::Timestamp(ms),
        wire::open_reader::From::Last(records) => ReadFrom::Last(records),
    })
}

/// What a fold reports, for the wire.
pub fn event_out(event: FoldEvent) -> wire::FoldEvent {
    use wire::fold_event::Kind;
    let kind = match event {
        FoldEvent::Record { key, value, offset, appended_ms } => {
            Kind::Record(wire::FoldRecord { key, value, offset, appended_ms })
        }
        FoldEvent::CaughtUp => Kind::CaughtUp(wire::Empty {}),
        FoldEvent::Reset => Kind::Reset(wire::Empty {}),
        FoldEvent::Idle => Kind::Idle(wire::Empty {}),
    };
    wire::FoldEvent { kind: Some(kind) }
}

/// What a fold reports, from the wire.
pub fn event_in(event: wire::FoldEvent) -> Result<FoldEvent, LogError> {
    use wire::fold_event::Kind;
    Ok(match event.kind.ok_or_else(|| missing("event"))? {
        Kind::Record(wire::FoldRecord { key, value, offset, appended_ms }) => {
            FoldEvent::Record { key, value, offset, appended_ms }
        }
        Kind::CaughtUp(_) => FoldEvent::CaughtUp,
        Kind::Reset(_) => FoldEvent::Reset,
        Kind::Idle(_) => FoldEvent::Idle,
    })
}

/// An error for the wire.
pub fn error_out(error: &LogError) -> wire::Error {
    let said = |kind: Kind, message: &str| wire::Error {
        kind: kind.into(),
        message: message.to_owned(),
        ..wire::Error::default()
    };
    match error {
        LogError::UnknownTopic(topic) => {
            wire::Error { topic: topic.to_string(), ..said(Kind::UnknownTopic, "") }
        }
        LogError::UnknownPartition { topic, partition, count } => wire::Error {
            topic: topic.to_string(),
            partition: *partition,
            partition_count: *count,
            ..said(Kind::UnknownPartition, "")
        },
        LogError::TopicExists(topic) => {
            wire::Error { topic: topic.to_string(), ..said(Kind::TopicExists, "") }
        }
        LogError::NotWritable { topic, reason } => {
            wire::Error { topic: topic.to_string(), ..said(Kind::NotWritable, reason) }
        }
        LogError::RecordRefused { topic, reason } => {
            wire::Error { topic: topic.to_string(), ..said(Kind::RecordRefused, reason) }
        }
        LogError::OffsetOutOfRange { partition, wanted, first, end } => wire::Error {
            topic: partition.topic.to_string(),
            partition: partition.partition,
            wanted: *wanted,
            first: *first,
            end: *end,
            ..said(Kind::OffsetOutOfRange, "")
        },
        LogError::Storage(message) => said(Kind::Storage, message),
        LogError::Corrupt(message) => said(Kind::Corrupt, message),
        LogError::Locked(message) => said(Kind::Locked, message),
        LogError::Fenced(message) => said(Kind::Fenced, message),
        // The embedded log's transactions do not expire.
        LogError::Unavailable(message) | LogError::Expired(message) => said(Kind::Unavailable, message),
        LogError::Refused(message) => said(Kind::Refused, message),
        // The embedded log knows of no readers but its own.
        LogError::GroupInUse { .. } => said(Kind::Refused, &error.to_string()),
        LogError::BadConfig(message) => said(Kind::BadConfig, message),
        LogError::Uncertain(message) => said(Kind::Uncertain, message),
    }
}

/// An error from the wire.
pub fn error_in(error: wire::Error) -> LogError {
    let kind = error.kind();
    let wire::Error { message, topic, partition, partition_count, wanted, first, end, .. } = error;
    let Ok(topic) = name(if topic.is_empty() { "-" } else { &topic }) else {
        return LogError::Unavailable(format!("an error with the topic {topic:?}: {message}"));
    };
    match kind {
        Kind::UnknownTopic => LogError::UnknownTopic(topic),
        Kind::UnknownPartition => LogError::UnknownPartition { topic, partition, count: partition_count },
        Kind::TopicExists => LogError::TopicExists(topic),
        Kind::NotWritable => LogError::NotWritable { topic, reason: message },
        Kind::RecordRefused => LogError::RecordRefused { topic, reason: message },
        Kind::OffsetOutOfRange => {
            LogError::OffsetOutOfRange { partition: TopicPartition { topic, partition }, wanted, first, end }
        }
        Kind::Storage => LogError::Storage(message),
        Kind::Corrupt => LogError::Corrupt(message),
        Kind::Locked => LogError::Locked(message),
        Kind::Fenced => LogError::Fenced(message),
        Kind::Unspecified | Kind::Unavailable => LogError::Unavailable(message),
        Kind::Refused => LogError::Refused(message),
        Kind::BadConfig => LogError::BadConfig(message),
        Kind::Uncertain => LogError::Uncertain(message),
    }
}

/// An error as a status.
pub fn status(error: &LogError) -> Status {
    // Headers are bounded: the text goes as a detail only.
    let details = error_out(error).encode_to_vec();
    Status::with_details(Code::FailedPrecondition, "", details.into())
}

/// A status as an error. One without details is the connection's own.
pub fn error_of(status: &Status) -> LogError {
    match wire::Error::decode(status.details()) {
        Ok(error) if !status.details().is_empty() => error_in(error),
        _ => LogError::Unavailable(format!("{:?}: {}", status.code(), status.message())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn errors_go_both_ways() {
        let topic: crate::core::names::TopicName = "t".parse().unwrap();
        let text = || "ä text".to_owned();
        let errors = [
            LogError::UnknownTopic(topic.clone()),
            LogError::UnknownPartition { topic: topic.clone(), partition: 3, count: 2 },
            LogError::TopicExists(topic.clone()),
            LogError::NotWritable { topic: topic.clone(), reason: text() },
            LogError::RecordRefused { topic: topic.clone(), reason: text() },
            LogError::OffsetOutOfRange {
                partition: TopicPartition::new(&topic, 1),
                wanted: -1,
                first: 5,
                end: i64::MAX,
            },
            LogError::Storage(text()),
            LogError::Corrupt(text()),
            LogError::Locked(text()),
            LogError::Fenced(text()),
            LogError::Unavailable(text()),
            LogError::Refused(text()),
            LogError::BadConfig(text()),
            LogError::Uncertain(text()),
        ];
        for error in errors {
            assert_eq!(format!("{:?}", error_of(&status(&error))), format!("{error:?}"));
        }
        assert!(matches!(error_of(&Status::unavailable("gone")), LogError::Unavailable(_)));
    }
}
