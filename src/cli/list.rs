//! `coproc list`: which coprocessors run where, as the nodes report it.
//!
//! Columns, wording and the raw form are those of the original proposal, `rpk wasm list`.

use std::collections::{BTreeMap, BTreeSet};

use clap::Args;
use serde::Serialize;

use crate::cli::open::{Target, now_ms};
use crate::cli::output::{FormatArgs, Table, emit, json, say};
use crate::control::desired::{self, Desired, DesiredState};
use crate::control::observed::{self, ObservedNode};
use crate::core::names::{Identity, Installation, NodeId};
use crate::core::record::TimestampMs;
use crate::core::status::{DeploymentStatus, NodeStatus, State, UpDown, rfc3339};

/// List coprocessors, and the nodes that run them
#[derive(Debug, Args)]
pub struct Command {
    /// Print what the nodes reported, as one JSON object keyed by node id
    #[arg(long, conflicts_with = "format")]
    raw: bool,
    #[command(flatten)]
    output: FormatArgs,
}

#[derive(Serialize)]
struct Listing {
    coprocessors: Vec<Row>,
    unresponsive_nodes: Vec<u32>,
    /// Nodes that stopped in good order.
    down_nodes: Vec<DownNode>,
}

#[derive(Serialize)]
struct DownNode {
    node_id: u32,
    /// RFC 3339.
    since: String,
}

/// How a deployment is on a node, as far as can be known now.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
enum Life {
    /// The node answers: the state is its own word.
    Up,
    /// The node's heartbeat is overdue: the state is its last word.
    Unresponsive,
    /// The node stopped in good order: nothing runs there.
    Down,
    /// No node has reported the deployment.
    Unreported,
}

#[derive(Serialize)]
struct Row {
    name: String,
    /// Null where no node has reported it.
    node_id: Option<u32>,
    #[serde(flatten)]
    status: DeploymentStatus,
    lag: Option<u64>,
    responsive: bool,
    node: Life,
}

impl Command {
    /// Runs it.
    pub fn run(&self, target: &Target) -> anyhow::Result<()> {
        let log = target.log()?;
        let nodes = observed::read(log.as_ref())?.map(|state| state.nodes());
        if self.raw {
            return raw(nodes.as_deref());
        }
        let desired = desired::read(log.as_ref())?;
        let listing = listing(nodes.as_deref().unwrap_or_default(), &desired, &target.installation, now_ms());
        if self.output.is_structured() {
            return self.output.print(&listing, |_| Table::new(&[]));
        }
        if nodes.as_ref().is_some_and(|nodes| !nodes.is_empty()) || !listing.coprocessors.is_empty() {
            self.output.print(&listing, |wide| table(&listing, wide))?;
        }
        explain(nodes.as_deref(), &listing)
    }
}

/// What is below the table: what does not run, and what to do about it.
fn explain(nodes: Option<&[ObservedNode]>, listing: &Listing) -> anyhow::Result<()> {
    match nodes {
        None => say(
            "The status topic is uninitialized: no node has run on this log yet, `coproc dev` starts one",
        )?,
        Some([]) if listing.coprocessors.is_empty() => say("There are no coprocessor events to list")?,
        Some(_) => {}
    }
    let troubled = troubled(listing);
    if !troubled.is_empty() {
        say(&format!("Not running: {} (`coproc describe NAME` says why)", troubled.join(", ")))?;
    }
    for DownNode { node_id, since } in &listing.down_nodes {
        let start =
            if *node_id == 0 { "`coproc dev`".into() } else { format!("`coproc dev --node-id {node_id}`") };
        say(&format!("Node {node_id} is down since {since}: {start} or its service starts it again"))?;
    }
    if listing.unresponsive_nodes.is_empty() {
        return Ok(());
    }
    let unresponsive: Vec<String> = listing.unresponsive_nodes.iter().map(ToString::to_string).collect();
    say(&format!("Unresponsive nodes: [{}]", unresponsive.join(",")))
}

