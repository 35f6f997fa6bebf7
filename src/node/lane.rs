//! A lane: one consumer, one transactional producer and a chain of guests per input topic, on one thread. The unit
//! of exactly-once.
//!
//! `Lane::turn` does one bounded piece of work and returns, so that a thread, or a simulation, can drive it. What
//! happens on failures is decided by `core::machine`; here it is done. There is one way back after a failure of the
//! log, `recover`, and it drops everything since the last ack-commit.

pub mod report;
mod work;

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use crossbeam_channel::{Receiver, Sender};

use crate::core::disposition::Disposition;
use crate::core::ledger::{Ledger, TopicPartition};
use crate::core::machine::{LogVerdict, Machine, Phase};
use crate::core::names::TopicName;
use crate::core::record::{Batch, Offset};
use crate::core::status::State;
use crate::node::chain::{Chain, StepFailure};
use crate::node::lane::report::LaneShared;
use crate::node::plan::LanePlan;
use crate::ports::{Clock, Event, GuestLines, LaneSession, LogError};
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
    /// Called with `true` when a guest failed and with `false` at the next commit: lowers the thread's priority.
    pub low_priority: Arc<dyn Fn(bool) + Send + Sync>,
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
    /// Owned, and asked for by the group: given up with the next commit or abort that goes through.
    leaving: Vec<TopicPartition>,
    pending: Pending,
    /// Replay one record at a time up to this offset: the log refused something before it.
    careful: BTreeMap<TopicPartition, Offset>,
    refused: BTreeMap<TopicPartition, Refused>,
    spare: Batch,
    last_commit: Duration,
    last_poll: Duration,
    last_lag: Duration,
    is_low: bool,
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
            leaving: Vec::new(),
            pending: Pending::default(),
            careful: BTreeMap::new(),
            refused: BTreeMap::new(),
            spare: Batch::default(),
            last_commit: now,
            last_poll: now,
            last_lag: Duration::ZERO,
            is_low: false,
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

    fn poll(&mut self, now: Duration) -> Result<(), LogError> {
        let until_wake = self.machine.next_wake().map(|wake| wake.saturating_sub(now));
        let until_due = self.pending.due.map(|due| due.saturating_sub(now).min(self.linger()));
        let wait = [Some(IDLE_WAIT), until_wake, until_due].into_iter().flatten().min().unwrap_or(IDLE_WAIT);
        let mut batch = std::mem::take(&mut self.spare);
        let event = self.session.poll(&mut batch, wait);
        self.last_poll = self.now();
        self.take_event(event, batch)
    }

    /// A transaction that nothing more comes for is committed early: after a tenth of the interval.
    fn linger(&self) -> Duration {
        let tenth = self.plan.deployment.policies.batch.commit_interval.duration() / 10;
        (self.last_commit + tenth).saturating_sub(self.now())
    }

    /// While a batch is being worked on: polls without taking records, so that the group does not think us dead.
    fn stay_a_member(&mut self) -> Result<(), LogError> {
        let owned = self.owned.clone();
        self.session.pause(&owned);
        let mut batch = Batch::default();
        let event = self.session.poll(&mut batch, Duration::ZERO);
        self.last_poll = self.now();
        if matches!(event, Event::Records) {
            // Records that were on their way: they wait behind the batch at hand.
            self.hold_back(batch);
        } else {
            self.take_event(event, batch)?;
        }
        let free: Vec<_> = self.owned.iter().filter(|at| self.may_be_polled(at)).cloned().collect();
        self.session.resume(&free);
        Ok(())
    }

    fn may_be_polled(&self, partition: &TopicPartition) -> bool {
        let in_hand = self.work.as_ref().is_some_and(|work| work.paused && work.partition == *partition);
        self.machine.may_process(partition) && !self.held.contains_key(partition) && !in_hand
    }

    fn hold_back(&mut self, batch: Batch) {
        let Some(topic) = batch.topic() else { return };
        let partition = TopicPartition::new(topic, batch.partition());
        self.session.pause(std::slice::from_ref(&partition));
        self.ready.push_back(partition.clone());
        self.held.insert(partition, Held { batch, first: 0 });
    }

    fn take_event(&mut self, event: Event, batch: Batch) -> Result<(), LogError> {
        let is_idle = matches!(event, Event::Idle | Event::CaughtUp { .. });
        match event {
            Event::Records => {
                self.take_records(batch);
                return Ok(());
            }
            Event::Idle => {}
            Event::CaughtUp { partition, next_offset } => {
                if self.may_be_polled(&partition) {
                    self.ledger.advance(&partition, next_offset);
                    if self.ledger.is_dirty() && self.pending.due.is_none() {
                        self.pending.due = Some(self.now() + self.linger());
                    }
                }
            }
            Event::Assigned(partitions) => self.assigned(partitions),
            Event::Revoking { partitions, lost } => self.revoking(&partitions, lost)?,
            Event::Stuck { partition, error } => self.stuck(&partition, &error)?,
            Event::Failed(error) => {
                if let LogError::OffsetOutOfRange { partition, .. } = &error {
                    self.stuck(&partition.clone(), &error)?;
                } else {
                    // What was done is not done again after the rewind: a log that fails after every few records
                    // would otherwise never get on.
                    if error.disposition() != Disposition::Fenced {
                        self.commit()?;
                    }
                    return Err(error);
                }
            }
        }
        self.spare = batch;
        if is_idle {
            self.idle()?;
        }
        Ok(())
    }

    fn take_records(&mut self, batch: Batch) {
        let Some(topic) = batch.topic() else { return };
        let partition = TopicPartition::new(topic, batch.partition());
        if self.machine.halted_at(&partition).is_some() {
            self.session.pause(&[partition]);
            self.spare = batch;
            return;
        }
        let len = batch.len();
        self.work = Some(Work { partition, batch: Some(batch), next: 0, len, paused: false });
    }

    /// Nothing to do: commit what waits, look at the ends.
    fn idle(&mut self) -> Result<(), LogError> {
        if self.pending.due.is_some() && self.linger().is_zero() {
            self.commit()?;
        }
        let now = self.now();
        if now.saturating_sub(self.last_lag) >= IDLE_WAIT {
            self.last_lag = now;
            self.report_ends();
        }
        Ok(())
    }

    fn report_ends(&mut self) {
        let ends = self.session.end_offsets();
        self.parts.shared.progress(|report| {
            for (partition, end) in &ends {
                if let Some(at) = report.partitions.get_mut(partition) {
                    at.end = Some(*end);
                }
            }
        });
        for (partition, end) in ends {
            if let Some(committed) = self.ledger.committed(&partition) {
                let lag = u64::try_from(end - committed).unwrap_or(0);
                self.parts.metrics.set_lag(partition.topic.as_str(), partition.partition, Some(lag));
            }
        }
    }

    fn assigned(&mut self, partitions: Vec<TopicPartition>) {
        self.parts.shared.change(|report| {
            for partition in &partitions {
                report.partitions.entry(partition.clone()).or_default();
            }
        });
        for partition in partitions {
            if !self.owned.contains(&partition) {
                self.owned.push(partition);
            }
        }
    }

    /// Partitions go to somebody else. Whatever the commit makes of it, they are given up: nobody else gets them before.
    fn revoking(&mut self, partitions: &[TopicPartition], lost: bool) -> Result<(), LogError> {
        let new = partitions.iter().filter(|at| !self.leaving.contains(at)).cloned();
        let new: Vec<_> = new.collect();
        self.leaving.extend(new);
        if lost {
            return self.abort();
        }
        if let Err(error) = self.commit() {
            if matches!(error, LogError::RecordRefused { .. }) {
                self.blame(&error);
            }
            if let Err(again) = self.abort() {
                tracing::debug!(error = %again, "partitions are given up after the next abort that goes through");
            }
            return Err(error);
        }
        self.leave();
        Ok(())
    }

    /// Gives up the partitions that are to go; nothing of theirs is uncommitted any more.
    fn leave(&mut self) {
        if self.leaving.is_empty() {
            return;
        }
        let partitions = std::mem::take(&mut self.leaving);
        if self.work.as_ref().is_some_and(|work| partitions.contains(&work.partition)) {
            self.drop_work();
        }
        self.held.retain(|at, _| !partitions.contains(at));
        self.ready.retain(|at| !partitions.contains(at));
        self.owned.retain(|at| !partitions.contains(at));
        self.careful.retain(|at, _| !partitions.contains(at));
        self.refused.retain(|at, _| !partitions.contains(at));
        self.ledger.forget(&partitions);
        self.machine.revoked(&partitions);
        self.parts.shared.change(|report| report.partitions.retain(|at, _| !partitions.contains(at)));
        for at in &partitions {
            self.parts.metrics.set_lag(at.topic.as_str(), at.partition, None);
        }
        self.session.release();
        self.update_state();
    }

    /// A partition cannot be read on.
    fn stuck(&mut self, at: &TopicPartition, error: &LogError) -> Result<(), LogError> {
        self.commit()?;
        let (reason, offset) = match error {
            LogError::OffsetOutOfRange { wanted, .. } => ("OffsetOutOfRange", Some(*wanted)),
            LogError::Corrupt(_) => ("LogDamaged", self.ledger.next(at)),
            _ => ("OffsetMissing", self.ledger.next(at)),
        };
        tracing::warn!(deployment = %self.plan.identity, partition = %at, %error, "the partition cannot be read on");
        self.parts.shared.progress(|report| {
            let report = report.partitions.entry(at.clone()).or_default();
            report.committed = report.committed.or(offset);
        });
        self.halt(at, offset.unwrap_or_default(), reason, format!("partition {at}: {error}"));
        Ok(())
    }

    /// A partition stops at `offset` for good; the others go on.
    fn halt(&mut self, at: &TopicPartition, offset: Offset, reason: &str, message: String) {
        self.machine.halt(at, offset);
        self.session.pause(std::slice::from_ref(at));
        self.held.remove(at);
        self.ready.retain(|ready| ready != at);
        // The status is written now: the lag in it is to be the one of now.
        self.report_ends();
        self.parts.shared.error(self.parts.clock.wall_ms(), reason, message.clone());
        self.parts.shared.change(|report| {
            report.partitions.entry(at.clone()).or_default().error = Some(message);
        });
        self.update_state();
    }

    /// Drops the batch at hand; a guest that was in its middle goes with it.
    fn drop_work(&mut self) {
        if let Some(work) = self.work.take()
            && work.batch.is_none()
        {
            self.chains.remove(&work.partition.topic);
        }
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
        if now.saturating_sub(self.last_lag) >= IDLE_WAIT {
            self.last_lag = now;
            self.report_ends();
        }
        for (partition, next) in moved {
            // Only now is a retry over: the log may still have refused what the record wrote.
            self.machine.progressed(&partition, next);
            if self.careful.get(&partition).is_some_and(|end| *end <= next) {
                self.careful.remove(&partition);
            }
        }
        if self.is_low {
            self.is_low = false;
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

    fn log_failed(&mut self, error: LogError) -> Turn {
        match &error {
            LogError::RecordRefused { .. } => self.blame(&error),
            // Some record takes long: one transaction for each, so that it does not take others along again.
            LogError::Expired(_) => self.go_carefully(),
            _ => {}
        }
        let (now, jitter) = (self.now(), self.jitter());
        self.parts.metrics.aborted.inc();
        let is_refusal = matches!(error, LogError::RecordRefused { .. });
        if error.disposition() == Disposition::User && !is_refusal {
            self.machine.stopped();
            return Turn::Ended(End::Refused(error));
        }
        let disposition = if is_refusal { Disposition::Transient } else { error.disposition() };
        match self.machine.log_failed(disposition, now, jitter) {
            LogVerdict::GiveUp => Turn::Ended(End::Fenced(error)),
            LogVerdict::RewindAt(_) => {
                tracing::warn!(deployment = %self.plan.identity, %error, "the log failed: the lane rewinds");
                self.parts.shared.error(self.parts.clock.wall_ms(), "LogFailed", error.to_string());
                self.update_state();
                Turn::Continue
            }
        }
    }

    /// The log refused a record. With one record in the transaction that is the one; otherwise what was in it is
    /// replayed one record at a time.
    fn blame(&mut self, error: &LogError) {
        let at_hand = self.work.as_ref().map(|work| work.partition.clone());
        match at_hand.filter(|at| self.careful.contains_key(at)) {
            Some(at) => {
                let offset = self.at_hand_offset().unwrap_or_default();
                self.refused.insert(at, Refused { offset, message: error.to_string() });
            }
            None => self.go_carefully(),
        }
    }

    /// What is in the open transaction is replayed one record at a time, each in a transaction of its own.
    fn go_carefully(&mut self) {
        let open: Vec<_> = self.ledger.uncommitted().map(|(at, next)| (at.clone(), next)).collect();
        let at_hand = self.work.as_ref().map(|work| work.partition.clone());
        for (partition, next) in open {
            self.careful.insert(partition, next);
        }
        // The batch at hand may have emitted without having moved the ledger yet.
        if let Some(at) = at_hand
            && let Some(last) = self.last_offset_at_hand()
        {
            self.careful.insert(at, last + 1);
        }
    }

    fn recover(&mut self, until: Duration) -> Turn {
        let now = self.now();
        let left = until.saturating_sub(now);
        if !left.is_zero() {
            // A waiting lane stays a member of its group, but takes nothing.
            let mut batch = Batch::default();
            let owned = self.owned.clone();
            self.session.pause(&owned);
            match self.session.poll(&mut batch, left.min(IDLE_WAIT)) {
                Event::Assigned(partitions) => self.assigned(partitions),
                Event::Revoking { partitions, .. } => {
                    // What is uncommitted is going to be dropped anyway: a lost revocation is the same here.
                    if let Err(error) = self.revoking(&partitions, true) {
                        return self.log_failed(error);
                    }
                }
                // A log that fails at once must not make the lane spin.
                Event::Failed(_) => self.parts.clock.sleep(Duration::from_millis(10).min(left)),
                Event::Records | Event::Idle | Event::CaughtUp { .. } | Event::Stuck { .. } => {}
            }
            return Turn::Continue;
        }
        match self.abort() {
            Ok(()) => {
                self.machine.rewound();
                self.update_state();
                Turn::Continue
            }
            Err(error) => self.log_failed(error),
        }
    }

    /// The one way back: everything since the last ack-commit is dropped, guests included.
    fn abort(&mut self) -> Result<(), LogError> {
        self.work = None;
        self.held.clear();
        self.ready.clear();
        self.chains.clear();
        self.pending = Pending::default();
        self.ledger.rewind();
        self.session.rewind()?;
        self.leave();
        let (standing, free): (Vec<_>, Vec<_>) =
            self.owned.iter().cloned().partition(|at| self.machine.halted_at(at).is_some());
        self.session.pause(&standing);
        self.session.resume(&free);
        Ok(())
    }

    fn finish(&mut self, may_commit: bool) -> End {
        self.machine.stopped();
        if !may_commit {
            // The log failed: what is uncommitted is dropped with the session, and read again at the next start.
            return End::Drained;
        }
        match self.commit() {
            Ok(()) => End::Drained,
            Err(error) => {
                // Nothing is lost: what was not committed is read again at the next start.
                tracing::warn!(deployment = %self.plan.identity, %error, "the last commit failed: it is done again at the next start");
                End::Drained
            }
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
