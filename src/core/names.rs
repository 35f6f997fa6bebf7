//! Names, parsed once: past `FromStr` a name is known to be legal wherever it is used.
//!
//! The limits are the ones of the systems that store the name: Kafka's topic rule, the DNS label of
//! Kubernetes, Kafka's group ids.

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

/// Topic of the desired state: one partition, compacted.
pub const CONTROL_TOPIC: &str = "coprocessor_internal_topic";
/// Topic of the observed state: one partition, compacted.
pub const STATUS_TOPIC: &str = "coprocessor_status_topic";
/// Topic of the bytes of modules that came without a registry: compacted.
pub const MODULES_TOPIC: &str = "coprocessor_modules";
/// Topic of what guests print.
pub const LOGS_TOPIC: &str = "coprocessor_logs";

/// Longest topic name that Kafka accepts, in bytes.
pub const MAX_TOPIC_BYTES: usize = 249;

/// Why a text is not the name that it was meant to be.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// The name is empty.
    #[error("{what} is empty: give it a name")]
    Empty {
        /// Which name.
        what: &'static str,
    },
    /// The name is longer than the system behind it takes.
    #[error("{what} {text:?} has {len} bytes, more than the {max} that are allowed")]
    TooLong {
        /// Which name.
        what: &'static str,
        /// The text as it was given, shortened.
        text: String,
        /// Its length in bytes.
        len: usize,
        /// The longest allowed.
        max: usize,
    },
    /// The name has a character that is not allowed.
    #[error("{what} {text:?} has the character {found:?}: allowed are {allowed}")]
    BadCharacter {
        /// Which name.
        what: &'static str,
        /// The text as it was given.
        text: String,
        /// The first character that is not allowed.
        found: char,
        /// What is allowed.
        allowed: &'static str,
    },
    /// The name means something else to the system behind it.
    #[error("{what} {text:?} is reserved: choose another name")]
    Reserved {
        /// Which name.
        what: &'static str,
        /// The text as it was given.
        text: String,
    },
    /// The text has not the form of the name.
    #[error("{what} {text:?} is not of the form {form}")]
    BadForm {
        /// Which name.
        what: &'static str,
        /// The text as it was given.
        text: String,
        /// The form.
        form: &'static str,
    },
}

fn check_length(what: &'static str, text: &str, max: usize) -> Result<(), Error> {
    if text.is_empty() {
        return Err(Error::Empty { what });
    }
    if text.len() > max {
        return Err(Error::TooLong { what, text: text.chars().take(80).collect(), len: text.len(), max });
    }
    Ok(())
}

fn check_characters(
    what: &'static str,
    text: &str,
    allowed: &'static str,
    is_allowed: impl Fn(char) -> bool,
) -> Result<(), Error> {
    match text.chars().find(|found| !is_allowed(*found)) {
        None => Ok(()),
        Some(found) => Err(Error::BadCharacter { what, text: text.to_owned(), found, allowed }),
    }
}

