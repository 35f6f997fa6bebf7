//! The state machine of a lane: what to do when a guest or the log fails, decided without doing it.
//!
//! Time is a parameter (since any fixed point) and so is jitter. The lane asks, then acts.

use std::collections::BTreeMap;
use std::time::Duration;

use crate::core::deployment::{ErrorPolicy, OnExhausted};
use crate::core::disposition::Disposition;
use crate::core::ledger::TopicPartition;
use crate::core::record::Offset;
use crate::core::retry::RetrySchedule;

/// Where a lane is in its life.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Phase {
    /// It processes records.
    Running,
    /// The log failed: it is rewound at `until`.
    Recovering {
        /// When.
        until: Duration,
        /// Failures in a row.
        attempt: u32,
    },
    /// It makes its last commit and ends.
    Draining,
    /// It ended.
    Stopped,
}

/// A partition that does not simply move on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Trouble {
    /// The record at `offset` failed `attempt` times; it is tried again at `until`.
    BackingOff { offset: Offset, attempt: u32, until: Duration },
    /// The record at `offset` is being tried again for the `attempt`-th time.
    Retrying { offset: Offset, attempt: u32 },
    /// The record at `offset` failed for good; the partition stands.
    Halted { offset: Offset },
    /// The partition went to somebody else while the record at `offset` was to be tried again. It may come back.
    Away { offset: Offset, attempt: u32 },
}

/// What is done about a record that a guest failed at.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// It is tried again at `until`, on a fresh instance.
    Retry {
        /// When.
        until: Duration,
    },
    /// The partition stops there.
    Halt,
    /// It is left out.
    Skip,
    /// It goes to the dead-letter topic.
    DeadLetter,
}

/// What is done about a failure of the log.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LogVerdict {
    /// The lane rewinds at `until`.
    RewindAt(Duration),
    /// The lane ends: somebody else has its slot.
    GiveUp,
}

/// The waits between rewinds while the log is not well.
pub const LOG_SCHEDULE: RetrySchedule =
    RetrySchedule { initial: Duration::from_millis(100), max: Duration::from_secs(5) };

/// The state of one lane.
#[derive(Debug, Clone)]
pub struct Machine {
    phase: Phase,
    log_failures: u32,
    troubles: BTreeMap<TopicPartition, Trouble>,
    policy: ErrorPolicy,
}

impl Machine {
    /// A lane that runs, under this error policy.
    pub fn new(policy: ErrorPolicy) -> Self {
        Self { phase: Phase::Running, log_failures: 0, troubles: BTreeMap::new(), policy }
    }

    /// Where the lane is in its life.
    pub fn phase(&self) -> Phase {
        self.phase
    }

    /// Takes over a changed policy. Retries that are under way keep their count.
    pub fn set_policy(&mut self, policy: ErrorPolicy) {
        self.policy = policy;
    }

    /// Forgets every trouble: other code runs from now on.
    pub fn forgive(&mut self) {
        self.troubles.clear();
    }

    /// The error policy in force.
    pub fn policy(&self) -> &ErrorPolicy {
        &self.policy
    }

    /// A guest failed at the record at `offset`.
    pub fn guest_failed(
        &mut self,
        partition: &TopicPartition,
        offset: Offset,
        now: Duration,
        jitter: f64,
    ) -> Verdict {
        let failures = self.attempts(partition, offset) + 1;
        if failures <= self.policy.max_retries {
            let until = now + self.policy.schedule().delay(failures, jitter);
            let trouble = Trouble::BackingOff { offset, attempt: failures, until };
            self.troubles.insert(partition.clone(), trouble);
            return Verdict::Retry { until };
        }
        match self.policy.on_exhausted {
            OnExhausted::Fail => {
                self.troubles.insert(partition.clone(), Trouble::Halted { offset });
                Verdict::Halt
            }
            OnExhausted::Skip => {
                self.troubles.remove(partition);
                Verdict::Skip
            }
            OnExhausted::DeadLetter => {
                self.troubles.remove(partition);
                Verdict::DeadLetter
            }
        }
    }

    /// The partition stops at `offset`, whatever the policy says: nothing can be done about what stands there.
    pub fn halt(&mut self, partition: &TopicPartition, offset: Offset) {
        self.troubles.insert(partition.clone(), Trouble::Halted { offset });
    }

    /// How often the record at `offset` has failed so far.
    pub fn attempts(&self, partition: &TopicPartition, offset: Offset) -> u32 {
        match self.troubles.get(partition) {
            Some(
                Trouble::BackingOff { offset: at, attempt, .. }
                | Trouble::Retrying { offset: at, attempt }
                | Trouble::Away { offset: at, attempt },
            ) if *at == offset => *attempt,
            _ => 0,
        }
    }

    /// Everything before `next` went through: a retry that was under way is over.
    pub fn progressed(&mut self, partition: &TopicPartition, next: Offset) {
        let over = match self.troubles.get(partition) {
            Some(
                Trouble::Retrying { offset, .. }
                | Trouble::BackingOff { offset, .. }
                | Trouble::Away { offset, .. },
            ) => *offset < next,
            Some(Trouble::Halted { .. }) | None => false,
        };
        if over {
            self.troubles.remove(partition);
        }
    }

