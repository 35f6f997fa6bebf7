//! Reads one topic, committed records only, without a group.

use std::time::Duration;

use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::error::RDKafkaErrorCode as Code;

use tracing::warn;

use super::auth::Rotation;
use super::config::KafkaConfig;
use super::context::Context;
use super::ffi::{DataQueue, Message, Topic};
use super::{error, ffi, topics};
use crate::core::names::TopicName;
use crate::core::record::{Offset, Record};
use crate::ports::{Fetched, LogError, ReadFrom, Reader};

/// Most records that one `fetch` gives.
const MOST: usize = 10_000;

/// How long a broker may hold back its answer while there is nothing to send. What ends in the marker of a
/// transaction is known to end there by such an empty answer only.
const ONE_LOOK_MS: &str = "50";

/// What a reader is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Patience {
    /// Somebody waits until it has read to the end.
    OneLook,
    /// It follows the topic for long.
    Follow,
}

struct Position {
    partition: u32,
    next: Offset,
}

/// Fields are dropped in their order: queue and topic before their client.
pub(super) struct TopicReader {
    data: DataQueue,
    topic: Topic,
    name: TopicName,
    consumer: BaseConsumer<Context>,
    positions: Vec<Position>,
    /// Where each position ended when the reader was opened or last asked.
    ends: Vec<Offset>,
    config: KafkaConfig,
    patience: Patience,
    rotation: Rotation,
}

impl TopicReader {
    pub(super) fn open(
        config: &KafkaConfig,
        name: &TopicName,
        partitions: Option<&[u32]>,
        from: ReadFrom,
        patience: Patience,
    ) -> Result<Self, LogError> {
        let mut reader = Self::connect(config, name, patience)?;
        let count = topics::partitions_of(reader.consumer.client(), name, config.timing.socket)?;
        let all: Vec<u32> = (0..count).collect();
        let partitions = partitions.unwrap_or(&all);
        if let Some(&partition) = partitions.iter().find(|partition| **partition >= count) {
            return Err(LogError::UnknownPartition { topic: name.clone(), partition, count });
        }
        for &partition in partitions {
            let (next, end) = reader.place(partition, from)?;
            reader.begin(partition, next, end)?;
        }
        Ok(reader)
    }

    /// A reader of nothing yet.
    fn connect(config: &KafkaConfig, name: &TopicName, patience: Patience) -> Result<Self, LogError> {
        let rotation = Rotation::new(config);
        let context = Context::new(config);
        let mut client = config.consumer()?;
        if patience == Patience::OneLook {
            client.set("fetch.wait.max.ms", ONE_LOOK_MS);
        }
        let consumer: BaseConsumer<Context> =
            client.create_with_context(context).map_err(|e| error::from_kafka(&e, "cannot make a reader"))?;
        if let Some(sasl) = &config.sasl {
            sasl.hand_token(consumer.client().native_ptr())?;
        }
        let native = consumer.client().native_ptr();
        let topic = Topic::new(native, name.as_str())
            .ok_or_else(|| LogError::Unavailable(format!("cannot open topic {name}")))?;
        Ok(Self {
            data: DataQueue::new(native, 1000),
            topic,
            name: name.clone(),
            consumer,
            config: config.clone(),
            patience,
            rotation,
            positions: Vec::new(),
            ends: Vec::new(),
        })
    }

    fn begin(&mut self, partition: u32, next: Offset, end: Offset) -> Result<(), LogError> {
        self.data.start(&self.topic, partition, next).map_err(|code| self.failed(code, ""))?;
        self.positions.push(Position { partition, next });
        self.ends.push(end);
        Ok(())
    }

    /// Goes on with clients of its own making, where it stands.
    fn renew(&mut self) -> Result<(), LogError> {
        let mut fresh = Self::connect(&self.config, &self.name, self.patience)?;
        for (position, end) in self.positions.iter().zip(&self.ends) {
            fresh.begin(position.partition, position.next, *end)?;
        }
        *self = fresh;
        Ok(())
    }

    /// Keeps the client let in, before it is used. Errors of connections mend themselves; that brokers refuse it, somebody who
    /// waits has to know.
    pub(super) fn serve(&mut self) -> Result<(), LogError> {
        if self.rotation.look_now_and_then([self.consumer.client().native_ptr()]) {
            self.renew()?;
        }
        let client = self.consumer.client().native_ptr();
        // One call serves one event.
        for _ in 0..=ffi::events(client) {
            self.consumer.poll(Duration::ZERO);
        }
        let context = self.consumer.context();
        context.rescue(client);
        let Some((code, text)) = context.take_error() else { return Ok(()) };
        let refused = error::from_code(code, &format!("cannot read {}: {text}", self.name));
        if !matches!(refused, LogError::Refused(_)) {
            return Ok(());
        }
        // One broker's word, perhaps of a connection that broke, or in the midst of a change of passwords.
        if self.patience == Patience::Follow || self.can_read() {
            warn!("{refused}: tried again");
            return Ok(());
        }
        Err(refused)
    }

