//! What the status says of a deployment.

use std::collections::BTreeMap;

use crate::control::desired::Desired;
use crate::core::deployment::Deployment;
use crate::core::digest::Digest;
use crate::core::ledger::TopicPartition;
use crate::core::status::{DeploymentStatus, PartitionStatus, State};
use crate::node::lane::report::{LaneReport, PartitionReport};
use crate::node::supervisor::entry::Entry;

impl Entry {
    pub(super) fn generation(&self) -> u64 {
        match (&self.running, &self.desired) {
            (Some(running), _) => running.plan.deployment.generation,
            (None, Some(desired)) => desired.generation(),
            (None, None) => 0,
        }
    }

    /// What the status says of it.
    pub fn status(&self) -> DeploymentStatus {
        let deployment =
            self.running.as_ref().map(|running| &running.plan.deployment).or(self.wanted.as_ref());
        let described = match (&deployment, &self.desired) {
            (Some(deployment), _) => Some(deployment.as_ref()),
            (None, Some(Desired::Deployment(invalid))) => Some(invalid.as_ref()),
            _ => None,
        };
        let lanes = self.running.iter().flat_map(|running| &running.lanes);
        let reports: Vec<_> = match &self.running {
            Some(_) => lanes.map(|lane| lane.shared.report()).collect(),
            None => self.left(),
        };
        let state = match &self.running {
            Some(_) => reports.iter().map(|report| report.state).max_by_key(|state| severity(*state)),
            None => None,
        };
        let of_lanes = || reports.iter().find_map(LaneReport::reason);
        let reason = self.reason.clone().or_else(|| match state {
            Some(State::Failed) => of_lanes().map(str::to_owned),
            _ => None,
        });
        let partitions = partitions(&reports);
        let of_lanes = reports.iter().filter_map(|report| report.last_error.clone());
        let last_error = of_lanes.chain(self.last_error.clone()).max_by_key(|error| error.time);
        DeploymentStatus {
            identity: self.identity.clone(),
            input_topics: described.map(|found| found.inputs().to_vec()).unwrap_or_default(),
            description: described.map(|found| found.description.clone()).unwrap_or_default(),
            state: state.unwrap_or(self.state),
            reason,
            generation: self.generation(),
            digest: described.and_then(|found| found.steps.first()).map(|step| step.module.digest),
            digests: described.map(digests).unwrap_or_default(),
            delivery: reports.iter().find_map(|report| report.delivery).map(str::to_owned),
            partitions,
            last_error,
            truncated: false,
        }
    }
}

fn digests(deployment: &Deployment) -> Vec<Digest> {
    let all: Vec<_> = deployment.steps.iter().map(|step| step.module.digest).collect();
    if all.len() > 1 { all } else { Vec::new() }
}

/// The partitions of all lanes. One that moved between lanes that end stands where it got furthest.
fn partitions(reports: &[LaneReport]) -> Vec<PartitionStatus> {
    let mut all: BTreeMap<&TopicPartition, &PartitionReport> = BTreeMap::new();
    for (at, report) in reports.iter().flat_map(|report| &report.partitions) {
        let known = all.entry(at).or_insert(report);
        if report.committed > known.committed {
            *known = report;
        }
    }
    all.into_iter().map(|(at, report)| report.to_status(at)).collect()
}

/// Which of several lanes' states stands for all.
fn severity(state: State) -> u8 {
    match state {
        State::Failed => 5,
        State::Retrying => 4,
        State::Starting => 3,
        State::Pending => 2,
        _ => 1,
    }
}
