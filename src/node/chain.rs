//! A chain of guests over one input topic: what one step writes, the next one reads. One step is the common case.
//!
//! The source batch goes to the first guest. What its finished records wrote is handed on, and a record counts as
//! done only when everything that stems from it has passed the last step. A failure names the step and belongs to
//! the source record; nothing that stems from that record, or a later one, is kept.
//!
//! Every step may be suspended with its batch half done. The furthest step with a batch goes first, so that at most one
//! batch is between two steps, and a call takes no longer than it was given, and a record per step.

use std::sync::Arc;

use crate::core::digest::Digest;
use crate::core::names::TopicName;
use crate::core::record::{Batch, Offset, OutputRef, Outputs, TimestampMs};
use crate::node::plan::ChainPlan;
use crate::ports::{Guest, GuestClass, GuestFailure, GuestLines, Run, RunBudget};

/// A failure of one step.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("step {step} ({}): {failure}", failure.class.as_str())]
pub struct StepFailure {
    /// The step.
    pub step: String,
    /// Its module.
    pub digest: Digest,
    /// What went wrong.
    pub failure: GuestFailure,
}

/// How a call of `Chain::run` ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ChainRun {
    /// Every record of the batch is done.
    Finished,
    /// Suspended before the record at `Chain::completed`; `run` goes on there.
    Suspended,
    /// Failed at the record at `Chain::completed`. The chain is of no use any more.
    Failed(StepFailure),
}

#[derive(Debug, Clone, Copy)]
struct Origin {
    offset: Offset,
    timestamp: TimestampMs,
    /// Payload bytes of this record and all before it.
    bytes: u64,
}

struct Stage {
    step: String,
    digest: Digest,
    guest: Box<dyn Guest>,
    /// Index in the source batch of each record of this stage's batch; unused in the first stage.
    origins: Vec<usize>,
    /// Whether its batch is not done.
    is_busy: bool,
    spare: Batch,
}

/// Started guests, one per step.
pub struct Chain {
    stages: Vec<Stage>,
    completed: usize,
    input: TopicName,
    partition: u32,
    /// What has to be known of each source record: the batch itself is with the first guest.
    sources: Vec<Origin>,
    /// With several steps: what the last one wrote, by source record, until the lane takes it.
    written: Outputs,
    /// The source record that a step failed at, and how. Told when all before it has passed the later steps.
    failed: Option<(usize, StepFailure)>,
}

impl Chain {
    /// Starts a guest for each step. On the lane's thread.
    pub fn start(
        plan: &ChainPlan,
        input: &TopicName,
        lines: &Arc<dyn GuestLines>,
    ) -> Result<Self, StepFailure> {
        let mut stages = Vec::with_capacity(plan.steps.len());
        for (i, step) in plan.steps.iter().enumerate() {
            let is_last = i + 1 == plan.steps.len();
            let spec = plan.guest_spec(step, input, is_last);
            let failed =
                |failure| StepFailure { step: step.name.clone(), digest: step.program.digest(), failure };
            let guest = step.program.start(&spec, lines.clone()).map_err(failed)?;
            stages.push(Stage {
                step: step.name.clone(),
                digest: step.program.digest(),
                guest,
                origins: Vec::new(),
                is_busy: false,
                spare: Batch::default(),
            });
        }
        Ok(Self::of(stages, input))
    }

    fn of(stages: Vec<Stage>, input: &TopicName) -> Self {
        Self {
            stages,
            completed: 0,
            input: input.clone(),
            partition: 0,
            sources: Vec::new(),
            written: Outputs::default(),
            failed: None,
        }
    }

    /// Gives a batch, of which the records before `first` are done.
    pub fn offer(&mut self, batch: Batch, first: usize) {
        self.completed = first;
        self.partition = batch.partition();
        self.sources.clear();
        let mut bytes = 0;
        self.sources.extend(batch.iter().map(|record| {
            bytes += record.payload.len() as u64;
            Origin { offset: record.offset, timestamp: record.timestamp, bytes }
        }));
        self.stages[0].is_busy = first < batch.len();
        self.stages[0].guest.offer(batch, first);
    }

