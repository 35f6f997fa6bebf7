//! The supervisor: makes what runs equal to what is desired, one deployment at a time, on one thread.
//!
//! It never blocks on a module, a guest or a lane: loads happen in the loader, lanes stop in their own time, and a
//! tick looks at what has become of both. What a deployment needs next is decided in `entry`. Before lanes start, the log is
//! asked for their topics; one that takes its time holds up a tick by one such question and no more.

mod entry;
mod status;
mod topics;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use crossbeam_channel::Receiver;

use crate::control::desired::Change;
use crate::control::modules;
use crate::core::deployment::{Deployment, find_cycle};
use crate::core::names::Identity;
use crate::core::record::TimestampMs;
use crate::core::status::{Committed, HEARTBEAT_MS, UpDown};
use crate::node::guest_logs::GuestLogs;
use crate::node::loader::{Loaded, Loader};
use crate::node::past::Past;
use crate::node::reporter::{Report, Reporter};
use crate::node::standing::Standings;
use crate::node::supervisor::entry::Entry;
use crate::node::threads::{self, Stoppable};
use crate::node::{NodeConfig, NodeParts};
use crate::telemetry::metrics::NodeMetrics;

/// How often lanes, loads and missing topics are looked at.
const TICK: Duration = Duration::from_millis(50);
/// After so long the deployments that ask the log leave the rest of themselves to the next tick.
const ROUND: Duration = Duration::from_secs(1);
/// A change of status is written this soon, and later the larger the status is.
const STATUS_SOON: Duration = Duration::from_millis(250);
/// Bytes of status that are written per second at most, by changes alone.
const STATUS_BYTES_PER_SECOND: u64 = 256 << 10;
/// About the bytes of one coprocessor in the heartbeat.
const STATUS_BYTES_EACH: u64 = 400;
/// How often unreferenced modules are looked for.
const SWEEP_EVERY: Duration = Duration::from_hours(1);

/// Everything that the supervisor works with.
pub(super) struct Context {
    pub config: NodeConfig,
    pub parts: NodeParts,
    pub metrics: Arc<NodeMetrics>,
    pub loader: Loader,
    pub guest_logs: GuestLogs,
    pub past: Arc<Past>,
}

/// The supervisor's inputs.
pub(super) struct Inputs {
    pub changes: Receiver<Change>,
    pub loaded: Receiver<Loaded>,
}

/// The supervisor.
pub(super) struct Supervisor {
    context: Context,
    entries: BTreeMap<Identity, Entry>,
    ready: Arc<AtomicBool>,
    /// Set where lanes did not end in time.
    overdue: Arc<AtomicBool>,
    reporter: Reporter,
    standings: Standings,
    /// What an earlier life of the node knew to have been committed, until a deployment takes it up.
    earlier: BTreeMap<Identity, Committed>,
    /// Whose turn it is to ask the log, where a tick was too short for all.
    turn: Option<Identity>,
    last_report: Option<Instant>,
    last_sweep: Instant,
    sweeper: Option<Stoppable>,
    is_dirty: bool,
    /// Whether the control topic was read to where it ended.
    is_caught_up: bool,
}

impl Supervisor {
    /// A supervisor of nothing yet.
    pub fn new(
        context: Context,
        reporter: Reporter,
        standings: Standings,
        earlier: BTreeMap<Identity, Committed>,
        ready: Arc<AtomicBool>,
        overdue: Arc<AtomicBool>,
    ) -> Self {
        Self {
            context,
            entries: BTreeMap::new(),
            ready,
            overdue,
            reporter,
            standings,
            earlier,
            turn: None,
            last_report: None,
            last_sweep: Instant::now(),
            sweeper: None,
            is_dirty: true,
            is_caught_up: false,
        }
    }

    /// Runs until told to stop, then drains: lanes commit and end, the node says `down`.
    pub fn run(mut self, inputs: &Inputs, stop: &AtomicBool) {
        while !stop.load(Ordering::Relaxed) {
            self.take_inputs(inputs);
            self.tick(stop);
        }
        self.drain();
    }

    /// Waits for the first input, or a tick; what else is there already is taken at once: a thousand deployments must
    /// not take a thousand ticks.
    fn take_inputs(&mut self, inputs: &Inputs) {
        crossbeam_channel::select_biased! {
            // Loads first: each ends a wait of a deployment that was desired before what is in the other queue.
            recv(inputs.loaded) -> loaded => match loaded {
                Ok(loaded) => self.take_loaded(loaded),
                Err(_) => std::thread::sleep(TICK),
            },
            recv(inputs.changes) -> change => match change {
                Ok(change) => self.take_change(change),
                Err(_) => std::thread::sleep(TICK),
            },
            default(TICK) => {}
        }
        while let Ok(loaded) = inputs.loaded.try_recv() {
            self.take_loaded(loaded);
        }
        while let Ok(change) = inputs.changes.try_recv() {
            self.take_change(change);
        }
    }

