//! A lane's work on one batch: run the guests, emit what finished records wrote, deal with the record that failed.

use std::sync::Arc;
use std::time::Duration;

use crate::core::ledger::TopicPartition;
use crate::core::machine::Verdict;
use crate::core::record::{Batch, Offset, RecordRef, TimestampMs};
use crate::node::chain::{self, Chain, ChainRun, StepFailure};
use crate::node::dead_letter::dead_letter;
use crate::node::lane::{Alone, Held, Lane, Work};
use crate::node::plan::Route;
use crate::ports::{Emit, LogError, RunBudget};

/// The shortest time that a guest is given at once.
const MIN_RUN: Duration = Duration::from_millis(1);
/// Output bytes after which a guest is suspended and they are emitted: until then they lie in the lane's memory.
const RUN_BYTES: u64 = 16 << 20;

impl Lane {
    /// Runs the batch at hand until it is done, a commit is due, or a record fails.
    pub(super) fn run_work(&mut self) -> Result<(), LogError> {
        let Some(mut work) = self.work.take() else { return Ok(()) };
        let alone = self.careful.get(&work.partition).map(|careful| careful.alone);
        if alone.is_some() && work.batch.is_some() && self.pending.due.is_some() {
            // What comes may be slow, or to blame: what was before it must not go with it.
            self.commit()?;
        }
        if let Some((offset, message)) = self.known_refusal(&work) {
            let batch = work.batch.take().unwrap_or_default();
            let failure = chain::refused(&self.plan.chain, message);
            return self.fail_record(work, batch, offset, &failure);
        }
        let topic = work.partition.topic.clone();
        if !self.chains.contains_key(&topic) {
            match Chain::start(&self.plan.chain, &topic, &self.parts.lines) {
                Ok(chain) => drop(self.chains.insert(topic.clone(), chain)),
                Err(failure) => return self.start_failed(work, &failure),
            }
        }
        let Some(mut chain) = self.chains.remove(&topic) else { return Ok(()) };
        if let Some(batch) = work.batch.take() {
            if work.next == 0 {
                self.pending.timestamps.extend(batch.get(0).map(|record| record.timestamp));
            }
            let is_single = alone == Some(Alone::Record);
            let batch = if is_single { self.first_only(&mut work, batch) } else { batch };
            chain.offer(batch, work.next);
        }
        let before = work.next;
        let budget = self.budget();
        let start = self.now();
        let run = chain.run(&budget);
        let took = self.now().saturating_sub(start);
        self.parts.metrics.guest_seconds.inc_by(took.as_secs_f64());
        let (done, run) = self.check_outputs(&topic, &mut chain, run);
        self.work = Some(work);
        let emitted = self.emit(&mut chain, done);
        let Some(mut work) = self.work.take() else { return Ok(()) };
        if let Err(error) = emitted {
            // The lane rewinds; `blame` wants to know which batch it was.
            self.work = Some(work);
            self.chains.insert(topic, chain);
            return Err(error);
        }
        work.next = done;
        let next_offset = match chain.source(done) {
            Some((offset, _)) => offset,
            None => chain.source(done.saturating_sub(1)).map_or(0, |(offset, _)| offset + 1),
        };
        self.moved(&work.partition, before, done, next_offset, &chain);
        match run {
            ChainRun::Finished => {
                let batch = chain.withdraw();
                self.chains.insert(topic, chain);
                self.finished(work, batch, alone.is_some())
            }
            ChainRun::Suspended => {
                self.chains.insert(topic, chain);
                self.work = Some(work);
                if alone.is_some() { self.commit() } else { Ok(()) }
            }
            ChainRun::Failed(failure) => {
                let batch = chain.withdraw();
                drop(chain);
                let offset = batch.get(done).map_or(next_offset, |record| record.offset);
                self.fail_record(work, batch, offset, &failure)
            }
        }
    }

