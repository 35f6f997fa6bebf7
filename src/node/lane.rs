//! A lane: one consumer, one transactional producer and a chain of guests per input topic, on one thread. The unit
//! of exactly-once.
//!
//! `Lane::turn` does one bounded piece of work and returns, so that a thread, or a simulation, can drive it. What
//! happens on failures is decided by `core::machine`; here it is done. There is one way back after a failure of the
//! log, `recover`, and it drops everything since the last ack-commit.

mod events;
mod recovery;
pub mod report;
mod work;

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use crossbeam_channel::{Receiver, Sender};

use crate::core::ledger::{Ledger, TopicPartition};
use crate::core::machine::{Machine, Phase};
use crate::core::names::TopicName;
use crate::core::record::{Batch, Offset};
use crate::core::status::State;
use crate::node::chain::{Chain, StepFailure};
use crate::node::lane::report::LaneShared;
use crate::node::plan::LanePlan;
use crate::ports::{Clock, GuestLines, LaneSession, LogError};
use crate::telemetry::metrics::CoprocessorMetrics;

/// The longest that a lane with nothing to do waits before it looks at its mailbox, and asks for end offsets.
const IDLE_WAIT: Duration = Duration::from_millis(500);
/// With a guest that takes its time the log is polled this often, so that the lane stays a member of its group.
const POLL_EVERY: Duration = Duration::from_secs(1);

/// What the supervisor tells a lane.
pub enum Command {
    /// Exchange the chain at the next commit boundary. The new guests are started first; when that fails the old ones
    /// go on.
    Swap {
        /// The new plan: same inputs, outputs and group.
        plan: Box<LanePlan>,
        /// Told how it went.
        reply: Sender<Result<(), StepFailure>>,
    },
}

/// How a lane ended.
#[derive(Debug, Clone)]
pub enum End {
    /// It was told to, and committed what was done.
    Drained,
    /// Another process has its slot.
    Fenced(LogError),
    /// Something that somebody has to change.
    Refused(LogError),
}

/// Whether a lane goes on.
#[derive(Debug)]
pub enum Turn {
    /// Call again.
    Continue,
    /// It ended; drop it on its own thread.
    Ended(End),
}

/// What a lane is given besides its session and plan.
#[derive(Clone)]
pub struct LaneParts {
    /// Time.
    pub clock: Arc<dyn Clock>,
    /// Takes what guests print.
    pub lines: Arc<dyn GuestLines>,
    /// Counters of the deployment.
    pub metrics: CoprocessorMetrics,
    /// The snapshot for the supervisor.
    pub shared: Arc<LaneShared>,
    /// Set when the lane is to end: guests suspend at the next record.
    pub stop: Arc<AtomicBool>,
    /// Called with `true` when a guest failed and with `false` at the next commit: lowers the thread's priority, and
    /// says whether the system does so. Where it does not, guests of that lane rest in between.
    pub low_priority: Arc<dyn Fn(bool) -> bool + Send + Sync>,
    /// Seed of the jitter.
    pub seed: u64,
}

/// A batch on its way through the chain.
struct Work {
    partition: TopicPartition,
    batch: Option<Batch>,
    /// Index of the first record that is not done.
    next: usize,
    /// Number of records.
    len: usize,
    /// Whether the partition was paused for it.
    paused: bool,
}

/// A batch whose partition waits for a retry.
struct Held {
    batch: Batch,
    first: usize,
}

/// What was done since the last ack-commit.
#[derive(Default)]
struct Pending {
    records_in: u64,
    records_out: u64,
    bytes_in: u64,
    bytes_out: u64,
    dead_letters: u64,
    skipped: u64,
    /// When it has to be committed.
    due: Option<Duration>,
    /// Timestamps of the first records of batches, for the latency.
    timestamps: Vec<i64>,
}

/// A record that the log refused, found by replaying one record at a time.
struct Refused {
    offset: Offset,
    message: String,
}

/// What gets a transaction of its own in a replay.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Alone {
    /// What a guest does without a rest: it writes to the log once it is done, so that no transaction is open while some
    /// record of it is slow.
    Run,
    /// Every record, so that the one to blame is found.
    Record,
}

/// A replay with care.
#[derive(Debug, Clone, Copy)]
struct Careful {
    until: Offset,
    alone: Alone,
}