    fn take_change(&mut self, change: Change) {
        match change {
            Change::Set(_, identity, desired) => {
                tracing::info!(deployment = %identity, generation = desired.generation(), "a deployment is desired");
                let now_ms = self.now_ms();
                let earlier = self.earlier.remove(&identity).unwrap_or_default();
                let fresh = || Entry::new(identity.clone()).remembering(earlier);
                let entry = self.entries.entry(identity.clone()).or_insert_with(fresh);
                entry.desire(Some(desired), now_ms);
                self.is_dirty = true;
            }
            Change::Removed(_, identity) => {
                let now_ms = self.now_ms();
                if let Some(entry) = self.entries.get_mut(&identity) {
                    tracing::info!(deployment = %identity, "a deployment is to go");
                    entry.desire(None, now_ms);
                }
                self.is_dirty = true;
            }
            Change::CaughtUp => {
                self.ready.store(true, Ordering::Relaxed);
                self.is_caught_up = true;
                self.is_dirty = true;
            }
            Change::Ignored { .. } => {}
        }
    }

    fn take_loaded(&mut self, loaded: Loaded) {
        let now_ms = self.now_ms();
        if let Some(entry) = self.entries.get_mut(&loaded.identity) {
            entry.loaded(loaded.deployment, loaded.chain, now_ms);
            self.is_dirty = true;
        }
    }

    fn now_ms(&self) -> TimestampMs {
        self.context.parts.clock.wall_ms()
    }

    fn tick(&mut self, stop: &AtomicBool) {
        let due = self.entries.values().filter(|entry| entry.wants_attention());
        let (asking, others): (Vec<_>, Vec<_>) = due.partition(|entry| entry.is_to_ask_log());
        let identities = |entries: Vec<&Entry>| -> Vec<Identity> {
            entries.into_iter().map(|entry| entry.identity().clone()).collect()
        };
        let (asking, others) = (identities(asking), identities(others));
        for identity in others {
            self.step(&identity);
        }
        self.step_in_turn(asking, stop);
        self.is_dirty |= self.entries.values().any(Entry::take_changed);
        self.report();
        self.sweep();
    }

    /// Those that ask the log: as many as there is time for, and each in its turn.
    fn step_in_turn(&mut self, waiting: Vec<Identity>, stop: &AtomicBool) {
        let began = Instant::now();
        for identity in in_turn(waiting, self.turn.take().as_ref()) {
            if stop.load(Ordering::Relaxed) {
                return;
            }
            if began.elapsed() >= ROUND {
                self.turn = Some(identity);
                return;
            }
            self.step(&identity);
        }
    }

    fn step(&mut self, identity: &Identity) {
        let hindrance = self.hindrance(identity);
        let Some(entry) = self.entries.get_mut(identity) else { return };
        self.is_dirty |= entry.step(&self.context, hindrance);
        if entry.is_gone() {
            entry.forget_metrics(&self.context);
            self.entries.remove(identity);
            self.is_dirty = true;
        }
    }

    /// What keeps a deployment from starting, as seen from all of them: a cycle, a group in use, no free lane.
    fn hindrance(&self, identity: &Identity) -> Option<(&'static str, String)> {
        let wanted = self.entries.get(identity)?.wanted()?;
        if let Some(problem) = self.context.config.bounds.problem(wanted) {
            return Some(("TopicNotAllowed", problem));
        }
        let wants_more = self.entries.get(identity)?.wants_more_lanes();
        let others = || self.entries.iter().filter(|(at, _)| *at != identity);
        if let Some(cycle) = self.cycle_with(identity, wanted) {
            return Some(("TopicCycle", cycle));
        }
        let group = wanted.consumer_group(identity);
        let holder = others().find(|(at, entry)| {
            entry.wanted().is_some_and(|other| entry.has_lanes() && other.consumer_group(at) == group)
        });
        if let Some((at, _)) = holder {
            return Some((
                "GroupInUse",
                format!("consumer group {group} is in use by {at}: name another one"),
            ));
        }
        let lanes: usize = others().map(|(_, entry)| entry.lane_count()).sum();
        let needed = usize::from(wanted.policies.parallelism);
        if wants_more && lanes + needed > self.context.config.max_lanes {
            let message = format!(
                "{needed} lanes are needed, {lanes} of {} are in use on this node: raise maxLanes or add nodes",
                self.context.config.max_lanes
            );
            return Some(("PoolFull", message));
        }
        None
    }

