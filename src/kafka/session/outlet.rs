//! The writing half of a lane: one producer, transactional under exactly-once, idempotent under at-least-once.
//!
//! A producer of which it is not certain how its last transaction ended is *tainted*: librdkafka repeats the
//! request to end a transaction on its own, and a late twin of it could end the next one instead. A tainted
//! producer is dropped and made anew, which raises its epoch, so that the broker turns the twin away.

use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use rdkafka::TopicPartitionList;
use rdkafka::consumer::ConsumerGroupMetadata;
use rdkafka::error::{KafkaError, RDKafkaErrorCode as Code};
use rdkafka::producer::{BaseProducer, Producer};
use tracing::{debug, warn};

use super::doubt::Doubt;
use super::held::{Held, HeldRecord};
use super::offsets;
use super::target::Target;
use crate::core::names::TopicName;
use crate::core::record::{Payload, TimestampMs};
use crate::kafka::config::{Batching, KafkaConfig, Timing};
use crate::kafka::context::Context;
use crate::kafka::error;
use crate::kafka::ffi::{self, Topic};
use crate::kafka::topics::{TopicShape, partitions_of};
use crate::kafka::writer::{self, init, serve};
use crate::ports::{Emit, LogError, Placement, TopicConfig};

/// The producer and its topics. Topic handles are dropped before the producer.
pub(super) struct Outlet {
    targets: Vec<Target>,
    producer: Option<Arc<BaseProducer<Context>>>,
    config: KafkaConfig,
    /// `None` under at-least-once.
    transactional_id: Option<String>,
    open_since: Option<Instant>,
    /// Whether the client has begun the open transaction.
    begun: bool,
    /// What was emitted since it was opened, until it has begun.
    held: Held,
    /// When the last transaction was committed.
    ended: Option<Instant>,
    tainted: bool,
    /// Whether records could not be sent, and it is not known why.
    is_stuck: bool,
    doubt: Doubt,
    refreshed: Instant,
}

/// How long a full buffer is given before it is tried again.
const FULL: Duration = Duration::from_micros(200);
/// How long a transaction keeps from following the one before it. The broker answers a commit before it has written the
/// markers, and until then refuses partitions to the next transaction; librdkafka asks again only 20 ms later, and does not
/// send a record before. What is emitted meanwhile is held.
const SETTLE: Duration = Duration::from_millis(3);
/// How long batches that are not full are let go, when there is no room for more.
const KICK: Duration = Duration::from_millis(1);
/// How long failed deliveries may wait for a look while the rest is still under way.
const LOOK: Duration = Duration::from_millis(5);

impl Outlet {
    pub(super) fn open(
        config: &KafkaConfig,
        outputs: &[(TopicName, Option<TopicConfig>)],
        transactional_id: Option<String>,
    ) -> Result<Self, LogError> {
        let targets = outputs.iter().map(|(name, config)| Target {
            name: name.clone(),
            shape: TopicShape::limited_by(config.as_ref()),
            handle: None,
        });
        let mut outlet = Self {
            targets: targets.collect(),
            producer: None,
            config: config.clone(),
            transactional_id,
            open_since: None,
            begun: false,
            held: Held::default(),
            ended: None,
            tainted: false,
            is_stuck: false,
            doubt: Doubt::default(),
            refreshed: Instant::now(),
        };
        outlet.renew()?;
        Ok(outlet)
    }

    fn timing(&self) -> Timing {
        self.config.timing
    }

    /// Drops the producer and makes it anew; a transactional one fences whatever its forerunner left behind.
    pub(super) fn renew(&mut self) -> Result<(), LogError> {
        for target in &mut self.targets {
            target.handle = None;
        }
        self.producer = None;
        // Until it is there with all of its topics.
        self.tainted = true;
        self.doubt = Doubt::default();
        self.close();
        let batching = if self.transactional_id.is_some() { Batching::Transaction } else { Batching::Prompt };
        let mut client = self.config.producer(batching)?;
        // Failures alone are reported: a report for each record would cost more than the record.
        client.set("delivery.report.only.error", "true");
        // A batch must fit every topic, even when each of its records does.
        let smallest = self.targets.iter().filter_map(|target| target.shape.max_bytes()).min();
        let wanted = client.get("batch.size").and_then(|size| size.parse().ok()).unwrap_or(1_000_000);
        client.set("batch.size", smallest.unwrap_or(wanted).min(wanted).to_string());
        if let Some(id) = &self.transactional_id {
            client.set("transactional.id", id);
            client.set("transaction.timeout.ms", self.timing().transaction.as_millis().to_string());
        }
        let context = Context::new(&self.config);
        let producer: BaseProducer<Context> = client
            .create_with_context(context)
            .map_err(|e| error::from_kafka(&e, "cannot make the lane's producer"))?;
        if let Some(sasl) = &self.config.sasl {
            sasl.hand_token(producer.client().native_ptr())?;
        }
        if self.transactional_id.is_some() {
            init(&producer, self.timing().transaction)?;
        }
        self.producer = Some(Arc::new(producer));
        self.refresh()?;
        self.tainted = false;
        Ok(())
    }