    fn budget(&self) -> RunBudget {
        let policy = &self.plan.deployment.policies.batch;
        let left = self.pending.due.map(|due| due.saturating_sub(self.now()));
        RunBudget {
            stop: Arc::clone(&self.parts.stop),
            output_bytes: self.commit_bytes().saturating_sub(self.pending.bytes_out).clamp(1, RUN_BYTES)
                as usize,
            time: left.unwrap_or(policy.commit_interval.duration()).max(MIN_RUN),
            gently: self.is_gentle,
        }
    }

    /// Output bytes after which it is committed.
    fn commit_bytes(&self) -> u64 {
        self.plan.deployment.policies.batch.max_commit_bytes.0.min(self.session.commit_room())
    }

    /// The log refused a record once: what is said of the record at hand, if it is that one.
    fn known_refusal(&mut self, work: &Work) -> Option<(Offset, String)> {
        let refused = self.refused.get(&work.partition)?;
        let at = work.batch.as_ref()?.get(work.next)?.offset;
        if at < refused.offset {
            return None;
        }
        let refused = self.refused.remove(&work.partition)?;
        (at == refused.offset).then_some((at, refused.message))
    }

    /// Cuts the batch to the record that is next; the others are held back.
    fn first_only(&mut self, work: &mut Work, batch: Batch) -> Batch {
        let mut one = Batch::default();
        one.reset(&work.partition.topic, work.partition.partition);
        if let Some(record) = batch.get(work.next) {
            one.push(record.offset, record.timestamp, record.payload);
        }
        if work.next + 1 < batch.len() {
            self.session.pause(std::slice::from_ref(&work.partition));
            work.paused = true;
            let first = work.next + 1;
            self.held.insert(work.partition.clone(), Held { batch, first });
            self.ready.push_front(work.partition.clone());
        }
        work.next = 0;
        work.len = one.len();
        one
    }

    /// Looks at the outputs before any of them is emitted: a record with one that its topic does not take has failed.
    fn check_outputs(
        &self,
        topic: &crate::core::names::TopicName,
        chain: &mut Chain,
        run: ChainRun,
    ) -> (usize, ChainRun) {
        let routes = self.plan.routes.get(topic).map(Vec::as_slice).unwrap_or_default();
        let done = chain.completed();
        let refused = chain.first_refused(|output| match routes.get(usize::from(output.topic)) {
            Some(route) => refusal(route, output.payload),
            None => Some(format!("the guest wrote to output {}, which does not exist", output.topic)),
        });
        match refused {
            Some((source, message)) if source < done => {
                (source, ChainRun::Failed(chain::refused(&self.plan.chain, message)))
            }
            _ => (done, run),
        }
    }

    /// Emits what the records before `done` wrote.
    fn emit(&mut self, chain: &mut Chain, done: usize) -> Result<(), LogError> {
        let Some(work) = &self.work else { return Ok(()) };
        let partition = work.partition.partition;
        let routes = self.plan.routes.get(&work.partition.topic).map(Vec::as_slice).unwrap_or_default();
        let (session, pending) = (&mut self.session, &mut self.pending);
        chain.drain(done, |output, timestamp| {
            let Some(route) = routes.get(usize::from(output.topic)) else { return Ok(()) };
            pending.records_out += 1;
            pending.bytes_out += output.payload.len() as u64;
            session.emit(&Emit {
                topic: &route.topic,
                placement: route.placement(partition),
                timestamp,
                payload: output.payload,
            })
        })
    }

    /// Everything before `next` is done, but not committed.
    fn moved(&mut self, at: &TopicPartition, before: usize, done: usize, next: Offset, chain: &Chain) {
        if done == before {
            return;
        }
        self.ledger.advance(at, next);
        self.pending.records_in += (done - before) as u64;
        self.pending.bytes_in += chain.source_bytes(before, done);
        self.set_due();
    }

