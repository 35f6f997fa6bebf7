//! What the tests of the log share.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::Duration;

use coproc::core::names::TopicName;
use coproc::core::record::{Record, TimestampMs};
use coproc::log::{Durability, EmbeddedLog, Options};
use coproc::ports::{Clock, Fetched, Log, Produce, Produced, ReadFrom, TopicConfig};

/// Long enough that a test that has to wait for it has failed.
pub const LONG: Duration = Duration::from_secs(20);

/// A clock that is turned by hand.
#[derive(Debug, Default)]
pub struct HandClock(AtomicI64);

impl HandClock {
    pub fn at(ms: TimestampMs) -> Arc<Self> {
        Arc::new(Self(AtomicI64::new(ms)))
    }

    pub fn set(&self, ms: TimestampMs) {
        self.0.store(ms, Ordering::Relaxed);
    }
}

impl Clock for HandClock {
    fn monotonic(&self) -> Duration {
        Duration::ZERO
    }

    fn wall_ms(&self) -> TimestampMs {
        self.0.load(Ordering::Relaxed)
    }

    fn sleep(&self, _: Duration) {}
}

pub fn options() -> Options {
    // Nothing here cuts the power: the page cache is good enough, and faster.
    Options { durability: Durability::Flush, housekeeping_interval: None, ..Options::default() }
}

pub fn open(dir: &Path) -> Arc<EmbeddedLog> {
    EmbeddedLog::open(dir, options()).unwrap()
}

pub fn topic(name: &str) -> TopicName {
    name.parse().unwrap()
}

pub fn create(log: &dyn Log, name: &str, config: TopicConfig) -> TopicName {
    let name = topic(name);
    log.topics().create(&name, &config).unwrap();
    name
}

pub fn record(key: Option<&str>, value: Option<&str>) -> Record {
    Record::new(key.map(str::as_bytes), value.map(str::as_bytes))
}

pub fn produce(log: &dyn Log, topic: &TopicName, partition: u32, values: &[&str]) -> Vec<Produced> {
    let records: Vec<_> = values
        .iter()
        .map(|value| Produce {
            topic: topic.clone(),
            partition: Some(partition),
            record: record(None, Some(value)),
        })
        .collect();
    log.produce(&records).unwrap()
}

/// Everything in a topic.
pub fn read_all(log: &dyn Log, topic: &TopicName) -> Vec<Fetched> {
    let mut reader = log.reader(topic, None, ReadFrom::Start).unwrap();
    let mut all = Vec::new();
    while !reader.is_caught_up().unwrap() {
        all.extend(reader.fetch(LONG).unwrap());
    }
    all
}

pub fn values(fetched: &[Fetched]) -> Vec<String> {
    let text =
        |fetched: &Fetched| String::from_utf8(fetched.record.value.clone().unwrap_or_default()).unwrap();
    fetched.iter().map(text).collect()
}