    /// Whether brokers still answer, with the credentials of now.
    fn can_read(&mut self) -> bool {
        self.rotation.look([self.consumer.client().native_ptr()]);
        self.positions.iter().all(|position| self.watermarks(position.partition).is_ok())
    }

    fn watermarks(&self, partition: u32) -> Result<(Offset, Offset), LogError> {
        let (name, wait) = (self.name.as_str(), self.config.timing.socket);
        topics::watermarks(&self.consumer, name, partition as i32, wait)
            .map_err(|e| error::from_kafka(&e, &format!("cannot ask where {} ends", self.name)))
    }

    fn place(&self, partition: u32, from: ReadFrom) -> Result<(Offset, Offset), LogError> {
        let (first, end) = self.watermarks(partition)?;
        let next = match from {
            ReadFrom::Start => first,
            ReadFrom::End => end,
            ReadFrom::Offset(offset) => offset.clamp(first, end),
            ReadFrom::Last(count) => end.saturating_sub(i64::try_from(count).unwrap_or(i64::MAX)).max(first),
            ReadFrom::Timestamp(timestamp) => {
                let (topic, number) = (self.name.as_str(), partition as i32);
                let wait = self.config.timing.socket;
                topics::offset_at(&self.consumer, topic, number, timestamp, wait)
                    .map_err(|e| error::from_kafka(&e, &format!("cannot ask {} for a time", self.name)))?
                    .unwrap_or(end)
            }
        };
        Ok((next, end))
    }

    fn failed(&self, code: Code, text: &str) -> LogError {
        match code {
            Code::UnknownTopicOrPartition | Code::UnknownTopic | Code::UnknownPartition => {
                LogError::UnknownTopic(self.name.clone())
            }
            code => error::from_code(code, &format!("cannot read {} {text}", self.name)),
        }
    }

    pub(super) fn consumer(&self) -> &BaseConsumer<Context> {
        &self.consumer
    }
}

fn fetched(message: &Message<'_>) -> Fetched {
    let (timestamp, _) = message.timestamp();
    Fetched {
        partition: message.partition(),
        offset: message.offset(),
        appended_ms: timestamp,
        record: Record {
            key: message.key().map(<[u8]>::to_vec),
            value: message.value().map(<[u8]>::to_vec),
            headers: message.headers().map(|(n, v)| (n.to_vec(), v.map(<[u8]>::to_vec))).collect(),
            timestamp: Some(timestamp),
        },
    }
}

impl Reader for TopicReader {
    fn fetch(&mut self, wait: Duration) -> Result<Vec<Fetched>, LogError> {
        self.serve()?;
        let mut records = Vec::new();
        let deadline = std::time::Instant::now() + wait;
        let mut left = wait;
        while let Some(message) = self.data.peek(left) {
            let (partition, offset) = (message.partition(), message.offset());
            let position = self.positions.iter_mut().find(|position| position.partition == partition);
            match (message.error(), position) {
                (None, Some(position)) if offset >= position.next => {
                    records.push(fetched(&message));
                    position.next = offset + 1;
                }
                (Some(Code::PartitionEOF), Some(position)) => position.next = position.next.max(offset),
                (None | Some(Code::PartitionEOF), _) => {}
                (Some(code), _) if error::mends_itself(code) => {}
                // The client says it once only: it stays where it is until what lies before it is handed out.
                (Some(_), _) if !records.is_empty() => break,
                (Some(code), _) => {
                    let text = message.error_text();
                    self.data.pop();
                    return Err(self.failed(code, &text));
                }
            }
            self.data.pop();
            if records.len() >= MOST {
                break;
            }
            left = if records.is_empty() {
                deadline.saturating_duration_since(std::time::Instant::now())
            } else {
                Duration::ZERO
            };
        }
        Ok(records)
    }

    fn is_caught_up(&mut self) -> Result<bool, LogError> {
        let reached = self.positions.iter().zip(&self.ends).all(|(position, end)| position.next >= *end);
        if reached {
            for index in 0..self.positions.len() {
                let (_, end) = self.watermarks(self.positions[index].partition)?;
                self.ends[index] = end;
            }
        }
        Ok(reached)
    }
}

impl Drop for TopicReader {
    fn drop(&mut self) {
        for position in &self.positions {
            self.topic.stop(position.partition);
        }
    }
}
