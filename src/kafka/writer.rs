//! A writer that fences its forerunner: a transactional producer under a fixed id. On a cluster without transactions
//! there is no fence, and records become visible one by one.

use std::time::{Duration, Instant};

use rdkafka::error::{KafkaError, RDKafkaErrorCode as Code};
use rdkafka::producer::{BaseProducer, Producer};

use super::auth::Rotation;
use super::config::{BATCH_BYTES, Batching, KafkaConfig, was_asked_twice};
use super::context::Context;
use super::ffi::{self, Topic};
use super::{error, topics};
use crate::core::names::TopicName;
use crate::core::partitioner::Partitioner;
use crate::core::record::{Payload, Record};
use crate::ports::{FencedWriter, Keyed, LogError};

/// How long a writer's transaction may stay open.
const TIMEOUT: Duration = Duration::from_secs(10);

/// Makes a producer the only one of its id. Aborts what its forerunner left open.
pub(super) fn init(producer: &BaseProducer<Context>, within: Duration) -> Result<(), LogError> {
    let deadline = Instant::now() + within;
    fail::fail_point!("kafka-before-init");
    loop {
        // Short rounds, so that tokens and errors on the client's queue are served in between.
        let result = producer.init_transactions(Duration::from_millis(500));
        serve(producer);
        let KafkaError::Transaction(inner) = (match result {
            Ok(()) => {
                fail::fail_point!("kafka-after-init");
                return Ok(());
            }
            Err(error) => error,
        }) else {
            return Err(LogError::Unavailable("transactions cannot be started".to_owned()));
        };
        let told = producer.context().take_error();
        let is_login =
            |code: Code| matches!(code, Code::Authentication | Code::SSL | Code::SaslAuthenticationFailed);
        let refused = told.filter(|(code, _)| is_login(*code));
        if !inner.is_retriable() || Instant::now() > deadline {
            return Err(match refused {
                Some((code, text)) => error::from_code(code, &text),
                None => error::from_kafka(&KafkaError::Transaction(inner), "transactions cannot be started"),
            });
        }
    }
}

/// Aborts the open transaction. The records that are dropped with it are reported by the client's queue, and librdkafka
/// sends no abort before all reports were taken: it would wait for them in vain. So it is asked in short rounds while there
/// are such; each goes on where the one before it was.
pub(super) fn abort(producer: &BaseProducer<Context>, within: Duration) -> Result<(), KafkaError> {
    /// How long reports wait.
    const ROUND: Duration = Duration::from_millis(10);
    let deadline = Instant::now() + within;
    fail::fail_point!("kafka-before-abort");
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        let is_reported = producer.in_flight_count() == 0;
        let aborted = producer.abort_transaction(if is_reported { left } else { left.min(ROUND) });
        serve(producer);
        match aborted {
            // Not whatever may be tried again: of an unfinished commit the client says so at once, and without end.
            Err(KafkaError::Transaction(e))
                if e.is_retriable() && e.code() == Code::OperationTimedOut && Instant::now() < deadline => {}
            done => {
                fail::fail_point!("kafka-after-abort");
                return done;
            }
        }
    }
}

/// Serves every event that waits: a poll of rust-rdkafka takes one, and log lines are events too.
pub(super) fn serve(producer: &BaseProducer<Context>) {
    let client = producer.client().native_ptr();
    for _ in 0..=ffi::events(client) {
        producer.poll(Duration::ZERO);
    }
    producer.context().rescue(client);
}

/// Fields are dropped in their order: the topic before its client.
pub(super) struct Writer {
    topic: Option<Topic>,
    producer: Option<BaseProducer<Context>>,
    config: KafkaConfig,
    rotation: Rotation,
    name: TopicName,
    id: String,
    partitions: u32,
    has_transactions: bool,
    fenced: bool,
}

impl Writer {
    pub(super) fn open(
        config: &KafkaConfig,
        name: &TopicName,
        id: &str,
        has_transactions: bool,
    ) -> Result<Self, LogError> {
        let mut writer = Self {
            topic: None,
            producer: None,
            config: config.clone(),
            rotation: Rotation::new(config),
            name: name.clone(),
            id: id.to_owned(),
            partitions: 0,
            has_transactions,
            fenced: false,
        };
        writer.renew()?;
        Ok(writer)
    }

    fn renew(&mut self) -> Result<(), LogError> {
        self.drop_client();
        self.rotation = Rotation::new(&self.config);
        let mut client = self.config.producer(Batching::Prompt)?;
        // What its topics take at once, whatever lanes may send.
        let batch = client.get("batch.size").and_then(|size| size.parse().ok()).unwrap_or(BATCH_BYTES);
        client.set("batch.size", batch.min(BATCH_BYTES).to_string());
        if self.has_transactions {
            client.set("transactional.id", &self.id);
            client.set("transaction.timeout.ms", TIMEOUT.as_millis().to_string());
        }
        client.set("socket.timeout.ms", (TIMEOUT.as_millis() - 1000).to_string());
        client.set("message.timeout.ms", TIMEOUT.as_millis().to_string());
        client.set("linger.ms", "0");
        client.set("delivery.report.only.error", "true");
        let context = Context::new(&self.config);
        let producer: BaseProducer<Context> =
            client.create_with_context(context).map_err(|e| error::from_kafka(&e, "cannot make a writer"))?;
        if self.has_transactions {
            init(&producer, TIMEOUT * 2)?;
        } else if let Some(sasl) = &self.config.sasl {
            sasl.hand_token(producer.client().native_ptr())?;
        }
        self.partitions = topics::partitions_of(producer.client(), &self.name, TIMEOUT)?;
        self.topic = Topic::new(producer.client().native_ptr(), self.name.as_str());
        self.producer = Some(producer);
        Ok(())
    }

