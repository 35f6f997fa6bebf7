//! The thread of a lane: opens its session, turns the lane until it ends, drops the clients where they were made.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use crossbeam_channel::{Receiver, Sender};
use parking_lot::Mutex;

use crate::core::deployment::Delivery;
use crate::core::disposition::Disposition;
use crate::core::machine::LOG_SCHEDULE;
use crate::core::names::NodeId;
use crate::core::status::State;
use crate::node::lane::report::LaneShared;
use crate::node::lane::{Command, End, Lane, LaneParts, Turn};
use crate::node::past::Past;
use crate::node::plan::LanePlan;
use crate::node::threads::{self, SpawnError, Stoppable};
use crate::ports::{LaneSession, Log, LogError};

/// Commands that wait for a lane. The supervisor sends one at a time.
const MAILBOX: usize = 4;

/// A lane that runs on its thread.
pub struct LaneHandle {
    thread: Stoppable,
    /// Its snapshot.
    pub shared: Arc<LaneShared>,
    /// Its mailbox.
    pub commands: Sender<Command>,
    end: Arc<Mutex<Option<End>>>,
}

/// Where a lane is at home.
pub struct LanePlace {
    /// The log that it works on.
    pub log: Arc<dyn Log>,
    /// What nodes know of earlier commits.
    pub past: Arc<Past>,
    /// Its node.
    pub node: NodeId,
    /// Its number there.
    pub lane: u16,
}

impl LaneHandle {
    /// Starts the thread of a lane.
    pub fn start(place: LanePlace, plan: LanePlan, mut parts: LaneParts) -> Result<Self, SpawnError> {
        let (commands, mailbox) = crossbeam_channel::bounded(MAILBOX);
        let end: Arc<Mutex<Option<End>>> = Arc::default();
        let shared = parts.shared.clone();
        shared.change(|report| report.state = State::Starting);
        let stop: Arc<AtomicBool> = Arc::default();
        parts.stop = stop.clone();
        let at_end = end.clone();
        let name = format!("lane-{}", plan.identity.name);
        let thread = threads::spawn_with(name, stop, move |_| {
            parts.metrics.lanes.inc();
            let ended = run(&place, plan, &mailbox, &parts);
            parts.metrics.lanes.dec();
            *at_end.lock() = Some(ended);
        })?;
        Ok(Self { thread, shared, commands, end })
    }

    /// Tells the lane to commit and end.
    pub fn ask_to_stop(&self) {
        self.thread.ask();
    }

    /// Whether the lane has ended.
    pub fn is_over(&self) -> bool {
        self.thread.is_over()
    }

    /// How it ended; `None` while it runs, and when it panicked.
    pub fn end(&self) -> Option<End> {
        self.end.lock().clone()
    }

    /// Waits for the thread until the deadline: whether it ended.
    pub fn stop_by(self, deadline: std::time::Instant) -> bool {
        self.thread.stop_by(deadline)
    }
}

fn run(place: &LanePlace, plan: LanePlan, mailbox: &Receiver<Command>, parts: &LaneParts) -> End {
    let mut session = match open(place, &plan, parts) {
        Ok(session) => session,
        Err(end) => return end,
    };
    let delivery = delivery(plan.deployment.policies.delivery, place.log.as_ref());
    parts.shared.change(|report| report.delivery = Some(delivery));
    session.recall(Box::new(place.past.of(&plan.identity, plan.deployment.life.clone())));
    let mut lane = Lane::new(session, plan, mailbox.clone(), parts.clone());
    loop {
        if let Turn::Ended(end) = lane.turn() {
            return end;
        }
    }
}

/// What the session that was just opened keeps to: to open it the log had to know what it can do.
fn delivery(wanted: Delivery, log: &dyn Log) -> &'static str {
    match wanted {
        Delivery::AtLeastOnce => "at_least_once",
        Delivery::Auto if log.capabilities().transactions.is_absent() => "at_least_once",
        Delivery::Auto | Delivery::ExactlyOnce => "exactly_once",
    }
}

/// Opens the session, again and again while the log is not well.
fn open(place: &LanePlace, plan: &LanePlan, parts: &LaneParts) -> Result<Box<dyn LaneSession>, End> {
    let spec = plan.lane_spec(place.node, place.lane);
    let mut attempt = 0;
    loop {
        if parts.stop.load(Ordering::Relaxed) {
            return Err(End::Drained);
        }
        match place.log.lane(&spec) {
            Ok(session) => return Ok(session),
            Err(error) => match error.disposition() {
                Disposition::User => return Err(End::Refused(error)),
                Disposition::Fenced => return Err(End::Fenced(error)),
                Disposition::Transient | Disposition::Bug => {
                    attempt += 1;
                    wait_for_log(parts, &error, attempt);
                }
            },
        }
    }
}

fn wait_for_log(parts: &LaneParts, error: &LogError, attempt: u32) {
    parts.shared.error(parts.clock.wall_ms(), "LogFailed", error.to_string());
    let wait = LOG_SCHEDULE.delay(attempt, 0.0);
    let step = Duration::from_millis(50);
    let mut waited = Duration::ZERO;
    while waited < wait && !parts.stop.load(Ordering::Relaxed) {
        parts.clock.sleep(step);
        waited += step;
    }
}