macro_rules! name {
    ($(#[$doc:meta])* $type:ident, $check:expr) => {
        $(#[$doc])*
        #[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        #[serde(try_from = "String", into = "String")]
        pub struct $type(Arc<str>);

        impl $type {
            /// The name as text.
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl FromStr for $type {
            type Err = Error;

            fn from_str(text: &str) -> Result<Self, Error> {
                let check: fn(&str) -> Result<(), Error> = $check;
                check(text)?;
                Ok(Self(Arc::from(text)))
            }
        }

        impl TryFrom<String> for $type {
            type Error = Error;

            fn try_from(text: String) -> Result<Self, Error> {
                text.parse()
            }
        }

        impl From<$type> for String {
            fn from(name: $type) -> Self {
                name.0.as_ref().to_owned()
            }
        }

        impl fmt::Display for $type {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }

        impl fmt::Debug for $type {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Debug::fmt(&self.0, f)
            }
        }

        impl AsRef<str> for $type {
            fn as_ref(&self) -> &str {
                &self.0
            }
        }
    };
}

name!(
    /// A topic, by Kafka's rule: 1 to 249 of `a-z A-Z 0-9 . _ -`, and neither `.` nor `..`.
    TopicName,
    |text| {
        check_length("topic", text, MAX_TOPIC_BYTES)?;
        check_characters("topic", text, "a-z A-Z 0-9 . _ -", |c| {
            c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-')
        })?;
        if matches!(text, "." | "..") {
            return Err(Error::Reserved { what: "topic", text: text.to_owned() });
        }
        Ok(())
    }
);

name!(
    /// The name of a coprocessor or pipeline: a DNS label of Kubernetes' kind, or its subdomain form.
    DeploymentName,
    |text| {
        check_length("name", text, 253)?;
        check_characters("name", text, "a-z 0-9 - .", |c| {
            c.is_ascii_lowercase() || c.is_ascii_digit() || matches!(c, '-' | '.')
        })?;
        let form = "a DNS name: each part starts and ends with a letter or digit";
        let is_label = |label: &str| {
            !label.is_empty() && !label.starts_with('-') && !label.ends_with('-')
        };
        if text.split('.').all(is_label) {
            Ok(())
        } else {
            Err(Error::BadForm { what: "name", text: text.to_owned(), form })
        }
    }
);

/// Checks the rule of a DNS label: 1 to 63 of `a-z 0-9 -`, a letter or digit at both ends.
fn check_label(what: &'static str, text: &str) -> Result<(), Error> {
    check_length(what, text, 63)?;
    check_characters(what, text, "a-z 0-9 -", |c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-')?;
    if text.starts_with('-') || text.ends_with('-') {
        return Err(Error::BadForm {
            what,
            text: text.to_owned(),
            form: "a DNS label: it starts and ends with a letter or digit",
        });
    }
    Ok(())
}

name!(
    /// Tells apart several Kubernetes clusters on one Kafka. Immutable.
    Installation,
    |text| check_label("installation", text)
);

name!(
    /// A Kubernetes namespace, or `_cli` for what the command line deployed.
    Namespace,
    |text| if text == Namespace::CLI { Ok(()) } else { check_label("namespace", text) }
);

name!(
    /// The nodes that share one Kafka cluster connection.
    PoolName,
    |text| check_label("pool", text)
);

name!(
    /// A consumer group id, as Kafka takes it: 1 to 255 bytes without control characters.
    ConsumerGroup,
    |text| {
        check_length("consumer group", text, 255)?;
        check_characters("consumer group", text, "printable characters", |c| !c.is_control())
    }
);

impl Namespace {
    /// The namespace of deployments that the command line made.
    pub const CLI: &'static str = "_cli";

    /// The namespace of deployments that the command line made.
    pub fn cli() -> Self {
        Self(Arc::from(Self::CLI))
    }
}

impl Installation {
    /// The installation of whoever has just one.
    pub fn default_name() -> Self {
        Self(Arc::from("default"))
    }
}

impl PoolName {
    /// The pool of whoever has just one.
    pub fn default_name() -> Self {
        Self(Arc::from("default"))
    }
}

impl TopicName {
    /// Whether the topic is one of coproc's own, which no deployment may bind.
    pub fn is_reserved(&self) -> bool {
        matches!(
            self.as_str(),
            CONTROL_TOPIC
                | STATUS_TOPIC
                | MODULES_TOPIC
                | LOGS_TOPIC
                | "__consumer_offsets"
                | "__transaction_state"
        )
    }

    /// The topic under which the output `dest` of `source` is materialized: `<source>._<dest>_`.
    pub fn materialized(source: &Self, dest: &Self) -> Result<Self, Error> {
        format!("{source}._{dest}_").parse()
    }

    /// Takes a materialized topic's name apart: its source and its destination.
    pub fn as_materialized(&self) -> Option<(Self, Self)> {
        let (source, rest) = self.as_str().split_once("._")?;
        let dest = rest.strip_suffix('_')?;
        Some((source.parse().ok()?, dest.parse().ok()?))
    }

    /// Parses what a user may type: a topic, or the original's `<source>.$<dest>$` for a materialized one.
    pub fn from_user(text: &str) -> Result<Self, Error> {
        if let Some((source, rest)) = text.split_once(".$") {
            let dest = rest.strip_suffix('$').ok_or_else(|| Error::BadForm {
                what: "materialized topic",
                text: text.to_owned(),
                form: "source.$dest$",
            })?;
            return Self::materialized(&source.parse()?, &dest.parse()?);
        }
        text.parse()
    }
}

/// What a deployment is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Kind {
    /// One Kafka source, one step, Kafka sinks.
    Coprocessor,
    /// A source, steps and sinks of any kind.
    Pipeline,
}

impl Kind {
    /// The kind as it stands in keys and group ids.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Coprocessor => "coprocessor",
            Self::Pipeline => "pipeline",
        }
    }
}

impl FromStr for Kind {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self, Error> {
        match text {
            "coprocessor" => Ok(Self::Coprocessor),
            "pipeline" => Ok(Self::Pipeline),
            _ => Err(Error::BadForm { what: "kind", text: text.to_owned(), form: "coprocessor or pipeline" }),
        }
    }
}

