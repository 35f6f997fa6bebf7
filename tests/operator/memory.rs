//! A log in memory, behind the ports: two folds, a fenced writer, groups. It can be taken down, and its control
//! topic can be deleted.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::{Duration, Instant};

use coproc::core::ledger::TopicPartition;
use coproc::core::names::{ConsumerGroup, TopicName};
use coproc::core::record::Offset;
use coproc::operator::world::{Connection, Logs};
use coproc::ports::{
    Ability, Capabilities, Extent, FencedWriter, Fold, FoldEvent, Keyed, LaneSession, LaneSpec, Log,
    LogError, Offsets, Produce, Produced, ReadFrom, Reader, TopicAdmin, TopicConfig, TopicInfo,
};
use parking_lot::{Condvar, Mutex};

#[derive(Default)]
struct Topic {
    id: u64,
    config: TopicConfig,
    records: Vec<Keyed>,
}

#[derive(Default)]
struct State {
    topics: BTreeMap<TopicName, Topic>,
    made: u64,
    epochs: HashMap<String, u64>,
    groups: BTreeMap<ConsumerGroup, usize>,
    is_down: bool,
    /// The status topic does not answer.
    is_status_hidden: bool,
    transactions: usize,
    crash: Option<Crash>,
}

/// Ends the process that writes, as far as the log can: from then on its calls do not come back.
struct Crash {
    at_write: usize,
    /// Whether the write has happened then.
    is_after: bool,
    told: std::sync::Arc<tokio::sync::Notify>,
}

/// The log; clones share it.
#[derive(Clone, Default)]
pub struct Memory(Arc<(Mutex<State>, Condvar)>);

impl Memory {
    fn with<T>(&self, act: impl FnOnce(&mut State) -> Result<T, LogError>) -> Result<T, LogError> {
        let mut state = self.0.0.lock();
        if state.is_down {
            return Err(LogError::Unavailable("the brokers are down".into()));
        }
        let result = act(&mut state);
        self.0.1.notify_all();
        result
    }

    /// Takes the brokers down, or up again.
    pub fn set_down(&self, is_down: bool) {
        self.0.0.lock().is_down = is_down;
        self.0.1.notify_all();
    }

    /// Lets the status topic answer nobody who reads it, or everybody again.
    #[allow(dead_code, reason = "only tests/operator_outage.rs hides it")]
    pub fn set_status_hidden(&self, is_hidden: bool) {
        self.0.0.lock().is_status_hidden = is_hidden;
        self.0.1.notify_all();
    }

    /// Ends whoever makes the write of this number, counted from 1, before or after it; tells when it happens.
    #[allow(dead_code, reason = "only tests/operator_outage.rs lets operators die")]
    pub fn crash_at(&self, at_write: usize, is_after: bool, told: &Arc<tokio::sync::Notify>) {
        self.0.0.lock().crash = Some(Crash { at_write, is_after, told: told.clone() });
    }

    /// What crashed is gone: its calls end, and nobody else crashes.
    #[allow(dead_code, reason = "only tests/operator_outage.rs lets operators die")]
    pub fn bury(&self) {
        self.0.0.lock().crash = None;
        self.0.1.notify_all();
    }

    /// A change of what is in the log.
    fn write<T>(&self, act: impl FnOnce(&mut State) -> Result<T, LogError>) -> Result<T, LogError> {
        let dead = || LogError::Unavailable("this process is dead".into());
        let due = self.0.0.lock().crash.as_mut().map(|crash| {
            crash.at_write = crash.at_write.saturating_sub(1);
            (crash.at_write == 0, crash.is_after)
        });
        let result = match due {
            Some((true, false)) => Err(dead()),
            _ => self.with(act),
        };
        if due.is_some_and(|(is_due, _)| is_due) {
            let mut state = self.0.0.lock();
            if let Some(crash) = &state.crash {
                crash.told.notify_one();
            }
            while state.crash.is_some() {
                self.0.1.wait(&mut state);
            }
            return Err(dead());
        }
        result
    }

    /// Makes a topic of so many partitions.
    pub fn topic(&self, name: &str, partitions: u32) {
        let config = TopicConfig { partitions, ..TopicConfig::default() };
        let _ = self.create(&name.parse().unwrap(), &config);
    }

