//! The observed state: what nodes write to the status topic, and how it is read and joined.

use std::collections::BTreeMap;

use crate::control::topics::OwnTopic;
use crate::core::ledger::TopicPartition;
use crate::core::names::{Identity, NodeId};
use crate::core::record::TimestampMs;
use crate::core::status::{
    Committed, DeploymentStatus, MAX_RECORD_BYTES, NodeStatus, StatusKey, UNRESPONSIVE_MS, UpDown,
};
use crate::ports::{FencedWriter, FoldEvent, Keyed, Log, LogError};

/// A node as a reader sees it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ObservedNode {
    /// Its last heartbeat, with the partitions of its deployments joined in.
    pub status: NodeStatus,
    /// When the log took the heartbeat, in milliseconds since the epoch.
    pub heartbeat_ms: TimestampMs,
}

impl ObservedNode {
    /// Whether it is down, or its heartbeat is overdue.
    pub fn is_unresponsive(&self, now_ms: TimestampMs) -> bool {
        self.status.status == UpDown::Down || now_ms - self.heartbeat_ms > UNRESPONSIVE_MS
    }
}

/// The fold of the status topic.
#[derive(Debug, Default)]
pub struct ObservedState {
    nodes: BTreeMap<NodeId, (NodeStatus, TimestampMs)>,
    details: BTreeMap<(NodeId, Identity), DeploymentStatus>,
    committed: BTreeMap<(NodeId, Identity), Committed>,
    ignored: u64,
    caught_up: bool,
}

impl ObservedState {
    /// Takes in an event.
    pub fn apply(&mut self, event: FoldEvent) {
        match event {
            FoldEvent::Record { key, value, appended_ms, .. } => {
                self.record(&key, value.as_deref(), appended_ms);
            }
            FoldEvent::CaughtUp => self.caught_up = true,
            FoldEvent::Reset => *self = Self::default(),
            FoldEvent::Idle => {}
        }
    }

    /// Whether everything that was in the topic has been seen.
    pub fn is_caught_up(&self) -> bool {
        self.caught_up
    }

    /// Records that were not understood, or not what their key says.
    pub fn ignored(&self) -> u64 {
        self.ignored
    }

    /// The nodes, with partitions joined in.
    pub fn nodes(&self) -> Vec<ObservedNode> {
        let joined = |(status, heartbeat_ms): &(NodeStatus, TimestampMs)| {
            let mut status = status.clone();
            for deployment in status.coprocessors.values_mut() {
                let at = (status.node_id, deployment.identity.clone());
                if let Some(detail) = self.details.get(&at)
                    && detail.generation == deployment.generation
                {
                    deployment.partitions.clone_from(&detail.partitions);
                    deployment.truncated = detail.truncated;
                }
            }
            ObservedNode { status, heartbeat_ms: *heartbeat_ms }
        };
        self.nodes.values().map(joined).collect()
    }

    /// Whether some node knew a committed offset of this partition, in this life of the deployment.
    pub fn had_committed(&self, identity: &Identity, life: Option<&str>, at: &TopicPartition) -> bool {
        let mut of_life = self
            .committed
            .iter()
            .filter(|((_, of), committed)| of == identity && committed.life.as_deref() == life);
        of_life.any(|(_, committed)| committed.contains(at))
    }

    /// What one node knew to have been committed, by deployment.
    pub fn committed_on(&self, id: NodeId) -> BTreeMap<Identity, Committed> {
        let of_node = self.committed.iter().filter(|((node, _), _)| *node == id);
        of_node.map(|((_, identity), committed)| (identity.clone(), committed.clone())).collect()
    }

    /// One node's last heartbeat, and when it came.
    pub fn node(&self, id: NodeId) -> Option<(&NodeStatus, TimestampMs)> {
        self.nodes.get(&id).map(|(status, at)| (status, *at))
    }

    fn record(&mut self, key: &[u8], value: Option<&[u8]>, appended_ms: TimestampMs) {
        match (StatusKey::parse(key), value) {
            (Some(StatusKey::Node(id)), None) => drop(self.nodes.remove(&id)),
            (Some(StatusKey::Deployment(id, identity)), None) => {
                self.details.remove(&(id, identity));
            }
            (Some(StatusKey::Node(id)), Some(value)) => match serde_json::from_slice::<NodeStatus>(value) {
                Ok(status) if status.node_id == id => {
                    self.nodes.insert(id, (status, appended_ms));
                }
                _ => self.ignored += 1,
            },
            (Some(StatusKey::Deployment(id, identity)), Some(value)) => {
                match serde_json::from_slice::<DeploymentStatus>(value) {
                    Ok(detail) if detail.identity == identity => {
                        self.details.insert((id, identity), detail);
                    }
                    _ => self.ignored += 1,
                }
            }
            (Some(StatusKey::Committed(id, identity)), None) => {
                self.committed.remove(&(id, identity));
            }
            (Some(StatusKey::Committed(id, identity)), Some(value)) => {
                match serde_json::from_slice::<Committed>(value) {
                    Ok(committed) => drop(self.committed.insert((id, identity), committed)),
                    Err(_) => self.ignored += 1,
                }
            }
            (None, _) => self.ignored += 1,
        }
    }
}

/// Reads the whole observed state once; `None` when the topic was never made.
pub fn read(log: &dyn Log) -> Result<Option<ObservedState>, LogError> {
    let state = OwnTopic::Status.read(log, ObservedState::apply)?;
    Ok(state.map(|mut state| {
        state.apply(FoldEvent::CaughtUp);
        state
    }))
}

/// Writes one node's records.
pub struct StatusWriter {
    writer: Box<dyn FencedWriter>,
}

