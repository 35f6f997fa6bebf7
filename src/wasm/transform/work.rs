//! What travels between the lane and the guest's fiber: the batch, how far the guest got, and what it wrote.
//!
//! It is one box, owned by whoever runs: by the guest object while the fiber is suspended, by the fiber's store
//! while it runs. It changes hands only at suspension, so that nothing is locked per record.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll};

use parking_lot::Mutex;

use crate::core::record::{Batch, Outputs, RecordRef};
use crate::ports::RunBudget;

/// Where a batch stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) enum Phase {
    /// There is none, or every record is done.
    #[default]
    Done,
    /// The guest has not seen it.
    Offered,
    /// The guest has its header; no record was handed out.
    Opened,
    /// The record before the cursor was handed out and is being worked on.
    Reading,
}

/// A batch and its state.
#[derive(Debug, Default)]
pub(super) struct Work {
    pub(super) batch: Batch,
    pub(super) outputs: Outputs,
    pub(super) phase: Phase,
    /// The record to be handed out next.
    pub(super) cursor: usize,
    /// Bytes that the current record has written.
    pub(super) record_bytes: usize,
    /// Bytes of linear memory at the last suspension.
    pub(super) memory_bytes: usize,
    stop: Arc<AtomicBool>,
    output_budget: usize,
    until_tick: u64,
    /// Whether it rests in between.
    pub(super) gently: bool,
}

impl Work {
    /// Takes a batch whose records from `first` on are to be done.
    pub(super) fn offer(&mut self, batch: Batch, first: usize) {
        self.cursor = first.min(batch.len());
        self.phase = if self.cursor < batch.len() { Phase::Offered } else { Phase::Done };
        self.batch = batch;
        self.record_bytes = 0;
    }

    /// Says how far the guest may run.
    pub(super) fn allow(&mut self, budget: &RunBudget, until_tick: u64) {
        if !Arc::ptr_eq(&self.stop, &budget.stop) {
            self.stop = Arc::clone(&budget.stop);
        }
        self.output_budget = budget.output_bytes.max(1);
        self.until_tick = until_tick;
        self.gently = budget.gently;
    }

    /// How many records are done.
    pub(super) fn completed(&self) -> usize {
        match self.phase {
            Phase::Reading => self.cursor - 1,
            Phase::Done | Phase::Offered | Phase::Opened => self.cursor,
        }
    }

    /// The index of the record that outputs belong to.
    pub(super) fn current(&self) -> usize {
        self.completed()
    }

    /// Whether the guest must be suspended before the next record.
    pub(super) fn is_used_up(&self, tick: u64) -> bool {
        self.stop.load(Ordering::Relaxed)
            || self.outputs.bytes() >= self.output_budget
            || tick >= self.until_tick
    }

    /// Whether the lane is to end.
    pub(super) fn is_told_to_stop(&self) -> bool {
        self.stop.load(Ordering::Relaxed)
    }

    /// Whether asking for a record ends another. With nothing left to hand out, the last one stays the current one until
    /// the guest asks for a batch.
    pub(super) fn is_between_records(&self) -> bool {
        self.phase == Phase::Reading && self.cursor < self.batch.len()
    }

    /// The record that was handed out is done; the guest waits between records.
    pub(super) fn finish_record(&mut self) {
        self.phase = Phase::Opened;
        self.record_bytes = 0;
    }

    /// The guest asked for another batch: what it left unread counts as done, as in the original.
    pub(super) fn finish_batch(&mut self) {
        self.cursor = self.batch.len();
        self.phase = Phase::Done;
        self.record_bytes = 0;
    }

    /// The guest failed: what the record at fault wrote is dropped, what came before stays.
    pub(super) fn fail(&mut self) {
        let completed = self.completed();
        self.outputs.drop_from(completed);
        self.cursor = completed;
        self.phase = Phase::Opened;
    }

    /// The next record, without moving on.
    pub(super) fn next(&self) -> Option<RecordRef<'_>> {
        self.batch.get(self.cursor)
    }

    /// The next record is in the guest's hands.
    pub(super) fn hand_out(&mut self) {
        self.cursor += 1;
        self.phase = Phase::Reading;
        self.record_bytes = 0;
    }
}

/// Where the box lies while it changes hands.
#[derive(Debug, Default)]
pub(super) struct Slot(Mutex<Option<Box<Work>>>);

impl Slot {
    pub(super) fn put(&self, work: Box<Work>) {
        *self.0.lock() = Some(work);
    }

    pub(super) fn take(&self) -> Option<Box<Work>> {
        self.0.lock().take()
    }
}

/// Suspends the fiber once, then waits for work to lie in the slot.
pub(super) struct Handover {
    slot: Arc<Slot>,
    suspended: bool,
}

impl Handover {
    pub(super) fn new(slot: Arc<Slot>) -> Self {
        Self { slot, suspended: false }
    }
}

impl Future for Handover {
    type Output = Box<Work>;

    fn poll(mut self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Box<Work>> {
        if !self.suspended {
            self.suspended = true;
            return Poll::Pending;
        }
        // The guest object polls only when it has put work there, so nobody has to be woken.
        self.slot.take().map_or(Poll::Pending, Poll::Ready)
    }
}
