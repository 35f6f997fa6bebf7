//! coproc's own topics: whoever needs them first makes them, and whoever uses them checks them.

use std::time::Duration;

use crate::control::read::Records;
use crate::core::names::{CONTROL_TOPIC, LOGS_TOPIC, MODULES_TOPIC, STATUS_TOPIC, TopicName};
use crate::core::record::Record;
use crate::ports::{Cleanup, Fetched, FoldEvent, Log, LogError, ReadFrom, TopicConfig, TopicInfo};

/// How long guest logs stay: 24 hours.
const LOGS_RETENTION_MS: u64 = 24 * 3_600 * 1_000;
/// How much of guest logs stays, in bytes.
const LOGS_RETENTION_BYTES: u64 = 256 << 20;

/// What each of the topics has to take at once, in bytes. A status record has up to 900 KiB, but Kafka's limit is for
/// batches, and its client puts records together up to this size (librdkafka's `batch.size`).
const LEAST_RECORD_BYTES: usize = 1_000_000;

/// How long nothing may come before a topic's end is reached.
const READ_STALLS: Duration = Duration::from_secs(10);

/// One of coproc's own topics.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OwnTopic {
    /// Desired state.
    Control,
    /// Observed state.
    Status,
    /// Bytes of modules.
    Modules,
    /// What guests print.
    Logs,
}

impl OwnTopic {
    /// All of them.
    pub const ALL: [Self; 4] = [Self::Control, Self::Status, Self::Modules, Self::Logs];

    /// Its name.
    #[expect(clippy::missing_panics_doc, reason = "the four names are constants, and a test parses each")]
    pub fn name(self) -> TopicName {
        let name = match self {
            Self::Control => CONTROL_TOPIC,
            Self::Status => STATUS_TOPIC,
            Self::Modules => MODULES_TOPIC,
            Self::Logs => LOGS_TOPIC,
        };
        name.parse().expect("the names of coproc's own topics are legal")
    }

    /// How it has to be.
    pub fn config(self) -> TopicConfig {
        match self {
            Self::Control | Self::Status | Self::Modules => TopicConfig::compacted(),
            Self::Logs => TopicConfig {
                retention_ms: Some(LOGS_RETENTION_MS),
                retention_bytes: Some(LOGS_RETENTION_BYTES),
                ..TopicConfig::default()
            },
        }
    }

    /// Makes the topic unless it is there, then checks that it is as it has to be.
    pub fn ensure(self, log: &dyn Log) -> Result<TopicInfo, LogError> {
        let name = self.name();
        // Looked at first: who may not create topics is refused even where there is nothing to create.
        let found = match log.topics().describe(&name)? {
            Some(info) => Some(info),
            None => match log.topics().create(&name, &self.config()) {
                Ok(()) | Err(LogError::TopicExists(_)) => log.topics().describe(&name)?,
                Err(error) => return Err(error),
            },
        };
        let info = found.ok_or(LogError::UnknownTopic(name))?;
        self.check(&info)?;
        Ok(info)
    }

    /// Reads what is in the topic now into a state; `None` where there is no such topic, or no longer.
    ///
    /// Through a reader, not a fold: from another process a fold costs a round trip for every record.
    pub fn read<S: Default>(
        self,
        log: &dyn Log,
        mut take: impl FnMut(&mut S, FoldEvent),
    ) -> Result<Option<S>, LogError> {
        let name = self.name();
        let Some(info) = log.topics().describe(&name)? else { return Ok(None) };
        self.check_state(&info)?;
        let mut state = S::default();
        let mut read = || {
            let mut reader =
                Records::new(log.reader(&name, None, ReadFrom::Start)?, &name, Some(READ_STALLS));
            while let Some(fetched) = reader.more()? {
                for Fetched { record, offset, appended_ms, .. } in fetched {
                    let Record { key: Some(key), value, .. } = record else { continue };
                    take(&mut state, FoldEvent::Record { key, value, offset, appended_ms });
                }
            }
            Ok(())
        };
        match read() {
            Ok(()) => Ok(Some(state)),
            // Deleted since it was described.
            Err(LogError::UnknownTopic(_)) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Whether the topic, as found, can be used, written to included.
    pub fn check(self, info: &TopicInfo) -> Result<(), LogError> {
        self.check_state(info)?;
        if info.config.max_record_bytes < LEAST_RECORD_BYTES {
            return Err(LogError::BadConfig(format!(
                "topic {} takes at most {} bytes at once, and up to {LEAST_RECORD_BYTES} are written to it: set \
                 max.message.bytes={} on it",
                info.name,
                info.config.max_record_bytes,
                self.config().max_record_bytes
            )));
        }
        Ok(())
    }

    /// Whether what is in the topic can be relied upon.
    fn check_state(self, info: &TopicInfo) -> Result<(), LogError> {
        let wanted = self.config();
        if wanted.cleanup == Cleanup::Compact && info.config.cleanup != Cleanup::Compact {
            return Err(LogError::BadConfig(format!(
                "topic {} has the clean-up policy {:?}, which loses state: set cleanup.policy=compact on it",
                info.name, info.config.cleanup
            )));
        }
        if self == Self::Logs && info.config.cleanup != Cleanup::Delete {
            return Err(LogError::BadConfig(format!(
                "topic {} has the clean-up policy {:?}, which keeps one line of each coprocessor: set \
                 cleanup.policy=delete on it",
                info.name, info.config.cleanup
            )));
        }
        if wanted.partitions == 1 && info.config.partitions != 1 {
            return Err(LogError::BadConfig(format!(
                "topic {} has {} partitions where one is needed: delete it, it is made anew",
                info.name, info.config.partitions
            )));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_legal_and_reserved() {
        for topic in OwnTopic::ALL {
            assert!(topic.name().is_reserved());
        }
    }

    #[test]
    fn a_topic_that_forgets_is_refused() {
        let mut info =
            TopicInfo { name: OwnTopic::Control.name(), id: String::new(), config: TopicConfig::compacted() };
        assert!(OwnTopic::Control.check(&info).is_ok());
        info.config.cleanup = Cleanup::Delete;
        assert!(OwnTopic::Control.check(&info).unwrap_err().to_string().contains("cleanup.policy=compact"));
        info.config = TopicConfig { partitions: 3, ..TopicConfig::compacted() };
        assert!(OwnTopic::Control.check(&info).unwrap_err().to_string().contains("3 partitions"));
        let mut logs = TopicInfo { name: OwnTopic::Logs.name(), config: OwnTopic::Logs.config(), ..info };
        assert!(OwnTopic::Logs.check(&logs).is_ok());
        for cleanup in [Cleanup::Compact, Cleanup::CompactAndDelete] {
            logs.config.cleanup = cleanup;
            let refused = OwnTopic::Logs.check(&logs).unwrap_err().to_string();
            assert!(refused.contains("cleanup.policy=delete"), "{refused}");
        }
    }

    #[test]
    fn a_topic_that_takes_less_than_is_written_is_refused() {
        for topic in OwnTopic::ALL {
            let mut info = TopicInfo { name: topic.name(), id: String::new(), config: topic.config() };
            info.config.max_record_bytes = LEAST_RECORD_BYTES;
            assert!(topic.check(&info).is_ok());
            info.config.max_record_bytes -= 1;
            let refused = topic.check(&info).unwrap_err().to_string();
            assert!(refused.contains("999999") && refused.contains("max.message.bytes=1048576"), "{refused}");
        }
    }
}
