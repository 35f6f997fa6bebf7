//! What the nodes of a pool say, folded from the status topic: whose resource changed, and who fell silent. Pure.
//!
//! Silence is measured by the operator's own clock since a heartbeat arrived here; the times in records are for
//! people. Records that are forged can lie about a node, but not about which node: the key says that, and ids
//! outside the pool's block are not listened to.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::time::Duration;

use crate::core::names::{Identity, NodeId, PoolName};
use crate::core::status::{DeploymentStatus, NodeStatus, StatusKey, UNRESPONSIVE_MS, UpDown};
use crate::ports::FoldEvent;

/// Node ids below this are for nodes that were started by hand.
pub const BY_HAND: u32 = 1000;

/// A deployment on one node, as it was last heard of.
#[derive(Debug, Clone, PartialEq)]
pub struct OnNode {
    /// The node.
    pub node: NodeId,
    /// Whether it has been heard of lately, and is up.
    pub is_fresh: bool,
    /// What it said, with the partitions of the same generation.
    pub status: DeploymentStatus,
}

#[derive(Debug, Clone)]
struct Seen {
    arrived: Duration,
    is_up: bool,
    schema: String,
    listed: BTreeSet<Identity>,
    was_fresh: bool,
}

/// The fold of the status topic for one pool.
#[derive(Debug)]
pub struct Observer {
    pool: PoolName,
    nodes: BTreeMap<NodeId, Seen>,
    reports: HashMap<Identity, BTreeMap<NodeId, DeploymentStatus>>,
    details: HashMap<Identity, BTreeMap<NodeId, DeploymentStatus>>,
    /// Who left word of what was committed. What it says is for nodes alone.
    committed: HashMap<Identity, BTreeSet<NodeId>>,
    ignored: u64,
    is_caught_up: bool,
}

impl Observer {
    /// Nothing heard yet.
    pub fn new(pool: PoolName) -> Self {
        Self {
            pool,
            nodes: BTreeMap::new(),
            reports: HashMap::new(),
            details: HashMap::new(),
            committed: HashMap::new(),
            ignored: 0,
            is_caught_up: false,
        }
    }

    /// Takes in an event at this time: the deployments whose picture it changed.
    pub fn apply(&mut self, event: &FoldEvent, now: Duration) -> BTreeSet<Identity> {
        match event {
            FoldEvent::Record { key, value, .. } => self.record(key, value.as_deref(), now),
            FoldEvent::Reset => self.reset(),
            FoldEvent::CaughtUp => {
                self.is_caught_up = true;
                BTreeSet::new()
            }
            FoldEvent::Idle => BTreeSet::new(),
        }
    }

    /// The deployments of nodes that fell silent since the last call.
    pub fn expire(&mut self, now: Duration) -> BTreeSet<Identity> {
        let mut affected = BTreeSet::new();
        for seen in self.nodes.values_mut() {
            let is_fresh = seen.is_fresh(now);
            if seen.was_fresh && !is_fresh {
                affected.extend(seen.listed.iter().cloned());
            }
            seen.was_fresh = is_fresh;
        }
        affected
    }

    /// Whether some node was fresh when it was last looked.
    pub fn has_nodes(&self) -> bool {
        self.nodes.values().any(|seen| seen.was_fresh)
    }

    /// A deployment on the nodes whose ids are accepted.
    pub fn view(&self, identity: &Identity, now: Duration, is_ours: impl Fn(NodeId) -> bool) -> Vec<OnNode> {
        let reports = self.reports.get(identity).into_iter().flatten();
        let ours = reports.filter(|(node, _)| is_ours(**node));
        ours.map(|(node, report)| {
            let mut status = report.clone();
            let details = self.details.get(identity).and_then(|details| details.get(node));
            if let Some(detail) = details.filter(|detail| detail.generation == report.generation) {
                status.partitions.clone_from(&detail.partitions);
                status.truncated = detail.truncated;
            }
            let is_fresh = self.nodes.get(node).is_some_and(|seen| seen.is_fresh(now));
            OnNode { node: *node, is_fresh, status }
        })
        .collect()
    }

    /// Nodes of the pool that were heard of lately.
    pub fn fresh_nodes(&self, now: Duration, is_ours: impl Fn(NodeId) -> bool) -> Vec<NodeId> {
        let fresh = self.nodes.iter().filter(|(node, seen)| is_ours(**node) && seen.is_fresh(now));
        fresh.map(|(node, _)| *node).collect()
    }

    /// Nodes with records that are not fresh: candidates for tombstones once their slot is gone.
    pub fn silent_nodes(&self, now: Duration) -> Vec<NodeId> {
        self.nodes.iter().filter(|(_, seen)| !seen.is_fresh(now)).map(|(node, _)| *node).collect()
    }

