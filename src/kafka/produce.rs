//! Appends records from outside of lanes: idempotent, acknowledged one by one. Kafka can show several records
//! at once only in a transaction, which wants an id of its own and the permission for it; this path does not
//! ask for that.

use std::time::{Duration, Instant};

use parking_lot::Mutex;
use rdkafka::ClientContext;
use rdkafka::client::OAuthToken;
use rdkafka::config::RDKafkaLogLevel;
use rdkafka::error::{KafkaError, RDKafkaErrorCode as Code};
use rdkafka::message::{DeliveryResult, Header, Message, OwnedHeaders};
use rdkafka::producer::{BaseProducer, BaseRecord, Producer, ProducerContext};

use super::auth::Rotation;
use super::config::{BATCH_BYTES, Batching, KafkaConfig};
use super::context::Context;
use super::{error, ffi, topics};
use crate::core::names::TopicName;
use crate::core::partitioner::murmur2;
use crate::core::record::Record;
use crate::ports::{LogError, Produce, Produced};

type Delivered = (usize, Result<Produced, Code>);

/// Collects what became of each record.
struct Collector {
    inner: Context,
    delivered: Mutex<Vec<Delivered>>,
}

impl ClientContext for Collector {
    const ENABLE_REFRESH_OAUTH_TOKEN: bool = true;

    fn log(&self, level: RDKafkaLogLevel, facility: &str, text: &str) {
        self.inner.log(level, facility, text);
    }

    fn stats_raw(&self, _statistics: &[u8]) {}

    fn error(&self, error: KafkaError, reason: &str) {
        self.inner.error(error, reason);
    }

    fn generate_oauth_token(&self, config: Option<&str>) -> Result<OAuthToken, Box<dyn std::error::Error>> {
        self.inner.generate_oauth_token(config)
    }
}

impl ProducerContext for Collector {
    type DeliveryOpaque = Box<usize>;

    fn delivery(&self, result: &DeliveryResult<'_>, index: Box<usize>) {
        let produced = match result {
            Ok(message) => Ok(Produced {
                partition: message.partition() as u32,
                offset: message.offset(),
                appended_ms: message.timestamp().to_millis().unwrap_or_default(),
            }),
            Err((error, _)) => Err(error::code(error).unwrap_or(Code::Fail)),
        };
        self.delivered.lock().push((*index, produced));
    }
}

/// The producer of `Log::produce`.
pub(super) struct Sender {
    producer: BaseProducer<Collector>,
    config: KafkaConfig,
    rotation: Rotation,
    known: Vec<(TopicName, u32, Instant)>,
    turn: u32,
    /// The most bytes of a batch, where a topic takes less than the client would put into one: the cluster refuses the batch, whatever
    /// the size of its records.
    batch: Option<usize>,
    /// Whether records were handed over of which it is not known what became.
    is_unsettled: bool,
}

impl Sender {
    pub(super) fn open(config: &KafkaConfig) -> Result<Self, LogError> {
        Self::with_batches(config, None)
    }

    fn with_batches(config: &KafkaConfig, batch: Option<usize>) -> Result<Self, LogError> {
        let rotation = Rotation::new(config);
        let inner = Context::new(config);
        let context = Collector { inner, delivered: Mutex::default() };
        let mut client = config.producer(Batching::Prompt)?;
        if let Some(batch) = batch {
            client.set("batch.size", batch.to_string());
        }
        let producer: BaseProducer<Collector> = client
            .create_with_context(context)
            .map_err(|e| error::from_kafka(&e, "cannot make a producer"))?;
        // Questions come before the first poll, which would ask for the token.
        if let Some(sasl) = &config.sasl {
            sasl.hand_token(producer.client().native_ptr())?;
        }
        Ok(Self {
            producer,
            config: config.clone(),
            rotation,
            known: Vec::new(),
            turn: 0,
            batch,
            is_unsettled: false,
        })
    }

    /// The most bytes of a batch that all known topics take, where that is less than the client's own limit. Who may not know
    /// a topic's settings does without.
    fn widest_batch(&self) -> Result<Option<usize>, LogError> {
        let own = self.config.producer(Batching::Prompt)?;
        let own = own.get("batch.size").and_then(|size| size.parse().ok()).unwrap_or(BATCH_BYTES);
        let wait = self.config.timing.socket;
        let limit = |(name, count, _): &(TopicName, u32, Instant)| {
            let found =
                topics::configs(self.producer.client(), &[(name.clone(), *count)], wait).ok()?.pop()?;
            found.map(|config| config.max_record_bytes.max(1))
        };
        let limits = self.known.iter().filter_map(limit);
        Ok(limits.chain(self.batch).min().filter(|limit| *limit < own))
    }

