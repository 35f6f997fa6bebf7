//! The way back after a failure of the log, and the end of a lane.

use std::time::Duration;

use crate::core::disposition::Disposition;
use crate::core::machine::LogVerdict;
use crate::core::record::Batch;
use crate::node::lane::{Alone, Careful, End, IDLE_WAIT, Lane, Pending, Refused, Turn};
use crate::ports::{Event, LogError};

impl Lane {
    pub(super) fn log_failed(&mut self, error: LogError) -> Turn {
        match &error {
            LogError::RecordRefused { .. } => self.blame(&error),
            // Some record takes long: no transaction may be open while it does.
            LogError::Expired(_) => self.go_carefully(Alone::Run),
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
                self.session.abandon();
                self.update_state();
                Turn::Continue
            }
        }
    }

    /// The log refused a record. With one record in the transaction that is the one; otherwise what was in it is
    /// replayed one record at a time.
    pub(super) fn blame(&mut self, error: &LogError) {
        let at_hand = self.work.as_ref().map(|work| work.partition.clone());
        let is_alone = |at: &_| self.careful.get(at).is_some_and(|careful| careful.alone == Alone::Record);
        match at_hand.filter(is_alone) {
            Some(at) => {
                let offset = self.at_hand_offset().unwrap_or_default();
                self.refused.insert(at, Refused { offset, message: error.to_string() });
            }
            None => self.go_carefully(Alone::Record),
        }
    }

    /// What is in the open transaction is replayed with care. What expires again in spite of it is replayed record by
    /// record.
    fn go_carefully(&mut self, alone: Alone) {
        let mut open: Vec<_> = self.ledger.uncommitted().map(|(at, next)| (at.clone(), next)).collect();
        // The batch at hand may have emitted without having moved the ledger yet.
        let at_hand = self.work.as_ref().map(|work| work.partition.clone());
        open.extend(at_hand.zip(self.last_offset_at_hand().map(|last| last + 1)));
        let earlier = std::mem::take(&mut self.careful);
        for (partition, until) in open {
            let alone = if earlier.contains_key(&partition) { Alone::Record } else { alone };
            self.careful.insert(partition, Careful { until, alone });
        }
        for (partition, careful) in earlier {
            self.careful.entry(partition).or_insert(careful);
        }
    }

    pub(super) fn recover(&mut self, until: Duration) -> Turn {
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
                // Waiting does not help, and it may be said once only.
                Event::Failed(error)
                    if matches!(error.disposition(), Disposition::User | Disposition::Fenced) =>
                {
                    return self.log_failed(error);
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
    pub(super) fn abort(&mut self) -> Result<(), LogError> {
        self.work = None;
        self.held.clear();
        self.ready.clear();
        self.chains.clear();
        self.pending = Pending::default();
        self.ledger.rewind();
        self.session.rewind()?;
        // Their batches are gone with the rest: they come again.
        self.machine.reread();
        self.leave();
        let (standing, free): (Vec<_>, Vec<_>) =
            self.owned.iter().cloned().partition(|at| self.machine.halted_at(at).is_some());
        self.session.pause(&standing);
        self.session.resume(&free);
        Ok(())
    }

    pub(super) fn finish(&mut self, may_commit: bool) -> End {
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
}
