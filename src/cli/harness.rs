//! Runs records through a chain of guests without a log: what `test`, `bench` and `doctor` share.

use std::sync::Arc;
use std::time::Duration;

use crate::core::names::TopicName;
use crate::core::record::{Batch, Record};
use crate::node::chain::{Chain, ChainRun, StepFailure};
use crate::node::plan::ChainPlan;
use crate::ports::{GuestLines, RunBudget};

/// A record that a chain wrote.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Written {
    /// The output, by the name that guests know.
    pub topic: Option<TopicName>,
    /// The record.
    pub record: Record,
}

/// What came of a run.
#[derive(Debug)]
pub struct Outcome {
    /// What the finished records wrote, in order.
    pub written: Vec<Written>,
    /// How many records were finished.
    pub finished: usize,
    /// What the next one failed with.
    pub failure: Option<StepFailure>,
}

/// A budget that never suspends.
pub fn unlimited() -> RunBudget {
    RunBudget { stop: Arc::default(), output_bytes: usize::MAX, time: Duration::MAX, gently: false }
}

/// Runs these records through a fresh chain.
pub fn run(
    plan: &ChainPlan,
    input: &TopicName,
    records: &[Record],
    lines: &Arc<dyn GuestLines>,
) -> Result<Outcome, StepFailure> {
    let mut chain = Chain::start(plan, input, lines)?;
    let mut batch = Batch::default();
    batch.reset(input, 0);
    for (offset, record) in (0..).zip(records) {
        batch.push(offset, record.timestamp.unwrap_or(0), &record.payload());
    }
    let mut outcome = Outcome { written: Vec::new(), finished: 0, failure: None };
    if records.is_empty() {
        return Ok(outcome);
    }
    chain.offer(batch, 0);
    loop {
        let ran = chain.run(&unlimited());
        collect(&mut chain, plan, &mut outcome.written);
        outcome.finished = chain.completed();
        match ran {
            ChainRun::Finished => return Ok(outcome),
            ChainRun::Suspended => {}
            ChainRun::Failed(failure) => {
                outcome.failure = Some(failure);
                return Ok(outcome);
            }
        }
    }
}

fn collect(chain: &mut Chain, plan: &ChainPlan, written: &mut Vec<Written>) {
    let taken = chain.drain::<std::convert::Infallible>(usize::MAX, |output, timestamp| {
        // The host has checked what guests write.
        if let Ok(record) = Record::from_payload(output.payload, timestamp) {
            written.push(Written { topic: plan.outputs.get(output.topic as usize).cloned(), record });
        }
        Ok(())
    });
    match taken {
        Ok(()) => {}
    }
}
