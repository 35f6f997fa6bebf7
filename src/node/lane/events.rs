//! What the log tells a lane: records, ends, partitions that come and go, partitions that cannot be read on.

use std::collections::BTreeMap;
use std::time::Duration;

use crate::core::disposition::Disposition;
use crate::core::ledger::TopicPartition;
use crate::core::record::{Batch, Offset};
use crate::node::lane::{Held, IDLE_WAIT, Lane, Work};
use crate::ports::{Event, LogError};

impl Lane {
    pub(super) fn poll(&mut self, now: Duration) -> Result<(), LogError> {
        let until_wake = self.machine.next_wake().map(|wake| wake.saturating_sub(now));
        let until_due = self.pending.due.map(|due| due.saturating_sub(now).min(self.linger()));
        let wait = [Some(IDLE_WAIT), until_wake, until_due].into_iter().flatten().min().unwrap_or(IDLE_WAIT);
        let mut batch = std::mem::take(&mut self.spare);
        let event = self.session.poll(&mut batch, wait);
        self.last_poll = self.now();
        self.take_event(event, batch)
    }

    /// While a batch is being worked on: polls without taking records, so that the group does not think us dead.
    pub(super) fn stay_a_member(&mut self) -> Result<(), LogError> {
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
        // The end of one partition is not the end of work: others may have records at hand.
        let is_idle = matches!(event, Event::Idle);
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
                    self.keep_what_was_done(&error)?;
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

    /// What was done is not done again after the rewind: a log that fails after every few records would otherwise never get
    /// on. What a failed commit says counts only where waiting mends the first error: the log says others once.
    fn keep_what_was_done(&mut self, error: &LogError) -> Result<(), LogError> {
        if error.disposition() == Disposition::Fenced {
            return Ok(());
        }
        match self.commit() {
            Err(failed)
                if error.disposition() != Disposition::User
                    || failed.disposition() == Disposition::Fenced =>
            {
                Err(failed)
            }
            _ => Ok(()),
        }
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

    pub(super) fn report_ends(&mut self) {
        self.parts.shared.settled(&self.session.settled());
        let extents = self.session.extents();
        let metrics = &self.parts.metrics;
        self.parts.shared.progress(|report| {
            for (partition, extent) in &extents {
                let Some(at) = report.partitions.get_mut(partition) else { continue };
                (at.first, at.end) = (Some(extent.first), Some(extent.end));
                metrics.set_lag(partition.topic.as_str(), partition.partition, at.lag());
            }
        });
    }

    pub(super) fn assigned(&mut self, partitions: Vec<TopicPartition>) {
        // A lag that counts from 0 until the first commit would be wrong.
        let starts: BTreeMap<_, _> = self.session.starts().into_iter().collect();
        self.parts.shared.change(|report| {
            for partition in &partitions {
                let at = report.partitions.entry(partition.clone()).or_default();
                at.committed = at.committed.or(starts.get(partition).copied());
            }
        });
        for partition in partitions {
            if !self.owned.contains(&partition) {
                self.owned.push(partition);
            }
        }
    }

    /// Partitions go to somebody else. Whatever the commit makes of it, they are given up: nobody else gets them before.
    pub(super) fn revoking(&mut self, partitions: &[TopicPartition], lost: bool) -> Result<(), LogError> {
        let leaving = self.leaving.get_or_insert_default();
        for at in partitions {
            if !leaving.contains(at) {
                leaving.push(at.clone());
            }
        }
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
    pub(super) fn leave(&mut self) {
        let Some(partitions) = self.leaving.take() else { return };
        if self.work.as_ref().is_some_and(|work| partitions.contains(&work.partition)) {
            self.drop_work();
        }
        self.held.retain(|at, _| !partitions.contains(at));
        self.ready.retain(|at| !partitions.contains(at));
        self.owned.retain(|at| !partitions.contains(at));
        // What is known of their records stays, by its offsets: they may come back at once, where only the clients were made
        // anew.
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
        let (reason, offset, extent) = match error {
            LogError::OffsetOutOfRange { wanted, first, end, .. } => {
                ("OffsetOutOfRange", Some(*wanted), Some((*first, *end)).filter(|(first, _)| *first >= 0))
            }
            LogError::Corrupt(_) => ("LogDamaged", self.ledger.next(at), None),
            _ => ("OffsetMissing", self.ledger.next(at), None),
        };
        tracing::warn!(deployment = %self.plan.identity, partition = %at, %error, "the partition cannot be read on");
        self.parts.shared.progress(|report| {
            let report = report.partitions.entry(at.clone()).or_default();
            report.committed = report.committed.or(offset);
            if let Some((first, end)) = extent {
                (report.first, report.end) = (Some(first), Some(end));
            }
        });
        self.halt(at, offset.unwrap_or_default(), reason, format!("partition {at}: {error}"));
        Ok(())
    }

    /// A partition stops at `offset` for good; the others go on.
    pub(super) fn halt(
        &mut self,
        at: &TopicPartition,
        offset: Offset,
        reason: &'static str,
        message: String,
    ) {
        self.machine.halt(at, offset);
        self.session.pause(std::slice::from_ref(at));
        self.held.remove(at);
        self.ready.retain(|ready| ready != at);
        // The status is written now: the lag in it is to be the one of now.
        self.report_ends();
        self.parts.shared.error(self.parts.clock.wall_ms(), reason, message.clone());
        self.parts.shared.change(|report| {
            report.partitions.entry(at.clone()).or_default().error = Some((reason, message));
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
}
