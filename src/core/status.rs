//! The observed state, as nodes write it to the status topic: a superset of the original proposal.
//!
//! Three kinds of records share the topic. Under the decimal node id stands the heartbeat: the node and, for each
//! coprocessor, its state in a line. Under `<node_id>/<identity>` stand one deployment's partitions and errors.
//! Readers join the two. Under `committed/<node_id>/<identity>` stands which partitions ever had a committed offset.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::core::digest::Digest;
use crate::core::ledger::TopicPartition;
use crate::core::names::{Identity, Namespace, NodeId, TopicName};
use crate::core::record::{Offset, TimestampMs};

/// No status record passes this size, in bytes; what is cut says `truncated`.
pub const MAX_RECORD_BYTES: usize = 900 << 10;
/// A heartbeat is written this often, in milliseconds, besides on every change.
pub const HEARTBEAT_MS: i64 = 10_000;
/// A node whose heartbeat is older than this, in milliseconds, is unresponsive.
pub const UNRESPONSIVE_MS: i64 = 30_000;
/// What the keys of `Committed` begin with.
const COMMITTED: &str = "committed/";

/// Whether a node runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum UpDown {
    /// It runs.
    Up,
    /// It stopped, in good order.
    Down,
}

/// What a deployment does on a node.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum State {
    /// It waits: for a topic, a module, a free lane. The reason says for what.
    #[default]
    Pending,
    /// Its module is fetched and compiled, its lanes are opened.
    Starting,
    /// It processes records, or waits for them.
    Running,
    /// At least one partition waits before a failing record is tried again.
    Retrying,
    /// At least one partition stopped at a failing record, by the error policy.
    Failed,
    /// It stands still by its owner's wish.
    Paused,
    /// It needs something that this node does not have: a newer schema, a connector.
    Unsupported,
    /// It ends: the last commit is being made.
    Stopping,
}

impl State {
    /// The word of the JSON form.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Pending => "pending",
            Self::Starting => "starting",
            Self::Running => "running",
            Self::Retrying => "retrying",
            Self::Failed => "failed",
            Self::Paused => "paused",
            Self::Unsupported => "unsupported",
            Self::Stopping => "stopping",
        }
    }
}

/// How far a partition is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PartitionStatus {
    /// The input topic.
    pub topic: TopicName,
    /// The partition.
    pub partition: u32,
    /// The committed offset: the next record to be processed.
    pub offset: Offset,
    /// Records between the committed offset and the last stable one.
    pub lag: u64,
    /// Why it stands still, where it does.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
}

/// The last thing that went wrong.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LastError {
    /// When, in milliseconds since the Unix epoch.
    pub time: TimestampMs,
    /// A stable CamelCase word.
    pub reason: String,
    /// What happened and what to do.
    pub message: String,
}

/// A deployment on a node, in the heartbeat (`partitions` empty) or joined.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DeploymentStatus {
    /// Which.
    pub identity: Identity,
    /// Its input topics.
    pub input_topics: Vec<TopicName>,
    /// What it is for, in its owner's words.
    pub description: String,
    /// What it does.
    pub state: State,
    /// A stable CamelCase word where the state needs one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// The generation that it runs.
    pub generation: u64,
    /// The digest of its first module.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub digest: Option<Digest>,
    /// The digests of all modules, where there are several.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub digests: Vec<Digest>,
    /// The guarantee in force: `exactly_once` or `at_least_once`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub delivery: Option<String>,
    /// Its partitions on this node; not in the heartbeat record.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub partitions: Vec<PartitionStatus>,
    /// The last thing that went wrong.
    pub last_error: Option<LastError>,
    /// Whether partitions were left out to keep the record small.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub truncated: bool,
}

/// A node: the record under its decimal id.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeStatus {
    /// The node.
    pub node_id: NodeId,
    /// Whether it runs.
    pub status: UpDown,
    /// When this was written, RFC 3339.
    pub time: String,
    /// The program's version.
    pub version: String,
    /// Newest deployment schema that it reads.
    pub schema: String,
    /// Its pool.
    pub pool: String,
    /// Tells one life of the node from the next.
    pub incarnation: String,
    /// What the log behind it is.
    #[serde(default)]
    pub log: String,
    /// The coprocessors by name; `<namespace>/<name>` for those that the command line does not own.
    pub coprocessors: BTreeMap<String, DeploymentStatus>,
    /// Whether coprocessors were left out to keep the record small.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub truncated: bool,
}

impl Identity {
    /// The name under which the status lists it.
    pub fn display_name(&self) -> String {
        if self.namespace.as_str() == Namespace::CLI {
            self.name.to_string()
        } else {
            format!("{}/{}", self.namespace, self.name)
        }
    }
}

/// Partitions of which a node knew a committed offset: the record under `committed/<node_id>/<identity>`. By it a group
/// whose offsets were removed, or expired, is told from one that never had any.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Committed {
    /// The life of the deployment: what an earlier one of the same name committed went with it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub life: Option<String>,
    /// Per topic, as ranges of partitions, both ends included, ascending.
    #[serde(default)]
    pub partitions: BTreeMap<TopicName, Vec<(u32, u32)>>,
}

impl Committed {
    /// Whether this partition is among them.
    pub fn contains(&self, at: &TopicPartition) -> bool {
        let ranges = self.partitions.get(&at.topic);
        ranges
            .is_some_and(|ranges| ranges.iter().any(|(first, last)| (*first..=*last).contains(&at.partition)))
    }

