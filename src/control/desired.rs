//! The desired state, folded from the control topic.
//!
//! Junk is ignored and counted. A valid key with a newer major schema is `Unsupported`, never absence. A
//! tombstone removes; mere absence after a reset removes only what a snapshot of the pool does not list, so
//! that a deleted and re-created topic stops nothing.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};

use crate::control::keys::ControlKey;
use crate::control::topics::OwnTopic;
use crate::core::deployment::{Deployment, MAX_DEPLOYMENT_BYTES, SCHEMA, SchemaVersion};
use crate::core::names::{Identity, Installation, Namespace, PoolName};
use crate::ports::{FoldEvent, Log, LogError};

/// Largest control record that is looked at, in bytes.
pub const MAX_CONTROL_BYTES: usize = MAX_DEPLOYMENT_BYTES;

/// What a deployment's key says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Desired {
    /// A deployment that this version reads. It may still have problems.
    Deployment(Box<Deployment>),
    /// A deployment of a newer schema.
    Unsupported {
        /// Its schema.
        schema: SchemaVersion,
        /// Its generation, where it says one.
        generation: u64,
    },
}

impl Desired {
    /// The generation that the record says.
    pub fn generation(&self) -> u64 {
        match self {
            Self::Deployment(deployment) => deployment.generation,
            Self::Unsupported { generation, .. } => *generation,
        }
    }
}

/// What a full write left of the deployments that a namespace has in a pool, under
/// `snapshot/<installation>/<namespace>/<pool>`: the key says whose absence it speaks of.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Snapshot {
    /// Rises with every full write.
    pub generation: u64,
    /// The deployment keys that there are.
    pub keys: BTreeSet<String>,
}

#[derive(Debug, Default, Deserialize)]
struct Envelope {
    #[serde(default)]
    schema: Option<SchemaVersion>,
    #[serde(default)]
    generation: u64,
}

/// Why a control record was ignored.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Ignored {
    /// The key is none of ours.
    #[error("the key is not one of coproc's")]
    ForeignKey,
    /// The value is too large.
    #[error("the value has {0} bytes, more than the {MAX_CONTROL_BYTES} that are looked at")]
    TooLarge(usize),
    /// The value is not the JSON that belongs there.
    #[error("the value is not a deployment: {0}")]
    BadValue(String),
}

/// Reads the value of a deployment's key.
pub fn parse_deployment(value: &[u8]) -> Result<Desired, Ignored> {
    if value.len() > MAX_CONTROL_BYTES {
        return Err(Ignored::TooLarge(value.len()));
    }
    let bad = |error: serde_json::Error| Ignored::BadValue(error.to_string());
    let envelope: Envelope = serde_json::from_slice(value).map_err(bad)?;
    match envelope.schema {
        Some(schema) if schema.major > SCHEMA.major => {
            Ok(Desired::Unsupported { schema, generation: envelope.generation })
        }
        _ => serde_json::from_slice(value)
            .map(|deployment| Desired::Deployment(Box::new(deployment)))
            .map_err(bad),
    }
}

/// A change of the desired state.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Change {
    /// The deployment of this pool is to be like this.
    Set(PoolName, Identity, Desired),
    /// The deployment of this pool is to go.
    Removed(PoolName, Identity),
    /// Everything that was in the topic has been reported.
    CaughtUp,
    /// A record was ignored.
    Ignored {
        /// Its key, as text.
        key: String,
        /// Its offset.
        offset: i64,
        /// Why.
        why: Ignored,
    },
}

/// The fold itself: pure, fed with events.
#[derive(Debug, Default)]
pub struct DesiredState {
    known: BTreeMap<(PoolName, Identity), Desired>,
    /// Known from before a reset and not seen since.
    unconfirmed: BTreeSet<(PoolName, Identity)>,
    snapshots: BTreeMap<(Installation, Namespace, PoolName), Snapshot>,
    blocks: BTreeMap<u32, String>,
    caught_up: bool,
}

