//! One instance: a fiber that runs the module's `_start`, driven by hand on the lane's thread.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::task::{Context, Poll, Waker};

use wasmtime::Store;

use crate::core::record::{Batch, Outputs};
use crate::ports::{Guest, GuestClass, GuestFailure, Run, RunBudget};
use crate::wasm::ticker::{TICK, ticks_for};

use super::Host;
use super::failure::describe;
use super::fast_path::Bound;
use super::state::{State, look, rearm};
use super::work::{Phase, Slot, Work};

/// How a fiber ended, and what it had in its hands.
struct End {
    failure: GuestFailure,
    work: Option<Box<Work>>,
    /// It did nothing wrong: its lane ends.
    was_given_up: bool,
}

type Fiber = Pin<Box<dyn Future<Output = End>>>;

/// A guest that keeps to the transform ABI.
pub(super) struct TransformGuest {
    /// `None` once it has ended: a store is never entered again after a failure.
    fiber: Option<Fiber>,
    slot: Arc<Slot>,
    work: Box<Work>,
    host: Arc<Host>,
}

impl TransformGuest {
    /// Makes an instance and runs it to its first request for a batch.
    pub(super) fn start(host: Arc<Host>, bound: Bound, state: State) -> Result<Self, GuestFailure> {
        let slot = Arc::clone(&state.slot);
        let mut store = Store::new(&host.engine, state);
        store.limiter(|state| &mut state.limits);
        store.epoch_deadline_callback(look);
        rearm(&mut store);
        let mut guest =
            Self { fiber: Some(Box::pin(run_to_its_end(store, bound))), slot, work: Box::default(), host };
        match guest.poll() {
            None => {
                guest.work = guest.slot.take().unwrap_or_default();
                Ok(guest)
            }
            Some(end) => Err(end.failure),
        }
    }

    /// Runs the fiber to its next suspension, or its end.
    fn poll(&mut self) -> Option<End> {
        let fiber = self.fiber.as_mut()?;
        let _running = self.host.ticker.running();
        match fiber.as_mut().poll(&mut Context::from_waker(Waker::noop())) {
            Poll::Pending => None,
            Poll::Ready(end) => {
                self.fiber = None;
                Some(end)
            }
        }
    }

    fn ended(&mut self, end: End) -> Run {
        self.work = end.work.unwrap_or_default();
        self.work.fail();
        if end.was_given_up { Run::Suspended } else { Run::Failed(end.failure) }
    }
}

impl Guest for TransformGuest {
    fn offer(&mut self, batch: Batch, first: usize) {
        if self.work.phase == Phase::Opened || self.work.phase == Phase::Reading {
            // It holds the header of another batch and would read these records as part of that one.
            self.fiber = None;
        }
        self.work.offer(batch, first);
    }

    fn run(&mut self, budget: &RunBudget) -> Run {
        if self.work.phase == Phase::Done {
            return Run::Finished;
        }
        if self.fiber.is_none() {
            return Run::Failed(GuestFailure {
                class: GuestClass::Exited,
                message: "the instance is gone: it failed, or its batch was taken back midway".to_owned(),
            });
        }
        if budget.stop.load(Ordering::Relaxed) || self.work.outputs.bytes() >= budget.output_bytes.max(1) {
            return Run::Suspended;
        }
        // Rounded down: the call may not take longer than it was given.
        let ticks = ticks_for(budget.time.saturating_sub(TICK)).max(1);
        self.work.allow(budget, self.host.ticker.now().saturating_add(ticks));
        self.slot.put(std::mem::take(&mut self.work));
        if let Some(end) = self.poll() {
            return self.ended(end);
        }
        let Some(work) = self.slot.take() else {
            self.fiber = None;
            return Run::Failed(GuestFailure {
                class: GuestClass::Abi,
                message: "the guest was suspended outside a request for records: please report this"
                    .to_owned(),
            });
        };
        self.work = work;
        if self.work.phase == Phase::Done { Run::Finished } else { Run::Suspended }
    }

    fn completed(&self) -> usize {
        self.work.completed()
    }

    fn outputs(&mut self) -> &mut Outputs {
        &mut self.work.outputs
    }

    fn withdraw(&mut self) -> Batch {
        match self.work.phase {
            Phase::Done => {}
            // The guest has not seen it: as if it had never been offered.
            Phase::Offered => self.work.phase = Phase::Done,
            Phase::Opened | Phase::Reading => self.fiber = None,
        }
        std::mem::take(&mut self.work.batch)
    }

    fn memory_bytes(&self) -> usize {
        self.work.memory_bytes
    }
}

/// The body of the fiber. The store lives and dies in here.
async fn run_to_its_end(mut store: Store<State>, bound: Bound) -> End {
    let result = instantiate_and_run(&mut store, &bound).await;
    let state = store.data_mut();
    state.lines.flush();
    let failure = describe(result.as_ref().err(), state);
    End { failure, was_given_up: state.was_given_up, work: state.work.take() }
}

async fn instantiate_and_run(store: &mut Store<State>, bound: &Bound) -> wasmtime::Result<()> {
    let instance = bound.instantiate(store).await?;
    store.data_mut().memory = instance.get_memory(&mut *store, "memory");
    let start = instance.get_typed_func::<(), ()>(&mut *store, "_start")?;
    start.call_async(&mut *store, ()).await
}