    /// Asks for partition counts and limits of the outputs.
    fn refresh(&mut self) -> Result<(), LogError> {
        self.refreshed = Instant::now();
        let Some(producer) = &self.producer else { return Ok(()) };
        for target in &mut self.targets {
            let count = partitions_of(producer.client(), &target.name, self.config.timing.socket)?;
            target.shape.partitions = count;
            if target.handle.is_none() {
                target.handle = Topic::new(producer.client().native_ptr(), target.name.as_str());
            }
        }
        Ok(())
    }

    fn producer(&self) -> Result<&Arc<BaseProducer<Context>>, LogError> {
        self.producer.as_ref().ok_or_else(|| LogError::Uncertain("the producer is gone: rewind".to_owned()))
    }

    pub(super) fn client(&self) -> Option<ffi::Client> {
        self.producer.as_ref().map(|producer| producer.client().native_ptr())
    }

    /// Whether records were emitted since the last commit.
    pub(super) fn is_open(&self) -> bool {
        self.open_since.is_some()
    }

    /// Serves the client's queue, and between transactions looks for new partitions.
    pub(super) fn serve(&mut self) {
        if let Some(producer) = &self.producer {
            serve(producer);
        }
        let is_due = !self.is_open() && self.refreshed.elapsed() > self.config.metadata_refresh;
        if is_due && let Err(error) = self.refresh() {
            debug!(%error, "could not look for new partitions");
        }
    }

    /// What is emitted from now on is committed together.
    fn open_transaction(&mut self) -> Result<(), LogError> {
        if self.tainted {
            self.renew()?;
        }
        self.open_since = Some(Instant::now());
        self.begun = self.transactional_id.is_none();
        Ok(())
    }

    /// Nothing of it is left.
    fn close(&mut self) {
        self.open_since = None;
        self.begun = false;
        self.held.clear();
    }

    /// How long the broker is still given for the last transaction.
    fn settles_in(&self) -> Duration {
        self.ended.map_or(Duration::ZERO, |ended| SETTLE.saturating_sub(ended.elapsed()))
    }

    /// Begins the open transaction as soon as the broker is ready for it.
    pub(super) fn begin_if_settled(&mut self) -> Result<(), LogError> {
        let is_waiting = self.is_open() && !self.begun;
        let is_due = is_waiting && (self.settles_in().is_zero() || self.held.is_full());
        if is_due { self.begin() } else { Ok(()) }
    }

    /// Begins the open transaction and hands over what was held for it.
    fn begin(&mut self) -> Result<(), LogError> {
        thread::sleep(self.settles_in());
        let losses = self.producer()?.context().connection_errors();
        self.doubt.begin(losses);
        if let Err(error) = self.producer()?.begin_transaction() {
            // It is not known why, so only a new producer surely can.
            self.tainted = true;
            return Err(self.failed(&error, "cannot begin a transaction"));
        }
        self.begun = true;
        fail::fail_point!("kafka-after-begin");
        fail::fail_point!("kafka-hand-over", |_| Err(LogError::Unavailable("a fail point".to_owned())));
        for record in self.held.iter() {
            let target = &self.targets[record.target];
            let payload = Payload::parse(record.payload).map_err(|bad| target.refused(&bad))?;
            self.hand_over(target, record.partition, record.timestamp, &payload)?;
        }
        self.held.clear();
        Ok(())
    }

    /// A transaction that began without all that was held for it must neither go on nor be committed.
    fn check_handed_over(&self) -> Result<(), LogError> {
        if self.held.is_empty() {
            return Ok(());
        }
        Err(LogError::Unavailable("records that were held could not be handed over: rewind".to_owned()))
    }

