//! The reading half of a lane: one consumer, the partitions that it owns, and where it stands in each.
//!
//! Offsets are our own: the client's position moves when a message is handed out and is never committed.

mod leave;
#[cfg(test)]
mod tests;

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::{Duration, Instant};

use rdkafka::TopicPartitionList;
use rdkafka::consumer::{BaseConsumer, Consumer, ConsumerGroupMetadata};
use rdkafka::error::RDKafkaErrorCode as Code;
use tracing::info;

use super::extents::Extents;
use super::messages::{ClientSide, Slot, concerns, find, on_partition_error, owned_partitions, push};
use super::start::{self, Memory, Place};
use crate::core::ledger::TopicPartition;
use crate::core::names::TopicName;
use crate::core::record::{Batch, Offset};
use crate::kafka::config::{Assignor, KafkaConfig};
use crate::kafka::context::{Context, Rebalance};
use crate::kafka::ends::Ends;
use crate::kafka::error;
use crate::kafka::ffi::{self, DataQueue};
use crate::ports::{Event, Extent, LaneSpec, LogError};

/// The consumer and what it owns. Fields are dropped in their order: the queue before its client.
pub(super) struct Intake {
    data: DataQueue,
    extents: Extents,
    consumer: Arc<BaseConsumer<Context>>,
    assignor: Assignor,
    slots: Vec<Slot>,
    /// Topic and partition of the last message, and its slot: messages come in long runs.
    cursor: Option<(usize, u32, usize)>,
    assigning: Option<Vec<TopicPartition>>,
    /// Since when it is not known where what is being assigned starts.
    asking: Option<Instant>,
    /// Whether a rebalance waits for an answer.
    is_owing: bool,
    /// What the group asks for, until it is released; it asks a member that has none, too.
    revoking: Option<Vec<TopicPartition>>,
    /// Partitions whose committed offset is gone, of which the lane does not know yet.
    gone: VecDeque<TopicPartition>,
    failure: Option<LogError>,
    /// The generation that what is owned must be committed in; of a cooperative group, which moves on while partitions stay,
    /// only while some are to be given up.
    generation: Option<i32>,
    is_confused: bool,
    budget: Duration,
}

/// How long a look for rebalances may be put off by waiting for records.
const SLICE: Duration = Duration::from_millis(50);
const SEEK_TIMEOUT: Duration = Duration::from_secs(5);
/// How long the lane only waits until it is known where partitions start. A transaction that the last owner left open holds
/// the answer back for as long as it may last.
const IN_SILENCE: Duration = Duration::from_secs(20);

impl Intake {
    pub(super) fn open(config: &KafkaConfig, spec: &LaneSpec, ends: Arc<Ends>) -> Result<Self, LogError> {
        let mut client = config.consumer()?;
        client.set("group.id", spec.group.as_str());
        // By it the other lanes of the deployment know each other from strangers in the group.
        client.set("client.id", &spec.transactional_id);
        client.set("session.timeout.ms", config.timing.session.as_millis().to_string());
        client.set("heartbeat.interval.ms", (config.timing.session.as_millis() / 6).max(200).to_string());
        client.set("max.poll.interval.ms", config.timing.max_poll.as_millis().to_string());
        client.set(
            "partition.assignment.strategy",
            match config.assignor {
                Assignor::Eager => "range,roundrobin",
                Assignor::Cooperative => "cooperative-sticky",
            },
        );
        if config.static_membership {
            client.set("group.instance.id", &spec.transactional_id);
        }
        let context = Context::new(config);
        let consumer: BaseConsumer<Context> = client
            .create_with_context(context)
            .map_err(|e| error::from_kafka(&e, "cannot make the lane's consumer"))?;
        let topics: Vec<&str> = spec.inputs.iter().map(AsRef::as_ref).collect();
        consumer.subscribe(&topics).map_err(|e| error::from_kafka(&e, "cannot subscribe"))?;
        let slots = spec.max_records.clamp(1, 10_000);
        Ok(Self {
            data: DataQueue::new(consumer.client().native_ptr(), slots),
            extents: Extents::new(ends),
            consumer: Arc::new(consumer),
            assignor: config.assignor,
            slots: Vec::new(),
            cursor: None,
            assigning: None,
            asking: None,
            is_owing: false,
            revoking: None,
            gone: VecDeque::new(),
            failure: None,
            generation: None,
            is_confused: false,
            budget: config.timing.commit_budget(),
        })
    }

