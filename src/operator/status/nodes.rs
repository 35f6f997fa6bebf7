//! The list of nodes in a status: at most fifty, the ones with trouble first; the counts cover all.

use std::collections::BTreeMap;

use crate::core::status::{State, rfc3339};
use crate::operator::build::pod_name;
use crate::operator::conditions::shorten;
use crate::operator::crd::status::{MAX_NODES, NodeCounts, NodeEntry, NodeState};
use crate::operator::observe::OnNode;
use crate::operator::status::About;

/// Longest error of a node in the list.
const MAX_ERROR: usize = 256;

/// The list and the counts.
pub fn entries(about: &About<'_>, nodes: &[OnNode]) -> (Vec<NodeEntry>, NodeCounts) {
    let mut all: Vec<NodeEntry> = nodes.iter().map(|node| entry(about, node)).collect();
    let count = |state: NodeState| all.iter().filter(|entry| entry.state == state).count() as i64;
    let counts = NodeCounts {
        total: all.len() as i64,
        running: count(NodeState::Running) + count(NodeState::Retrying),
        failed: count(NodeState::Failed),
        unknown: count(NodeState::Unknown),
    };
    all.sort_by_key(|entry| (entry.state == NodeState::Running, entry.node_id));
    all.truncate(MAX_NODES);
    all.sort_by_key(|entry| entry.node_id);
    (all, counts)
}

/// Records that wait, over the nodes that were heard of lately; `None` when none of them knows of a partition. One that
/// several speak for, as those may that have stopped, counts once.
pub fn total_lag(nodes: &[OnNode]) -> Option<i64> {
    let fresh = nodes.iter().filter(|node| node.is_fresh);
    let mut lags = BTreeMap::new();
    for at in fresh.flat_map(|node| &node.status.partitions) {
        let lag = lags.entry((&at.topic, at.partition)).or_insert(0);
        *lag = at.lag.max(*lag);
    }
    lags.into_values().map(|lag| i64::try_from(lag).unwrap_or(i64::MAX)).reduce(i64::saturating_add)
}

fn lag(node: &OnNode) -> i64 {
    node.status
        .partitions
        .iter()
        .map(|at| i64::try_from(at.lag).unwrap_or(i64::MAX))
        .fold(0, i64::saturating_add)
}

fn entry(about: &About<'_>, node: &OnNode) -> NodeEntry {
    let state = if node.is_fresh { state(node.status.state) } else { NodeState::Unknown };
    let id = i64::from(node.node.0);
    let before = about.before.nodes.iter().find(|before| before.node_id == id);
    let since =
        before.filter(|before| before.state == state).and_then(|before| before.last_transition_time.clone());
    let index =
        about.node_id_base.and_then(|base| node.node.0.checked_sub(base)).filter(|index| *index < 1000);
    NodeEntry {
        node_id: id,
        pod: index.map(|index| pod_name(about.pool, index)),
        state,
        digest: node.status.digest.map(|digest| digest.short()),
        partition_count: node.status.partitions.len() as i64,
        lag: lag(node),
        last_error: node.status.last_error.as_ref().map(|error| {
            let text = shorten(&format!("{}: {}", error.reason, error.message));
            text.chars().take(MAX_ERROR).collect()
        }),
        last_transition_time: Some(since.unwrap_or_else(|| rfc3339(about.now_ms))),
    }
}

fn state(state: State) -> NodeState {
    match state {
        State::Pending => NodeState::Pending,
        State::Starting => NodeState::Starting,
        State::Running => NodeState::Running,
        State::Retrying => NodeState::Retrying,
        State::Failed => NodeState::Failed,
        State::Paused => NodeState::Paused,
        State::Unsupported => NodeState::Unsupported,
        State::Stopping => NodeState::Stopping,
    }
}