/// The lane.
pub struct Lane {
    session: Box<dyn LaneSession>,
    plan: LanePlan,
    parts: LaneParts,
    mailbox: Receiver<Command>,
    postponed: Option<Command>,
    machine: Machine,
    ledger: Ledger,
    chains: BTreeMap<TopicName, Chain>,
    work: Option<Work>,
    ready: VecDeque<TopicPartition>,
    held: BTreeMap<TopicPartition, Held>,
    owned: Vec<TopicPartition>,
    /// Owned, and asked for by the group: given up with the next commit or abort that goes through. A group may ask a lane
    /// that has none, and waits for its answer too.
    leaving: Option<Vec<TopicPartition>>,
    pending: Pending,
    /// Replayed with care up to an offset: what was before it could not be committed.
    careful: BTreeMap<TopicPartition, Careful>,
    refused: BTreeMap<TopicPartition, Refused>,
    spare: Batch,
    last_commit: Duration,
    last_poll: Duration,
    last_lag: Duration,
    is_low: bool,
    /// Low, where the system does not do it: guests rest in between.
    is_gentle: bool,
    jitter: u64,
}

impl Lane {
    /// A lane over an open session.
    pub fn new(
        session: Box<dyn LaneSession>,
        plan: LanePlan,
        mailbox: Receiver<Command>,
        parts: LaneParts,
    ) -> Self {
        let policy = plan.deployment.policies.error_policy.clone();
        let generation = plan.deployment.generation;
        parts.shared.change(|report| {
            report.state = State::Running;
            report.generation = generation;
        });
        let now = parts.clock.monotonic();
        Self {
            session,
            plan,
            mailbox,
            postponed: None,
            machine: Machine::new(policy),
            ledger: Ledger::default(),
            chains: BTreeMap::new(),
            work: None,
            ready: VecDeque::new(),
            held: BTreeMap::new(),
            owned: Vec::new(),
            leaving: None,
            pending: Pending::default(),
            careful: BTreeMap::new(),
            refused: BTreeMap::new(),
            spare: Batch::default(),
            last_commit: now,
            last_poll: now,
            last_lag: Duration::ZERO,
            is_low: false,
            is_gentle: false,
            jitter: parts.seed | 1,
            parts,
        }
    }

    /// Does one bounded piece of work: at most one batch within the commit interval, or one wait.
    pub fn turn(&mut self) -> Turn {
        let must_rewind = matches!(self.machine.phase(), Phase::Recovering { .. });
        if self.parts.stop.load(Ordering::Relaxed) {
            self.machine.drain();
        }
        match self.machine.phase() {
            Phase::Draining => Turn::Ended(self.finish(!must_rewind)),
            Phase::Stopped => Turn::Ended(End::Drained),
            Phase::Recovering { until, .. } => self.recover(until),
            Phase::Running => match self.advance() {
                Ok(()) => Turn::Continue,
                Err(error) => self.log_failed(error),
            },
        }
    }

    fn now(&self) -> Duration {
        self.parts.clock.monotonic()
    }

    fn jitter(&mut self) -> f64 {
        // xorshift64: good enough to keep lanes from retrying in step.
        self.jitter ^= self.jitter << 13;
        self.jitter ^= self.jitter >> 7;
        self.jitter ^= self.jitter << 17;
        (self.jitter >> 11) as f64 / (1u64 << 53) as f64
    }

    fn advance(&mut self) -> Result<(), LogError> {
        if let Some(command) = self.postponed.take().or_else(|| self.mailbox.try_recv().ok()) {
            self.obey(command)?;
        }
        let now = self.now();
        if self.pending.due.is_some_and(|due| due <= now) {
            self.commit()?;
        }
        let due = self.machine.take_due(now);
        self.ready.extend(due);
        if self.work.is_none() {
            self.take_ready();
        }
        if self.work.is_some() {
            if now.saturating_sub(self.last_poll) >= POLL_EVERY {
                self.stay_a_member()?;
            }
            return self.run_work();
        }
        self.poll(now)
    }

    /// Takes up a batch whose wait is over.
    fn take_ready(&mut self) {
        while let Some(partition) = self.ready.pop_front() {
            if let Some(Held { batch, first }) = self.held.remove(&partition) {
                let len = batch.len();
                self.work = Some(Work { partition, batch: Some(batch), next: first, len, paused: true });
                return;
            }
        }
    }

    /// A transaction that nothing more comes for is committed early: after a tenth of the interval.
    fn linger(&self) -> Duration {
        let tenth = self.plan.deployment.policies.batch.commit_interval.duration() / 10;
        (self.last_commit + tenth).saturating_sub(self.now())
    }

