//! The status of a coprocessor or pipeline: what is true, from what was deployed and what nodes say. Pure.
//!
//! `Ready` is honest: every partition of every input is served by a node that runs this generation and was heard
//! of lately. What nodes say of older generations, or said too long ago, does not count.

mod coalesce;
mod nodes;

use std::collections::{BTreeSet, HashMap};

use crate::core::deployment::{Deployment, Problem};
use crate::core::names::{PoolName, TopicName};
use crate::core::record::TimestampMs;
use crate::core::status::{DeploymentStatus, State};
use crate::operator::conditions::{
    Conditions, DEPLOYED, MODULE_RESOLVED, PAUSED, SIGNATURE_VERIFIED, Verdict,
};
use crate::operator::crd::DeploymentResourceStatus;
use crate::operator::crd::status::{ModuleStatus, Phase, VerificationStatus};
use crate::operator::observe::OnNode;
use crate::operator::resolution::Modules;
use crate::operator::validate::Resolved;

pub use coalesce::{Writing, coalesce};

/// How far a resource has come.
#[derive(Debug, Clone, PartialEq)]
pub enum Progress {
    /// It cannot be deployed as it is written.
    Invalid(Vec<Problem>),
    /// It cannot be deployed now; `is_final` when waiting alone does not help.
    Waiting {
        /// Reason.
        reason: String,
        /// What happened and what to do.
        message: String,
        /// Whether somebody has to change something.
        is_final: bool,
        /// Whether the modules are known.
        is_resolved: bool,
    },
    /// The control topic says what the resource says.
    Deployed {
        /// What it says.
        deployment: Box<Deployment>,
        /// The modules.
        modules: Box<Modules>,
        /// The nodes that know of it.
        nodes: Vec<OnNode>,
        /// Nodes of the pool that were heard of lately.
        fresh_nodes: usize,
        /// Partitions of each input; `None` for one that does not exist.
        partitions: HashMap<TopicName, Option<u32>>,
    },
}

/// What the status is computed from besides.
#[derive(Debug, Clone)]
pub struct About<'a> {
    /// The resource's generation.
    pub generation: i64,
    /// The status that it has.
    pub before: &'a DeploymentResourceStatus,
    /// Its pool.
    pub pool: &'a PoolName,
    /// First node id of the pool's pods, for their names.
    pub node_id_base: Option<u32>,
    /// Now, for people.
    pub now_ms: TimestampMs,
}

/// Computes the status, and the verdict that its conditions say.
pub fn compute(about: &About<'_>, progress: &Progress) -> (DeploymentResourceStatus, Verdict) {
    let verdict = verdict(progress);
    let mut conditions = Conditions::new(&about.before.conditions, about.generation, about.now_ms);
    conditions.verdict(&verdict);
    let mut status = DeploymentResourceStatus {
        observed_generation: about.generation,
        phase: phase(progress, &verdict),
        ..about.before.clone()
    };
    match progress {
        Progress::Invalid(_) => drop(conditions.set(DEPLOYED, "False", verdict.reason(), verdict.message())),
        Progress::Waiting { is_resolved, .. } => {
            let resolved = if *is_resolved { "True" } else { "False" };
            let reason = if *is_resolved { "Resolved" } else { verdict.reason() };
            let message = if *is_resolved { "" } else { verdict.message() };
            conditions.set(MODULE_RESOLVED, resolved, reason, message).set(
                DEPLOYED,
                "False",
                verdict.reason(),
                verdict.message(),
            );
            if verdict.reason() == "SignatureInvalid" {
                conditions.set(SIGNATURE_VERIFIED, "False", verdict.reason(), verdict.message());
            }
        }
        Progress::Deployed { deployment, modules, nodes, .. } => {
            match &modules.failure {
                None => conditions.set(MODULE_RESOLVED, "True", "Resolved", ""),
                Some(failure) => conditions.set(MODULE_RESOLVED, "False", &failure.reason, &failure.message),
            };
            if let Some(keys) = signers(&modules.resolved) {
                conditions.set(SIGNATURE_VERIFIED, "True", "Verified", &format!("signed by {keys}"));
            }
            conditions.set(DEPLOYED, "True", "Deployed", "");
            if deployment.paused {
                conditions.set(PAUSED, "True", "Paused", "spec.paused is true");
            }
            let all: Vec<ModuleStatus> = modules.resolved.iter().map(module).collect();
            status.module = all.first().cloned();
            status.modules = if all.len() > 1 { all } else { Vec::new() };
            status.lag = nodes::total_lag(nodes);
            (status.nodes, status.node_counts) = nodes::entries(about, nodes);
        }
    }
    status.conditions = conditions.build();
    (status, verdict)
}

