//! A lane's session with the embedded log: an ack-commit is one atomic commit of the writer.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::core::deployment::StartOffset;
use crate::core::ledger::{Ledger, TopicPartition};
use crate::core::names::TopicName;
use crate::core::record::{Batch, Offset};
use crate::log::LONGEST_WAIT;
use crate::log::catalog::Topic;
use crate::log::cursor::{Cursor, offset_at};
use crate::log::group::{Membership, News};
use crate::log::request::{Fence, OffsetChange};
use crate::log::signal::Signal;
use crate::log::store::Store;
use crate::log::transaction::Transaction;
use crate::ports::{Emit, Event, Extent, LaneSession, LaneSpec, LogError, Placement};

/// Output bytes after which it is to be committed: they are kept in memory until then.
const COMMIT_BYTES: u64 = 16 << 20;

/// A lane's session.
pub struct Lane {
    store: Arc<Store>,
    spec: LaneSpec,
    fence: Fence,
    membership: Membership,
    signal: Arc<Signal>,
    /// Owned, and where it stands.
    slots: BTreeMap<TopicPartition, Slot>,
    /// Owned, and not yet known where it starts.
    fresh: Vec<TopicPartition>,
    revoking: Vec<TopicPartition>,
    /// Whose turn it was last: partitions are read one after another.
    last: Option<TopicPartition>,
    outputs: BTreeMap<TopicName, Arc<Topic>>,
    transaction: Transaction,
}

struct Slot {
    topic: Arc<Topic>,
    cursor: Cursor,
    paused: bool,
    caught_up: bool,
    health: Health,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Health {
    Good,
    /// The committed offset is gone, and with it where to read on.
    Lost,
    /// It failed and was reported: silent until the session rewinds.
    Silent,
}

impl Lane {
    /// Opens a session.
    pub fn open(store: Arc<Store>, spec: LaneSpec) -> Result<Self, LogError> {
        let inputs: Result<Vec<_>, _> = spec.inputs.iter().map(|name| store.topic(name)).collect();
        let inputs = inputs?;
        for name in &spec.outputs {
            store.topic(name)?;
        }
        let signal = Arc::<Signal>::default();
        for topic in &inputs {
            topic.watchers.add(&signal);
        }
        let fence = store.claim(format!("the lane {}", spec.transactional_id))?;
        let membership = store.groups.join(&spec.group, &spec.transactional_id, &inputs, &signal);
        Ok(Self {
            store,
            spec,
            fence,
            membership,
            signal,
            slots: BTreeMap::new(),
            fresh: Vec::new(),
            revoking: Vec::new(),
            last: None,
            outputs: BTreeMap::new(),
            transaction: Transaction::default(),
        })
    }

    fn next_event(&mut self, batch: &mut Batch) -> Option<Event> {
        if let Err(error) = self.fence.check() {
            return Some(Event::Failed(error));
        }
        match self.store.groups.news(&self.membership) {
            News::None => {}
            News::Assigned(partitions) => self.fresh.extend(partitions),
            News::Revoking(partitions) => {
                self.revoking.extend(partitions.iter().cloned());
                return Some(Event::Revoking { partitions, lost: false });
            }
        }
        if !self.fresh.is_empty() {
            return Some(match self.start_fresh() {
                Ok(partitions) => Event::Assigned(partitions),
                Err(error) => Event::Failed(error),
            });
        }
        self.read(batch)
    }

    /// Finds out where new partitions start, and commits that at once: a restart must not find another answer.
    fn start_fresh(&mut self) -> Result<Vec<TopicPartition>, LogError> {
        self.wait_for_forerunner()?;
        let mut starts = Vec::with_capacity(self.fresh.len());
        let mut changes = Vec::new();
        for at in &self.fresh {
            let topic = self.store.topic(&at.topic)?;
            let committed = self.store.committed_at(&self.spec.group, at);
            let start = match committed {
                Some(offset) => offset,
                None => self.start_of(&topic, at.partition)?,
            };
            if committed.is_none() {
                let (group, partition) = (self.spec.group.clone(), at.partition);
                changes.push(OffsetChange { group, topic: topic.clone(), partition, to: start });
            }
            starts.push((at.clone(), topic, start));
        }
        if !changes.is_empty() {
            self.store.write(Vec::new(), changes, Some(self.fence.clone()))?;
        }
        self.fresh.clear();
        let slots = starts.into_iter().map(|(at, topic, start)| {
            let cursor = Cursor::at(start);
            let slot = Slot { topic, cursor, paused: false, caught_up: false, health: Health::Good };
            self.slots.insert(at.clone(), slot);
            at
        });
        Ok(slots.collect())
    }