/// The nodes' own words, joined: what a program of the original proposal would read.
fn raw(nodes: Option<&[ObservedNode]>) -> anyhow::Result<()> {
    let Some(nodes) = nodes else {
        return say(r#"{"status": "uninitialized"}"#);
    };
    let by_id: BTreeMap<NodeId, &NodeStatus> =
        nodes.iter().map(|node| (node.status.node_id, &node.status)).collect();
    emit(&json(&by_id)?)
}

/// What the nodes said last, and what is deployed and no node has spoken of. What a node that is down said counts
/// only as far as it is still deployed: it will not take back the rest.
fn listing(
    nodes: &[ObservedNode],
    desired: &DesiredState,
    installation: &Installation,
    now: TimestampMs,
) -> Listing {
    let mut listing =
        Listing { coprocessors: Vec::new(), unresponsive_nodes: Vec::new(), down_nodes: Vec::new() };
    let mut reported = BTreeSet::new();
    for node in nodes {
        let node_id = node.status.node_id.0;
        if node.is_unresponsive(now) {
            listing.unresponsive_nodes.push(node_id);
        }
        let life = life(node, now);
        if life == Life::Down {
            listing.down_nodes.push(DownNode { node_id, since: rfc3339(node.heartbeat_ms) });
        }
        for (name, status) in &node.status.coprocessors {
            if life == Life::Down && desired.get(&status.identity).is_none() {
                continue;
            }
            reported.insert(&status.identity);
            listing.coprocessors.push(Row::new(name.clone(), Some(node_id), status.clone(), life));
        }
    }
    for (_, identity, wanted) in desired.iter() {
        if identity.installation == *installation && !reported.contains(identity) {
            let status = unreported(identity, wanted);
            listing.coprocessors.push(Row::new(identity.display_name(), None, status, Life::Unreported));
        }
    }
    listing.coprocessors.sort_by(|a, b| (&a.name, a.node_id).cmp(&(&b.name, b.node_id)));
    listing
}

fn life(node: &ObservedNode, now: TimestampMs) -> Life {
    match (node.status.status, node.is_unresponsive(now)) {
        (UpDown::Down, _) => Life::Down,
        (UpDown::Up, true) => Life::Unresponsive,
        (UpDown::Up, false) => Life::Up,
    }
}

impl Row {
    fn new(name: String, node_id: Option<u32>, mut status: DeploymentStatus, node: Life) -> Self {
        if node == Life::Down {
            // What it said last is not so any more.
            (status.state, status.reason) = (State::Pending, Some("NodeDown".into()));
        }
        Self { name, node_id, lag: lag(&status), status, responsive: node == Life::Up, node }
    }

    fn state(&self) -> String {
        match self.node {
            Life::Up | Life::Unreported => state(&self.status, true),
            Life::Unresponsive => state(&self.status, false),
            Life::Down => "not running".into(),
        }
    }
}

/// A deployment that waits for a node.
fn unreported(identity: &Identity, wanted: &Desired) -> DeploymentStatus {
    let deployment = match wanted {
        Desired::Deployment(deployment) => Some(deployment),
        Desired::Unsupported { .. } => None,
    };
    DeploymentStatus {
        identity: identity.clone(),
        input_topics: deployment.map(|it| it.inputs().to_vec()).unwrap_or_default(),
        description: deployment.map(|it| it.description.clone()).unwrap_or_default(),
        state: State::Pending,
        reason: Some("NotReported".into()),
        generation: wanted.generation(),
        digest: deployment.and_then(|it| it.steps.first()).map(|step| step.module.digest),
        digests: Vec::new(),
        delivery: None,
        partitions: Vec::new(),
        last_error: None,
        truncated: false,
    }
}

/// What does not run although it is meant to, with its state.
fn troubled(listing: &Listing) -> Vec<String> {
    let is_troubled = |row: &&Row| match row.node {
        Life::Up => !matches!(row.status.state, State::Running | State::Starting),
        Life::Unresponsive | Life::Down => false,
        Life::Unreported => true,
    };
    let row = |row: &Row| format!("{} ({})", row.name, row.status.state.as_str());
    listing.coprocessors.iter().filter(is_troubled).map(row).collect()
}

/// Records behind, over all partitions; `None` before the node has said.
pub fn lag(status: &DeploymentStatus) -> Option<u64> {
    let partitions = &status.partitions;
    (!partitions.is_empty()).then(|| partitions.iter().map(|partition| partition.lag).sum())
}

fn table(listing: &Listing, wide: bool) -> Table {
    let mut head = vec!["COPROCESSOR NAME", "NODE ID", "INPUT TOPICS", "DESCRIPTION"];
    if wide {
        head.extend(["STATE", "GENERATION", "DIGEST", "LAG"]);
    }
    let mut table = Table::new(&head);
    for row in &listing.coprocessors {
        let status = &row.status;
        let topics: Vec<&str> = status.input_topics.iter().map(AsRef::as_ref).collect();
        let mut cells = vec![
            row.name.clone(),
            row.node_id.map_or_else(|| "-".into(), |id| id.to_string()),
            format!("[{}]", topics.join(",")),
            status.description.clone(),
        ];
        if wide {
            cells.push(row.state());
            cells.push(status.generation.to_string());
            cells.push(status.digest.map_or_else(|| "-".into(), |digest| digest.short()));
            cells.push(row.lag.map_or_else(|| "-".into(), |lag| lag.to_string()));
        }
        table.push(cells);
    }
    table
}

/// The state and its reason; `unknown` where the node does not answer.
pub fn state(status: &DeploymentStatus, responsive: bool) -> String {
    match (&status.reason, responsive) {
        (_, false) => "unknown".into(),
        (None, true) => status.state.as_str().into(),
        (Some(reason), true) => format!("{} ({reason})", status.state.as_str()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::control::observed::ObservedState;
    use crate::core::status::UNRESPONSIVE_MS;
    use crate::ports::FoldEvent;

    fn nodes(records: &[(&str, &str, i64)]) -> Vec<ObservedNode> {
        let mut state = ObservedState::default();
        for (key, value, appended_ms) in records {
            let value = Some(value.as_bytes().to_vec());
            let key = key.as_bytes().to_vec();
            state.apply(FoldEvent::Record { key, value, offset: 0, appended_ms: *appended_ms });
        }
        state.nodes()
    }

    fn list(nodes: &[ObservedNode], deployed: &[&str], now: TimestampMs) -> Listing {
        let mut desired = DesiredState::default();
        for name in deployed {
            desired.apply(FoldEvent::Record {
                key: format!("deployment/default/_cli/default/coprocessor/{name}").into_bytes(),
                value: Some(br#"{"schema":"9.0"}"#.to_vec()),
                offset: 0,
                appended_ms: 0,
            });
        }
        listing(nodes, &desired, &Installation::default_name(), now)
    }

    fn node(id: u32, status: &str) -> String {
        format!(
            r#"{{"node_id": {id}, "status": "{status}", "time": "", "version": "", "schema": "1.0", "pool": "p",
            "incarnation": "", "coprocessors": {{"name_a": {{"identity": "default/_cli/coprocessor/name-a",
                "input_topics": ["foo", "bar", "baz"], "description": "This copro is interesting!",
                "state": "running", "generation": 3, "partitions": [], "last_error": null}}}}}}"#
        )
    }

    #[test]
    fn columns_are_those_of_the_proposal() {
        let fresh = UNRESPONSIVE_MS + 1;
        let nodes =
            nodes(&[("5", &node(5, "up"), fresh), ("3", &node(3, "up"), 0), ("7", &node(7, "down"), fresh)]);
        let listing = list(&nodes, &["name-a"], fresh);
        assert_eq!(
            table(&listing, false).render(),
            "COPROCESSOR NAME  NODE ID  INPUT TOPICS   DESCRIPTION\n\
             name_a            3        [foo,bar,baz]  This copro is interesting!\n\
             name_a            5        [foo,bar,baz]  This copro is interesting!\n\
             name_a            7        [foo,bar,baz]  This copro is interesting!\n"
        );
        assert_eq!(listing.unresponsive_nodes, [3, 7]);
        let wide = table(&listing, true).render();
        assert!(wide.lines().next().unwrap().ends_with("STATE        GENERATION  DIGEST  LAG"), "{wide}");
        for state in ["  unknown  ", "  running  ", "  not running  "] {
            assert!(wide.contains(state), "{state:?} in {wide}");
        }
        assert_eq!(listing.down_nodes.len(), 1);
        assert_eq!(listing.down_nodes[0].since, rfc3339(fresh));
    }

    #[test]
    fn what_no_node_has_reported_is_listed_and_what_was_removed_is_not() {
        let nodes = nodes(&[("7", &node(7, "down"), 0)]);
        let listing = list(&nodes, &["name-b"], 1);
        let wide = table(&listing, true).render();
        assert_eq!(wide.lines().count(), 2, "{wide}");
        assert!(wide.contains("name-b            -        []            "), "{wide}");
        assert!(wide.contains("pending (NotReported)"), "{wide}");
        assert_eq!(troubled(&listing), ["name-b (pending)"]);
    }
}
