//! Follows a compacted topic of one partition: everything from its start to its last stable offset, then what
//! comes. Begins anew when the topic was made anew, or when the follower was away for so long that tombstones
//! may be gone that it has not seen.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use rdkafka::consumer::Consumer;

use super::config::KafkaConfig;
use super::reader::{Patience, TopicReader};
use super::topics;
use crate::core::names::TopicName;
use crate::ports::{Cleanup, Fold, FoldEvent, LogError, ReadFrom, Reader, TopicInfo};

pub(super) struct TopicFold {
    config: KafkaConfig,
    topic: TopicName,
    reader: Option<TopicReader>,
    id: String,
    waiting: VecDeque<FoldEvent>,
    caught_up: bool,
    checked: Instant,
    /// When the cluster last answered, and how long a silence is too long.
    heard: Instant,
    patience: Duration,
}

impl TopicFold {
    pub(super) fn open(config: &KafkaConfig, topic: &TopicName) -> Result<Self, LogError> {
        let mut fold = Self {
            config: config.clone(),
            topic: topic.clone(),
            reader: None,
            id: String::new(),
            waiting: VecDeque::new(),
            caught_up: false,
            checked: Instant::now(),
            heard: Instant::now(),
            patience: Duration::MAX,
        };
        fold.begin()?;
        Ok(fold)
    }

    fn begin(&mut self) -> Result<(), LogError> {
        let wait = self.config.timing.socket;
        let reader = TopicReader::open(&self.config, &self.topic, None, ReadFrom::Start, Patience::Follow)?;
        let client = reader.consumer().client();
        let found = topics::look_at(client, &self.topic, wait)?;
        let TopicInfo { id, config: found, .. } =
            found.ok_or_else(|| LogError::UnknownTopic(self.topic.clone()))?;
        let partitions = found.partitions;
        if found.cleanup != Cleanup::Compact || partitions != 1 {
            return Err(LogError::BadConfig(format!(
                "topic {} must have one partition and cleanup.policy=compact, it has {partitions} and {:?}: \
                 state would be lost",
                self.topic, found.cleanup
            )));
        }
        self.patience = topics::delete_retention(client, &self.topic, wait)? / 2;
        (self.reader, self.id, self.caught_up) = (Some(reader), id, false);
        (self.checked, self.heard) = (Instant::now(), Instant::now());
        Ok(())
    }

    fn restart(&mut self) -> FoldEvent {
        self.reader = None;
        self.waiting.clear();
        FoldEvent::Reset
    }

    /// Whether the topic is still the one that we began with.
    fn is_same(&mut self) -> Result<bool, LogError> {
        self.checked = Instant::now();
        let Some(reader) = &mut self.reader else { return Ok(false) };
        // An old password would fail here, before the next fetch could notice the new one.
        reader.serve()?;
        let found = topics::identity(reader.consumer().client(), &self.topic, self.config.timing.socket)?;
        Ok(found.is_some_and(|(id, _)| id == self.id))
    }
}

impl Fold for TopicFold {
    fn next(&mut self, wait: Duration) -> Result<FoldEvent, LogError> {
        if let Some(event) = self.waiting.pop_front() {
            return Ok(event);
        }
        if self.reader.is_none() {
            self.begin()?;
        }
        if self.checked.elapsed() > self.config.metadata_refresh {
            if !self.is_same()? {
                return Ok(self.restart());
            }
            if self.heard.elapsed() > self.patience {
                return Ok(self.restart());
            }
            self.heard = Instant::now();
        }
        let Some(reader) = &mut self.reader else { return Ok(FoldEvent::Idle) };
        let fetched = match reader.fetch(wait) {
            Ok(fetched) => fetched,
            // Deleted, or truncated below us: in both cases what we know is void.
            Err(LogError::UnknownTopic(_)) => return Ok(self.restart()),
            Err(error) => return if self.is_same()? { Err(error) } else { Ok(self.restart()) },
        };
        for fetched in fetched {
            if let Some(key) = fetched.record.key {
                let (value, offset, appended_ms) =
                    (fetched.record.value, fetched.offset, fetched.appended_ms);
                self.waiting.push_back(FoldEvent::Record { key, value, offset, appended_ms });
            }
        }
        if !self.caught_up && reader.is_caught_up()? {
            self.caught_up = true;
            self.waiting.push_back(FoldEvent::CaughtUp);
        }
        Ok(self.waiting.pop_front().unwrap_or(FoldEvent::Idle))
    }
}