    /// A commit of whoever had this slot before may be on its way, let through before the fence rose. The writer answers
    /// in order: offsets that are read after this are the last word.
    fn wait_for_forerunner(&self) -> Result<(), LogError> {
        self.store.write(Vec::new(), Vec::new(), Some(self.fence.clone())).map(drop)
    }

    fn start_of(&self, topic: &Topic, partition: u32) -> Result<Offset, LogError> {
        let extent = topic.partition(partition)?.extent();
        let clamp = |offset: Offset| offset.clamp(extent.first, extent.end);
        let count = |records: u64| Offset::try_from(records).unwrap_or(Offset::MAX);
        Ok(match self.spec.start {
            StartOffset::Earliest => extent.first,
            StartOffset::Latest => extent.end,
            StartOffset::Timestamp { timestamp } => {
                offset_at(&self.store.engine, topic, partition, timestamp)?
            }
            StartOffset::FromStart { records } => clamp(extent.first.saturating_add(count(records))),
            StartOffset::FromEnd { records } => clamp(extent.end.saturating_sub(count(records))),
        })
    }

    /// Reads the next partition that has something to say.
    fn read(&mut self, batch: &mut Batch) -> Option<Event> {
        let after: Vec<TopicPartition> = match &self.last {
            // The partitions after the last one, then those before it; most lanes have one.
            Some(last) if self.slots.len() > 1 => {
                let (before, after): (Vec<_>, Vec<_>) = self.slots.keys().cloned().partition(|at| at <= last);
                after.into_iter().chain(before).collect()
            }
            _ => self.slots.keys().cloned().collect(),
        };
        for at in after {
            let Some(slot) = self.slots.get_mut(&at) else { continue };
            if slot.paused || slot.health == Health::Silent || self.revoking.contains(&at) {
                continue;
            }
            let event = slot.read(&self.store, &self.spec, &at, batch);
            if event.is_some() {
                self.last = Some(at);
                return event;
            }
        }
        None
    }

    fn topic(&mut self, name: &TopicName) -> Result<Arc<Topic>, LogError> {
        if let Some(topic) = self.outputs.get(name) {
            return Ok(topic.clone());
        }
        let topic = self.store.topic(name)?;
        self.outputs.insert(name.clone(), topic.clone());
        Ok(topic)
    }
}

impl Slot {
    fn read(
        &mut self,
        store: &Store,
        spec: &LaneSpec,
        at: &TopicPartition,
        batch: &mut Batch,
    ) -> Option<Event> {
        if self.health == Health::Lost && !self.topic.is_deleted() {
            self.health = Health::Silent;
            let error = LogError::BadConfig(format!(
                "the committed offset is gone, somebody removed group {}: pause and resume the deployment to start \
                 where its start offset says",
                spec.group
            ));
            return Some(Event::Stuck { partition: at.clone(), error });
        }
        if self.caught_up && self.is_at_end(at) {
            return None;
        }
        batch.reset(&at.topic, at.partition);
        // Small commits make small chunks, and compaction empties some: as many as the batch takes.
        let mut is_full = false;
        while !is_full {
            let before = self.cursor.next();
            let read = self.cursor.read(&store.engine, &self.topic, at.partition, |record| {
                is_full = batch.len() >= spec.max_records
                    || (!batch.is_empty() && batch.bytes() + record.payload.len() > spec.max_bytes);
                if !is_full {
                    batch.push(record.offset, record.timestamp, record.payload);
                }
                !is_full
            });
            match read {
                // What was read is handed out first; the failure comes again.
                Err(_) if !batch.is_empty() => break,
                Err(error) => {
                    self.health = Health::Silent;
                    return Some(failed(at, error));
                }
                Ok(()) if self.cursor.next() == before => break,
                Ok(()) => {}
            }
        }
        if !batch.is_empty() {
            self.caught_up = false;
            return Some(Event::Records);
        }
        // Also behind the last record, where compaction left nothing up to the end.
        let is_news = self.is_at_end(at) && !self.caught_up;
        self.caught_up |= is_news;
        is_news.then(|| Event::CaughtUp { partition: at.clone(), next_offset: self.cursor.next() })
    }

    fn is_at_end(&self, at: &TopicPartition) -> bool {
        let end = self.topic.partition(at.partition).map(|partition| partition.extent().end);
        !self.topic.is_deleted() && end.is_ok_and(|end| end == self.cursor.next())
    }
}

/// What a failure to read a partition means: whether it is this one's, or everybody's.
fn failed(at: &TopicPartition, error: LogError) -> Event {
    match error {
        LogError::OffsetOutOfRange { .. } | LogError::Corrupt(_) => {
            Event::Stuck { partition: at.clone(), error }
        }
        error => Event::Failed(error),
    }
}

impl LaneSession for Lane {
    fn poll(&mut self, batch: &mut Batch, wait: Duration) -> Event {
        let deadline = Instant::now() + wait.min(LONGEST_WAIT);
        if let Some(topic) = batch.topic().cloned() {
            batch.reset(&topic, batch.partition());
        }
        loop {
            if let Some(event) = self.next_event(batch) {
                return event;
            }
            if !self.signal.wait_until(deadline) {
                return Event::Idle;
            }
        }
    }

