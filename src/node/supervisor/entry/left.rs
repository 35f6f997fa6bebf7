//! What a deployment's lanes left behind when they ended, and what metrics say of it.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use crate::control::desired::Desired;
use crate::node::lane::report::{LaneReport, LaneShared};
use crate::node::standing::Standing;
use crate::node::supervisor::Context;
use crate::node::supervisor::entry::Entry;

impl Entry {
    /// What it is to be asked for while it has no lanes.
    pub fn standing(&self) -> Option<Standing> {
        let wanted = self.wanted.as_ref().filter(|_| self.has_ended())?;
        let group = wanted.consumer_group(&self.identity);
        Some(Standing { identity: self.identity.clone(), group, lanes: self.last.clone() })
    }

    /// Whether it had lanes and has none now.
    fn has_ended(&self) -> bool {
        self.running.is_none() && self.stopping.is_empty() && !self.last.is_empty()
    }

    /// What its lanes left behind that it still reads, and others do not.
    pub(super) fn left(&self) -> Vec<LaneReport> {
        let inputs = self.wanted.as_ref().map_or(&[][..], |wanted| wanted.inputs());
        let left = |lane: &Arc<LaneShared>| {
            let mut report = lane.report();
            let is_taken = report.is_taken;
            report.partitions.retain(|at, _| !is_taken && inputs.contains(&at.topic));
            report
        };
        self.last.iter().map(left).collect()
    }

    /// Says in the metrics whether it is paused, and what its ended lanes left behind: those that run say it themselves.
    pub fn measure(&self, context: &Context) {
        let name = self.identity.display_name();
        // As it is desired, also by an update that this node cannot follow.
        let is_paused = matches!(&self.desired, Some(Desired::Deployment(desired)) if desired.paused);
        context.metrics.set_paused(&name, is_paused);
        if !self.has_ended() {
            return;
        }
        let metrics = context.metrics.of(&name);
        let left = self.left();
        let lags: BTreeMap<_, _> = left.iter().flat_map(|report| &report.partitions).collect();
        for (at, report) in &lags {
            metrics.set_lag(at.topic.as_str(), at.partition, report.lag());
        }
        for (topic, partition) in self.measured() {
            if !lags.keys().any(|at| at.topic.as_str() == topic && at.partition == partition) {
                metrics.set_lag(&topic, partition, None);
            }
        }
    }

    /// The partitions that metrics may know.
    pub(super) fn measured(&self) -> BTreeSet<(String, u32)> {
        let left = self.last.iter().flat_map(|lane| lane.report().partitions.into_keys());
        left.map(|at| (at.topic.to_string(), at.partition)).chain(self.had.iter().cloned()).collect()
    }

    /// Forgets what metrics say of it. Once no lane is left that could say it again.
    pub fn forget_metrics(&self, context: &Context) {
        let measured: Vec<_> = self.measured().into_iter().collect();
        context.metrics.forget(&self.identity.display_name(), &measured);
    }
}