    fn partitions(&mut self, topic: &TopicName) -> Result<u32, LogError> {
        let fresh = self.config.metadata_refresh;
        self.known.retain(|(_, _, asked)| asked.elapsed() < fresh);
        if let Some((_, count, _)) = self.known.iter().find(|(name, _, _)| name == topic) {
            return Ok(*count);
        }
        let count = topics::partitions_of(self.producer.client(), topic, self.config.timing.socket)?;
        self.known.push((topic.clone(), count, Instant::now()));
        Ok(count)
    }

    fn place(&mut self, produce: &Produce) -> Result<u32, LogError> {
        let count = self.partitions(&produce.topic)?;
        match (produce.partition, &produce.record.key) {
            (Some(partition), _) if partition >= count => {
                Err(LogError::UnknownPartition { topic: produce.topic.clone(), partition, count })
            }
            (Some(partition), _) => Ok(partition),
            (None, Some(key)) => Ok((murmur2(key) & 0x7fff_ffff) % count),
            (None, None) => {
                self.turn = self.turn.wrapping_add(1);
                Ok(self.turn % count)
            }
        }
    }

    /// Takes every event that waits.
    fn serve(&self) {
        for _ in 0..=ffi::events(self.producer.client().native_ptr()) {
            self.producer.poll(Duration::ZERO);
        }
    }

    pub(super) fn send(&mut self, records: &[Produce]) -> Result<Vec<Produced>, LogError> {
        // It was not polled since it last sent: a token may have become due.
        let client = self.producer.client().native_ptr();
        self.serve();
        // What it said is old: it is served only when something is sent.
        let is_lost = self.producer.context().inner.was_stranded(Duration::ZERO);
        // A late word about an earlier call's records must not be taken for one about these.
        if self.rotation.look([client]) || is_lost || self.is_unsettled {
            *self = Self::open(&self.config)?;
        }
        let began = Instant::now();
        let places = records.iter().map(|produce| self.place(produce)).collect::<Result<Vec<_>, _>>()?;
        if self.known.iter().any(|(_, _, asked)| *asked >= began) {
            let batch = self.widest_batch()?;
            if batch != self.batch {
                let known = std::mem::take(&mut self.known);
                *self = Self { known, turn: self.turn, ..Self::with_batches(&self.config, batch)? };
            }
        }
        self.producer.context().delivered.lock().clear();
        let deadline = Instant::now() + self.config.timing.transaction;
        self.is_unsettled = true;
        for (index, (produce, partition)) in records.iter().zip(&places).enumerate() {
            self.hand_over(index, produce, *partition, deadline)?;
        }
        while self.producer.in_flight_count() > 0 && Instant::now() < deadline {
            self.producer.poll(Duration::ZERO);
            std::thread::sleep(Duration::from_micros(200));
        }
        self.serve();
        self.is_unsettled = self.producer.in_flight_count() > 0;
        let mut results: Vec<Option<Produced>> = vec![None; records.len()];
        for (index, result) in self.producer.context().delivered.lock().drain(..) {
            let topic = &records[index].topic;
            results[index] = Some(result.map_err(|code| refused(code, topic))?);
        }
        let missing = || LogError::Unavailable("the brokers did not take all records in time".to_owned());
        results.into_iter().map(|result| result.ok_or_else(missing)).collect()
    }

    fn hand_over(
        &self,
        index: usize,
        produce: &Produce,
        partition: u32,
        deadline: Instant,
    ) -> Result<(), LogError> {
        let Record { key, value, headers, timestamp } = &produce.record;
        let mut record =
            BaseRecord::<'_, [u8], [u8], Box<usize>>::with_opaque_to(produce.topic.as_str(), Box::new(index))
                .partition(partition as i32);
        record.key = key.as_deref();
        record.payload = value.as_deref();
        record.timestamp = *timestamp;
        if !headers.is_empty() {
            let mut owned = OwnedHeaders::new_with_capacity(headers.len());
            for (name, value) in headers {
                let key = std::str::from_utf8(name).map_err(|_| {
                    let reason = "a header name is not UTF-8".to_owned();
                    LogError::RecordRefused { topic: produce.topic.clone(), reason }
                })?;
                owned = owned.insert(Header { key, value: value.as_deref() });
            }
            record.headers = Some(owned);
        }
        loop {
            match self.producer.send(record) {
                Ok(()) => return Ok(()),
                Err((error, again))
                    if error::code(&error) == Some(Code::QueueFull) && Instant::now() < deadline =>
                {
                    record = again;
                    self.producer.poll(Duration::from_millis(1));
                }
                Err((error, _)) => {
                    return Err(refused(error::code(&error).unwrap_or(Code::Fail), &produce.topic));
                }
            }
        }
    }
}

fn refused(code: Code, topic: &TopicName) -> LogError {
    match code {
        Code::MessageSizeTooLarge | Code::InvalidRecord | Code::InvalidTimestamp => {
            LogError::RecordRefused { topic: topic.clone(), reason: code.to_string() }
        }
        Code::UnknownTopic | Code::UnknownTopicOrPartition => LogError::UnknownTopic(topic.clone()),
        code => error::from_code(code, &format!("cannot write to {topic}")),
    }
}