/// Which deployment: `<installation>/<namespace>/<kind>/<name>`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Identity {
    /// The installation.
    pub installation: Installation,
    /// The namespace, `_cli` for the command line's.
    pub namespace: Namespace,
    /// Coprocessor or pipeline.
    pub kind: Kind,
    /// Its name.
    pub name: DeploymentName,
}

impl Identity {
    /// The consumer group of the deployment unless its spec names another one:
    /// `coproc.<installation>.<namespace>.<kind>.<name>`. A versioned interface: offsets live under it.
    pub fn consumer_group(&self) -> ConsumerGroup {
        ConsumerGroup(Arc::from(format!("coproc.{}", self.dotted())))
    }

    /// The transactional id of one lane: `coproc.<installation>.<namespace>.<kind>.<name>.<node_id>.<lane>`.
    ///
    /// Stable over restarts, free of replica counts, hashes and versions, and never derived from a chosen
    /// group: changing the format would lose the fence between an old and a new process.
    pub fn transactional_id(&self, node: NodeId, lane: u16) -> String {
        format!("coproc.{}.{node}.{lane}", self.dotted())
    }

    fn dotted(&self) -> String {
        format!("{}.{}.{}.{}", self.installation, self.namespace, self.kind.as_str(), self.name)
    }
}

impl fmt::Display for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}/{}/{}", self.installation, self.namespace, self.kind.as_str(), self.name)
    }
}

impl FromStr for Identity {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self, Error> {
        let bad = || Error::BadForm {
            what: "identity",
            text: text.to_owned(),
            form: "installation/namespace/kind/name",
        };
        let mut parts = text.split('/');
        let mut next = || parts.next().ok_or_else(bad);
        let identity = Self {
            installation: next()?.parse()?,
            namespace: next()?.parse()?,
            kind: next()?.parse()?,
            name: next()?.parse()?,
        };
        if parts.next().is_some() { Err(bad()) } else { Ok(identity) }
    }
}

impl TryFrom<String> for Identity {
    type Error = Error;

    fn try_from(text: String) -> Result<Self, Error> {
        text.parse()
    }
}

impl From<Identity> for String {
    fn from(identity: Identity) -> Self {
        identity.to_string()
    }
}

/// One runtime process. 0 to 999 are for nodes started by hand; blocks of 1000 above belong to pools.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct NodeId(pub u32);

impl fmt::Display for NodeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn topics_follow_kafkas_rule() {
        for good in ["a", "A-z_09", "a.b", "...", &"x".repeat(249)] {
            assert!(good.parse::<TopicName>().is_ok(), "{good:?}");
        }
        for (bad, says) in [
            ("", "topic is empty"),
            (".", "is reserved"),
            ("..", "is reserved"),
            ("a b", "has the character ' '"),
            ("é", "has the character 'é'"),
            ("a/b", "has the character '/'"),
            (&"x".repeat(250), "has 250 bytes"),
        ] {
            let error = bad.parse::<TopicName>().expect_err(bad).to_string();
            assert!(error.contains(says), "{bad:?}: {error}");
        }
    }

    #[test]
    fn materialized_names_go_both_ways() {
        let source: TopicName = "produce".parse().unwrap();
        let dest: TopicName = "result".parse().unwrap();
        let topic = TopicName::materialized(&source, &dest).unwrap();
        assert_eq!(topic.as_str(), "produce._result_");
        assert_eq!(topic.as_materialized(), Some((source, dest)));
        assert_eq!(TopicName::from_user("produce.$result$").unwrap(), topic);
        assert_eq!(TopicName::from_user("produce").unwrap().as_str(), "produce");
        assert!(TopicName::from_user("produce.$result").is_err());
        assert!(TopicName::from_user("produce.$$").is_err());
    }

    #[test]
    fn identities_name_groups_and_transactions() {
        let identity: Identity = "default/_cli/coprocessor/redact".parse().unwrap();
        assert_eq!(identity.to_string(), "default/_cli/coprocessor/redact");
        assert_eq!(identity.consumer_group().as_str(), "coproc.default._cli.coprocessor.redact");
        assert_eq!(identity.transactional_id(NodeId(5), 0), "coproc.default._cli.coprocessor.redact.5.0");
        for bad in ["a/b/coprocessor", "a/b/coprocessor/c/d", "a/b/thing/c", "A/b/pipeline/c"] {
            assert!(bad.parse::<Identity>().is_err(), "{bad:?}");
        }
    }

    #[test]
    fn reserved_topics_are_known() {
        for topic in [CONTROL_TOPIC, STATUS_TOPIC, MODULES_TOPIC, LOGS_TOPIC] {
            assert!(topic.parse::<TopicName>().unwrap().is_reserved());
        }
        assert!(!"orders".parse::<TopicName>().unwrap().is_reserved());
    }
}
