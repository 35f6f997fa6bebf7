//! From librdkafka's errors to ours: which of them is whose fault.

use rdkafka::error::{KafkaError, RDKafkaErrorCode as Code};

use crate::ports::LogError;

/// The code inside a client error, where it has one.
pub(super) fn code(error: &KafkaError) -> Option<Code> {
    match error {
        KafkaError::Transaction(error) => Some(error.code()),
        KafkaError::AdminOp(code) => Some(*code),
        other => other.rdkafka_error_code(),
    }
}

/// Whether the code says that another process has taken over this producer or member.
pub(super) fn is_fence(code: Code) -> bool {
    matches!(code, Code::Fenced | Code::ProducerFenced | Code::InvalidProducerEpoch | Code::FencedInstanceId)
}

/// Whether the client gets over it by itself: a connection lost, a coordinator that moves.
pub(super) fn mends_itself(code: Code) -> bool {
    matches!(
        code,
        Code::BrokerTransportFailure
            | Code::AllBrokersDown
            | Code::OperationTimedOut
            | Code::Resolve
            | Code::PollExceeded
            | Code::CoordinatorLoadInProgress
            | Code::NotCoordinator
            | Code::CoordinatorNotAvailable
    )
}

/// Whether the code says that the broker does not have the ability at all.
pub(super) fn is_unsupported(code: Code) -> bool {
    matches!(code, Code::UnsupportedFeature | Code::UnsupportedVersion)
}

/// An error code as ours; `what` says in a few words what was being done, without secrets.
pub(super) fn from_code(code: Code, what: &str) -> LogError {
    let text = format!("{what}: {code}");
    match code {
        _ if is_fence(code) => LogError::Fenced(text),
        _ if is_unsupported(code) => LogError::Refused(text),
        Code::TopicAuthorizationFailed
        | Code::GroupAuthorizationFailed
        | Code::ClusterAuthorizationFailed
        | Code::TransactionalIdAuthorizationFailed
        | Code::SaslAuthenticationFailed
        | Code::Authentication
        | Code::SSL
        | Code::IllegalSASLState
        | Code::UnsupportedSASLMechanism
        | Code::SecurityDisabled
        | Code::PolicyViolation
        | Code::NonEmptyGroup => LogError::Refused(text),
        Code::InvalidConfig
        | Code::InvalidTopic
        | Code::InvalidPartitions
        | Code::InvalidReplicationFactor
        | Code::InvalidSessionTimeout
        | Code::InvalidTransactionTimeout
        | Code::InvalidGroupId
        | Code::InconsistentGroupProtocol
        | Code::InvalidArgument => LogError::BadConfig(text),
        Code::BadMessage | Code::InvalidMessage => LogError::Corrupt(text),
        _ => LogError::Unavailable(text),
    }
}

/// A client error as ours.
pub(super) fn from_kafka(error: &KafkaError, what: &str) -> LogError {
    match error {
        // These two show the offending value, which may be a password.
        KafkaError::ClientConfig(_, description, key, _) => {
            LogError::BadConfig(format!("{what}: {description} (setting {key})"))
        }
        KafkaError::ClientCreation(text) => LogError::BadConfig(format!("{what}: {text}")),
        KafkaError::Transaction(error) => match from_code(error.code(), what) {
            LogError::Unavailable(_) => LogError::Unavailable(format!("{what}: {}", error.string())),
            LogError::Refused(_) => LogError::Refused(format!("{what}: {}", error.string())),
            other => other,
        },
        other => match code(other) {
            Some(code) => from_code(code, what),
            None => LogError::Unavailable(format!("{what}: {other}")),
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::core::disposition::Disposition;

    #[test]
    fn knows_whose_fault_a_code_is() {
        let cases = [
            (Code::ProducerFenced, Disposition::Fenced),
            (Code::FencedInstanceId, Disposition::Fenced),
            (Code::IllegalGeneration, Disposition::Transient),
            (Code::UnknownMemberId, Disposition::Transient),
            (Code::OperationTimedOut, Disposition::Transient),
            (Code::UnsupportedFeature, Disposition::User),
            (Code::TopicAuthorizationFailed, Disposition::User),
            (Code::InvalidConfig, Disposition::User),
        ];
        for (code, disposition) in cases {
            assert_eq!(from_code(code, "x").disposition(), disposition, "{code:?}");
        }
    }
}