    fn set_due(&mut self) {
        let policy = &self.plan.deployment.policies.batch;
        let now = self.now();
        let is_full = self.pending.records_in >= u64::from(policy.max_commit_records)
            || self.pending.bytes_out >= self.commit_bytes();
        if is_full {
            self.pending.due = Some(now);
        } else if self.pending.due.is_none() {
            self.pending.due = Some(now + policy.commit_interval.duration());
        }
    }

    fn finished(&mut self, work: Work, batch: Batch, careful: bool) -> Result<(), LogError> {
        self.spare = batch;
        if careful {
            self.work = Some(Work { batch: None, ..work });
            let committed = self.commit();
            let Some(work) = self.work.take() else { return committed };
            if let Err(error) = committed {
                self.work = Some(work);
                return Err(error);
            }
            self.let_go(&work);
        } else {
            self.let_go(&work);
        }
        Ok(())
    }

    fn let_go(&mut self, work: &Work) {
        if work.paused && !self.held.contains_key(&work.partition) {
            self.session.resume(std::slice::from_ref(&work.partition));
        }
    }

    /// The offset of the record at hand.
    pub(super) fn at_hand_offset(&self) -> Option<Offset> {
        let work = self.work.as_ref()?;
        match &work.batch {
            Some(batch) => batch.get(work.next).map(|record| record.offset),
            None => self.chains.get(&work.partition.topic)?.source(0).map(|(offset, _)| offset),
        }
    }

    /// The last offset of the batch at hand.
    pub(super) fn last_offset_at_hand(&self) -> Option<Offset> {
        let work = self.work.as_ref()?;
        let chain = self.chains.get(&work.partition.topic)?;
        chain.source(work.len.checked_sub(1)?).map(|(offset, _)| offset)
    }

    /// A guest could not be started: no record's fault. The lane waits and tries again; nothing is lost.
    fn start_failed(&mut self, work: Work, failure: &StepFailure) -> Result<(), LogError> {
        self.guest_failed_metrics(failure, "GuestStartFailed");
        self.commit()?;
        self.work = Some(work);
        let message = format!("the guest does not start: {failure}");
        Err(LogError::Unavailable(message))
    }

    fn guest_failed_metrics(&mut self, failure: &StepFailure, reason: &str) {
        self.parts.metrics.guest_error(failure.failure.class.as_str());
        self.parts.shared.error(self.parts.clock.wall_ms(), reason, failure.to_string());
        if !self.is_low {
            self.is_low = true;
            self.is_gentle = !(self.parts.low_priority)(true);
        }
    }

    /// A record failed: what came before it is committed, then it is retried, left out, or ends its partition.
    fn fail_record(
        &mut self,
        work: Work,
        batch: Batch,
        offset: Offset,
        failure: &StepFailure,
    ) -> Result<(), LogError> {
        let at = work.partition.clone();
        let index = (work.next..batch.len()).find(|i| batch.get(*i).is_some_and(|r| r.offset >= offset));
        let Some(index) = index else { return Ok(()) };
        // What came before is committed up to here, so that a retry, or a crash, does not do it again.
        self.ledger.advance(&at, offset);
        self.commit()?;
        self.guest_failed_metrics(failure, "GuestFailed");
        let attempts = self.machine.attempts(&at, offset) + 1;
        let (now, jitter) = (self.now(), self.jitter());
        let verdict = self.machine.guest_failed(&at, offset, now, jitter);
        let message = format!("record {at}@{offset}, attempt {attempts}: {failure}");
        let next = match &verdict {
            Verdict::Retry { .. } => "it is tried again",
            Verdict::Halt => "its partition stops there",
            Verdict::Skip => "it is left out",
            Verdict::DeadLetter => "it goes to the dead letters",
        };
        tracing::warn!(deployment = %self.plan.identity, "{message}: {next}");
        self.parts.shared.error(self.parts.clock.wall_ms(), "GuestFailed", message.clone());
        match verdict {
            Verdict::Retry { .. } => {
                self.parts.metrics.retries.inc();
                self.session.pause(std::slice::from_ref(&at));
                self.hold(at, batch, index);
            }
            Verdict::Halt => self.halt(&at, offset, "GuestFailed", message),
            Verdict::Skip => {
                self.pending.skipped += 1;
                self.commit_past(&at, offset)?;
                self.go_on_after(work, batch, index);
            }
            Verdict::DeadLetter => {
                let record = batch.get(index);
                let written = record.map_or(Ok(()), |r| self.emit_dead_letter(&at, &r, failure, attempts));
                // It is alone in its transaction: a refusal at the commit is about it too.
                match written.and_then(|()| self.commit_past(&at, offset)) {
                    Err(error @ LogError::RecordRefused { .. }) => {
                        // Trying it again would end here again, for ever.
                        let message = format!("{message}; its dead letter was refused: {error}");
                        tracing::warn!(deployment = %self.plan.identity, "{message}");
                        self.halt(&at, offset, "DeadLetterRefused", message);
                        self.abort()?;
                    }
                    written => {
                        written?;
                        self.go_on_after(work, batch, index);
                    }
                }
            }
        }
        self.update_state();
        Ok(())
    }