    /// The atomic step: outputs and offsets, together or not at all.
    fn commit(&mut self) -> Result<(), LogError> {
        self.pending.due = None;
        if !self.ledger.is_dirty() {
            return Ok(());
        }
        fail::fail_point!("lane::before_commit");
        let start = self.now();
        self.session.ack_commit(&self.ledger)?;
        fail::fail_point!("lane::after_commit");
        let now = self.now();
        self.last_commit = now;
        self.machine.committed();
        self.count_commit(now.saturating_sub(start));
        let moved: Vec<_> = self.ledger.uncommitted().map(|(at, next)| (at.clone(), next)).collect();
        self.ledger.mark_committed();
        self.parts.shared.progress(|report| {
            for (partition, next) in &moved {
                let at = report.partitions.entry(partition.clone()).or_default();
                at.committed = Some(*next);
                at.end = at.end.map(|end| end.max(*next));
            }
        });
        self.parts.shared.settled(moved.iter().map(|(at, _)| at));
        if now.saturating_sub(self.last_lag) >= IDLE_WAIT {
            self.last_lag = now;
            self.report_ends();
        }
        for (partition, next) in moved {
            // Only now is a retry over: the log may still have refused what the record wrote.
            self.machine.progressed(&partition, next);
            if self.careful.get(&partition).is_some_and(|careful| careful.until <= next) {
                self.careful.remove(&partition);
            }
        }
        if self.is_low {
            self.is_low = false;
            self.is_gentle = false;
            (self.parts.low_priority)(false);
        }
        self.update_state();
        Ok(())
    }

    fn count_commit(&mut self, took: Duration) {
        let Pending {
            records_in, records_out, bytes_in, bytes_out, dead_letters, skipped, timestamps, ..
        } = std::mem::take(&mut self.pending);
        let metrics = &self.parts.metrics;
        metrics.records_in.inc_by(records_in);
        metrics.records_out.inc_by(records_out);
        metrics.bytes_in.inc_by(bytes_in);
        metrics.bytes_out.inc_by(bytes_out);
        metrics.dead_letters.inc_by(dead_letters);
        metrics.skipped.inc_by(skipped);
        metrics.commit_seconds.observe(took.as_secs_f64());
        metrics.committed.inc();
        let now_ms = self.parts.clock.wall_ms();
        for timestamp in timestamps {
            metrics.latency.observe((now_ms.saturating_sub(timestamp)).max(0) as f64 / 1_000.0);
        }
    }

    /// Does what the supervisor says. A command that the log got in the way of is done after the rewind.
    fn obey(&mut self, command: Command) -> Result<(), LogError> {
        let Command::Swap { plan, reply } = command;
        let mut fresh = BTreeMap::new();
        for topic in self.chains.keys() {
            match Chain::start(&plan.chain, topic, &self.parts.lines) {
                Ok(chain) => drop(fresh.insert(topic.clone(), chain)),
                Err(failure) => {
                    let _ = reply.send(Err(failure));
                    return Ok(());
                }
            }
        }
        if let Err(error) = self.reach_boundary() {
            self.postponed = Some(Command::Swap { plan, reply });
            return Err(error);
        }
        self.chains = fresh;
        self.machine.set_policy(plan.deployment.policies.error_policy.clone());
        let generation = plan.deployment.generation;
        self.plan = *plan;
        self.parts.shared.change(|report| report.generation = generation);
        let _ = reply.send(Ok(()));
        self.update_state();
        Ok(())
    }

    /// Commits, and takes what is at hand out of the old guests. Partitions that stopped at a record are read again from
    /// there: the new module gets its chance at what the old one failed at.
    fn reach_boundary(&mut self) -> Result<(), LogError> {
        self.commit()?;
        if !self.machine.is_halted() {
            self.take_back_work();
            return Ok(());
        }
        self.machine.forgive();
        self.parts.shared.change(|report| {
            for partition in report.partitions.values_mut() {
                partition.error = None;
            }
        });
        self.abort()
    }

    /// Takes the batch at hand out of its guest, to be offered to another one.
    fn take_back_work(&mut self) {
        if let Some(work) = &mut self.work
            && work.batch.is_none()
            && let Some(chain) = self.chains.get_mut(&work.partition.topic)
        {
            work.next = chain.completed();
            work.batch = Some(chain.withdraw());
        }
    }

    /// Works out the state that the supervisor sees.
    fn update_state(&mut self) {
        let state = if matches!(self.machine.phase(), Phase::Recovering { .. }) || self.machine.is_retrying()
        {
            State::Retrying
        } else if self.machine.is_halted() {
            State::Failed
        } else {
            State::Running
        };
        let memory: usize = self.chains.values().map(Chain::memory_bytes).sum();
        self.parts.metrics.guest_memory.set(memory as i64);
        if self.parts.shared.report().state != state {
            self.parts.shared.change(|report| report.state = state);
        }
    }
}