    /// Schemas that the fresh nodes read.
    pub fn schemas(&self, now: Duration) -> BTreeSet<String> {
        let fresh = self.nodes.values().filter(|seen| seen.is_fresh(now));
        fresh.map(|seen| seen.schema.clone()).collect()
    }

    /// The keys of everything that was said about a deployment, for tombstones.
    pub fn detail_keys(&self, identity: &Identity) -> Vec<StatusKey> {
        let nodes = self.details.get(identity).into_iter().flatten();
        let details = nodes.map(|(node, _)| StatusKey::Deployment(*node, identity.clone()));
        let nodes = self.committed.get(identity).into_iter().flatten();
        details.chain(nodes.map(|node| StatusKey::Committed(*node, identity.clone()))).collect()
    }

    /// The keys of what was said about deployments that are gone, and that no node says it runs any more: a node
    /// may have said it last after the record was removed.
    pub fn leftover_keys(&self, now: Duration, is_gone: impl Fn(&Identity) -> bool) -> Vec<StatusKey> {
        let is_listed = |identity: &Identity| {
            let mut nodes = self.reports.get(identity).into_iter().flat_map(BTreeMap::keys);
            nodes.any(|node| self.nodes.get(node).is_some_and(|seen| seen.is_fresh(now)))
        };
        let all: BTreeSet<&Identity> = self.details.keys().chain(self.committed.keys()).collect();
        let gone = all.into_iter().filter(|identity| is_gone(identity) && !is_listed(identity));
        gone.flat_map(|identity| self.detail_keys(identity)).collect()
    }

    /// The keys of everything that a node said, but for what it knew to be committed: that stays true without it.
    pub fn node_keys(&self, node: NodeId) -> Vec<StatusKey> {
        let of_node = self.details.iter().filter(|(_, nodes)| nodes.contains_key(&node));
        let details = of_node.map(|(identity, _)| StatusKey::Deployment(node, identity.clone()));
        std::iter::once(StatusKey::Node(node)).chain(details).collect()
    }

    /// Whether everything that nodes had said before has been heard.
    pub fn is_caught_up(&self) -> bool {
        self.is_caught_up
    }

    /// Records that were not understood.
    pub fn ignored(&self) -> u64 {
        self.ignored
    }

    fn reset(&mut self) -> BTreeSet<Identity> {
        let affected = self.reports.keys().cloned().collect();
        self.nodes.clear();
        self.reports.clear();
        self.details.clear();
        self.committed.clear();
        self.is_caught_up = false;
        affected
    }

    fn record(&mut self, key: &[u8], value: Option<&[u8]>, now: Duration) -> BTreeSet<Identity> {
        match (StatusKey::parse(key), value) {
            (Some(StatusKey::Node(node)), None) => self.forget(node),
            (Some(StatusKey::Node(node)), Some(value)) => match serde_json::from_slice::<NodeStatus>(value) {
                Ok(status) if status.node_id == node => {
                    if status.pool == self.pool.as_str() {
                        self.heartbeat(status, now)
                    } else {
                        self.forget(node)
                    }
                }
                _ => self.ignore(),
            },
            (Some(StatusKey::Deployment(node, identity)), None) => {
                if let Some(details) = self.details.get_mut(&identity) {
                    details.remove(&node);
                }
                self.details.retain(|_, nodes| !nodes.is_empty());
                BTreeSet::from([identity])
            }
            (Some(StatusKey::Deployment(node, identity)), Some(value)) => {
                match serde_json::from_slice::<DeploymentStatus>(value) {
                    Ok(detail) if detail.identity == identity => self.detail(node, identity, detail),
                    _ => self.ignore(),
                }
            }
            (Some(StatusKey::Committed(node, identity)), Some(_)) => {
                self.committed.entry(identity).or_default().insert(node);
                BTreeSet::new()
            }
            (Some(StatusKey::Committed(node, identity)), None) => {
                if let Some(nodes) = self.committed.get_mut(&identity) {
                    nodes.remove(&node);
                }
                self.committed.retain(|_, nodes| !nodes.is_empty());
                BTreeSet::new()
            }
            (None, _) => self.ignore(),
        }
    }

    fn ignore(&mut self) -> BTreeSet<Identity> {
        self.ignored += 1;
        BTreeSet::new()
    }

    fn forget(&mut self, node: NodeId) -> BTreeSet<Identity> {
        let listed = self.nodes.remove(&node).map(|seen| seen.listed).unwrap_or_default();
        for identity in &listed {
            self.drop_report(identity, node);
        }
        listed
    }