    /// The partitions whose wait is over; they count as being retried from now on.
    pub fn take_due(&mut self, now: Duration) -> Vec<TopicPartition> {
        let mut due = Vec::new();
        for (partition, trouble) in &mut self.troubles {
            if let Trouble::BackingOff { offset, attempt, until } = *trouble
                && until <= now
            {
                *trouble = Trouble::Retrying { offset, attempt };
                due.push(partition.clone());
            }
        }
        due
    }

    /// The next moment at which the lane has to do something by itself.
    pub fn next_wake(&self) -> Option<Duration> {
        let recover = match self.phase {
            Phase::Recovering { until, .. } => Some(until),
            _ => None,
        };
        let due = self.troubles.values().filter_map(|trouble| match trouble {
            Trouble::BackingOff { until, .. } => Some(*until),
            _ => None,
        });
        due.chain(recover).min()
    }

    /// Partitions went to somebody else. Should they come back, as when only the clients were made anew, a record that fails
    /// again keeps its count.
    pub fn revoked(&mut self, partitions: &[TopicPartition]) {
        for partition in partitions {
            let away = match self.troubles.remove(partition) {
                Some(
                    Trouble::BackingOff { offset, attempt, .. }
                    | Trouble::Retrying { offset, attempt }
                    | Trouble::Away { offset, attempt },
                ) => Trouble::Away { offset, attempt },
                Some(Trouble::Halted { .. }) | None => continue,
            };
            self.troubles.insert(partition.clone(), away);
        }
    }

    /// Whether records of the partition may be handed to a guest now.
    pub fn may_process(&self, partition: &TopicPartition) -> bool {
        !matches!(self.troubles.get(partition), Some(Trouble::BackingOff { .. } | Trouble::Halted { .. }))
    }

    /// Whether the partition stopped for good, and at which offset.
    pub fn halted_at(&self, partition: &TopicPartition) -> Option<Offset> {
        match self.troubles.get(partition) {
            Some(Trouble::Halted { offset }) => Some(*offset),
            _ => None,
        }
    }

    /// Whether any partition waits for, or is in, a retry.
    pub fn is_retrying(&self) -> bool {
        let retrying =
            |trouble: &Trouble| matches!(trouble, Trouble::BackingOff { .. } | Trouble::Retrying { .. });
        self.troubles.values().any(retrying)
    }

    /// Whether any partition stopped for good.
    pub fn is_halted(&self) -> bool {
        self.troubles.values().any(|trouble| matches!(trouble, Trouble::Halted { .. }))
    }

    /// The log failed.
    pub fn log_failed(&mut self, disposition: Disposition, now: Duration, jitter: f64) -> LogVerdict {
        if disposition == Disposition::Fenced {
            self.phase = Phase::Stopped;
            return LogVerdict::GiveUp;
        }
        self.log_failures = self.log_failures.saturating_add(1);
        let attempt = self.log_failures;
        let until = now + LOG_SCHEDULE.delay(attempt, jitter);
        if !matches!(self.phase, Phase::Draining | Phase::Stopped) {
            self.phase = Phase::Recovering { until, attempt };
        }
        LogVerdict::RewindAt(until)
    }

    /// What waited is read again, with fresh guests. A record that failed before keeps its count: a log that fails now and
    /// then must not let a poison record loop for ever.
    pub fn reread(&mut self) {
        for trouble in self.troubles.values_mut() {
            if let Trouble::BackingOff { offset, attempt, .. } = *trouble {
                *trouble = Trouble::Retrying { offset, attempt };
            }
        }
    }

    /// The session was rewound: the lane goes on.
    pub fn rewound(&mut self) {
        self.reread();
        if matches!(self.phase, Phase::Recovering { .. }) {
            self.phase = Phase::Running;
        }
    }

    /// A commit went through: the log is well.
    pub fn committed(&mut self) {
        self.log_failures = 0;
    }

    /// The lane is to end.
    pub fn drain(&mut self) {
        if self.phase != Phase::Stopped {
            self.phase = Phase::Draining;
        }
    }