impl DesiredState {
    /// The deployments of a pool.
    pub fn of_pool<'a>(&'a self, pool: &'a PoolName) -> impl Iterator<Item = (&'a Identity, &'a Desired)> {
        let of_pool = self.known.iter().filter(move |((at, _), _)| at == pool);
        of_pool.map(|((_, identity), desired)| (identity, desired))
    }

    /// Every deployment, with its pool.
    pub fn iter(&self) -> impl Iterator<Item = (&PoolName, &Identity, &Desired)> {
        self.known.iter().map(|((pool, identity), desired)| (pool, identity, desired))
    }

    /// The deployment of this identity, with its pool.
    pub fn get(&self, identity: &Identity) -> Option<(&PoolName, &Desired)> {
        let found = self.known.iter().find(|((_, at), _)| at == identity);
        found.map(|((pool, _), desired)| (pool, desired))
    }

    /// The pool that owns a block of node ids; the claim at the lowest offset wins.
    pub fn owner_of_block(&self, base: u32) -> Option<&str> {
        self.blocks.get(&base).map(String::as_str)
    }

    /// The blocks of node ids that a pool owns.
    pub fn blocks_of(&self, owner: &str) -> impl Iterator<Item = u32> {
        self.blocks.iter().filter(move |(_, at)| at.as_str() == owner).map(|(base, _)| *base)
    }

    /// What the last full write left of a namespace's deployments in a pool.
    pub fn snapshot(
        &self,
        installation: &Installation,
        namespace: &Namespace,
        pool: &PoolName,
    ) -> Option<&Snapshot> {
        self.snapshots.get(&(installation.clone(), namespace.clone(), pool.clone()))
    }

    /// The deployment of this identity in this pool, unless it is only known from before a reset of the topic.
    pub fn confirmed(&self, pool: &PoolName, identity: &Identity) -> Option<&Desired> {
        let at = (pool.clone(), identity.clone());
        if self.unconfirmed.contains(&at) { None } else { self.known.get(&at) }
    }

    /// Whether everything that was in the topic has been seen.
    pub fn is_caught_up(&self) -> bool {
        self.caught_up
    }

    /// Takes in an event: the changes that follow from it, in order.
    pub fn apply(&mut self, event: FoldEvent) -> Vec<Change> {
        match event {
            FoldEvent::Record { key, value, offset, .. } => self.record(&key, value.as_deref(), offset),
            FoldEvent::CaughtUp => {
                self.caught_up = true;
                let mut changes = self.drop_absent();
                changes.push(Change::CaughtUp);
                changes
            }
            FoldEvent::Reset => {
                self.unconfirmed = self.known.keys().cloned().collect();
                self.snapshots.clear();
                self.blocks.clear();
                self.caught_up = false;
                Vec::new()
            }
            FoldEvent::Idle => Vec::new(),
        }
    }

    fn record(&mut self, key: &[u8], value: Option<&[u8]>, offset: i64) -> Vec<Change> {
        let ignored = |why| {
            let key = String::from_utf8_lossy(&key[..key.len().min(200)]).escape_debug().to_string();
            vec![Change::Ignored { key, offset, why }]
        };
        match (ControlKey::parse(key), value) {
            (None, _) => ignored(Ignored::ForeignKey),
            (Some(ControlKey::Deployment(pool, identity)), None) => {
                let at = (pool, identity);
                self.unconfirmed.remove(&at);
                match self.known.remove(&at) {
                    Some(_) => vec![Change::Removed(at.0, at.1)],
                    None => Vec::new(),
                }
            }
            (Some(ControlKey::Deployment(pool, identity)), Some(value)) => match parse_deployment(value) {
                Err(why) => ignored(why),
                Ok(desired) => {
                    let at = (pool, identity);
                    self.unconfirmed.remove(&at);
                    self.known.insert(at.clone(), desired.clone());
                    vec![Change::Set(at.0, at.1, desired)]
                }
            },
            (Some(ControlKey::Snapshot(installation, namespace, pool)), value) => {
                let at = (installation, namespace, pool);
                let parsed = value.map(serde_json::from_slice).transpose();
                match parsed {
                    Ok(Some(snapshot)) => drop(self.snapshots.insert(at, snapshot)),
                    Ok(None) => drop(self.snapshots.remove(&at)),
                    Err(error) => return ignored(Ignored::BadValue(error.to_string())),
                }
                if self.caught_up { self.drop_absent() } else { Vec::new() }
            }
            (Some(ControlKey::Nodes(base)), value) => {
                match value {
                    Some(value) => {
                        let pool = String::from_utf8_lossy(value).into_owned();
                        self.blocks.entry(base).or_insert(pool);
                    }
                    None => drop(self.blocks.remove(&base)),
                }
                Vec::new()
            }
        }
    }

    /// Removes what was known before a reset, was not seen since, and is not in the snapshot that speaks for it.
    fn drop_absent(&mut self) -> Vec<Change> {
        let snapshots = &self.snapshots;
        let gone: Vec<_> = self
            .unconfirmed
            .iter()
            .filter(|(pool, identity)| {
                let at = (identity.installation.clone(), identity.namespace.clone(), pool.clone());
                let key = ControlKey::Deployment(pool.clone(), identity.clone()).to_string();
                snapshots.get(&at).is_some_and(|snapshot| !snapshot.keys.contains(&key))
            })
            .cloned()
            .collect();
        for at in &gone {
            self.unconfirmed.remove(at);
            self.known.remove(at);
        }
        gone.into_iter().map(|(pool, identity)| Change::Removed(pool, identity)).collect()
    }
}

/// Reads the whole desired state once, as it is now.
pub fn read(log: &dyn Log) -> Result<DesiredState, LogError> {
    let read = OwnTopic::Control.read(log, |state: &mut DesiredState, event| drop(state.apply(event)))?;
    let mut state = read.unwrap_or_default();
    state.apply(FoldEvent::CaughtUp);
    Ok(state)
}

