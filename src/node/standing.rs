//! What a deployment without lanes is behind: its partitions stand still, their topics do not, and whoever paused it may have
//! altered its offsets. Asked on a thread of its own, because a log may take its time and the supervisor has none.
//!
//! A node speaks for the partitions that its lanes had last, as long as nobody is in the group. Two nodes may have had the same
//! one, if the group still gave it to one that was about to stop: whoever adds lags up counts a partition once.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use parking_lot::Mutex;

use crate::core::ledger::TopicPartition;
use crate::core::names::{ConsumerGroup, Identity, TopicName};
use crate::core::record::Offset;
use crate::node::lane::report::{LaneReport, LaneShared};
use crate::node::threads::{self, SpawnError, Stoppable};
use crate::ports::{Extent, Log, LogError};

/// The least time between two rounds.
const EVERY: Duration = Duration::from_secs(2);
/// A round may take this part of the time: with many deployments, or a slow log, there are fewer.
const SHARE: u32 = 10;
/// But not fewer than that: what a log took in an outage must not count after it.
const AT_LEAST_EVERY: Duration = Duration::from_mins(1);
/// How long a deployment is left alone whose questions were not answered: each takes its full time.
const REST: Duration = Duration::from_mins(1);
/// How long a group has members before its partitions count as theirs: while all nodes stop, one that has not yet may still be
/// among them, and a static member stays until its session (20 s) is over.
const TAKEN_AFTER: Duration = Duration::from_secs(25);

/// A deployment that has no lanes.
#[derive(Clone)]
pub struct Standing {
    /// Which.
    pub identity: Identity,
    /// Whose offsets it goes on from.
    pub group: ConsumerGroup,
    /// What its last lanes had to say.
    pub lanes: Vec<Arc<LaneShared>>,
}

/// What is remembered of one from round to round.
#[derive(Default)]
struct Known {
    /// Since when its group has members.
    taken: Option<Instant>,
    /// When its questions were not answered.
    silent: Option<Instant>,
}

/// All deployments that have no lanes, and the thread that asks for them.
pub struct Standings {
    all: Arc<Mutex<Vec<Standing>>>,
    thread: Stoppable,
}

impl Standings {
    /// Of nobody yet.
    pub fn start(log: Arc<dyn Log>) -> Result<Self, SpawnError> {
        let all: Arc<Mutex<Vec<Standing>>> = Arc::default();
        let asked = all.clone();
        let thread = threads::spawn("coproc-standing", move |stop| {
            let mut known = BTreeMap::new();
            while !stop.load(Ordering::Relaxed) {
                let began = Instant::now();
                let standing = asked.lock().clone();
                ask(log.as_ref(), &standing, &mut known, stop);
                rest((began.elapsed() * SHARE).clamp(EVERY, AT_LEAST_EVERY), stop);
            }
        })?;
        Ok(Self { all, thread })
    }

    /// These are asked for from now on.
    pub fn set(&self, all: Vec<Standing>) {
        *self.all.lock() = all;
    }

    /// Tells the thread to end, without waiting.
    pub fn ask_to_stop(&self) {
        self.thread.ask();
    }

    /// Waits for the thread until the deadline. One that waits for an answer is left to it: there is nothing to be saved.
    pub fn stop_by(self, deadline: Instant) {
        self.thread.leave_by(deadline);
    }
}

fn rest(time: Duration, stop: &AtomicBool) {
    let until = Instant::now() + time;
    while Instant::now() < until && !stop.load(Ordering::Relaxed) {
        std::thread::sleep(Duration::from_millis(50));
    }
}

/// One round. What cannot be asked now stays as it was.
fn ask(log: &dyn Log, all: &[Standing], known: &mut BTreeMap<Identity, Known>, stop: &AtomicBool) {
    known.retain(|identity, _| all.iter().any(|standing| standing.identity == *identity));
    let mut extents = Extents { log, of: BTreeMap::new() };
    for standing in all {
        if stop.load(Ordering::Relaxed) {
            return;
        }
        let known = known.entry(standing.identity.clone()).or_default();
        if known.silent.is_some_and(|since| since.elapsed() < REST) {
            continue;
        }
        let asked = ask_one(standing, known, &mut extents);
        known.silent = asked.is_err().then(Instant::now);
        if let Err(error) = asked {
            tracing::debug!(deployment = %standing.identity, %error, "how much waits is not known");
        }
    }
}

fn ask_one(standing: &Standing, known: &mut Known, extents: &mut Extents<'_>) -> Result<(), LogError> {
    let partitions = standing.lanes.iter().flat_map(|lane| lane.report().partitions.into_keys());
    let topics: BTreeSet<TopicName> = partitions.map(|at| at.topic).collect();
    if topics.is_empty() {
        return Ok(());
    }
    let offsets = extents.log.offsets();
    if offsets.members(&standing.group)? > 0 {
        if known.taken.get_or_insert_with(Instant::now).elapsed() >= TAKEN_AFTER {
            standing.lanes.iter().for_each(|lane| lane.behind(|report| report.is_taken = true));
        }
        return Ok(());
    }
    known.taken = None;
    let committed = offsets.committed(&standing.group)?;
    for topic in &topics {
        extents.ask(topic);
    }
    standing.lanes.iter().for_each(|lane| lane.behind(|report| tell(report, &committed, extents)));
    // Those that were not answered for are asked for again when all are.
    topics.iter().try_for_each(|topic| extents.of[topic].as_ref().map(drop).map_err(Clone::clone))
}

/// Where topics start and end, asked once in a round.
struct Extents<'a> {
    log: &'a dyn Log,
    of: BTreeMap<TopicName, Result<Vec<Extent>, LogError>>,
}

impl Extents<'_> {
    fn ask(&mut self, topic: &TopicName) {
        if self.of.contains_key(topic) {
            return;
        }
        let found = match self.log.topics().extents(topic) {
            // Nothing waits in it.
            Err(LogError::UnknownTopic(_)) => Ok(Vec::new()),
            found => found,
        };
        self.of.insert(topic.clone(), found);
    }
}

fn tell(report: &mut LaneReport, committed: &BTreeMap<TopicPartition, Offset>, extents: &Extents<'_>) {
    report.is_taken = false;
    for (at, report) in &mut report.partitions {
        // One that never had a committed offset goes on where it was to start.
        let start = report.committed.filter(|_| !report.is_settled);
        report.committed = committed.get(at).copied().or(start);
        report.is_settled |= committed.contains_key(at);
        let Some(Ok(of_topic)) = extents.of.get(&at.topic) else { continue };
        let extent = of_topic.get(at.partition as usize);
        (report.first, report.end) = (extent.map(|at| at.first), extent.map(|at| at.end));
    }
}
