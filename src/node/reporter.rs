//! Writes the node's status, on a thread of its own: a log that is slow must not hold up the supervisor.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use crossbeam_channel::{RecvTimeoutError, Sender};

use crate::control::observed::StatusWriter;
use crate::core::names::{Identity, NodeId};
use crate::core::status::{Committed, DeploymentStatus, NodeStatus, State, UpDown};
use crate::node::threads::{self, SpawnError, Stoppable};
use crate::ports::Log;

/// The details of a deployment are written at most this often while only offsets move.
const DETAIL_EVERY: Duration = Duration::from_secs(10);

/// What is to be written.
pub struct Report {
    /// The status.
    pub status: NodeStatus,
    /// What is known to have been committed, by deployment.
    pub committed: BTreeMap<Identity, Committed>,
    /// Whether the control topic was read: a deployment that is not in the status is not on this node.
    pub is_whole: bool,
}

/// The reporter's thread and mouth.
pub struct Reporter {
    /// Takes a status; full while the last one is being written.
    pub queue: Sender<Report>,
    thread: Stoppable,
}

impl Reporter {
    /// Starts the reporter. `earlier` are the deployments that an earlier life of the node reported on.
    pub fn start(log: Arc<dyn Log>, node: NodeId, earlier: BTreeSet<Identity>) -> Result<Self, SpawnError> {
        let (queue, reports) = crossbeam_channel::bounded::<Report>(1);
        let thread = threads::spawn("coproc-status", move |stop| {
            let mut pen = Pen {
                log,
                node,
                writer: None,
                written: BTreeMap::new(),
                committed: BTreeMap::new(),
                earlier,
            };
            loop {
                match reports.recv_timeout(Duration::from_millis(200)) {
                    Ok(report) => pen.write(&report),
                    Err(RecvTimeoutError::Timeout) if !stop.load(Ordering::Relaxed) => {}
                    Err(_) => return,
                }
            }
        })?;
        Ok(Self { queue, thread })
    }

    /// Writes a last status and ends.
    pub fn stop(self, last: Report, deadline: Instant) {
        let _ = self.queue.send_deadline(last, deadline);
        drop(self.queue);
        self.thread.stop_by(deadline);
    }
}

struct Written {
    status: DeploymentStatus,
    at: Instant,
}

struct Pen {
    log: Arc<dyn Log>,
    node: NodeId,
    writer: Option<StatusWriter>,
    written: BTreeMap<Identity, Written>,
    committed: BTreeMap<Identity, Committed>,
    /// What an earlier life of the node wrote about, and this one has not looked at yet.
    earlier: BTreeSet<Identity>,
}

impl Pen {
    fn write(&mut self, Report { status, committed, is_whole }: &Report) {
        let now = Instant::now();
        let is_last = status.status == UpDown::Down;
        let current: BTreeMap<&Identity, &DeploymentStatus> =
            status.coprocessors.values().map(|deployment| (&deployment.identity, deployment)).collect();
        let earlier = self.earlier.iter().filter(|_| *is_whole);
        let known = self.written.keys().chain(earlier);
        let gone: Vec<Identity> = known.filter(|identity| !current.contains_key(identity)).cloned().collect();
        let details: Vec<DeploymentStatus> = current
            .values()
            .filter(|deployment| is_last || self.is_due(deployment, now))
            .map(|deployment| (*deployment).clone())
            .collect();
        let newly = committed.iter().filter(|(at, known)| self.committed.get(at) != Some(known));
        let newly: Vec<_> = newly.map(|(at, known)| (at.clone(), known.clone())).collect();
        if self.writer.is_none() {
            match StatusWriter::open(self.log.as_ref(), self.node) {
                Ok(writer) => self.writer = Some(writer),
                Err(error) => {
                    tracing::warn!(%error, "the status cannot be written: nothing else is harmed");
                    return;
                }
            }
        }
        let Some(writer) = &mut self.writer else { return };
        match writer.write(status, &details, &newly, &gone) {
            Ok(()) => {
                for identity in gone {
                    self.written.remove(&identity);
                    self.committed.remove(&identity);
                }
                if *is_whole {
                    self.earlier.clear();
                }
                self.committed.extend(newly);
                for status in details {
                    self.written.insert(status.identity.clone(), Written { status, at: now });
                }
            }
            Err(error) => {
                tracing::warn!(%error, "the status was not written: nothing else is harmed");
                self.writer = None;
                // The topic may be a new one when it is written again.
                self.committed.clear();
            }
        }
    }

    fn is_due(&self, deployment: &DeploymentStatus, now: Instant) -> bool {
        let Some(Written { status, at }) = self.written.get(&deployment.identity) else { return true };
        let same_but_offsets = status.state == deployment.state
            && status.reason == deployment.reason
            && status.generation == deployment.generation
            && status.last_error == deployment.last_error
            && status.partitions.len() == deployment.partitions.len()
            && (deployment.state == State::Running || is_behind(status) == is_behind(deployment));
        !same_but_offsets || (*status != *deployment && now.saturating_duration_since(*at) >= DETAIL_EVERY)
    }
}

/// Whether records wait. While lanes run that changes all the time.
fn is_behind(deployment: &DeploymentStatus) -> bool {
    deployment.partitions.iter().any(|at| at.lag > 0)
}
