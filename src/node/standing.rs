//! What a deployment without lanes is behind: its partitions stand still, their topics do not, and whoever paused it may have
//! altered its offsets. Asked on a thread of its own, because a log may take its time and the supervisor has none.
//!
//! Of several nodes, the one that had a partition last speaks for it, until somebody else has the group.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use parking_lot::Mutex;

use crate::core::ledger::TopicPartition;
use crate::core::names::{ConsumerGroup, Identity, TopicName};
use crate::core::record::Offset;
use crate::node::lane::report::LaneShared;
use crate::node::threads::{self, SpawnError, Stoppable};
use crate::ports::{Extent, Log, LogError};

/// The least time between two rounds.
const EVERY: Duration = Duration::from_secs(2);
/// A round may take this part of the time; with many deployments, or a slow log, there are fewer.
const SHARE: u32 = 10;
/// Rounds in which a group has members before what is left here counts as theirs: while all nodes stop, one that has not yet
/// may still be among them.
const TAKEN_AFTER: u8 = 5;

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
            let mut taken = BTreeMap::new();
            while !stop.load(Ordering::Relaxed) {
                let began = Instant::now();
                let standing = asked.lock().clone();
                ask(log.as_ref(), &standing, &mut taken, stop);
                rest(EVERY.max(began.elapsed() * SHARE), stop);
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

    /// Waits for the thread until the deadline.
    pub fn stop_by(self, deadline: Instant) {
        self.thread.stop_by(deadline);
    }
}

fn rest(time: Duration, stop: &AtomicBool) {
    let until = Instant::now() + time;
    while Instant::now() < until && !stop.load(Ordering::Relaxed) {
        std::thread::sleep(Duration::from_millis(50));
    }
}

/// One round. What cannot be asked now stays as it was.
fn ask(log: &dyn Log, all: &[Standing], taken: &mut BTreeMap<Identity, u8>, stop: &AtomicBool) {
    taken.retain(|identity, _| all.iter().any(|standing| standing.identity == *identity));
    let mut extents = BTreeMap::new();
    for standing in all {
        if stop.load(Ordering::Relaxed) {
            return;
        }
        if let Err(error) = ask_one(log, standing, taken, &mut extents) {
            tracing::debug!(deployment = %standing.identity, %error, "how much waits is not known");
        }
    }
}

fn ask_one(
    log: &dyn Log,
    standing: &Standing,
    taken: &mut BTreeMap<Identity, u8>,
    extents: &mut BTreeMap<TopicName, Vec<Extent>>,
) -> Result<(), LogError> {
    if log.offsets().members(&standing.group)? > 0 {
        let rounds = taken.entry(standing.identity.clone()).or_default();
        *rounds = rounds.saturating_add(1);
        if *rounds >= TAKEN_AFTER {
            standing.lanes.iter().for_each(|lane| lane.behind(BTreeMap::clear));
        }
        return Ok(());
    }
    taken.remove(&standing.identity);
    let committed = log.offsets().committed(&standing.group)?;
    let partitions = standing.lanes.iter().flat_map(|lane| lane.report().partitions.into_keys());
    let topics: BTreeSet<TopicName> = partitions.map(|at| at.topic).collect();
    for topic in topics {
        if !extents.contains_key(&topic) {
            extents.insert(topic.clone(), log.topics().extents(&topic)?);
        }
    }
    standing.lanes.iter().for_each(|lane| tell(lane, &committed, extents));
    Ok(())
}

fn tell(
    lane: &LaneShared,
    committed: &BTreeMap<TopicPartition, Offset>,
    extents: &BTreeMap<TopicName, Vec<Extent>>,
) {
    lane.behind(|partitions| {
        for (at, report) in partitions {
            // Without a committed offset it goes on where it was to start.
            report.committed = committed.get(at).copied().or(report.committed);
            let extent = extents.get(&at.topic).and_then(|of_topic| of_topic.get(at.partition as usize));
            if let Some(extent) = extent {
                (report.first, report.end) = (Some(extent.first), Some(extent.end));
            }
        }
    });
}