    /// The cycle that the deployment would close, if it would. Of two that close one together, the older runs.
    fn cycle_with(&self, identity: &Identity, wanted: &Arc<Deployment>) -> Option<String> {
        let others: Vec<&Deployment> = self
            .entries
            .iter()
            .filter(|(at, entry)| *at != identity && entry.has_lanes())
            .filter_map(|(_, entry)| entry.wanted().map(Arc::as_ref))
            .collect();
        let cycle = find_cycle(others.into_iter().chain([wanted.as_ref()]))?;
        let path: Vec<&str> = cycle.iter().map(crate::core::names::TopicName::as_str).collect();
        Some(format!("records would go round for ever: {}", path.join(" -> ")))
    }

    fn report(&mut self) {
        let since = self.last_report.map_or(Duration::MAX, |at| at.elapsed());
        let size = self.entries.len() as u64 * STATUS_BYTES_EACH;
        let soon = STATUS_SOON.max(Duration::from_millis(size * 1_000 / STATUS_BYTES_PER_SECOND));
        let is_overdue = since >= Duration::from_millis(HEARTBEAT_MS.cast_unsigned());
        if !is_overdue && (!self.is_dirty || since < soon) {
            return;
        }
        self.entries.values().for_each(|entry| entry.measure(&self.context));
        self.standings.set(self.entries.values().filter_map(Entry::standing).collect());
        let report = self.status(UpDown::Up);
        if self.reporter.queue.try_send(report).is_ok() {
            self.last_report = Some(Instant::now());
            self.is_dirty = false;
        }
    }

    fn status(&mut self, status: UpDown) -> Report {
        let committed = self.entries.iter_mut();
        let committed = committed.filter_map(|(at, entry)| Some((at.clone(), entry.committed()?.clone())));
        let committed = committed.collect();
        let capabilities = self.context.parts.log.capabilities();
        let status = status::node_status(
            &self.context.config,
            status,
            self.now_ms(),
            &capabilities.summary(),
            self.entries.values(),
        );
        Report { status, committed, is_whole: self.is_caught_up }
    }

    /// Removes modules that nobody names any more, now and then.
    fn sweep(&mut self) {
        let is_busy = self.sweeper.as_ref().is_some_and(|sweeper| !sweeper.is_over());
        if self.last_sweep.elapsed() < SWEEP_EVERY || is_busy || !self.ready.load(Ordering::Relaxed) {
            return;
        }
        self.last_sweep = Instant::now();
        let (log, now_ms) = (self.context.parts.log.clone(), self.now_ms());
        // On a thread of its own: the topic may be large, and lanes wait for this one.
        let sweeper = threads::spawn("coproc-sweep", move |_| match modules::sweep(log.as_ref(), now_ms) {
            Ok(0) => {}
            Ok(count) => tracing::info!(count, "modules that no deployment names were removed"),
            Err(error) => {
                tracing::warn!(%error, "unreferenced modules were not removed: tried again in an hour");
            }
        });
        match sweeper {
            Ok(sweeper) => self.sweeper = Some(sweeper),
            Err(error) => {
                tracing::warn!(%error, "unreferenced modules are not removed: tried again in an hour");
            }
        }
    }

    fn drain(mut self) {
        self.ready.store(false, Ordering::Relaxed);
        let deadline = Instant::now() + self.context.config.drain;
        self.context.loader.ask_to_stop();
        self.standings.ask_to_stop();
        for entry in self.entries.values() {
            entry.ask_lanes_to_stop();
        }
        let mut clean = true;
        for entry in self.entries.values_mut() {
            clean &= entry.stop_lanes_by(deadline);
        }
        if !clean {
            self.overdue.store(true, Ordering::Relaxed);
            tracing::warn!(
                "some lanes did not end in time: what they had not committed is done again at the next start"
            );
        }
        let status = self.status(UpDown::Down);
        let deadline = deadline.max(Instant::now() + Duration::from_secs(1));
        self.reporter.stop(status, deadline);
        self.context.guest_logs.stop_by(deadline);
        self.context.loader.stop_by(deadline);
        self.standings.stop_by(Instant::now() + Duration::from_millis(500));
    }
}

/// Those that wait, in their order, from the one on whose turn it is.
fn in_turn(mut waiting: Vec<Identity>, turn: Option<&Identity>) -> Vec<Identity> {
    if let Some(turn) = turn {
        let before = waiting.partition_point(|identity| identity < turn);
        waiting.rotate_left(before);
    }
    waiting
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn turns_go_round() {
        let identity =
            |name: &str| -> Identity { format!("default/_cli/coprocessor/{name}").parse().unwrap() };
        let turns = |turn: Option<&str>| -> String {
            let waiting = ["a", "c", "d"].map(identity).to_vec();
            let turn = turn.map(identity);
            in_turn(waiting, turn.as_ref()).iter().map(|identity| identity.name.to_string()).collect()
        };
        // Whose turn it is may be gone.
        for (turn, expected) in
            [(None, "acd"), (Some("a"), "acd"), (Some("b"), "cda"), (Some("d"), "dac"), (Some("e"), "acd")]
        {
            assert_eq!(turns(turn), expected, "{turn:?}");
        }
    }
}
