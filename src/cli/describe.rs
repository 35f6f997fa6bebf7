//! `coproc describe`: what one deployment is to be, and what the nodes say about it.

use std::collections::BTreeMap;
use std::fmt::Write;

use clap::Args;
use serde::Serialize;

use crate::cli::exit::{Exit, coded};
use crate::cli::list::{lag, state};
use crate::cli::open::{Target, now_ms};
use crate::cli::output::{Format, FormatArgs, Table, clean, count, emit};
use crate::control::desired::{self, Desired};
use crate::control::observed::{self, ObservedNode};
use crate::core::deployment::{Deployment, Naming, Owner, StartOffset};
use crate::core::names::{Identity, PoolName};
use crate::core::record::TimestampMs;
use crate::core::status::{DeploymentStatus, State, UpDown, rfc3339};

/// Show a deployment: what it is to be, and how it is
#[derive(Debug, Args)]
pub struct Command {
    /// Its name; kind/name or installation/namespace/kind/name where that is not enough
    name: String,
    #[command(flatten)]
    output: FormatArgs,
}

#[derive(Serialize)]
struct Described {
    identity: Identity,
    pool: PoolName,
    deployment: Deployment,
    nodes: Vec<OnNode>,
}

/// A deployment on one node.
#[derive(Debug, Clone, Serialize)]
pub struct OnNode {
    /// The node.
    pub node_id: u32,
    /// Whether it answers.
    pub responsive: bool,
    /// What it says.
    #[serde(flatten)]
    pub status: DeploymentStatus,
}

/// What the nodes say about a deployment.
pub fn on_nodes(nodes: &[ObservedNode], identity: &Identity, now: TimestampMs) -> Vec<OnNode> {
    let of_node = |node: &ObservedNode| {
        let status = node.status.coprocessors.values().find(|status| status.identity == *identity)?.clone();
        Some(OnNode { node_id: node.status.node_id.0, responsive: !node.is_unresponsive(now), status })
    };
    nodes.iter().filter_map(of_node).collect()
}

impl Command {
    /// Runs it.
    pub fn run(&self, target: &Target) -> anyhow::Result<()> {
        let log = target.log()?;
        let desired = desired::read(log.as_ref())?;
        let identity = super::deployments::resolve(&desired, &target.installation, &self.name)?;
        let (pool, deployment) = match desired.get(&identity) {
            Some((pool, Desired::Deployment(deployment))) => (pool.clone(), (**deployment).clone()),
            Some((_, Desired::Unsupported { schema, .. })) => {
                let message =
                    format!("{identity} has schema {schema}, this version reads older ones: update coproc");
                return Err(coded(Exit::Refused, message));
            }
            None => {
                let message = format!("there is no deployment {identity}: `coproc list` shows what runs");
                return Err(coded(Exit::NotFound, message));
            }
        };
        let observed = observed::read(log.as_ref())?.map(|state| state.nodes()).unwrap_or_default();
        let nodes = on_nodes(&observed, &identity, now_ms());
        let described = Described { identity, pool, deployment, nodes };
        if self.output.is_structured() {
            return self.output.print(&described, |_| Table::new(&[]));
        }
        emit(&text(&described, &down_since(&observed), self.output.format == Format::Wide))
    }
}

/// The nodes that stopped in good order, and when.
fn down_since(nodes: &[ObservedNode]) -> BTreeMap<u32, TimestampMs> {
    let down = nodes.iter().filter(|node| node.status.status == UpDown::Down);
    down.map(|node| (node.status.node_id.0, node.heartbeat_ms)).collect()
}