    pub(super) fn emit(&mut self, output: &Emit<'_>) -> Result<(), LogError> {
        if !self.begun {
            if !self.is_open() {
                self.open_transaction()?;
            }
            self.begin_if_settled()?;
        }
        if self.begun {
            self.check_handed_over()?;
        }
        fail::fail_point!("kafka-emit");
        let Some(index) = self.targets.iter().position(|target| target.name == *output.topic) else {
            let reason = "it is none of the lane's outputs".to_owned();
            return Err(LogError::NotWritable { topic: output.topic.clone(), reason });
        };
        let target = &self.targets[index];
        let payload = Payload::parse(output.payload).map_err(|bad| target.refused(&bad))?;
        target.shape.check(&target.name, &payload, output.payload.len())?;
        let count = target.shape.partitions;
        let partition = match output.placement {
            Placement::Exactly(partition) if partition >= count => {
                let topic = target.name.clone();
                return Err(LogError::UnknownPartition { topic, partition, count });
            }
            Placement::Exactly(partition) => partition,
            Placement::By(partitioner, source) => partitioner.choose(payload.key, source, count),
        };
        let (timestamp, payload_bytes) = (output.timestamp, output.payload);
        if self.begun {
            return self.hand_over(target, partition, timestamp, &payload);
        }
        self.held.push(&HeldRecord { target: index, partition, timestamp, payload: payload_bytes });
        Ok(())
    }

    /// Waits while the client's buffer is full, within the commit budget.
    fn hand_over(
        &self,
        target: &Target,
        partition: u32,
        timestamp: TimestampMs,
        payload: &Payload<'_>,
    ) -> Result<(), LogError> {
        let (Some(producer), Some(handle)) = (&self.producer, &target.handle) else {
            return Err(target.not_written(Code::State));
        };
        let (key, value, headers) = (payload.key, payload.value, payload.headers());
        let out = ffi::Out { partition, timestamp, key, value, headers };
        let mut since = None;
        loop {
            match ffi::produce(producer.client().native_ptr(), handle, &out) {
                Err(Code::QueueFull) => {
                    let waited = since.get_or_insert_with(Instant::now).elapsed();
                    if waited > self.timing().commit_budget() {
                        return Err(target.not_written(Code::QueueFull));
                    }
                    serve(producer);
                    if waited < LOOK {
                        thread::sleep(FULL);
                    } else {
                        // No batch is full, and all of them wait for more: there are many partitions, or the buffer is small.
                        ffi::flush(producer.client().native_ptr(), KICK);
                    }
                }
                done => return done.map_err(|code| target.not_written(code)),
            }
        }
    }

    /// Waits until everything emitted has arrived.
    pub(super) fn flush(&mut self) -> Result<(), LogError> {
        let producer = self.producer()?;
        let deadline = Instant::now() + self.timing().commit_budget();
        loop {
            serve(producer);
            if let Some(failed) = producer.context().take_undelivered() {
                return Err(self.undelivered(&failed));
            }
            if producer.in_flight_count() == 0 {
                break;
            }
            if Instant::now() > deadline {
                self.is_stuck = true;
                return Err(LogError::Unavailable("the brokers did not take all records in time".to_owned()));
            }
            // Not rust-rdkafka's flush, which looks every 100 ms only: every commit waits here.
            ffi::flush(producer.client().native_ptr(), LOOK);
        }
        if self.transactional_id.is_none() {
            self.close();
        }
        fail::fail_point!("kafka-after-flush");
        Ok(())
    }

    fn undelivered(&self, failed: &crate::kafka::context::Undelivered) -> LogError {
        let name = self.targets.iter().find(|target| target.name.as_str() == failed.topic);
        let what = format!("{}/{} did not take a record", failed.topic, failed.partition);
        match (failed.code, name) {
            (Code::MessageSizeTooLarge | Code::InvalidRecord | Code::InvalidTimestamp, Some(target)) => {
                LogError::RecordRefused { topic: target.name.clone(), reason: failed.code.to_string() }
            }
            (Code::UnknownTopicOrPartition | Code::UnknownTopic, Some(target)) => {
                LogError::UnknownTopic(target.name.clone())
            }
            (code, _) if error::is_fence(code) => self.fence(&what),
            (code, _) => error::from_code(code, &what),
        }
    }

    /// Commits what was emitted together with these offsets.
    pub(super) fn commit(
        &mut self,
        offsets: TopicPartitionList,
        group: ConsumerGroupMetadata,
    ) -> Result<(), LogError> {
        if !self.is_open() {
            self.open_transaction()?;
        }
        if !self.begun {
            self.begin()?;
        }
        self.check_handed_over()?;
        self.flush()?;
        if offsets.count() > 0 {
            self.send_offsets(offsets, group)?;
        }
        fail::fail_point!("kafka-after-offsets");
        fail::fail_point!("kafka-abort", |_| Err(LogError::Unavailable("a fail point".to_owned())));
        let asked = Instant::now();
        let committed = self.producer()?.commit_transaction(self.timing().transaction);
        let elapsed = asked.elapsed();
        fail::fail_point!("kafka-after-commit");
        let producer = self.producer()?;
        serve(producer);
        let disturbed = self.doubt.is_justified(producer.context().connection_errors(), elapsed);
        match committed {
            Ok(()) => {
                self.close();
                self.ended = Some(Instant::now());
                if disturbed && !fail_no_taint() {
                    debug!(?elapsed, "a commit may have been asked for twice: the producer is made anew");
                    self.tainted = true;
                }
                Ok(())
            }
            Err(error) => {
                let failed = self.commit_failed(&error);
                // Also one that was refused may have a twin under way.
                self.tainted |= disturbed;
                Err(failed)
            }
        }
    }

