//! The topics that a lane writes to. Called by the outlet alone.

use rdkafka::error::RDKafkaErrorCode as Code;

use crate::core::names::TopicName;
use crate::kafka::error;
use crate::kafka::ffi::Topic;
use crate::kafka::topics::TopicShape;
use crate::ports::LogError;

/// An output topic, and the client's handle for it.
pub(super) struct Target {
    pub(super) name: TopicName,
    pub(super) shape: TopicShape,
    pub(super) handle: Option<Topic>,
}

impl Target {
    pub(super) fn refused(&self, reason: &dyn std::fmt::Display) -> LogError {
        LogError::RecordRefused { topic: self.name.clone(), reason: reason.to_string() }
    }

    /// What a code says that the client gives for a record of this topic.
    pub(super) fn not_written(&self, code: Code) -> LogError {
        match code {
            Code::UnknownTopic | Code::UnknownTopicOrPartition => LogError::UnknownTopic(self.name.clone()),
            Code::MessageSizeTooLarge => self.refused(&code),
            code => error::from_code(code, &format!("cannot write to {}", self.name)),
        }
    }
}
