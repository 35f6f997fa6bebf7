//! Waits until the nodes run what was deployed, or say why they do not.

use std::time::{Duration, Instant};

use crate::cli::describe::{OnNode, on_nodes};
use crate::cli::exit::{Exit, coded};
use crate::cli::list::state;
use crate::cli::open::{Target, now_ms};
use crate::control::observed::{self, ObservedNode};
use crate::core::names::Identity;
use crate::core::status::State;
use crate::ports::Log;

/// How often the status topic is looked at.
const EVERY: Duration = Duration::from_millis(100);

/// What the nodes say, all together.
#[derive(Debug, PartialEq, Eq)]
enum Verdict {
    /// So many nodes run it.
    Running(usize),
    /// One says why it does not and will not without a change.
    Failed(String),
    /// Not yet.
    Waiting(String),
}

/// Waits: the number of nodes that run this generation.
pub fn until_running(
    target: &Target,
    log: &dyn Log,
    identity: &Identity,
    generation: u64,
    within: Duration,
) -> anyhow::Result<usize> {
    let deadline = Instant::now() + within;
    loop {
        let nodes = observed::read(log)?.map(|state| state.nodes()).unwrap_or_default();
        let of_pool = nodes.into_iter().filter(|node| node.status.pool == target.pool.as_str());
        let waiting = match judge(&of_pool.collect::<Vec<_>>(), identity, generation, now_ms()) {
            Verdict::Running(nodes) => return Ok(nodes),
            Verdict::Failed(why) => {
                return Err(coded(Exit::Failed, format!("{identity} does not run: {why}")));
            }
            Verdict::Waiting(why) => why,
        };
        if Instant::now() >= deadline {
            let name = &identity.name;
            let message = format!(
                "{name} does not run yet: {waiting}; it stays deployed, `coproc describe {name}` shows how it goes on"
            );
            return Err(coded(Exit::Unavailable, message));
        }
        std::thread::sleep(EVERY);
    }
}

fn judge(nodes: &[ObservedNode], identity: &Identity, generation: u64, now: i64) -> Verdict {
    let fresh: Vec<&ObservedNode> = nodes.iter().filter(|node| !node.is_unresponsive(now)).collect();
    if fresh.is_empty() {
        return Verdict::Waiting("no node is up, `coproc dev` starts one".into());
    }
    let on = on_nodes(nodes, identity, now);
    let mut running = 0;
    for node in &fresh {
        let id = node.status.node_id;
        let Some(on) = on.iter().find(|on| on.node_id == id.0) else {
            return Verdict::Waiting(format!("node {id} has not taken it up"));
        };
        match judge_one(on, generation) {
            Verdict::Running(nodes) => running += nodes,
            other => return other,
        }
    }
    Verdict::Running(running)
}

fn judge_one(on: &OnNode, generation: u64) -> Verdict {
    let status = &on.status;
    let said = status.last_error.as_ref();
    let why =
        said.map_or_else(|| state(status, true), |error| format!("{}: {}", error.reason, error.message));
    let why = format!("node {}: {why}", on.node_id);
    match status.state {
        State::Failed | State::Unsupported if status.generation >= generation => Verdict::Failed(why),
        State::Running | State::Paused if status.generation >= generation => Verdict::Running(1),
        _ => Verdict::Waiting(why),
    }
}