#[cfg(test)]
mod tests {
    use super::*;

    const KEY: &str = "deployment/default/_cli/default/coprocessor/a";

    fn value(schema: &str, generation: u64) -> Vec<u8> {
        format!(
            r#"{{"schema":"{schema}","generation":{generation},"owner":"cli",
                "source":{{"type":"Kafka","kafka":{{"topics":["in"]}}}},
                "steps":[{{"name":"main","module":{{"digest":"sha256:{}"}}}}],
                "sinks":[{{"type":"Kafka","kafka":{{"topic":"out"}}}}]}}"#,
            "0".repeat(64)
        )
        .into_bytes()
    }

    fn record(key: &str, value: Option<Vec<u8>>) -> FoldEvent {
        FoldEvent::Record { key: key.as_bytes().to_vec(), value, offset: 7, appended_ms: 0 }
    }

    fn identity() -> Identity {
        "default/_cli/coprocessor/a".parse().unwrap()
    }

    fn removed() -> Change {
        Change::Removed("default".parse().unwrap(), identity())
    }

    #[test]
    fn sets_and_tombstones() {
        let mut state = DesiredState::default();
        let changes = state.apply(record(KEY, Some(value("1.0", 2))));
        assert!(
            matches!(&changes[..], [Change::Set(_, at, desired)] if *at == identity() && desired.generation() == 2)
        );
        assert_eq!(state.apply(record(KEY, None)), [removed()]);
        assert_eq!(state.apply(record(KEY, None)), []);
    }

    #[test]
    fn junk_is_ignored_and_says_why() {
        let mut state = DesiredState::default();
        for (key, value, says) in [
            ("\u{1}junk", vec![1], "not one of coproc's"),
            (KEY, b"{".to_vec(), "not a deployment"),
            (KEY, vec![b' '; MAX_CONTROL_BYTES + 1], "bytes, more than"),
            (KEY, br#"{"schema":"1.0"}"#.to_vec(), "not a deployment"),
        ] {
            match &state.apply(record(key, Some(value)))[..] {
                [Change::Ignored { why, offset: 7, .. }] => assert!(why.to_string().contains(says), "{why}"),
                other => panic!("{key:?}: {other:?}"),
            }
        }
        assert_eq!(state.iter().count(), 0);
    }

    #[test]
    fn a_newer_schema_is_unsupported_and_not_absent() {
        let mut state = DesiredState::default();
        state.apply(record(KEY, Some(value("2.0", 5))));
        assert!(matches!(state.get(&identity()), Some((_, Desired::Unsupported { generation: 5, .. }))));
        state.apply(record(KEY, Some(value("1.9", 6))));
        assert!(matches!(state.get(&identity()), Some((_, Desired::Deployment(_)))));
    }

    #[test]
    fn a_recreated_topic_stops_nothing_but_a_snapshot_does() {
        let mut state = DesiredState::default();
        state.apply(record(KEY, Some(value("1.0", 1))));
        state.apply(FoldEvent::CaughtUp);
        state.apply(FoldEvent::Reset);
        assert_eq!(state.apply(FoldEvent::CaughtUp), [Change::CaughtUp]);
        assert!(state.get(&identity()).is_some());
        let snapshot = |keys: &str| Some(format!(r#"{{"generation":1,"keys":[{keys}]}}"#).into_bytes());
        let at = "snapshot/default/_cli/default";
        assert_eq!(state.apply(record(at, snapshot(&format!("{KEY:?}")))), []);
        assert_eq!(state.apply(record(at, snapshot(""))), [removed()]);
    }

    #[test]
    fn a_snapshot_says_nothing_about_what_others_write() {
        let mut state = DesiredState::default();
        state.apply(record(KEY, Some(value("1.0", 1))));
        state.apply(FoldEvent::CaughtUp);
        state.apply(FoldEvent::Reset);
        state.apply(FoldEvent::CaughtUp);
        assert!(state.confirmed(&"default".parse().unwrap(), &identity()).is_none());
        // A pool of the same name in another namespace, in another installation, another pool.
        for others in
            ["snapshot/default/shop/default", "snapshot/west/_cli/default", "snapshot/default/_cli/x"]
        {
            let empty = br#"{"generation":1,"keys":[]}"#.to_vec();
            assert_eq!(state.apply(record(others, Some(empty))), [], "{others}");
            assert!(state.get(&identity()).is_some(), "{others}");
        }
    }

    #[test]
    fn the_first_claim_of_a_block_wins() {
        let mut state = DesiredState::default();
        state.apply(record("nodes/1000", Some(b"a".to_vec())));
        state.apply(record("nodes/1000", Some(b"b".to_vec())));
        assert_eq!(state.owner_of_block(1000), Some("a"));
    }
}