    fn drop_report(&mut self, identity: &Identity, node: NodeId) {
        if let Some(nodes) = self.reports.get_mut(identity) {
            nodes.remove(&node);
            if nodes.is_empty() {
                self.reports.remove(identity);
            }
        }
    }

    fn heartbeat(&mut self, status: NodeStatus, now: Duration) -> BTreeSet<Identity> {
        let node = status.node_id;
        let is_up = status.status == UpDown::Up;
        let before = self.nodes.remove(&node);
        let woke = before.as_ref().is_none_or(|seen| seen.is_fresh(now) != is_up);
        let mut listed = BTreeSet::new();
        let mut affected = BTreeSet::new();
        for report in status.coprocessors.into_values() {
            let identity = report.identity.clone();
            let nodes = self.reports.entry(identity.clone()).or_default();
            if woke || nodes.get(&node) != Some(&report) {
                affected.insert(identity.clone());
            }
            nodes.insert(node, report);
            listed.insert(identity);
        }
        for gone in before.iter().flat_map(|seen| &seen.listed).filter(|identity| !listed.contains(identity))
        {
            self.drop_report(gone, node);
            affected.insert(gone.clone());
        }
        let seen = Seen { arrived: now, is_up, schema: status.schema, listed, was_fresh: is_up };
        self.nodes.insert(node, seen);
        affected
    }

    fn detail(&mut self, node: NodeId, identity: Identity, detail: DeploymentStatus) -> BTreeSet<Identity> {
        let nodes = self.details.entry(identity.clone()).or_default();
        let matters = nodes.get(&node).is_none_or(|before| picture_changed(before, &detail));
        nodes.insert(node, detail);
        if matters { BTreeSet::from([identity]) } else { BTreeSet::new() }
    }
}

impl Seen {
    fn is_fresh(&self, now: Duration) -> bool {
        let limit = Duration::from_millis(UNRESPONSIVE_MS.unsigned_abs());
        self.is_up && now.saturating_sub(self.arrived) <= limit
    }
}

/// Whether a resource's status may have to change: other partitions, other errors, or a lag that matters.
fn picture_changed(before: &DeploymentStatus, after: &DeploymentStatus) -> bool {
    let shape = |status: &DeploymentStatus| -> Vec<_> {
        let partitions = status.partitions.iter();
        partitions.map(|at| (at.topic.clone(), at.partition, at.error.clone())).collect()
    };
    let lag = |status: &DeploymentStatus| status.partitions.iter().map(|at| at.lag).sum();
    before.generation != after.generation
        || before.last_error != after.last_error
        || shape(before) != shape(after)
        || lag_matters(lag(before), lag(after))
}

