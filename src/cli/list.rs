//! `coproc list`: which coprocessors run where, as the nodes report it.
//!
//! Columns, wording and the raw form are those of the original proposal, `rpk wasm list`.

use std::collections::BTreeMap;

use clap::Args;
use serde::Serialize;

use crate::cli::open::{Target, now_ms};
use crate::cli::output::{FormatArgs, Table, emit, json, say};
use crate::control::observed::{self, ObservedNode};
use crate::core::names::NodeId;
use crate::core::record::TimestampMs;
use crate::core::status::{DeploymentStatus, NodeStatus, State, UpDown};

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
}

#[derive(Serialize)]
struct Row {
    name: String,
    node_id: u32,
    #[serde(flatten)]
    status: DeploymentStatus,
    lag: Option<u64>,
    responsive: bool,
}

impl Command {
    /// Runs it.
    pub fn run(&self, target: &Target) -> anyhow::Result<()> {
        let log = target.log()?;
        let nodes = observed::read(log.as_ref())?.map(|state| state.nodes());
        if self.raw {
            return raw(nodes.as_deref());
        }
        let listing = listing(nodes.as_deref().unwrap_or_default(), now_ms());
        if self.output.is_structured() {
            return self.output.print(&listing, |_| Table::new(&[]));
        }
        match nodes.as_deref() {
            None => say(
                "The status topic is uninitialized: no node has run on this log yet, `coproc dev` starts one",
            ),
            Some([]) => say("There are no coprocessor events to list"),
            Some(_) => {
                self.output.print(&listing, |wide| table(&listing, wide))?;
                let troubled = troubled(&listing);
                if !troubled.is_empty() {
                    say(&format!("Not running: {} (`coproc describe NAME` says why)", troubled.join(", ")))?;
                }
                let unresponsive: Vec<String> =
                    listing.unresponsive_nodes.iter().map(ToString::to_string).collect();
                if unresponsive.is_empty() {
                    return Ok(());
                }
                say(&format!("Unresponsive nodes: [{}]", unresponsive.join(",")))
            }
        }
    }
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

/// What nodes that are up run. A node that is down runs nothing; one whose heartbeat is overdue is listed with
/// what it said last, and named below.
fn listing(nodes: &[ObservedNode], now: TimestampMs) -> Listing {
    let mut listing = Listing { coprocessors: Vec::new(), unresponsive_nodes: Vec::new() };
    for node in nodes {
        let responsive = !node.is_unresponsive(now);
        if !responsive {
            listing.unresponsive_nodes.push(node.status.node_id.0);
        }
        if node.status.status == UpDown::Down {
            continue;
        }
        let row = |(name, status): (&String, &DeploymentStatus)| Row {
            name: name.clone(),
            node_id: node.status.node_id.0,
            lag: lag(status),
            status: status.clone(),
            responsive,
        };
        listing.coprocessors.extend(node.status.coprocessors.iter().map(row));
    }
    listing.coprocessors.sort_by(|a, b| (&a.name, a.node_id).cmp(&(&b.name, b.node_id)));
    listing
}

/// What does not run although it is meant to, with its state.
fn troubled(listing: &Listing) -> Vec<String> {
    let is_troubled =
        |row: &&Row| row.responsive && !matches!(row.status.state, State::Running | State::Starting);
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
            row.node_id.to_string(),
            format!("[{}]", topics.join(",")),
            status.description.clone(),
        ];
        if wide {
            cells.push(state(status, row.responsive));
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
        let listing = listing(&nodes, fresh);
        assert_eq!(
            table(&listing, false).render(),
            "COPROCESSOR NAME  NODE ID  INPUT TOPICS   DESCRIPTION\n\
             name_a            3        [foo,bar,baz]  This copro is interesting!\n\
             name_a            5        [foo,bar,baz]  This copro is interesting!\n"
        );
        assert_eq!(listing.unresponsive_nodes, [3, 7]);
        let wide = table(&listing, true).render();
        assert!(wide.lines().next().unwrap().ends_with("STATE    GENERATION  DIGEST  LAG"), "{wide}");
        assert!(wide.contains("unknown") && wide.contains("running"), "{wide}");
    }
}