    /// Keeps the batch from `index` on until its partition's wait is over. In careful replay the rest of the batch is
    /// held already: the failing record goes before it.
    fn hold(&mut self, at: TopicPartition, batch: Batch, index: usize) {
        self.ready.retain(|ready| *ready != at);
        let held = match self.held.remove(&at) {
            None => Held { batch, first: index },
            Some(rest) => Held { batch: joined(&at, &batch, index, &rest), first: 0 },
        };
        self.held.insert(at, held);
    }

    /// The record at `offset` is dealt with.
    fn commit_past(&mut self, at: &TopicPartition, offset: Offset) -> Result<(), LogError> {
        self.ledger.advance(at, offset + 1);
        self.pending.records_in += 1;
        self.commit()
    }

    /// Goes on after the record at `index`.
    fn go_on_after(&mut self, work: Work, batch: Batch, index: usize) {
        if index + 1 < batch.len() {
            self.work = Some(Work { batch: Some(batch), next: index + 1, ..work });
        } else {
            self.spare = batch;
            self.let_go(&work);
        }
    }

    fn emit_dead_letter(
        &mut self,
        at: &TopicPartition,
        record: &RecordRef<'_>,
        failure: &StepFailure,
        attempts: u32,
    ) -> Result<(), LogError> {
        let Some(route) = &self.plan.dead_letters else {
            return Err(LogError::BadConfig("there is no dead-letter topic".into()));
        };
        let payload = dead_letter(at, record, failure, attempts, route.max_record_bytes);
        let timestamp: TimestampMs = record.timestamp;
        let placement = route.placement(at.partition);
        self.session.emit(&Emit { topic: &route.topic, placement, timestamp, payload: &payload })?;
        self.pending.dead_letters += 1;
        Ok(())
    }
}

/// What a topic has against a payload: its size, or a missing key on a compacted topic.
fn refusal(route: &Route, payload: &[u8]) -> Option<String> {
    /// A payload that starts so has a null key.
    const NULL_KEY: u8 = 1;
    if payload.len() > route.max_record_bytes {
        let (size, max) = (payload.len(), route.max_record_bytes);
        return Some(format!("the output has {size} bytes, topic {} takes at most {max}", route.topic));
    }
    if route.needs_key && payload.first() == Some(&NULL_KEY) {
        return Some(format!("the output has no key, and topic {} is compacted: it needs one", route.topic));
    }
    None
}

fn joined(at: &TopicPartition, batch: &Batch, index: usize, rest: &Held) -> Batch {
    let mut all = Batch::default();
    all.reset(&at.topic, at.partition);
    let records = batch.iter().skip(index).chain(rest.batch.iter().skip(rest.first));
    for record in records {
        all.push(record.offset, record.timestamp, record.payload);
    }
    all
}