fn module(resolved: &Resolved) -> ModuleStatus {
    ModuleStatus {
        image: resolved.image.clone(),
        pinned_image: resolved.pinned.clone(),
        digest: resolved.digest.to_string(),
        short_digest: resolved.digest.short(),
        verification: resolved
            .verified
            .as_ref()
            .map(|by| VerificationStatus { key: by.key.clone(), policy: by.policy.clone() }),
    }
}

/// The keys that vouch for the modules, where one does for each.
fn signers(modules: &[Resolved]) -> Option<String> {
    let keys: Option<BTreeSet<&str>> =
        modules.iter().map(|module| module.verified.as_ref().map(|by| by.key.as_str())).collect();
    let keys = keys.filter(|keys| !keys.is_empty())?;
    Some(keys.into_iter().collect::<Vec<_>>().join(", "))
}

fn phase(progress: &Progress, verdict: &Verdict) -> Phase {
    match (progress, verdict) {
        (_, Verdict::Ready { reason, .. }) if reason == "Paused" => Phase::Paused,
        (_, Verdict::Ready { .. }) => Phase::Running,
        (Progress::Deployed { nodes, .. }, _)
            if nodes.iter().any(|node| node.status.state == State::Running) =>
        {
            Phase::Degraded
        }
        (_, Verdict::Stalled { .. }) => Phase::Failed,
        (Progress::Deployed { .. }, _) => Phase::Deploying,
        _ => Phase::Pending,
    }
}

fn verdict(progress: &Progress) -> Verdict {
    match progress {
        Progress::Invalid(problems) => {
            let all: Vec<String> = problems.iter().map(ToString::to_string).collect();
            let reason = problems.first().map_or("InvalidSpec", |problem| problem.reason);
            Verdict::stalled(reason, all.join("; "))
        }
        Progress::Waiting { reason, message, is_final: true, .. } => Verdict::stalled(reason, message),
        Progress::Waiting { reason, message, .. } => Verdict::progressing(reason, message),
        Progress::Deployed { deployment, nodes, fresh_nodes, partitions, .. } => {
            of_deployed(deployment, nodes, *fresh_nodes, partitions)
        }
    }
}

/// Reasons of nodes that wait for something that somebody else may bring about without touching the resource.
const WAITING: [&str; 8] = [
    "TopicNotFound",
    "PoolFull",
    "ModuleUnavailable",
    "LogFailed",
    "LaneEnded",
    "TooManyThreads",
    "SlotConflict",
    "Paused",
];

fn of_deployed(
    deployment: &Deployment,
    nodes: &[OnNode],
    fresh_nodes: usize,
    partitions: &HashMap<TopicName, Option<u32>>,
) -> Verdict {
    let missing: BTreeSet<&str> =
        partitions.iter().filter(|(_, count)| count.is_none()).map(|(topic, _)| topic.as_str()).collect();
    if !missing.is_empty() && !deployment.paused {
        let message = format!(
            "input topic {} does not exist: create it; processing starts by itself then",
            missing.into_iter().collect::<Vec<_>>().join(", ")
        );
        return Verdict::progressing("TopicNotFound", message);
    }
    if fresh_nodes == 0 {
        if deployment.paused {
            return Verdict::ready("Paused", "paused, and no node runs");
        }
        return Verdict::unknown(
            "NoNodes",
            "no node of the pool has been heard of lately: look at the RuntimePool and its pods",
        );
    }
    let fresh: Vec<&OnNode> = nodes.iter().filter(|node| node.is_fresh).collect();
    let current: Vec<&OnNode> =
        fresh.iter().copied().filter(|node| is_current(&node.status, deployment)).collect();
    if deployment.paused {
        return of_paused(&fresh, current.len());
    }
    if let Some(verdict) = complaint(&fresh, deployment.generation) {
        return verdict;
    }
    if current.len() < fresh.len() || fresh.is_empty() {
        let message = format!(
            "{} of {fresh_nodes} node(s) run generation {} with these modules",
            current.len(),
            deployment.generation
        );
        return Verdict::progressing("RollingOut", message);
    }
    of_partitions(&current, partitions)
}