/// Whether a change of lag is worth writing: it crosses zero, or changes by a factor of two.
pub fn lag_matters(before: u64, after: u64) -> bool {
    (before == 0) != (after == 0)
        || after >= before.saturating_mul(2).max(1)
        || before >= after.saturating_mul(2).max(1)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::core::status::State;

    fn identity(name: &str) -> Identity {
        format!("default/shop/coprocessor/{name}").parse().unwrap()
    }

    fn report(name: &str, state: State) -> DeploymentStatus {
        DeploymentStatus {
            identity: identity(name),
            input_topics: Vec::new(),
            description: String::new(),
            state,
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

    fn heartbeat(node: u32, pool: &str, reports: &[DeploymentStatus]) -> FoldEvent {
        let coprocessors = reports.iter().map(|report| (report.identity.display_name(), report.clone()));
        let status = NodeStatus {
            node_id: NodeId(node),
            status: UpDown::Up,
            time: "now".into(),
            version: String::new(),
            schema: "1.0".into(),
            pool: pool.into(),
            incarnation: String::new(),
            log: String::new(),
            coprocessors: coprocessors.collect(),
            truncated: false,
        };
        record(&node.to_string(), Some(serde_json::to_vec(&status).unwrap()))
    }

    fn record(key: &str, value: Option<Vec<u8>>) -> FoldEvent {
        FoldEvent::Record { key: key.as_bytes().to_vec(), value, offset: 0, appended_ms: 0 }
    }

    fn seconds(at: u64) -> Duration {
        Duration::from_secs(at)
    }

    #[test]
    fn a_heartbeat_alone_changes_nothing() {
        let mut observer = Observer::new("default".parse().unwrap());
        let running = [report("a", State::Running), report("b", State::Running)];
        assert_eq!(observer.apply(&heartbeat(1000, "default", &running), seconds(0)).len(), 2);
        assert!(observer.apply(&heartbeat(1000, "default", &running), seconds(10)).is_empty());
        let failed = [report("a", State::Failed), report("b", State::Running)];
        let affected = observer.apply(&heartbeat(1000, "default", &failed), seconds(20));
        assert_eq!(affected, BTreeSet::from([identity("a")]));
        let affected = observer.apply(&heartbeat(1000, "default", &failed[..1]), seconds(30));
        assert_eq!(affected, BTreeSet::from([identity("b")]));
        assert!(observer.view(&identity("b"), seconds(30), |_| true).is_empty());
    }

    #[test]
    fn silence_is_noticed_once_and_ends_with_a_heartbeat() {
        let mut observer = Observer::new("default".parse().unwrap());
        let running = [report("a", State::Running)];
        observer.apply(&heartbeat(1000, "default", &running), seconds(0));
        assert!(observer.expire(seconds(30)).is_empty());
        assert_eq!(observer.expire(seconds(31)), BTreeSet::from([identity("a")]));
        assert!(observer.expire(seconds(32)).is_empty());
        assert!(!observer.view(&identity("a"), seconds(32), |_| true)[0].is_fresh);
        let affected = observer.apply(&heartbeat(1000, "default", &running), seconds(40));
        assert_eq!(affected, BTreeSet::from([identity("a")]));
        assert!(observer.view(&identity("a"), seconds(41), |_| true)[0].is_fresh);
    }

    #[test]
    fn forged_records_and_other_pools_are_not_listened_to() {
        let mut observer = Observer::new("default".parse().unwrap());
        let FoldEvent::Record { value, .. } = heartbeat(1000, "default", &[report("a", State::Running)])
        else {
            return;
        };
        for (key, value) in [("1001", value.clone()), ("x", value), ("1000", Some(b"{".to_vec()))] {
            assert!(observer.apply(&record(key, value), seconds(0)).is_empty());
        }
        assert_eq!(observer.ignored(), 3);
        assert!(
            observer.apply(&heartbeat(7, "other", &[report("a", State::Running)]), seconds(0)).is_empty()
        );
        observer.apply(&heartbeat(5000, "default", &[report("a", State::Running)]), seconds(0));
        assert!(observer.view(&identity("a"), seconds(0), |node| node.0 < 2000).is_empty());
    }

    #[test]
    fn what_is_left_of_a_deployment_goes_when_no_node_runs_it() {
        let mut observer = Observer::new("default".parse().unwrap());
        let running = [report("a", State::Running)];
        let detail = serde_json::to_vec(&running[0]).unwrap();
        observer.apply(&heartbeat(1000, "default", &running), seconds(0));
        observer.apply(&record("1000/default/shop/coprocessor/a", Some(detail)), seconds(0));
        let left = |observer: &Observer, at| observer.leftover_keys(seconds(at), |_| true).len();
        assert_eq!(left(&observer, 1), 0, "a node runs it");
        assert_eq!(left(&observer, 31), 1, "that node fell silent");
        assert_eq!(observer.leftover_keys(seconds(31), |_| false), []);
        observer.apply(&heartbeat(1000, "default", &[]), seconds(32));
        assert_eq!(left(&observer, 32), 1, "it runs it no more");
        // What it knew to be committed goes too, and not with the node alone.
        observer
            .apply(&record("committed/1000/default/shop/coprocessor/a", Some(b"{}".to_vec())), seconds(32));
        assert_eq!(left(&observer, 32), 2);
        assert_eq!(observer.node_keys(NodeId(1000)).len(), 2);
        observer.apply(&record("1000/default/shop/coprocessor/a", None), seconds(33));
        assert_eq!(left(&observer, 33), 1);
        observer.apply(&record("committed/1000/default/shop/coprocessor/a", None), seconds(34));
        assert_eq!(left(&observer, 34), 0);
    }

    #[test]
    fn it_knows_whether_there_are_nodes() {
        let mut observer = Observer::new("default".parse().unwrap());
        assert!(!observer.has_nodes());
        observer.apply(&heartbeat(1000, "default", &[]), seconds(0));
        assert!(observer.has_nodes());
        observer.expire(seconds(30));
        assert!(observer.has_nodes());
        observer.expire(seconds(31));
        assert!(!observer.has_nodes());
        observer.apply(&heartbeat(1000, "default", &[]), seconds(32));
        observer.apply(&record("1000", None), seconds(33));
        assert!(!observer.has_nodes());
    }

    #[test]
    fn lag_is_coarse() {
        for (before, after, matters) in
            [(0, 0, false), (0, 1, true), (1, 0, true), (100, 150, false), (100, 200, true), (100, 50, true)]
        {
            assert_eq!(lag_matters(before, after), matters, "{before} {after}");
        }
    }
}