    /// The lane ended.
    pub fn stopped(&mut self) {
        self.phase = Phase::Stopped;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::core::units::Span;
    use proptest::prelude::*;

    fn partition(number: u32) -> TopicPartition {
        TopicPartition::new(&"t".parse().unwrap(), number)
    }

    fn machine(max_retries: u32, on_exhausted: OnExhausted) -> Machine {
        Machine::new(ErrorPolicy {
            max_retries,
            on_exhausted,
            initial_backoff: Span::from_ms(100),
            ..ErrorPolicy::default()
        })
    }

    const fn ms(ms: u64) -> Duration {
        Duration::from_millis(ms)
    }

    #[test]
    fn a_record_is_retried_and_then_halts_its_partition_only() {
        let mut machine = machine(2, OnExhausted::Fail);
        let (bad, good) = (partition(0), partition(1));
        assert_eq!(machine.guest_failed(&bad, 7, ms(0), 0.0), Verdict::Retry { until: ms(100) });
        assert!(!machine.may_process(&bad) && machine.may_process(&good));
        assert_eq!(machine.next_wake(), Some(ms(100)));
        assert_eq!(machine.take_due(ms(99)), []);
        assert_eq!(machine.take_due(ms(100)), std::slice::from_ref(&bad));
        assert!(machine.may_process(&bad));
        assert_eq!(machine.guest_failed(&bad, 7, ms(100), 0.0), Verdict::Retry { until: ms(300) });
        assert_eq!(machine.take_due(ms(300)), std::slice::from_ref(&bad));
        assert_eq!(machine.guest_failed(&bad, 7, ms(300), 0.0), Verdict::Halt);
        assert_eq!(machine.halted_at(&bad), Some(7));
        assert!(!machine.may_process(&bad) && machine.may_process(&good));
    }

    #[test]
    fn another_record_starts_its_own_count() {
        let mut machine = machine(1, OnExhausted::Skip);
        let at = partition(0);
        assert!(matches!(machine.guest_failed(&at, 7, ms(0), 0.0), Verdict::Retry { .. }));
        assert_eq!(machine.take_due(ms(1000)).len(), 1);
        machine.progressed(&at, 8);
        assert!(matches!(machine.guest_failed(&at, 9, ms(0), 0.0), Verdict::Retry { .. }));
        assert_eq!(machine.take_due(ms(1000)).len(), 1);
        assert_eq!(machine.guest_failed(&at, 9, ms(0), 0.0), Verdict::Skip);
        assert!(machine.may_process(&at));
    }

    #[test]
    fn a_record_keeps_its_count_where_its_partition_goes_and_comes_back() {
        let (mut machine, at) = (machine(3, OnExhausted::Fail), partition(0));
        machine.guest_failed(&at, 7, ms(0), 0.5);
        machine.revoked(std::slice::from_ref(&at));
        assert!(!machine.is_retrying() && machine.next_wake().is_none(), "it is not ours");
        assert!(machine.may_process(&at));
        assert_eq!((machine.attempts(&at, 7), machine.attempts(&at, 8)), (1, 0));
        machine.guest_failed(&at, 7, ms(0), 0.5);
        assert_eq!(machine.attempts(&at, 7), 2);
        machine.revoked(std::slice::from_ref(&at));
        machine.progressed(&at, 8);
        assert_eq!(machine.attempts(&at, 7), 0, "it went through");
        machine.halt(&at, 9);
        machine.revoked(std::slice::from_ref(&at));
        assert_eq!(machine.halted_at(&at), None, "its next owner tries");
    }

    #[test]
    fn what_is_read_again_waits_no_longer() {
        let (mut machine, at) = (machine(3, OnExhausted::Fail), partition(0));
        machine.guest_failed(&at, 7, ms(0), 0.5);
        assert!(!machine.may_process(&at));
        machine.reread();
        assert!(machine.may_process(&at) && machine.is_retrying());
        assert_eq!(machine.attempts(&at, 7), 1);
    }

    #[test]
    fn the_log_is_waited_for_and_a_fence_ends_the_lane() {
        let mut machine = machine(1, OnExhausted::Fail);
        assert_eq!(machine.log_failed(Disposition::Transient, ms(0), 0.0), LogVerdict::RewindAt(ms(100)));
        assert!(matches!(machine.phase(), Phase::Recovering { .. }));
        machine.rewound();
        assert_eq!(machine.phase(), Phase::Running);
        assert_eq!(machine.log_failed(Disposition::Transient, ms(0), 0.0), LogVerdict::RewindAt(ms(200)));
        machine.committed();
        assert_eq!(machine.log_failed(Disposition::Fenced, ms(0), 0.0), LogVerdict::GiveUp);
        assert_eq!(machine.phase(), Phase::Stopped);
    }

    proptest! {
        /// However failures, rewinds and waits are mixed, one record is tried at most `max_retries + 1` times.
        #[test]
        fn no_record_is_tried_for_ever(max in 0u32..5, rewinds in proptest::collection::vec(any::<bool>(), 20)) {
            let mut machine = machine(max, OnExhausted::DeadLetter);
            let at = partition(0);
            let (mut tries, mut now) = (0, ms(0));
            for rewind in rewinds {
                tries += 1;
                match machine.guest_failed(&at, 3, now, 0.5) {
                    Verdict::Retry { until } => {
                        prop_assert!(until > now);
                        now = until;
                        if rewind { machine.rewound() } else { machine.take_due(now); }
                        prop_assert!(machine.may_process(&at));
                    }
                    verdict => {
                        prop_assert_eq!(verdict, Verdict::DeadLetter);
                        prop_assert_eq!(tries, max + 1);
                        return Ok(());
                    }
                }
            }
        }
    }
}