    fn drop_client(&mut self) {
        self.topic = None;
        self.producer = None;
    }

    /// Whether the producer may be used again, once the records are in.
    fn transaction(&self, records: &[Keyed]) -> Result<bool, LogError> {
        let (Some(producer), Some(topic)) = (&self.producer, &self.topic) else {
            return Err(LogError::Unavailable("the writer has no client".to_owned()));
        };
        let what = format!("cannot write to {}", self.name);
        if self.has_transactions {
            producer.begin_transaction().map_err(|e| error::from_kafka(&e, &what))?;
        }
        for keyed in records {
            let record = Record::new(Some(&keyed.key), keyed.value.as_deref()).payload();
            let bad = |e: crate::core::record::BadPayload| LogError::Corrupt(e.to_string());
            let payload = Payload::parse(&record).map_err(bad)?;
            let partition = Partitioner::Key.choose(payload.key, 0, self.partitions);
            let (key, value, headers) = (payload.key, payload.value, payload.headers());
            let out = ffi::Out { partition, timestamp: 0, key, value, headers };
            ffi::produce(producer.client().native_ptr(), topic, &out)
                .map_err(|code| error::from_code(code, &what))?;
        }
        let deadline = Instant::now() + TIMEOUT;
        while producer.in_flight_count() > 0 && Instant::now() < deadline {
            producer.poll(Duration::ZERO);
            std::thread::sleep(Duration::from_micros(200));
        }
        serve(producer);
        if let Some(failed) = producer.context().take_undelivered() {
            return Err(match failed.code {
                Code::MessageSizeTooLarge => {
                    LogError::RecordRefused { topic: self.name.clone(), reason: failed.code.to_string() }
                }
                Code::UnknownTopicOrPartition => LogError::UnknownTopic(self.name.clone()),
                code => error::from_code(code, &what),
            });
        }
        if !self.has_transactions {
            return match producer.in_flight_count() {
                0 => Ok(true),
                _ => Err(LogError::Unavailable(format!(
                    "{what}: the brokers did not take all records in time"
                ))),
            };
        }
        let before = producer.context().connection_errors();
        let asked = Instant::now();
        let committed = producer.commit_transaction(TIMEOUT);
        let elapsed = asked.elapsed();
        serve(producer);
        match committed {
            // Through, but perhaps asked for twice: the late twin must not end the next transaction.
            Ok(()) => Ok(producer.context().connection_errors() == before && !was_asked_twice(elapsed)),
            Err(KafkaError::Transaction(e)) if !e.is_fatal() && !e.txn_requires_abort() => {
                Err(LogError::Uncertain(e.string()))
            }
            // What a broker's coordinator answers when another producer takes over in the middle of a commit.
            Err(KafkaError::Transaction(e)) if e.code() == Code::Unknown => {
                Err(LogError::Uncertain(e.string()))
            }
            Err(error) => Err(error::from_kafka(&error, &what)),
        }
    }
}

impl FencedWriter for Writer {
    fn write(&mut self, records: &[Keyed]) -> Result<(), LogError> {
        if self.fenced {
            return Err(LogError::Fenced(self.id.clone()));
        }
        if records.is_empty() {
            return Ok(());
        }
        // It may have been idle for days: what it knows of credentials is looked at each time.
        let client = self.producer.as_ref().map(|producer| producer.client().native_ptr());
        if self.rotation.look(client) || self.producer.is_none() {
            self.renew()?;
        }
        let before = self.producer.as_ref().map(|producer| producer.context().connection_errors());
        match self.transaction(records) {
            Ok(true) => Ok(()),
            Ok(false) => {
                self.drop_client();
                Ok(())
            }
            Err(LogError::Fenced(_)) => {
                self.fenced = true;
                self.drop_client();
                Err(LogError::Fenced(self.id.clone()))
            }
            Err(error) if !self.has_transactions => {
                self.drop_client();
                Err(error)
            }
            Err(error) => {
                let aborted = self
                    .producer
                    .as_ref()
                    .map(|producer| (abort(producer, TIMEOUT), producer.context().connection_errors()));
                let is_clean = aborted.is_some_and(|(result, after)| result.is_ok() && Some(after) == before);
                if !is_clean || matches!(error, LogError::Uncertain(_)) {
                    self.drop_client();
                }
                Err(error)
            }
        }
    }
}