    fn send_offsets(
        &mut self,
        offsets: TopicPartitionList,
        group: ConsumerGroupMetadata,
    ) -> Result<(), LogError> {
        let asked = Instant::now();
        let sent = offsets::send(self.producer()?, offsets, group, self.timing().commit_budget())?;
        self.doubt.offsets_sent(asked.elapsed());
        match sent {
            Some(Ok(())) => Ok(()),
            Some(Err(error)) => Err(self.failed(&error, "cannot add the offsets to the transaction")),
            None => {
                self.tainted = true;
                let reason = "the group's coordinator did not take the offsets in time".to_owned();
                Err(LogError::Unavailable(reason))
            }
        }
    }

    fn commit_failed(&mut self, error: &KafkaError) -> LogError {
        let KafkaError::Transaction(inner) = error else {
            return self.failed(error, "cannot flush before the commit");
        };
        if inner.txn_requires_abort() && !inner.is_fatal() {
            return self.failed(error, "the commit was refused");
        }
        self.tainted = true;
        if error::is_fence(inner.code()) {
            return self.fence(&inner.string());
        }
        LogError::Uncertain(inner.string())
    }

    fn failed(&self, error: &KafkaError, what: &str) -> LogError {
        match error::code(error) {
            // The group's business, not another producer's: a generation moves with every rebalance.
            Some(Code::IllegalGeneration | Code::UnknownMemberId | Code::RebalanceInProgress) => {
                LogError::Unavailable(format!("{what}: the group has moved on ({error})"))
            }
            Some(code) if error::is_fence(code) => self.fence(&format!("{what}: {error}")),
            _ => error::from_kafka(error, what),
        }
    }

    /// A broker that timed a transaction out answers like one that knows a newer producer. Only our own clock
    /// tells the two apart.
    fn fence(&self, what: &str) -> LogError {
        let id = self.transactional_id.clone().unwrap_or_default();
        match self.open_since {
            Some(since) if since.elapsed() >= self.timing().transaction => LogError::Expired(what.to_owned()),
            _ => LogError::Fenced(id),
        }
    }

    /// Drops what was emitted since the last commit, and a producer that is not to be trusted with it.
    pub(super) fn abort(&mut self) -> Result<(), LogError> {
        self.abandon();
        if self.tainted || self.producer.is_none() {
            self.renew()?;
        } else if self.is_stuck {
            // The client keeps records of a topic that was deleted for as long as it may, and says nothing.
            self.refresh()?;
        }
        self.is_stuck = false;
        Ok(())
    }

    /// Drops what was emitted since the last commit. The broker learns of it here, unless the producer is not to be trusted any
    /// more: then with the next one.
    pub(super) fn abandon(&mut self) {
        match (&self.producer, &self.transactional_id) {
            (Some(producer), Some(_)) if self.begun && !self.tainted => {
                let asked = Instant::now();
                let aborted = writer::abort(producer, self.timing().commit_budget());
                // What the abort purged is no failure of the next transaction.
                producer.context().take_undelivered();
                if let Err(error) = &aborted {
                    warn!(%error, "a transaction could not be aborted: the producer is made anew");
                }
                let losses = producer.context().connection_errors();
                let disturbed = self.doubt.is_justified(losses, asked.elapsed()) && !fail_no_taint();
                self.tainted = aborted.is_err() || disturbed;
            }
            // Idempotent: what is under way may arrive or not, both are within the promise.
            (_, None) if self.is_open() => self.tainted = true,
            _ => {}
        }
        let is_left_open = self.begun && self.tainted;
        self.close();
        // So that the end of the lane tries to end it.
        self.begun = is_left_open;
    }

    /// Makes the next rewind drop the producer.
    pub(super) fn taint(&mut self) {
        self.tainted = true;
    }
}

impl Drop for Outlet {
    /// An open transaction would hold every reader back until it times out.
    fn drop(&mut self) {
        if let (Some(producer), true, Some(_)) = (&self.producer, self.begun, &self.transactional_id)
            && let Err(error) = writer::abort(producer, Duration::from_secs(2))
        {
            debug!(%error, "a transaction was left open: it ends by its time-out or with the slot's next owner");
        }
    }
}

/// For the tests that show what the taint rule is for.
fn fail_no_taint() -> bool {
    fail::fail_point!("kafka-no-taint", |_| true);
    false
}
