//! Following a compacted topic from its start.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::core::names::TopicName;
use crate::core::record::{Offset, Payload};
use crate::log::LONGEST_WAIT;
use crate::log::catalog::Topic;
use crate::log::cursor::Cursor;
use crate::log::signal::Signal;
use crate::log::store::Store;
use crate::ports::{Fold, FoldEvent, LogError};

/// Folds the first partition of a topic.
pub struct TopicFold {
    store: Arc<Store>,
    name: TopicName,
    signal: Arc<Signal>,
    /// `None` while there is no such topic.
    reading: Option<Reading>,
    ready: VecDeque<FoldEvent>,
    last_read: Instant,
}

struct Reading {
    topic: Arc<Topic>,
    cursor: Cursor,
    /// Where the topic ended when the fold began; `None` once that was reported.
    target: Option<Offset>,
}

impl TopicFold {
    /// A fold of a topic that exists.
    pub fn open(store: Arc<Store>, topic: &Arc<Topic>) -> Result<Self, LogError> {
        let signal = Arc::<Signal>::default();
        store.catalog_watchers.add(&signal);
        let reading = Some(Reading::new(topic, &signal)?);
        let name = topic.name.clone();
        Ok(Self { store, name, signal, reading, ready: VecDeque::new(), last_read: Instant::now() })
    }

    fn step(&mut self) -> Result<Option<FoldEvent>, LogError> {
        if let Some(event) = self.ready.pop_front() {
            return Ok(Some(event));
        }
        let Some(reading) = &mut self.reading else {
            let Ok(topic) = self.store.topic(&self.name) else { return Ok(None) };
            self.reading = Some(Reading::new(&topic, &self.signal)?);
            return Ok(Some(FoldEvent::Reset));
        };
        if reading.topic.is_deleted() {
            self.reading = None;
            return Ok(None);
        }
        // Whoever was away for longer may have missed a tombstone that is gone by now.
        let away = self.last_read.elapsed().as_millis() as u64;
        self.last_read = Instant::now();
        if away > self.store.delete_retention_ms / 2 {
            *reading = Reading::new(&reading.topic.clone(), &self.signal)?;
            return Ok(Some(FoldEvent::Reset));
        }
        match reading.read(&self.store, &mut self.ready) {
            Ok(()) => {}
            Err(LogError::OffsetOutOfRange { .. }) => {
                *reading = Reading::new(&reading.topic.clone(), &self.signal)?;
                return Ok(Some(FoldEvent::Reset));
            }
            Err(LogError::UnknownTopic(_)) => {
                self.reading = None;
                return Ok(None);
            }
            Err(error) => return Err(error),
        }
        Ok(self.ready.pop_front())
    }
}

impl Reading {
    /// Asked for every topic of that name: the next one may be made otherwise, and forget what the fold needs.
    fn new(topic: &Arc<Topic>, signal: &Arc<Signal>) -> Result<Self, LogError> {
        if !topic.is_compacted() {
            return Err(LogError::BadConfig(format!(
                "topic {} is not compacted: create it with clean-up policy compact",
                topic.name
            )));
        }
        let extent = topic.partition(0)?.extent();
        topic.watchers.add(signal);
        Ok(Self { topic: topic.clone(), cursor: Cursor::at(extent.first), target: Some(extent.end) })
    }

    fn read(&mut self, store: &Store, ready: &mut VecDeque<FoldEvent>) -> Result<(), LogError> {
        loop {
            let before = self.cursor.next();
            self.cursor.read(&store.engine, &self.topic, 0, |record| {
                if let Ok(Payload { key: Some(key), value, .. }) = Payload::parse(record.payload) {
                    ready.push_back(FoldEvent::Record {
                        key: key.to_vec(),
                        value: value.map(<[u8]>::to_vec),
                        offset: record.offset,
                        appended_ms: record.append_ms,
                    });
                }
                true
            })?;
            if self.target.is_some_and(|target| self.cursor.next() >= target) {
                self.target = None;
                ready.push_back(FoldEvent::CaughtUp);
            }
            if !ready.is_empty() || self.cursor.next() == before {
                return Ok(());
            }
        }
    }
}

impl Fold for TopicFold {
    fn next(&mut self, wait: Duration) -> Result<FoldEvent, LogError> {
        let deadline = Instant::now() + wait.min(LONGEST_WAIT);
        loop {
            if let Some(event) = self.step()? {
                return Ok(event);
            }
            let woken = self.signal.wait_until(deadline);
            self.last_read = Instant::now();
            if !woken {
                return Ok(FoldEvent::Idle);
            }
        }
    }
}