fn text(described: &Described, down: &BTreeMap<u32, TimestampMs>, wide: bool) -> String {
    let Described { identity, pool, deployment, nodes } = described;
    let mut text = String::new();
    let mut line = |name: &str, value: &str| {
        let _ = writeln!(text, "{name:<14}{}", clean(value));
    };
    line("Name:", identity.name.as_str());
    line("Identity:", &identity.to_string());
    line("Description:", &deployment.description);
    let owner = match deployment.owner {
        Owner::Cli => "command line",
        Owner::Kubernetes => "Kubernetes",
    };
    line("Owner:", owner);
    line("Pool:", pool.as_str());
    line("Generation:", &deployment.generation.to_string());
    line("Paused:", if deployment.paused { "yes" } else { "no" });
    let inputs: Vec<&str> = deployment.inputs().iter().map(AsRef::as_ref).collect();
    line("Inputs:", &inputs.join(", "));
    line("Starts at:", &start(deployment.start_offset()));
    let sinks = deployment.kafka_sinks().map(|sink| match sink.naming {
        Naming::Plain => sink.topic.to_string(),
        Naming::Materialized => format!("<input>._{}_ (materialized)", sink.topic),
    });
    line("Outputs:", &sinks.collect::<Vec<_>>().join(", "));
    let policies = &deployment.policies;
    line("Delivery:", &format!("{:?}", policies.delivery));
    line("Parallelism:", &policies.parallelism.to_string());
    let errors = &policies.error_policy;
    let dead_letters =
        errors.dead_letter_topic.as_ref().map(|topic| format!(" to {topic}")).unwrap_or_default();
    let retries =
        if errors.max_retries == 1 { "1 retry".into() } else { format!("{} retries", errors.max_retries) };
    line("On errors:", &format!("{retries}, then {:?}{dead_letters}", errors.on_exhausted));
    text.push_str("\nSteps:\n");
    text.push_str(&indent(&steps(deployment, wide)));
    text.push_str("\nNodes:\n");
    if nodes.is_empty() {
        text.push_str("  no node has reported it\n");
    }
    for node in nodes {
        text.push_str(&indent(&node_text(node, down.get(&node.node_id).copied())));
    }
    text
}

fn start(offset: StartOffset) -> String {
    match offset {
        StartOffset::Earliest => "the first record".into(),
        StartOffset::Latest => "the end".into(),
        StartOffset::Timestamp { timestamp } => rfc3339(timestamp),
        StartOffset::FromStart { records } => {
            format!("{} after the first", count(usize::try_from(records).unwrap_or(usize::MAX), "offset"))
        }
        StartOffset::FromEnd { records } => {
            format!("{} before the end", count(usize::try_from(records).unwrap_or(usize::MAX), "offset"))
        }
    }
}

fn steps(deployment: &Deployment, wide: bool) -> String {
    let mut table = Table::new(&["NAME", "MODULE", "MEMORY", "TIME PER RECORD", "MAX OUTPUT", "ENVIRONMENT"]);
    for step in &deployment.steps {
        let module = if wide { step.module.digest.to_string() } else { step.module.digest.short() };
        let env: Vec<String> = step.env.iter().map(|(name, value)| format!("{name}={value}")).collect();
        let limits = &step.limits;
        table.push([
            step.name.clone(),
            step.module.image.as_ref().map_or(module.clone(), |image| format!("{image} {module}")),
            limits.memory.to_string(),
            limits.time_per_record.to_string(),
            limits.max_output_bytes.to_string(),
            env.join(" "),
        ]);
    }
    table.render()
}

fn node_text(node: &OnNode, down_since: Option<TimestampMs>) -> String {
    let status = &node.status;
    let state = match down_since {
        Some(since) => format!("not running, the node is down since {}", rfc3339(since)),
        None => state(status, node.responsive),
    };
    let lag = lag(status).map_or_else(String::new, |lag| format!(", lag {lag}"));
    let delivery = status.delivery.as_ref().map_or_else(String::new, |delivery| format!(", {delivery}"));
    let mut text =
        format!("node {}: {state}, generation {}{delivery}{lag}\n", node.node_id, status.generation);
    if let Some(error) = &status.last_error {
        // It runs, and has no reason not to: what went wrong once is history.
        let over = if status.state == State::Running && status.reason.is_none() { " (over)" } else { "" };
        let _ = writeln!(
            text,
            "last error{over}: {} {}: {}",
            rfc3339(error.time),
            clean(&error.reason),
            clean(&error.message)
        );
    }
    if !status.partitions.is_empty() {
        let mut table = Table::new(&["TOPIC", "PARTITION", "OFFSET", "LAG", "ERROR"]);
        for partition in &status.partitions {
            table.push([
                partition.topic.to_string(),
                partition.partition.to_string(),
                partition.offset.to_string(),
                partition.lag.to_string(),
                partition.error.clone().unwrap_or_default(),
            ]);
        }
        text.push_str(&table.render());
    }
    if status.truncated {
        text.push_str("more partitions were left out of the report\n");
    }
    text
}

fn indent(text: &str) -> String {
    text.lines().fold(String::new(), |mut all, line| {
        let _ = writeln!(all, "  {line}");
        all
    })
}