    /// Runs until the batch is done, the budget is used up, or something fails.
    pub fn run(&mut self, budget: &RunBudget) -> ChainRun {
        if let [only] = self.stages.as_mut_slice() {
            let run = only.guest.run(budget);
            self.completed = only.guest.completed();
            return match run {
                Run::Finished => ChainRun::Finished,
                Run::Suspended => ChainRun::Suspended,
                Run::Failed(failure) => ChainRun::Failed(self.failure(0, failure)),
            };
        }
        let steps = u32::try_from(self.stages.len()).unwrap_or(u32::MAX);
        let share = RunBudget { time: budget.time / steps, ..budget.clone() };
        let furthest = self.stages.iter().rposition(|stage| stage.is_busy).unwrap_or(self.stages.len());
        for stage in furthest..self.stages.len() {
            // Nothing was handed on, so nothing is to do further on.
            if !self.stages[stage].is_busy {
                break;
            }
            self.run_stage(stage, &share);
        }
        self.completed = self.passed();
        if self.stages.iter().any(|stage| stage.is_busy) {
            return ChainRun::Suspended;
        }
        match self.failed.take() {
            Some((_, failure)) => ChainRun::Failed(failure),
            None => ChainRun::Finished,
        }
    }

    /// How many records of the source batch are done, counted from its start.
    pub fn completed(&self) -> usize {
        self.completed
    }

    /// Offset and timestamp of a record of the source batch.
    pub fn source(&self, index: usize) -> Option<(Offset, TimestampMs)> {
        self.sources.get(index).map(|source| (source.offset, source.timestamp))
    }

    /// Payload bytes of the source records from `start` to before `end`.
    pub fn source_bytes(&self, start: usize, end: usize) -> u64 {
        let up_to = |count: usize| {
            count.checked_sub(1).and_then(|last| self.sources.get(last)).map_or(0, |source| source.bytes)
        };
        up_to(end).saturating_sub(up_to(start))
    }