    /// Adds a partition.
    pub fn insert(&mut self, at: &TopicPartition) {
        if self.contains(at) {
            return;
        }
        let ranges = self.partitions.entry(at.topic.clone()).or_default();
        ranges.push((at.partition, at.partition));
        ranges.sort_unstable();
        let mut joined: Vec<(u32, u32)> = Vec::with_capacity(ranges.len());
        for (first, last) in ranges.drain(..) {
            match joined.last_mut() {
                Some((_, before)) if first <= before.saturating_add(1) => *before = last.max(*before),
                _ => joined.push((first, last)),
            }
        }
        *ranges = joined;
    }
}

/// The key of a status record, taken apart.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum StatusKey {
    /// A node's heartbeat.
    Node(NodeId),
    /// One deployment on a node.
    Deployment(NodeId, Identity),
    /// What a node knows to have been committed for a deployment.
    Committed(NodeId, Identity),
}

impl StatusKey {
    /// Reads a key; `None` for what is not ours.
    pub fn parse(key: &[u8]) -> Option<Self> {
        let text = std::str::from_utf8(key).ok()?;
        if let Some(rest) = text.strip_prefix(COMMITTED) {
            let (node, identity) = rest.split_once('/')?;
            return Some(Self::Committed(NodeId(node.parse().ok()?), identity.parse().ok()?));
        }
        match text.split_once('/') {
            None => Some(Self::Node(NodeId(text.parse().ok()?))),
            Some((node, identity)) => {
                Some(Self::Deployment(NodeId(node.parse().ok()?), identity.parse().ok()?))
            }
        }
    }
}

impl std::fmt::Display for StatusKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Node(node) => write!(f, "{node}"),
            Self::Deployment(node, identity) => write!(f, "{node}/{identity}"),
            Self::Committed(node, identity) => write!(f, "{COMMITTED}{node}/{identity}"),
        }
    }
}

/// Milliseconds since the Unix epoch as RFC 3339 in UTC, for people.
pub fn rfc3339(ms: TimestampMs) -> String {
    let (days, ms_of_day) = (ms.div_euclid(86_400_000), ms.rem_euclid(86_400_000));
    let (year, month, day) = civil_from_days(days);
    let (hour, minute) = (ms_of_day / 3_600_000, ms_of_day / 60_000 % 60);
    let (second, milli) = (ms_of_day / 1_000 % 60, ms_of_day % 1_000);
    format!("{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}.{milli:03}Z")
}

/// Days since 1970-01-01 as year, month, day. Source: <https://howardhinnant.github.io/date_algorithms.html>.
fn civil_from_days(days: i64) -> (i64, i64, i64) {
    let days = days + 719_468;
    let era = days.div_euclid(146_097);
    let day_of_era = days.rem_euclid(146_097);
    let year_of_era = (day_of_era - day_of_era / 1_460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let shifted_month = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * shifted_month + 2) / 5 + 1;
    let month = if shifted_month < 10 { shifted_month + 3 } else { shifted_month - 9 };
    (year_of_era + era * 400 + i64::from(month <= 2), month, day)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_the_record_of_the_original_proposal() {
        let json = r#"{"node_id": 5, "status": "up", "time": "t", "version": "v", "schema": "1.0", "pool": "p",
            "incarnation": "i", "later": 1, "coprocessors": {"name_a": {
                "identity": "default/_cli/coprocessor/name-a", "input_topics": ["foo", "bar", "baz"],
                "description": "This copro is interesting!", "state": "running", "generation": 3,
                "partitions": [{"topic": "foo", "partition": 0, "offset": 42, "lag": 0}], "last_error": null}}}"#;
        let status: NodeStatus = serde_json::from_str(json).unwrap();
        assert_eq!(status.coprocessors["name_a"].partitions[0].offset, 42);
        let again: NodeStatus = serde_json::from_str(&serde_json::to_string(&status).unwrap()).unwrap();
        assert_eq!(again, status);
    }

    #[test]
    fn keys_go_both_ways_and_foreign_ones_are_not_ours() {
        for text in ["5", "5/default/_cli/coprocessor/a", "committed/5/default/_cli/coprocessor/a"] {
            assert_eq!(StatusKey::parse(text.as_bytes()).unwrap().to_string(), text);
        }
        for foreign in [&b"\x05\0\0\0"[..], b"x", b"5/a/b", b"", b"committed/5", b"committed/x/y"] {
            assert_eq!(StatusKey::parse(foreign), None);
        }
    }

    #[test]
    fn partitions_are_kept_as_ranges() {
        let topic: TopicName = "t".parse().unwrap();
        let mut committed = Committed::default();
        for partition in [5, 0, 2, 1, 9, 0, 6] {
            committed.insert(&TopicPartition::new(&topic, partition));
        }
        assert_eq!(committed.partitions[&topic], [(0, 2), (5, 6), (9, 9)]);
        let json = serde_json::to_string(&committed).unwrap();
        assert_eq!(json, r#"{"partitions":{"t":[[0,2],[5,6],[9,9]]}}"#);
        assert_eq!(serde_json::from_str::<Committed>(&json).unwrap(), committed);
        let known: Vec<u32> =
            (0..12).filter(|n| committed.contains(&TopicPartition::new(&topic, *n))).collect();
        assert_eq!(known, [0, 1, 2, 5, 6, 9]);
    }

    #[test]
    fn times_are_written_for_people() {
        assert_eq!(rfc3339(0), "1970-01-01T00:00:00.000Z");
        assert_eq!(rfc3339(951_782_400_123), "2000-02-29T00:00:00.123Z");
        assert_eq!(rfc3339(1_795_255_688_000), "2026-11-21T10:08:08.000Z");
    }
}