    fn emit(&mut self, output: &Emit<'_>) -> Result<(), LogError> {
        let topic = self.topic(output.topic)?;
        let parts = topic.check(output.payload)?;
        let partition = match output.placement {
            Placement::Exactly(partition) => partition,
            Placement::By(partitioner, source) => {
                partitioner.choose(parts.key, source, topic.partitions.len() as u32)
            }
        };
        topic.partition(partition)?;
        self.transaction.push(&topic, partition, output.timestamp, output.payload);
        Ok(())
    }

    fn ack_commit(&mut self, ledger: &Ledger) -> Result<(), LogError> {
        let mut offsets = Vec::new();
        for (at, next) in ledger.uncommitted() {
            let slot = self.slots.get(at).ok_or_else(|| LogError::Fenced(format!("partition {at}")))?;
            let (group, topic) = (self.spec.group.clone(), slot.topic.clone());
            offsets.push(OffsetChange { group, topic, partition: at.partition, to: next });
        }
        let appends = self.transaction.take();
        if appends.is_empty() && offsets.is_empty() {
            return self.fence.check();
        }
        self.store.write(appends, offsets, Some(self.fence.clone())).map(drop)
    }

    fn rewind(&mut self) -> Result<(), LogError> {
        self.transaction.clear();
        self.outputs.clear();
        self.wait_for_forerunner()?;
        for (at, slot) in &mut self.slots {
            // Every slot had its start committed, unless somebody removed the group under it.
            let committed = self.store.committed_at(&self.spec.group, at);
            slot.health = if committed.is_some() { Health::Good } else { Health::Lost };
            slot.cursor = Cursor::at(committed.unwrap_or_default());
            slot.caught_up = false;
        }
        Ok(())
    }

    fn pause(&mut self, partitions: &[TopicPartition]) {
        for at in partitions {
            if let Some(slot) = self.slots.get_mut(at) {
                slot.paused = true;
            }
        }
    }

    fn resume(&mut self, partitions: &[TopicPartition]) {
        for at in partitions {
            if let Some(slot) = self.slots.get_mut(at) {
                slot.paused = false;
            }
        }
    }

    fn release(&mut self) {
        for at in self.revoking.drain(..) {
            self.slots.remove(&at);
            self.fresh.retain(|fresh| *fresh != at);
        }
        self.store.groups.release(&self.membership);
    }

    fn commit_room(&self) -> u64 {
        COMMIT_BYTES
    }

    fn extents(&mut self) -> Vec<(TopicPartition, Extent)> {
        let extent = |(at, slot): (&TopicPartition, &Slot)| {
            slot.topic.partition(at.partition).ok().map(|partition| (at.clone(), partition.extent()))
        };
        self.slots.iter().filter_map(extent).collect()
    }
}

impl Drop for Lane {
    fn drop(&mut self) {
        self.store.groups.leave(&self.membership);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::core::deployment::Delivery;
    use crate::core::record::Record;
    use crate::log::{EmbeddedLog, Options};
    use crate::ports::{Log, Produce, TopicAdmin, TopicConfig};

    #[test]
    fn a_rewind_without_a_committed_offset_starts_nothing_anew() {
        let dir = tempfile::tempdir().unwrap();
        let log = EmbeddedLog::open(dir.path(), Options::default()).unwrap();
        let topic: TopicName = "in".parse().unwrap();
        log.create(&topic, &TopicConfig::default()).unwrap();
        let record = Record::new(None, Some(b"a"));
        log.produce(&[Produce { topic: topic.clone(), partition: None, record }]).unwrap();
        let spec = LaneSpec {
            group: "g".parse().unwrap(),
            transactional_id: "one".into(),
            inputs: vec![topic],
            outputs: Vec::new(),
            start: StartOffset::Earliest,
            delivery: Delivery::Auto,
            max_records: 10,
            max_bytes: 1 << 20,
        };
        let mut lane = Lane::open(log.store.clone(), spec).unwrap();
        let mut batch = Batch::default();
        assert!(matches!(lane.poll(&mut batch, Duration::ZERO), Event::Assigned(_)));
        assert!(matches!(lane.poll(&mut batch, Duration::ZERO), Event::Records));
        log.store.forget_committed(|_, _| true);
        lane.rewind().unwrap();
        assert!(matches!(lane.poll(&mut batch, Duration::ZERO), Event::Stuck { .. }));
        assert!(matches!(lane.poll(&mut batch, Duration::ZERO), Event::Idle), "it says so once");
    }
}