    pub(super) fn client(&self) -> ffi::Client {
        self.consumer.client().native_ptr()
    }

    /// By what a broker knows a member of the generation in which it was given its partitions; `None` for one that it put out
    /// of the group. It looks twice: the client may join again by itself, and what it owned in the generation before may
    /// have another owner in the next.
    pub(super) fn group_metadata(&self) -> Option<ConsumerGroupMetadata> {
        let metadata = self.consumer.group_metadata();
        let generation = ffi::generation(self.client());
        let is_own = generation.is_some()
            && self.generation.is_none_or(|own| generation == Some(own))
            && !self.is_confused;
        metadata.filter(|_| is_own)
    }

    pub(super) fn owned(&self) -> impl Iterator<Item = &TopicPartition> {
        self.slots.iter().map(|slot| &slot.partition)
    }

    /// Waits for records, an end of partition, a rebalance or a failure.
    pub(super) fn poll(
        &mut self,
        batch: &mut Batch,
        wait: Duration,
        spec: &LaneSpec,
        memory: &mut Memory,
    ) -> Event {
        let deadline = Instant::now() + wait;
        loop {
            if let Some(event) = self.control(spec, memory) {
                return event;
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if let Some(event) = self.data(batch, left.min(SLICE), spec) {
                return event;
            }
            if left.is_zero() {
                return Event::Idle;
            }
        }
    }

    /// Rebalances and errors: everything but records.
    fn control(&mut self, spec: &LaneSpec, memory: &mut Memory) -> Option<Event> {
        if let Some(partition) = self.gone.pop_front() {
            let error = LogError::BadConfig(format!(
                "the committed offset is gone: it was removed from group {}, or expired, or the topic was made anew; \
                 pause the deployment, say where it goes on with `coproc offsets reset`, and resume it",
                spec.group
            ));
            return Some(Event::Stuck { partition, error });
        }
        self.consumer.context().rescue(self.client());
        match self.consumer.poll(Duration::ZERO) {
            None => {}
            // Partitions are forwarded to our own queue before they are assigned.
            Some(Ok(message)) => {
                let place = rdkafka::Message::topic(&message).to_owned();
                return Some(Event::Failed(LogError::Unavailable(format!(
                    "a record of {place} came by the wrong queue: rewind"
                ))));
            }
            Some(Err(error)) => {
                if let Some(failure) = self.consumer_failure(&error, spec) {
                    return Some(Event::Failed(failure));
                }
            }
        }
        if let Some(failure) = self.failure.take() {
            return Some(Event::Failed(failure));
        }
        match self.consumer.context().next_rebalance() {
            Some(Rebalance::Assign { partitions, generation }) => {
                self.given(owned_partitions(&partitions), generation);
            }
            Some(Rebalance::Revoke { partitions, lost, generation }) => {
                let partitions = owned_partitions(&partitions);
                self.asked_for(&partitions, generation);
                return Some(Event::Revoking { partitions, lost });
            }
            None => {}
        }
        self.assigning.is_some().then(|| self.assign(spec, memory)).flatten()
    }

    /// The group gives partitions. The client may have joined anew before the lane answered what it was given before.
    fn given(&mut self, partitions: Vec<TopicPartition>, generation: Option<i32>) {
        self.is_owing = true;
        match self.assignor {
            Assignor::Eager => {
                // It is all that it has, and was given without being asked for what it had.
                self.is_confused |= !self.slots.is_empty() || generation.is_none();
                self.generation = generation;
                self.assigning = Some(partitions);
            }
            // These are but the new ones.
            Assignor::Cooperative => self.assigning.get_or_insert_default().extend(partitions),
        }
    }

    /// The group asks for partitions, perhaps for some whose assignment is not answered yet.
    fn asked_for(&mut self, partitions: &[TopicPartition], generation: Option<i32>) {
        self.is_owing = true;
        self.data.retain(|message| !concerns(message, partitions));
        match self.assignor {
            Assignor::Eager => (self.assigning, self.asking) = (None, None),
            Assignor::Cooperative => {
                if let Some(assigning) = &mut self.assigning {
                    assigning.retain(|at| !partitions.contains(at));
                }
                self.generation = generation;
            }
        }
        self.revoking.get_or_insert_default().extend_from_slice(partitions);
    }

    /// Whether the client and the lane are not at one about who owns what: only new clients help.
    pub(super) fn is_confused(&self) -> bool {
        self.is_confused
    }

    /// What a consumer's error means for the lane: nothing, where the client helps itself.
    fn consumer_failure(&mut self, error: &rdkafka::error::KafkaError, spec: &LaneSpec) -> Option<LogError> {
        let told = self.consumer.context().take_error();
        let code = error::code(error)?;
        let what = told.map_or_else(|| "the consumer failed".to_owned(), |(_, text)| text);
        if let Some((code, text)) = self.consumer.client().fatal_error() {
            // Under static membership: another has taken its name, and the slot with it. Two that fight for it help nobody.
            if error::is_fence(code) {
                return Some(LogError::Fenced(format!("{}: {text}", spec.group)));
            }
            // The client says so once and does nothing more.
            self.is_confused = true;
            return Some(LogError::Unavailable(format!("the consumer is of no use any more: {text}")));
        }
        if error::mends_itself(code) || code == Code::PartitionEOF {
            return None;
        }
        let named = |input: &&TopicName| what.split([' ', ':']).any(|word| word == input.as_str());
        match (code, spec.inputs.iter().find(named)) {
            (Code::UnknownTopicOrPartition | Code::UnknownTopic, Some(input)) => {
                Some(LogError::UnknownTopic(input.clone()))
            }
            _ => Some(error::from_code(code, &what)),
        }
    }

    /// Answers an assignment once the committed offsets are known; the client keeps up the heartbeat while we
    /// ask. A transaction that the last owner left open can hold the answer back until it times out.
    fn assign(&mut self, spec: &LaneSpec, memory: &mut Memory) -> Option<Event> {
        let partitions = self.assigning.clone()?;
        let places = match start::places(&self.consumer, &partitions, spec.start, memory) {
            Ok(places) => places,
            Err(error @ LogError::Unavailable(_)) => {
                info!(%error, "the committed offsets are not known yet: asking again");
                let since = *self.asking.get_or_insert_with(Instant::now);
                // Where it has others, they are read on meanwhile.
                if since.elapsed() < IN_SILENCE || !self.slots.is_empty() {
                    return None;
                }
                self.asking = None;
                return Some(Event::Failed(error));
            }
            Err(error) => return Some(Event::Failed(error)),
        };
        (self.assigning, self.asking) = (None, None);
        let slots: Vec<Slot> = places.into_iter().map(Slot::at).collect();
        let list = start::list(slots.iter().filter_map(Slot::position));
        for (partition, _) in slots.iter().filter_map(Slot::position) {
            self.data.attach(self.client(), partition.topic.as_str(), partition.partition);
        }
        let answered = match self.assignor {
            Assignor::Eager => self.consumer.assign(&list),
            Assignor::Cooperative => self.consumer.incremental_assign(&list),
        };
        if let Err(error) = answered {
            return Some(Event::Failed(error::from_kafka(&error, "cannot take over partitions")));
        }
        self.is_owing = self.revoking.is_some();
        match self.assignor {
            Assignor::Eager => self.slots.clear(),
            Assignor::Cooperative => self.hold_on(),
        }
        self.cursor = None;
        self.gone.extend(slots.iter().filter(|slot| slot.is_gone).map(|slot| slot.partition.clone()));
        self.slots.extend(slots);
        Some(Event::Assigned(partitions))
    }

    fn data(&mut self, batch: &mut Batch, wait: Duration, spec: &LaneSpec) -> Option<Event> {
        let mut wait = wait;
        let mut filling: Option<usize> = None;
        while let Some(message) = self.data.peek(wait) {
            wait = Duration::ZERO;
            let tag = (message.topic_tag(), message.partition());
            let slot = match self.cursor {
                Some((topic, partition, slot)) if (topic, partition) == tag => Some(slot),
                _ => find(&self.slots, &message),
            };
            let Some(index) = slot else {
                self.data.pop();
                continue;
            };
            self.cursor = Some((tag.0, tag.1, index));
            if filling.is_some_and(|filling| filling != index) {
                break;
            }
            let slot = &mut self.slots[index];
            if let Some(code) = message.error() {
                if filling.is_some() {
                    break;
                }
                let event = on_partition_error(&self.consumer, slot, code, &message);
                self.data.pop();
                match event {
                    Some(event) => return Some(event),
                    None => continue,
                }
            }
            // What lies before the slot's position was handed out before, or left behind by a seek.
            if message.offset() >= slot.next && slot.is_open() {
                if filling.is_none() {
                    batch.reset(&slot.partition.topic, slot.partition.partition);
                    filling = Some(index);
                }
                push(batch, &message);
                slot.next = message.offset() + 1;
                slot.end = None;
            }
            self.data.pop();
            if batch.len() >= spec.max_records || batch.bytes() >= spec.max_bytes {
                break;
            }
        }
        filling.map(|_| Event::Records)
    }

    /// Gives up what the last `Revoking` named.
    pub(super) fn release(&mut self) {
        let revoking = self.revoking.take().unwrap_or_default();
        // What the client was not given it does not take back, and refuses the others with it.
        let given = self.slots.iter().filter(|slot| slot.client != ClientSide::Unassigned);
        let assigned = given.filter(|slot| revoking.contains(&slot.partition));
        let list = start::list(assigned.map(|slot| (&slot.partition, 0)));
        let owned = self.owned().filter(|partition| revoking.contains(partition));
        let paused = start::list(owned.map(|partition| (partition, 0)));
        // The client remembers a pause: the partition would stand still when it comes back. Nothing is fetched meanwhile,
        // the client's own pause lasts until it is given up.
        let resumed = if paused.count() > 0 { self.consumer.resume(&paused) } else { Ok(()) };
        let answered = match self.assignor {
            Assignor::Eager => self.consumer.unassign(),
            Assignor::Cooperative => self.consumer.incremental_unassign(&list),
        };
        if answered.is_ok() {
            self.is_owing = self.assigning.is_some();
        }
        if let Err(error) = resumed.and(answered) {
            self.failure = Some(error::from_kafka(&error, "cannot give up partitions"));
        }
        self.cursor = None;
        self.generation = None;
        self.gone.retain(|partition| !revoking.contains(partition));
        self.data.retain(|message| !concerns(message, &revoking));
        match self.assignor {
            Assignor::Eager => self.slots.clear(),
            Assignor::Cooperative => {
                self.slots.retain(|slot| !revoking.contains(&slot.partition));
                self.hold_on();
            }
        }
    }

    /// Has the partitions that stay go on where they stand. While partitions come and go, the client pauses those that
    /// stay, and resumes them where it believes the application to be: after an end of partition that is one record too
    /// far (it counts the end as a record), which would be left out.
    fn hold_on(&mut self) {
        // One that is adrift takes no seek, and is not read.
        let staying =
            self.slots.iter().filter(|slot| slot.client != ClientSide::Adrift).filter_map(Slot::position);
        let staying: Vec<_> = staying.map(|(partition, next)| (partition.clone(), next)).collect();
        match self.seek(&staying) {
            Ok(true) => {}
            // Also a partition that takes no seek: the rewind that follows finds that out again and sees to it.
            Ok(false) => {
                let reason = "partitions that stay cannot be sought: rewind".to_owned();
                self.failure = Some(LogError::Unavailable(reason));
            }
            Err(error) => self.failure = Some(error),
        }
    }

    /// Drops everything buffered and seeks every partition to its committed offset. Not so (`false`) where the client
    /// takes no seek: a partition whose fetch failed stays as it is for as long as it is assigned.
    pub(super) fn rewind(&mut self, spec: &LaneSpec, memory: &mut Memory) -> Result<bool, LogError> {
        self.data.retain(|_| false);
        self.gone.clear();
        let revoking = self.revoking.as_deref().unwrap_or_default();
        let kept: Vec<_> = self.owned().filter(|partition| !revoking.contains(partition)).cloned().collect();
        let mut to = Vec::with_capacity(kept.len());
        for (partition, place) in start::places(&self.consumer, &kept, spec.start, memory)? {
            let Some(slot) = self.slots.iter_mut().find(|slot| slot.partition == partition) else { continue };
            slot.end = None;
            slot.is_gone = place == Place::Gone;
            if slot.client == ClientSide::Adrift {
                // If it still is, the client refuses the seek.
                slot.client = ClientSide::Assigned;
            }
            match place {
                Place::At(offset) => {
                    slot.next = offset;
                    to.push((partition, offset));
                }
                Place::Gone => self.gone.push_back(partition),
            }
        }
        self.seek(&to)
    }

    fn seek(&mut self, to: &[(TopicPartition, Offset)]) -> Result<bool, LogError> {
        if to.is_empty() {
            return Ok(true);
        }
        let list = start::list(to.iter().map(|(partition, offset)| (partition, *offset)));
        let sought = self
            .consumer
            .seek_partitions(list, SEEK_TIMEOUT)
            .map_err(|e| error::from_kafka(&e, "cannot seek"))?;
        // What was fetched before the seek took effect is outdated.
        self.data.retain(|message| !to.iter().any(|(at, _)| concerns(message, std::slice::from_ref(at))));
        match sought.elements().iter().find_map(|element| element.error().err()) {
            None => Ok(true),
            // The second: a partition that came without a committed offset, and has one again.
            Some(error) if matches!(error::code(&error), Some(Code::State | Code::UnknownPartition)) => {
                Ok(false)
            }
            Some(error) => Err(error::from_kafka(&error, "cannot seek")),
        }
    }

    pub(super) fn pause(&mut self, partitions: &[TopicPartition]) {
        let list = start::list(partitions.iter().map(|partition| (partition, 0)));
        if let Err(error) = self.consumer.pause(&list) {
            self.failure = Some(error::from_kafka(&error, "cannot pause"));
        }
        self.data.retain(|message| message.error().is_some() || !concerns(message, partitions));
        self.set_paused(partitions, true);
    }

    pub(super) fn resume(&mut self, partitions: &[TopicPartition]) {
        self.set_paused(partitions, false);
        let wanted = self.slots.iter().filter(|slot| partitions.contains(&slot.partition));
        let to: Vec<(TopicPartition, Offset)> =
            wanted.filter_map(Slot::position).map(|(partition, next)| (partition.clone(), next)).collect();
        if to.is_empty() {
            return;
        }
        // The client's own position is past what the pause threw away.
        match self.seek(&to) {
            Ok(true) => {
                let list = start::list(to.iter().map(|(partition, _)| (partition, 0)));
                if let Err(error) = self.consumer.resume(&list) {
                    self.failure = Some(error::from_kafka(&error, "cannot resume"));
                }
            }
            Ok(false) => {
                let reason = "partitions that were paused cannot be sought: rewind".to_owned();
                self.failure = Some(LogError::Unavailable(reason));
            }
            Err(failure) => self.failure = Some(failure),
        }
    }

    fn set_paused(&mut self, partitions: &[TopicPartition], paused: bool) {
        for slot in self.slots.iter_mut().filter(|slot| partitions.contains(&slot.partition)) {
            slot.paused = paused;
        }
    }

    /// Where each partition stands; right after an assignment that is where it starts.
    pub(super) fn starts(&self) -> Vec<(TopicPartition, Offset)> {
        let known = self.slots.iter().filter_map(Slot::position);
        known.map(|(partition, next)| (partition.clone(), next)).collect()
    }

    pub(super) fn extents(&mut self) -> Vec<(TopicPartition, Extent)> {
        let client = self.client();
        self.extents.of(client, &self.slots)
    }

    /// Commits offsets without a transaction: at least once.
    pub(super) fn commit(&self, offsets: &TopicPartitionList) -> Result<(), LogError> {
        ffi::commit(self.client(), offsets, self.budget)
            .map_err(|code| error::from_code(code, "cannot commit offsets"))
    }
}