/// Whether a node has this generation with these modules: a tag that moved changes the modules of a generation. A
/// node of an earlier version names its first module only.
fn is_current(status: &DeploymentStatus, deployment: &Deployment) -> bool {
    let mut wanted = deployment.steps.iter().map(|step| step.module.digest);
    let has_modules = if status.digests.is_empty() {
        status.digest.is_none_or(|digest| wanted.next() == Some(digest))
    } else {
        wanted.eq(status.digests.iter().copied())
    };
    status.generation == deployment.generation && has_modules
}

fn of_paused(fresh: &[&OnNode], current: usize) -> Verdict {
    let still = fresh.iter().filter(|node| node.status.state == State::Paused).count();
    if still == fresh.len() && current == fresh.len() {
        Verdict::ready("Paused", "every node has committed and left the group")
    } else {
        Verdict::progressing("Pausing", format!("{still} of {} node(s) stand still", fresh.len()))
    }
}

/// What nodes complain about that keeps this generation from running.
fn complaint(fresh: &[&OnNode], generation: u64) -> Option<Verdict> {
    let found = fresh.iter().find(|node| {
        let status = &node.status;
        let is_refused = status.reason.is_some() && status.state != State::Paused;
        is_refused || matches!(status.state, State::Failed | State::Unsupported)
    })?;
    let status = &found.status;
    let error = status.last_error.as_ref();
    let reason = status.reason.clone().or_else(|| error.map(|error| error.reason.clone()));
    let reason = reason.unwrap_or_else(|| "Failed".into());
    let mut message =
        error.map_or_else(|| format!("node {} says no more", found.node), |error| error.message.clone());
    if status.state == State::Running {
        message = format!("generation {} runs on: {message}", status.generation.min(generation));
    }
    let stopped = status.partitions.iter().find_map(|at| {
        let error = at.error.as_ref()?;
        Some(format!("{}/{} stopped: {error}", at.topic, at.partition))
    });
    let message = format!("node {}: {}", found.node, stopped.unwrap_or(message));
    Some(if WAITING.contains(&reason.as_str()) {
        Verdict::progressing(&reason, message)
    } else {
        Verdict::stalled(&reason, message)
    })
}

fn of_partitions(current: &[&OnNode], partitions: &HashMap<TopicName, Option<u32>>) -> Verdict {
    let mut served = BTreeSet::new();
    for node in current {
        if matches!(node.status.state, State::Running | State::Retrying) {
            served.extend(node.status.partitions.iter().map(|at| (at.topic.as_str(), at.partition)));
        }
    }
    let wanted: Vec<(&str, u32)> = partitions
        .iter()
        .flat_map(|(topic, count)| (0..count.unwrap_or_default()).map(move |i| (topic.as_str(), i)))
        .collect();
    let unserved: BTreeSet<_> = wanted.iter().filter(|at| !served.contains(*at)).collect();
    let cut = current.iter().any(|node| node.status.truncated);
    match unserved.first() {
        None => Verdict::ready("Running", format!("all {} input partition(s) are served", wanted.len())),
        // A report that was cut cannot name every partition; what it names is taken for the whole.
        Some(_) if cut => Verdict::ready("Running", "too many input partitions to list are served"),
        Some((topic, partition)) => {
            let message = format!(
                "{} of {} input partition(s) are not served yet, the first is {topic}/{partition}",
                unserved.len(),
                wanted.len()
            );
            Verdict::progressing("PartitionsUnserved", message)
        }
    }
}

#[cfg(test)]
#[path = "status/tests.rs"]
mod tests;
