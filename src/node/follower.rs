//! Follows the control topic on a thread of its own, and tells the supervisor what is desired.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use crossbeam_channel::Sender;

use crate::control::desired::{Change, DesiredState};
use crate::control::topics::OwnTopic;
use crate::core::machine::LOG_SCHEDULE;
use crate::core::names::{Identity, PoolName};
use crate::node::NodeConfig;
use crate::node::threads::{self, SpawnError, Stoppable};
use crate::ports::{Fold, FoldEvent, Log, LogError};
use crate::telemetry::metrics::NodeMetrics;

/// The longest wait for a record before the stop flag is looked at.
const WAIT: Duration = Duration::from_millis(200);

/// Starts the follower. Changes of deployments that are not this node's to run are not passed on.
pub fn start(
    log: Arc<dyn Log>,
    config: &NodeConfig,
    metrics: Arc<NodeMetrics>,
    changes: Sender<Change>,
) -> Result<Stoppable, SpawnError> {
    let config = config.clone();
    threads::spawn("coproc-control", move |stop| {
        let mut follower =
            Follower { state: DesiredState::default(), config, metrics, changes, history: BTreeMap::new() };
        let mut failures = 0;
        while !stop.load(Ordering::Relaxed) {
            match log.fold(&OwnTopic::Control.name()) {
                Ok(fold) => {
                    // What is known stays until the new fold has seen the whole topic.
                    follower.take(FoldEvent::Reset);
                    match follower.follow(fold, stop) {
                        Ok(()) => return,
                        Err(error) => failures = wait(&error, failures, stop),
                    }
                }
                Err(error) => failures = wait(&error, failures, stop),
            }
        }
    })
}

fn wait(error: &LogError, failures: u32, stop: &AtomicBool) -> u32 {
    tracing::warn!(%error, "the control topic cannot be read: what runs goes on");
    let deadline = std::time::Instant::now() + LOG_SCHEDULE.delay(failures + 1, 0.0);
    while std::time::Instant::now() < deadline && !stop.load(Ordering::Relaxed) {
        std::thread::sleep(Duration::from_millis(50));
    }
    failures + 1
}

struct Follower {
    state: DesiredState,
    config: NodeConfig,
    metrics: Arc<NodeMetrics>,
    changes: Sender<Change>,
    /// What the topic said last of each deployment, while it is read from its start: what was desired once and is not
    /// any more is nobody's business.
    history: BTreeMap<Identity, Change>,
}

impl Follower {
    fn follow(&mut self, mut fold: Box<dyn Fold>, stop: &AtomicBool) -> Result<(), LogError> {
        while !stop.load(Ordering::Relaxed) {
            let event = fold.next(WAIT)?;
            if !self.take(event) {
                break;
            }
        }
        Ok(())
    }

    fn is_ours(&self, pool: &PoolName, identity: &Identity) -> bool {
        *pool == self.config.pool && self.config.bounds.includes(&self.config.installation, identity)
    }

    /// Passes on what follows from an event; `false` when nobody listens any more.
    fn take(&mut self, event: FoldEvent) -> bool {
        for change in self.state.apply(event) {
            match &change {
                Change::Ignored { key, offset, why } => {
                    self.metrics.control_ignored.inc();
                    tracing::warn!(key, offset, %why, "a record of the control topic was ignored");
                    continue;
                }
                Change::Set(pool, identity, _) | Change::Removed(pool, identity)
                    if !self.is_ours(pool, identity) =>
                {
                    continue;
                }
                _ => {}
            }
            if !self.pass_on(change) {
                return false;
            }
        }
        true
    }

    fn pass_on(&mut self, change: Change) -> bool {
        match change {
            Change::Set(_, ref identity, _) | Change::Removed(_, ref identity)
                if !self.state.is_caught_up() =>
            {
                self.history.insert(identity.clone(), change);
                true
            }
            Change::CaughtUp => {
                let history = std::mem::take(&mut self.history);
                history.into_values().chain([change]).all(|change| self.changes.send(change).is_ok())
            }
            change => self.changes.send(change).is_ok(),
        }
    }
}
