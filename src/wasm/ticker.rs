//! The clock of running guests: counts ticks, and with each lets wasmtime look at the deadlines.
//!
//! A thread of its own, because a guest in an endless loop does not come by to look at a clock. It sleeps while
//! no guest runs, so that an idle node wakes nobody. It stops when the last handle is dropped.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use wasmtime::{Engine, EngineWeak};

/// Time between two ticks. A guest that ran too long is stopped at most two ticks late on an idle machine.
pub(super) const TICK: Duration = Duration::from_millis(5);

/// Ticks without a running guest after which the thread goes to sleep: short pauses between batches must not
/// cost a system call each.
const IDLE_TICKS: u32 = 20;

#[derive(Default)]
struct Shared {
    ticks: AtomicU64,
    running: AtomicUsize,
    asleep: AtomicBool,
    stop: AtomicBool,
}

/// Owns the thread.
pub(super) struct Ticker {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

/// Reads the ticker.
#[derive(Clone)]
pub(super) struct Ticks(Arc<Shared>);

impl Ticks {
    /// Ticks so far.
    pub(super) fn now(&self) -> u64 {
        self.0.ticks.load(Ordering::Relaxed)
    }
}

/// Keeps the ticker awake while a guest runs.
pub(super) struct Running<'a>(&'a Ticker);

impl Ticker {
    /// Starts the thread.
    pub(super) fn start(engine: &Engine) -> std::io::Result<Self> {
        let shared = Arc::new(Shared::default());
        let (engine, for_thread) = (engine.weak(), Arc::clone(&shared));
        let thread = thread::Builder::new()
            .name("guest-ticker".to_owned())
            .spawn(move || tick_until_stopped(&engine, &for_thread))?;
        Ok(Self { shared, thread: Some(thread) })
    }

    /// Ticks so far: a coarse clock that costs one load. It stands still while no guest runs.
    pub(super) fn now(&self) -> u64 {
        self.shared.ticks.load(Ordering::Relaxed)
    }

    /// The same clock for those who do not own the thread.
    pub(super) fn ticks(&self) -> Ticks {
        Ticks(Arc::clone(&self.shared))
    }

    /// To be held while a guest runs.
    pub(super) fn running(&self) -> Running<'_> {
        // Sequentially consistent on both sides: either the thread sees this guest before it parks, or this
        // side sees it asleep.
        self.shared.running.fetch_add(1, Ordering::SeqCst);
        if self.shared.asleep.load(Ordering::SeqCst) && self.shared.asleep.swap(false, Ordering::SeqCst) {
            self.wake();
        }
        Running(self)
    }

    fn wake(&self) {
        if let Some(thread) = &self.thread {
            thread.thread().unpark();
        }
    }

    #[cfg(test)]
    fn is_asleep(&self) -> bool {
        self.shared.asleep.load(Ordering::SeqCst)
    }
}

impl Drop for Running<'_> {
    fn drop(&mut self) {
        self.0.shared.running.fetch_sub(1, Ordering::SeqCst);
    }
}

impl Drop for Ticker {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::SeqCst);
        self.wake();
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// Ticks that a time-out is worth, rounded up, plus the one that may be due at once.
pub(super) fn ticks_for(time: Duration) -> u64 {
    u64::try_from(time.as_nanos().div_ceil(TICK.as_nanos())).unwrap_or(u64::MAX / 2).min(u64::MAX / 2) + 1
}

fn tick_until_stopped(engine: &EngineWeak, shared: &Shared) {
    let mut idle = 0;
    while !shared.stop.load(Ordering::SeqCst) {
        if shared.running.load(Ordering::SeqCst) > 0 {
            idle = 0;
        } else {
            idle += 1;
        }
        if idle > IDLE_TICKS {
            shared.asleep.store(true, Ordering::SeqCst);
            while shared.running.load(Ordering::SeqCst) == 0
                && !shared.stop.load(Ordering::SeqCst)
                && shared.asleep.load(Ordering::SeqCst)
            {
                thread::park();
            }
            shared.asleep.store(false, Ordering::SeqCst);
            idle = 0;
            continue;
        }
        thread::park_timeout(TICK);
        shared.ticks.fetch_add(1, Ordering::Relaxed);
        match engine.upgrade() {
            Some(engine) => engine.increment_epoch(),
            None => return,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Instant;

    fn wait_for(what: &str, condition: impl Fn() -> bool) {
        let begin = Instant::now();
        while !condition() {
            assert!(begin.elapsed() < Duration::from_secs(20), "{what}");
            thread::yield_now();
        }
    }

    #[test]
    fn ticks_while_a_guest_runs_and_sleeps_otherwise() {
        let engine = Engine::default();
        let ticker = Ticker::start(&engine).unwrap();
        for _ in 0..3 {
            wait_for("it falls asleep", || ticker.is_asleep());
            let before = ticker.now();
            let running = ticker.running();
            wait_for("it ticks", || ticker.now() > before + 2);
            drop(running);
        }
    }

    #[test]
    fn a_time_out_is_rounded_up() {
        assert_eq!(ticks_for(Duration::ZERO), 1);
        assert_eq!(ticks_for(Duration::from_millis(1)), 2);
        assert_eq!(ticks_for(TICK), 2);
        assert_eq!(ticks_for(Duration::from_secs(3)), 601);
        assert!(ticks_for(Duration::MAX) > 1 << 60);
    }
}