    /// Makes a group with so many members.
    pub fn group(&self, name: &str, members: usize) {
        self.0.0.lock().groups.insert(name.parse().unwrap(), members);
    }

    /// The names of the groups.
    pub fn group_names(&self) -> Vec<String> {
        self.0.0.lock().groups.keys().map(ToString::to_string).collect()
    }

    /// The last value of every key of a topic.
    pub fn table(&self, topic: &str) -> BTreeMap<String, Vec<u8>> {
        let state = self.0.0.lock();
        let mut table = BTreeMap::new();
        for record in state.topics.get(&topic.parse().unwrap()).into_iter().flat_map(|topic| &topic.records) {
            let key = String::from_utf8(record.key.clone()).unwrap();
            match &record.value {
                Some(value) => drop(table.insert(key, value.clone())),
                None => drop(table.remove(&key)),
            }
        }
        table
    }

    /// How many records a topic got.
    pub fn written(&self, topic: &str) -> usize {
        self.0.0.lock().topics.get(&topic.parse().unwrap()).map_or(0, |topic| topic.records.len())
    }

    /// How many transactions there were.
    pub fn transactions(&self) -> usize {
        self.0.0.lock().transactions
    }

    /// Appends a keyed record.
    pub fn put(&self, topic: &str, key: &str, value: Option<Vec<u8>>) {
        let keyed = Keyed { key: key.as_bytes().to_vec(), value };
        self.with(|state| append(state, &topic.parse().unwrap(), keyed)).unwrap();
    }
}

fn append(state: &mut State, topic: &TopicName, keyed: Keyed) -> Result<(), LogError> {
    let found = state.topics.get_mut(topic).ok_or_else(|| LogError::UnknownTopic(topic.clone()))?;
    found.records.push(keyed);
    Ok(())
}

impl Logs for Memory {
    fn check(&self, _: &Connection) -> Result<(), String> {
        Ok(())
    }

    fn open(&self, _: &Connection) -> Result<Arc<dyn Log>, LogError> {
        self.with(|_| Ok(()))?;
        Ok(Arc::new(self.clone()))
    }
}

impl Log for Memory {
    fn lane(&self, _: &LaneSpec) -> Result<Box<dyn LaneSession>, LogError> {
        Err(LogError::Refused("no lanes here".into()))
    }

    fn topics(&self) -> &dyn TopicAdmin {
        self
    }

    fn offsets(&self) -> &dyn Offsets {
        self
    }

    fn fold(&self, topic: &TopicName) -> Result<Box<dyn Fold>, LogError> {
        let id = self.with(|state| Ok(state.topics.get(topic).map(|topic| topic.id)))?;
        let id = id.ok_or_else(|| LogError::UnknownTopic(topic.clone()))?;
        Ok(Box::new(MemoryFold {
            memory: self.clone(),
            topic: topic.clone(),
            id,
            next: 0,
            was_caught_up: false,
        }))
    }

    fn fenced_writer(&self, topic: &TopicName, id: &str) -> Result<Box<dyn FencedWriter>, LogError> {
        let epoch = self.with(|state| {
            let epoch = state.epochs.entry(id.to_owned()).or_default();
            *epoch += 1;
            Ok(*epoch)
        })?;
        Ok(Box::new(Writer { memory: self.clone(), topic: topic.clone(), id: id.to_owned(), epoch }))
    }

    fn reader(&self, _: &TopicName, _: Option<&[u32]>, _: ReadFrom) -> Result<Box<dyn Reader>, LogError> {
        Err(LogError::Refused("no readers here".into()))
    }

    fn produce(&self, records: &[Produce]) -> Result<Vec<Produced>, LogError> {
        self.write(|state| {
            for produce in records {
                let key = produce.record.key.clone().unwrap_or_default();
                append(state, &produce.topic, Keyed { key, value: produce.record.value.clone() })?;
            }
            Ok(records.iter().map(|_| Produced { partition: 0, offset: 0, appended_ms: 0 }).collect())
        })
    }

    fn capabilities(&self) -> Capabilities {
        Capabilities {
            description: "memory".into(),
            transactions: Ability::Present,
            compaction: Ability::Present,
        }
    }
}