    /// The first source record with an output that `refuses` has something against: its index, and what.
    pub fn first_refused(
        &mut self,
        refuses: impl Fn(&OutputRef<'_>) -> Option<String>,
    ) -> Option<(usize, String)> {
        let outputs = self.outputs();
        (0..outputs.len()).find_map(|i| {
            let output = outputs.get(i)?;
            Some((output.source, refuses(&output)?))
        })
    }

    /// Hands out what the records before `end` wrote, with their index in the source batch, and forgets that; what
    /// stems from a record that is not done stays. Stops at the first error, with everything forgotten: the caller
    /// rewinds.
    pub fn drain<E>(
        &mut self,
        end: usize,
        mut take: impl FnMut(OutputRef<'_>, TimestampMs) -> Result<(), E>,
    ) -> Result<(), E> {
        let end = end.min(self.completed);
        let mut outputs = std::mem::take(self.outputs());
        let mut result = Ok(());
        for output in (0..outputs.len()).map_while(|i| outputs.get(i)) {
            if result.is_err() {
                break;
            }
            if output.source < end {
                result = take(output, self.sources[output.source].timestamp);
            } else {
                self.outputs().push(output.topic, output.source, output.payload);
            }
        }
        if result.is_err() || self.outputs().is_empty() {
            // The larger buffer is kept.
            outputs.clear();
            *self.outputs() = outputs;
        }
        result
    }

    /// What the last step wrote, by source record.
    fn outputs(&mut self) -> &mut Outputs {
        match self.stages.as_mut_slice() {
            [only] => only.guest.outputs(),
            _ => &mut self.written,
        }
    }

    /// Takes the source batch back.
    pub fn withdraw(&mut self) -> Batch {
        self.stages[0].guest.withdraw()
    }

    /// Bytes of linear memory of all steps.
    pub fn memory_bytes(&self) -> usize {
        self.stages.iter().map(|stage| stage.guest.memory_bytes()).sum()
    }

    fn failure(&self, stage: usize, failure: GuestFailure) -> StepFailure {
        let Stage { step, digest, .. } = &self.stages[stage];
        StepFailure { step: step.clone(), digest: *digest, failure }
    }

    /// Runs one step on its batch, and hands on what its finished records wrote. No later step has anything to do.
    fn run_stage(&mut self, stage: usize, budget: &RunBudget) {
        match self.stages[stage].guest.run(budget) {
            Run::Suspended => {}
            Run::Finished => self.stages[stage].is_busy = false,
            Run::Failed(failure) => {
                // What an earlier step failed at comes later in the source, so this failure counts.
                let origin = self.stages[stage].origin(stage);
                self.failed = Some((origin, self.failure(stage, failure)));
                self.stages[..=stage].iter_mut().for_each(|stage| stage.is_busy = false);
            }
        }
        if stage + 1 < self.stages.len() {
            self.hand_over(stage + 1);
        } else {
            self.collect();
        }
        if stage > 0 && !self.stages[stage].is_busy {
            self.stages[stage].spare = self.stages[stage].guest.withdraw();
        }
    }

    /// How many source records have passed every step.
    fn passed(&self) -> usize {
        let busy = self.stages.iter().enumerate().filter(|(_, stage)| stage.is_busy);
        let reached = busy.map(|(i, stage)| stage.origin(i));
        let failed = self.failed.as_ref().map(|(origin, _)| *origin);
        reached.chain(failed).chain([self.stages[0].guest.completed()]).min().unwrap_or(0)
    }

    /// Makes what the step before wrote the batch of this one. From the record on that a step failed at, nothing is.
    fn hand_over(&mut self, stage: usize) {
        let end = self.failed.as_ref().map_or(usize::MAX, |(origin, _)| *origin);
        let (before, now) = self.stages.split_at_mut(stage);
        let (before, now) = (&mut before[stage - 1], &mut now[0]);
        let mut batch = std::mem::take(&mut now.spare);
        batch.reset(&self.input, self.partition);
        now.origins.clear();
        let outputs = before.guest.outputs();
        for output in (0..outputs.len()).map_while(|i| outputs.get(i)) {
            let origin = if stage == 1 { output.source } else { before.origins[output.source] };
            if origin < end {
                let Origin { offset, timestamp, .. } = self.sources[origin];
                batch.push(offset, timestamp, output.payload);
                now.origins.push(origin);
            }
        }
        outputs.clear();
        if batch.is_empty() {
            now.spare = batch;
        } else {
            now.is_busy = true;
            now.guest.offer(batch, 0);
        }
    }

    /// Keeps what the last step wrote, by source record.
    fn collect(&mut self) {
        let Some(Stage { guest, origins, .. }) = self.stages.last_mut() else { return };
        let outputs = guest.outputs();
        for output in (0..outputs.len()).map_while(|i| outputs.get(i)) {
            self.written.push(output.topic, origins[output.source], output.payload);
        }
        outputs.clear();
    }
}

impl Stage {
    /// The source record of the first record of its batch that is not done.
    fn origin(&self, stage: usize) -> usize {
        let completed = self.guest.completed();
        if stage == 0 { completed } else { self.origins.get(completed).copied().unwrap_or(usize::MAX) }
    }
}

/// The failure of a record whose output a topic does not take.
pub fn refused(plan: &ChainPlan, message: String) -> StepFailure {
    let failure = GuestFailure { class: GuestClass::OutputRefused, message };
    match plan.steps.last() {
        Some(step) => StepFailure { step: step.name.clone(), digest: step.program.digest(), failure },
        None => StepFailure { step: String::new(), digest: Digest::from_bytes([0; 32]), failure },
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::core::record::{Payload, Record};

    /// Does so many records at a time; writes so many copies of each; fails at one.
    struct Scripted {
        at_once: usize,
        copies: usize,
        fails_at: Option<&'static str>,
        batch: Batch,
        completed: usize,
        outputs: Outputs,
    }

    impl Guest for Scripted {
        fn offer(&mut self, batch: Batch, first: usize) {
            (self.batch, self.completed) = (batch, first);
        }

        fn run(&mut self, _: &RunBudget) -> Run {
            for _ in 0..self.at_once {
                let Some(record) = self.batch.get(self.completed) else { return Run::Finished };
                if self.fails_at.is_some_and(|at| text(record.payload) == at) {
                    return Run::Failed(GuestFailure { class: GuestClass::Trap, message: "it broke".into() });
                }
                for _ in 0..self.copies {
                    self.outputs.push(0, self.completed, record.payload);
                }
                self.completed += 1;
            }
            if self.completed == self.batch.len() { Run::Finished } else { Run::Suspended }
        }

        fn completed(&self) -> usize {
            self.completed
        }

        fn outputs(&mut self) -> &mut Outputs {
            &mut self.outputs
        }

        fn withdraw(&mut self) -> Batch {
            std::mem::take(&mut self.batch)
        }

        fn memory_bytes(&self) -> usize {
            0
        }
    }

    fn text(payload: &[u8]) -> String {
        String::from_utf8(Payload::parse(payload).unwrap().value.unwrap().to_vec()).unwrap()
    }

    /// A chain of steps `(at once, copies, fails at)` with the records "0" to "3".
    fn chain(steps: &[(usize, usize, Option<&'static str>)]) -> Chain {
        let stage =
            |(i, (at_once, copies, fails_at)): (usize, &(usize, usize, Option<&'static str>))| Stage {
                step: format!("step{i}"),
                digest: Digest::from_bytes([0; 32]),
                guest: Box::new(Scripted {
                    at_once: *at_once,
                    copies: *copies,
                    fails_at: *fails_at,
                    batch: Batch::default(),
                    completed: 0,
                    outputs: Outputs::default(),
                }),
                origins: Vec::new(),
                is_busy: false,
                spare: Batch::default(),
            };
        let input: TopicName = "in".parse().unwrap();
        let mut chain = Chain::of(steps.iter().enumerate().map(stage).collect(), &input);
        let mut batch = Batch::default();
        batch.reset(&input, 0);
        for value in 0..4i64 {
            let payload = Record::new(None, Some(value.to_string().as_bytes())).payload();
            batch.push(value, value, &payload);
        }
        chain.offer(batch, 0);
        chain
    }

    /// Runs to the end: the sources of what came out, in order, how it ended, and in how many calls.
    fn run(chain: &mut Chain) -> (Vec<usize>, Result<(), String>, usize) {
        let budget = RunBudget {
            stop: Arc::default(),
            output_bytes: 100,
            time: std::time::Duration::MAX,
            gently: false,
        };
        let mut sources = Vec::new();
        for calls in 1..100 {
            let ended = chain.run(&budget);
            let done = chain.completed();
            let drained: Result<(), ()> = chain.drain(done, |output, timestamp| {
                assert!(output.source < done && timestamp == output.source as i64);
                assert_eq!(text(output.payload), output.source.to_string());
                sources.push(output.source);
                Ok(())
            });
            drained.unwrap();
            match ended {
                ChainRun::Suspended => {}
                ChainRun::Finished => return (sources, Ok(()), calls),
                ChainRun::Failed(failure) => {
                    return (sources, Err(format!("{} at {done}", failure.step)), calls);
                }
            }
        }
        unreachable!("it does not come to an end")
    }

    #[test]
    fn every_step_keeps_to_its_share_and_nothing_is_lost() {
        let all = usize::MAX;
        // The records that the slowest step is given, one at a time, make so many calls at least.
        let cases: [(&[_], usize); 4] = [
            (&[(all, 1, None), (all, 1, None)], 1),
            (&[(all, 3, None), (1, 1, None)], 12),
            (&[(1, 1, None), (all, 3, None), (2, 1, None)], 8),
            (&[(all, 2, None), (all, 2, None), (all, 1, None)], 1),
        ];
        for (steps, calls) in cases {
            let copies: usize = steps.iter().map(|(_, copies, _)| copies).product();
            let expected: Vec<_> = (0..4).flat_map(|source| vec![source; copies]).collect();
            let (sources, ended, took) = run(&mut chain(steps));
            assert_eq!((sources, ended), (expected, Ok(())), "{steps:?}");
            assert!(took >= calls, "{steps:?} took {took} calls");
        }
    }

    #[test]
    fn a_failure_is_told_when_all_before_it_came_out() {
        let all = usize::MAX;
        let cases: [(&[_], usize, &str); 4] = [
            (&[(all, 2, Some("3")), (1, 1, None)], 3, "step0 at 3"),
            (&[(all, 2, None), (1, 1, Some("2"))], 2, "step1 at 2"),
            (&[(all, 1, Some("3")), (1, 2, None), (1, 1, Some("1"))], 1, "step2 at 1"),
            (&[(all, 1, Some("0")), (all, 1, None)], 0, "step0 at 0"),
        ];
        for (steps, done, failure) in cases {
            let copies: usize = steps.iter().map(|(_, copies, _)| copies).product();
            let expected: Vec<_> = (0..done).flat_map(|source| vec![source; copies]).collect();
            let (sources, ended, _) = run(&mut chain(steps));
            assert_eq!((sources, ended), (expected, Err(failure.to_owned())), "{steps:?}");
        }
    }
}