impl StatusWriter {
    /// A writer for this node; it fences the one of an earlier life.
    pub fn open(log: &dyn Log, node: NodeId) -> Result<Self, LogError> {
        OwnTopic::Status.ensure(log)?;
        let writer = log.fenced_writer(&OwnTopic::Status.name(), &format!("coproc.status.{node}"))?;
        Ok(Self { writer })
    }

    /// Writes the heartbeat, the details of changed deployments and what of them is newly known to have been committed,
    /// and removes those that are gone.
    pub fn write(
        &mut self,
        node: &NodeStatus,
        details: &[DeploymentStatus],
        committed: &[(Identity, Committed)],
        gone: &[Identity],
    ) -> Result<(), LogError> {
        let id = node.node_id;
        let mut records =
            vec![Keyed { key: StatusKey::Node(id).to_string().into_bytes(), value: Some(fit_node(node)) }];
        records.extend(details.iter().map(|detail| Keyed {
            key: StatusKey::Deployment(id, detail.identity.clone()).to_string().into_bytes(),
            value: Some(fit_detail(detail)),
        }));
        records.extend(committed.iter().map(|(identity, committed)| Keyed {
            key: StatusKey::Committed(id, identity.clone()).to_string().into_bytes(),
            value: Some(to_json(committed)),
        }));
        let keys = gone.iter().flat_map(|identity| {
            [StatusKey::Deployment(id, identity.clone()), StatusKey::Committed(id, identity.clone())]
        });
        records.extend(keys.map(|key| Keyed { key: key.to_string().into_bytes(), value: None }));
        self.writer.write(&records)
    }
}

fn to_json(value: &impl serde::Serialize) -> Vec<u8> {
    serde_json::to_vec(value).expect("status has text keys only, so it is JSON")
}

/// The heartbeat's bytes: without partitions, and with fewer coprocessors where there are too many.
fn fit_node(node: &NodeStatus) -> Vec<u8> {
    let mut node = node.clone();
    for deployment in node.coprocessors.values_mut() {
        deployment.partitions.clear();
    }
    loop {
        let bytes = to_json(&node);
        if bytes.len() <= MAX_RECORD_BYTES || node.coprocessors.is_empty() {
            return bytes;
        }
        node.truncated = true;
        let keep = node.coprocessors.len() * 3 / 4;
        node.coprocessors = std::mem::take(&mut node.coprocessors).into_iter().take(keep).collect();
    }
}

fn fit_detail(detail: &DeploymentStatus) -> Vec<u8> {
    let mut detail = detail.clone();
    loop {
        let bytes = to_json(&detail);
        if bytes.len() <= MAX_RECORD_BYTES || detail.partitions.is_empty() {
            return bytes;
        }
        detail.truncated = true;
        detail.partitions.truncate(detail.partitions.len() * 3 / 4);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::core::status::State;

    fn node(id: u32) -> NodeStatus {
        NodeStatus {
            node_id: NodeId(id),
            status: UpDown::Up,
            time: String::new(),
            version: String::new(),
            schema: "1.0".into(),
            pool: "default".into(),
            incarnation: String::new(),
            log: String::new(),
            coprocessors: BTreeMap::new(),
            truncated: false,
        }
    }

    fn deployment(name: &str, description: usize) -> DeploymentStatus {
        DeploymentStatus {
            identity: format!("default/_cli/coprocessor/{name}").parse().unwrap(),
            input_topics: vec!["in".parse().unwrap()],
            description: "x".repeat(description),
            state: State::Running,
            reason: None,
            generation: 1,
            digest: None,
            digests: Vec::new(),
            delivery: None,
            partitions: Vec::new(),
            last_error: None,
            truncated: false,
        }
    }

    #[test]
    fn forged_and_foreign_records_are_ignored() {
        let mut state = ObservedState::default();
        let value = to_json(&node(5));
        for (key, value) in [("6", value.clone()), ("x", value.clone()), ("5", b"{".to_vec())] {
            state.record(key.as_bytes(), Some(&value), 0);
        }
        assert_eq!((state.ignored(), state.nodes().len()), (3, 0));
        state.record(b"5", Some(&value), 100);
        assert!(!state.nodes()[0].is_unresponsive(100 + UNRESPONSIVE_MS));
        assert!(state.nodes()[0].is_unresponsive(101 + UNRESPONSIVE_MS));
    }

    #[test]
    fn what_was_committed_counts_for_its_life() {
        let (mut state, topic) = (ObservedState::default(), "in".parse().unwrap());
        let identity = deployment("a", 0).identity;
        let at = |partition| TopicPartition::new(&topic, partition);
        let mut committed = Committed { life: Some("one".into()), ..Committed::default() };
        committed.insert(&at(1));
        let key = StatusKey::Committed(NodeId(5), identity.clone()).to_string().into_bytes();
        state.record(&key, Some(&to_json(&committed)), 0);
        let had =
            |state: &ObservedState, life, partition| state.had_committed(&identity, life, &at(partition));
        assert!(had(&state, Some("one"), 1));
        assert!(!had(&state, Some("one"), 0) && !had(&state, Some("two"), 1) && !had(&state, None, 1));
        assert_eq!(state.committed_on(NodeId(5))[&identity], committed);
        state.record(&key, None, 0);
        assert!(!had(&state, Some("one"), 1) && state.ignored() == 0);
    }

    #[test]
    fn what_is_too_large_is_cut_and_says_so() {
        let mut large = node(5);
        for i in 0..100 {
            large.coprocessors.insert(format!("c{i}"), deployment(&format!("c{i}"), 20_000));
        }
        let bytes = fit_node(&large);
        assert!(bytes.len() <= MAX_RECORD_BYTES);
        let cut: NodeStatus = serde_json::from_slice(&bytes).unwrap();
        assert!(cut.truncated && !cut.coprocessors.is_empty());
    }
}