impl TopicAdmin for Memory {
    fn create(&self, name: &TopicName, config: &TopicConfig) -> Result<(), LogError> {
        self.with(|state| {
            if state.topics.contains_key(name) {
                return Err(LogError::TopicExists(name.clone()));
            }
            state.made += 1;
            let topic = Topic { id: state.made, config: config.clone(), records: Vec::new() };
            state.topics.insert(name.clone(), topic);
            Ok(())
        })
    }

    fn delete(&self, name: &TopicName) -> Result<(), LogError> {
        self.with(|state| {
            state.topics.remove(name);
            Ok(())
        })
    }

    fn list(&self) -> Result<Vec<TopicInfo>, LogError> {
        self.with(|state| Ok(state.topics.iter().map(|(name, topic)| info(name, topic)).collect()))
    }

    fn describe(&self, name: &TopicName) -> Result<Option<TopicInfo>, LogError> {
        self.with(|state| Ok(state.topics.get(name).map(|topic| info(name, topic))))
    }

    fn extents(&self, _: &TopicName) -> Result<Vec<Extent>, LogError> {
        Err(LogError::Refused("no extents here".into()))
    }

    fn offsets_at(&self, _: &TopicName, _: i64) -> Result<Vec<Offset>, LogError> {
        Err(LogError::Refused("no offsets here".into()))
    }
}

fn info(name: &TopicName, topic: &Topic) -> TopicInfo {
    TopicInfo { name: name.clone(), id: topic.id.to_string(), config: topic.config.clone() }
}

impl Offsets for Memory {
    fn groups(&self) -> Result<Vec<ConsumerGroup>, LogError> {
        self.with(|state| Ok(state.groups.keys().cloned().collect()))
    }

    fn committed(&self, _: &ConsumerGroup) -> Result<BTreeMap<TopicPartition, Offset>, LogError> {
        Ok(BTreeMap::new())
    }

    fn members(&self, group: &ConsumerGroup) -> Result<usize, LogError> {
        self.with(|state| Ok(state.groups.get(group).copied().unwrap_or_default()))
    }

    fn alter(&self, _: &ConsumerGroup, _: &BTreeMap<TopicPartition, Offset>) -> Result<(), LogError> {
        Ok(())
    }

    fn delete(&self, group: &ConsumerGroup) -> Result<(), LogError> {
        self.write(|state| {
            state.groups.remove(group);
            Ok(())
        })
    }
}

struct Writer {
    memory: Memory,
    topic: TopicName,
    id: String,
    epoch: u64,
}

impl FencedWriter for Writer {
    fn write(&mut self, records: &[Keyed]) -> Result<(), LogError> {
        self.memory.write(|state| {
            if state.epochs.get(&self.id) != Some(&self.epoch) {
                return Err(LogError::Fenced(self.id.clone()));
            }
            state.transactions += 1;
            records.iter().try_for_each(|keyed| append(state, &self.topic, keyed.clone()))
        })
    }
}

struct MemoryFold {
    memory: Memory,
    topic: TopicName,
    id: u64,
    next: usize,
    was_caught_up: bool,
}

impl Fold for MemoryFold {
    fn next(&mut self, wait: Duration) -> Result<FoldEvent, LogError> {
        let until = Instant::now() + wait;
        loop {
            let mut state = self.memory.0.0.lock();
            if state.is_down {
                return Err(LogError::Unavailable("the brokers are down".into()));
            }
            if state.is_status_hidden && self.topic.as_str() == "coprocessor_status_topic" {
                if self.memory.0.1.wait_until(&mut state, until).timed_out() {
                    return Ok(FoldEvent::Idle);
                }
                continue;
            }
            let Some(topic) = state.topics.get(&self.topic) else {
                return Err(LogError::UnknownTopic(self.topic.clone()));
            };
            if topic.id != self.id {
                (self.id, self.next, self.was_caught_up) = (topic.id, 0, false);
                return Ok(FoldEvent::Reset);
            }
            if let Some(keyed) = topic.records.get(self.next).cloned() {
                self.next += 1;
                let offset = self.next as Offset;
                return Ok(FoldEvent::Record { key: keyed.key, value: keyed.value, offset, appended_ms: 0 });
            }
            if !self.was_caught_up {
                self.was_caught_up = true;
                return Ok(FoldEvent::CaughtUp);
            }
            if self.memory.0.1.wait_until(&mut state, until).timed_out() {
                return Ok(FoldEvent::Idle);
            }
        }
    }
}
