//! Waits until the nodes run what was deployed, or say why they do not.

use std::time::{Duration, Instant};

use crate::cli::describe::{OnNode, on_nodes};
use crate::cli::exit::{Exit, coded};
use crate::cli::list::state;
use crate::cli::open::{Target, now_ms};
use crate::cli::output::note;
use crate::control::observed::{self, ObservedNode};
use crate::core::names::Identity;
use crate::core::record::TimestampMs;
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
    let (deployed_ms, deadline) = (now_ms(), Instant::now() + within);
    let mut told = String::new();
    loop {
        let nodes = observed::read(log)?.map(|state| state.nodes()).unwrap_or_default();
        let of_pool = nodes.into_iter().filter(|node| node.status.pool == target.pool.as_str());
        let waiting = match judge(&of_pool.collect::<Vec<_>>(), identity, generation, (deployed_ms, now_ms()))
        {
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
        if waiting != told {
            note(&format!("waiting: {waiting}"));
            told = waiting;
        }
        std::thread::sleep(EVERY);
    }
}

fn judge(
    nodes: &[ObservedNode],
    identity: &Identity,
    generation: u64,
    (deployed, now): (TimestampMs, TimestampMs),
) -> Verdict {
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
        match judge_one(on, generation, deployed) {
            Verdict::Running(nodes) => running += nodes,
            other => return other,
        }
    }
    Verdict::Running(running)
}

fn judge_one(on: &OnNode, generation: u64, deployed: TimestampMs) -> Verdict {
    let status = &on.status;
    let said = status.last_error.as_ref();
    let why =
        said.map_or_else(|| state(status, true), |error| format!("{}: {}", error.reason, error.message));
    let why = format!("node {}: {why}", on.node_id);
    // Generations never restart: what still runs of a deployment that was removed before has a lower one.
    let is_current = status.generation >= generation;
    match status.state {
        State::Failed | State::Unsupported if is_current => Verdict::Failed(why),
        State::Running | State::Paused
            if is_current && status.reason.as_deref().is_none_or(|reason| reason == "Paused") =>
        {
            Verdict::Running(1)
        }
        // An older generation that goes on because the new one cannot start.
        State::Running
            if !is_current && status.reason.is_some() && said.is_some_and(|error| error.time >= deployed) =>
        {
            Verdict::Failed(format!("{why}; generation {} goes on", status.generation))
        }
        _ => Verdict::Waiting(why),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::core::status::{DeploymentStatus, LastError};

    fn on(state: State, generation: u64, reason: Option<&str>, error_at: Option<TimestampMs>) -> OnNode {
        let status = DeploymentStatus {
            identity: "default/_cli/coprocessor/a".parse().unwrap(),
            input_topics: Vec::new(),
            description: String::new(),
            state,
            reason: reason.map(str::to_owned),
            generation,
            digest: None,
            digests: Vec::new(),
            delivery: None,
            partitions: Vec::new(),
            last_error: error_at.map(|time| LastError { time, reason: "R".into(), message: "m".into() }),
            truncated: false,
        };
        OnNode { node_id: 5, responsive: true, status }
    }

    #[test]
    fn each_state_means_go_on_stop_or_done() {
        let failed = |text: &str| Verdict::Failed(text.into());
        let waiting = |text: &str| Verdict::Waiting(text.into());
        for (on, verdict) in [
            (on(State::Running, 2, None, Some(5)), Verdict::Running(1)),
            (on(State::Running, 3, None, None), Verdict::Running(1)),
            (on(State::Paused, 2, Some("Paused"), None), Verdict::Running(1)),
            (on(State::Failed, 2, Some("R"), Some(50)), failed("node 5: R: m")),
            (on(State::Running, 1, None, Some(5)), waiting("node 5: R: m")),
            (on(State::Running, 1, Some("R"), Some(50)), failed("node 5: R: m; generation 1 goes on")),
            (on(State::Pending, 2, Some("TopicNotFound"), Some(50)), waiting("node 5: R: m")),
            (on(State::Starting, 2, None, None), waiting("node 5: starting")),
        ] {
            let what = format!("{on:?}");
            assert_eq!(judge_one(&on, 2, 10), verdict, "{what}");
        }
    }
}
