//! Conditions as kstatus reads them, and the reasons that are part of the interface.
//!
//! `Ready` says whether it works; `Stalled` is there only while somebody has to change something; `Reconciling`
//! only while the operator or the nodes are on their way. A waiting tool that sees neither of the last two goes by
//! `Ready` alone. `docs/reference` lists the reasons; a change of one is a change of the interface.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};
use k8s_openapi::jiff::Timestamp;

use crate::core::record::TimestampMs;
use crate::operator::crd::status::MAX_MESSAGE;

/// Whether it works.
pub const READY: &str = "Ready";
/// Somebody has to change something.
pub const STALLED: &str = "Stalled";
/// The operator or the nodes are on their way.
pub const RECONCILING: &str = "Reconciling";
/// Whether the images led to modules.
pub const MODULE_RESOLVED: &str = "ModuleResolved";
/// Whether a key of the pool vouches for the modules; absent where the pool demands none.
pub const SIGNATURE_VERIFIED: &str = "SignatureVerified";
/// Whether the control topic says what the resource says.
pub const DEPLOYED: &str = "Deployed";
/// It stands still by its owner's wish.
pub const PAUSED: &str = "Paused";
/// Whether the brokers answer the operator.
pub const KAFKA_REACHABLE: &str = "KafkaReachable";

/// What is true about a resource, in one of three ways.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    /// It works, or stands still as it should.
    Ready {
        /// Reason.
        reason: String,
        /// Message.
        message: String,
    },
    /// It gets there by itself, or cannot be known.
    Progressing {
        /// Reason.
        reason: String,
        /// Message.
        message: String,
        /// Whether `Ready` is unknown instead of false.
        is_unknown: bool,
    },
    /// Somebody has to change something.
    Stalled {
        /// Reason.
        reason: String,
        /// Message.
        message: String,
    },
}

impl Verdict {
    /// It works.
    pub fn ready(reason: &str, message: impl Into<String>) -> Self {
        Self::Ready { reason: reason.to_owned(), message: message.into() }
    }

    /// It gets there.
    pub fn progressing(reason: &str, message: impl Into<String>) -> Self {
        Self::Progressing { reason: reason.to_owned(), message: message.into(), is_unknown: false }
    }

    /// It cannot be known.
    pub fn unknown(reason: &str, message: impl Into<String>) -> Self {
        Self::Progressing { reason: reason.to_owned(), message: message.into(), is_unknown: true }
    }

    /// Somebody has to change something.
    pub fn stalled(reason: &str, message: impl Into<String>) -> Self {
        Self::Stalled { reason: reason.to_owned(), message: message.into() }
    }

    /// Its reason.
    pub fn reason(&self) -> &str {
        match self {
            Self::Ready { reason, .. } | Self::Progressing { reason, .. } | Self::Stalled { reason, .. } => {
                reason
            }
        }
    }

    /// Its message.
    pub fn message(&self) -> &str {
        match self {
            Self::Ready { message, .. }
            | Self::Progressing { message, .. }
            | Self::Stalled { message, .. } => message,
        }
    }
}

/// Builds the conditions of one status; keeps the times of those that did not change.
pub struct Conditions<'a> {
    before: &'a [Condition],
    generation: i64,
    now: Time,
    built: Vec<Condition>,
}

impl<'a> Conditions<'a> {
    /// Starts from the conditions that were there.
    pub fn new(before: &'a [Condition], generation: i64, now_ms: TimestampMs) -> Self {
        let now = Timestamp::from_second(now_ms.div_euclid(1000)).unwrap_or_default();
        Self { before, generation, now: Time(now), built: Vec::new() }
    }

    /// Adds a condition.
    pub fn set(&mut self, kind: &str, status: &str, reason: &str, message: &str) -> &mut Self {
        let before = self.before.iter().find(|before| before.type_ == kind && before.status == status);
        self.built.push(Condition {
            type_: kind.to_owned(),
            status: status.to_owned(),
            reason: reason.to_owned(),
            message: shorten(message),
            observed_generation: Some(self.generation),
            last_transition_time: before
                .map_or_else(|| self.now.clone(), |before| before.last_transition_time.clone()),
        });
        self
    }

    /// Adds what kstatus goes by.
    pub fn verdict(&mut self, verdict: &Verdict) -> &mut Self {
        let (reason, message) = (verdict.reason(), verdict.message());
        match verdict {
            Verdict::Ready { .. } => self.set(READY, "True", reason, message),
            Verdict::Progressing { is_unknown, .. } => {
                let status = if *is_unknown { "Unknown" } else { "False" };
                self.set(READY, status, reason, message).set(RECONCILING, "True", reason, message)
            }
            Verdict::Stalled { .. } => {
                self.set(READY, "False", reason, message).set(STALLED, "True", reason, message)
            }
        }
    }

    /// The conditions.
    pub fn build(&mut self) -> Vec<Condition> {
        std::mem::take(&mut self.built)
    }
}

/// A message of at most `MAX_MESSAGE` bytes.
pub fn shorten(message: &str) -> String {
    if message.len() <= MAX_MESSAGE {
        return message.to_owned();
    }
    let end = (0..=MAX_MESSAGE - 3).rev().find(|end| message.is_char_boundary(*end)).unwrap_or_default();
    format!("{}...", &message[..end])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_change_only_with_the_status() {
        let at = |before: &[Condition], verdict: &Verdict, now| {
            Conditions::new(before, 1, now).verdict(verdict).build()
        };
        let first = at(&[], &Verdict::ready("Running", "all is well"), 1_000);
        let second = at(&first, &Verdict::ready("Running", "all is very well"), 9_000);
        assert_eq!(first[0].last_transition_time, second[0].last_transition_time);
        let third = at(&second, &Verdict::stalled("InvalidSpec", "no"), 10_000);
        assert_ne!(second[0].last_transition_time, third[0].last_transition_time);
        let kinds: Vec<_> = third.iter().map(|condition| condition.type_.as_str()).collect();
        assert_eq!(kinds, [READY, STALLED]);
    }

    #[test]
    fn long_messages_are_cut_between_characters() {
        let long = "é".repeat(MAX_MESSAGE);
        assert!(shorten(&long).len() <= MAX_MESSAGE);
        assert!(shorten(&long).ends_with("..."));
    }
}
