//! A chain of guests over one input topic: what one step writes, the next one reads. One step is the common case.
//!
//! The source batch goes to the first guest. What its finished records wrote is handed on, and a record counts as
//! done only when everything that stems from it has passed the last step. A failure names the step and belongs to
//! the source record; nothing that stems from that record, or a later one, is kept.

use std::sync::Arc;
use std::time::Duration;

use crate::core::digest::Digest;
use crate::core::names::TopicName;
use crate::core::record::{Batch, Offset, OutputRef, TimestampMs};
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
    spare: Option<Batch>,
}

/// Started guests, one per step.
pub struct Chain {
    stages: Vec<Stage>,
    completed: usize,
    input: TopicName,
    partition: u32,
    /// What has to be known of each source record: the batch itself is with the first guest.
    sources: Vec<Origin>,
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
                spare: Some(Batch::default()),
            });
        }
        Ok(Self { stages, completed: 0, input: input.clone(), partition: 0, sources: Vec::new() })
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
        self.stages[0].guest.offer(batch, first);
    }

    /// Runs until the batch is done, the budget is used up, or something fails.
    pub fn run(&mut self, budget: &RunBudget) -> ChainRun {
        let first = self.stages[0].guest.run(budget);
        let done = self.stages[0].guest.completed();
        if self.stages.len() == 1 {
            self.completed = done;
            return self.ended(0, first);
        }
        let passed = self.pass_on(done, budget);
        match (passed, first) {
            // A later step failed at an earlier record than the first one did: that failure counts.
            (Err(failed), _) => failed,
            (Ok(()), first) => {
                self.completed = done;
                self.ended(0, first)
            }
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
        let only = self.stages.len() == 1;
        let Stage { guest, origins, .. } = self.stages.last_mut()?;
        let outputs = guest.outputs();
        let refused = (0..outputs.len()).find_map(|i| {
            let output = outputs.get(i)?;
            Some((output.source, refuses(&output)?))
        });
        refused.map(|(source, message)| (if only { source } else { origins[source] }, message))
    }

    /// Hands out what the records before `end` wrote, with their index in the source batch, and forgets all of it.
    /// Stops at the first error, with everything forgotten all the same: the caller rewinds.
    pub fn drain<E>(
        &mut self,
        end: usize,
        mut take: impl FnMut(OutputRef<'_>, TimestampMs) -> Result<(), E>,
    ) -> Result<(), E> {
        let only = self.stages.len() == 1;
        let end = end.min(self.completed);
        let Some(Stage { guest, origins, .. }) = self.stages.last_mut() else { return Ok(()) };
        let outputs = guest.outputs();
        let mut result = Ok(());
        for i in 0..outputs.len() {
            let Some(output) = outputs.get(i) else { break };
            let source = if only { output.source } else { origins[output.source] };
            if source < end {
                let timestamp = self.sources[source].timestamp;
                result = take(OutputRef { source, ..output }, timestamp);
            }
            if result.is_err() {
                break;
            }
        }
        outputs.clear();
        result
    }

    /// Takes the source batch back.
    pub fn withdraw(&mut self) -> Batch {
        self.stages[0].guest.withdraw()
    }

    /// Bytes of linear memory of all steps.
    pub fn memory_bytes(&self) -> usize {
        self.stages.iter().map(|stage| stage.guest.memory_bytes()).sum()
    }

    fn ended(&self, stage: usize, run: Run) -> ChainRun {
        match run {
            Run::Finished => ChainRun::Finished,
            Run::Suspended => ChainRun::Suspended,
            Run::Failed(failure) => ChainRun::Failed(self.failure(stage, failure)),
        }
    }

    fn failure(&self, stage: usize, failure: GuestFailure) -> StepFailure {
        let Stage { step, digest, .. } = &self.stages[stage];
        StepFailure { step: step.clone(), digest: *digest, failure }
    }

    /// Passes what the first `done` source records wrote through the later steps. Fails with `completed` at the
    /// source record at which a later step failed, or was told to stop.
    fn pass_on(&mut self, mut done: usize, budget: &RunBudget) -> Result<(), ChainRun> {
        let through = RunBudget { output_bytes: usize::MAX, time: Duration::MAX, ..budget.clone() };
        let mut ended = Ok(());
        for stage in 1..self.stages.len() {
            let batch = self.hand_over(stage, done);
            if batch.is_empty() {
                self.stages[stage].spare = Some(batch);
                continue;
            }
            let now = &mut self.stages[stage];
            now.guest.offer(batch, 0);
            let run = now.guest.run(&through);
            let finished = now.guest.completed();
            now.spare = Some(now.guest.withdraw());
            if let Some(origin) = now.origins.get(finished) {
                // The source record of the first unfinished record, and all after it, are not done.
                done = *origin;
                ended = Err(match run {
                    Run::Failed(failure) => ChainRun::Failed(self.failure(stage, failure)),
                    _ => ChainRun::Suspended,
                });
            }
        }
        self.completed = done;
        ended
    }

    /// Makes what one stage wrote for source records before `done` the batch of the next.
    fn hand_over(&mut self, stage: usize, done: usize) -> Batch {
        let (before, now) = self.stages.split_at_mut(stage);
        let (before, now) = (&mut before[stage - 1], &mut now[0]);
        let mut batch = now.spare.take().unwrap_or_default();
        batch.reset(&self.input, self.partition);
        now.origins.clear();
        let outputs = before.guest.outputs();
        for i in 0..outputs.len() {
            let Some(output) = outputs.get(i) else { break };
            let origin = if stage == 1 { output.source } else { before.origins[output.source] };
            if origin < done {
                let Origin { offset, timestamp, .. } = self.sources[origin];
                batch.push(offset, timestamp, output.payload);
                now.origins.push(origin);
            }
        }
        outputs.clear();
        batch
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
